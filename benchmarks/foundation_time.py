"""Where the time goes with the foundation annotators: in the models' forward passes, or around them.

    python benchmarks/foundation_time.py --out DIR [--src libero --data-dir DIR]

Annotates with the shipped tiny checkpoints, with which the share of everything else is largest. It annotates twice in one
process and prints the times of the second run: the first loads the models and warms up.
"""

import argparse
from pathlib import Path

from foundation_quality import TINY

from annotate.jobs.annotate import annotate, default_data_dir
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings


def main() -> None:
    """Annotate twice; print seconds and shares of each stage of the second run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", default="sample")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if any((arguments.out / name).exists() for name in ("warm-up", "measured")):
        parser.error(f"{arguments.out} has results already, and nothing would be annotated: name another --out")
    data_dir = default_data_dir(arguments.src, arguments.data_dir)
    settings = AnnotateSettings.load(None, TINY)
    annotate(arguments.src, data_dir, arguments.out / "warm-up", settings, Execution())
    totals = annotate(arguments.src, data_dir, arguments.out / "measured", settings, Execution())
    stages = totals["stages"]
    whole = sum(stages.values())
    print(f"{totals['episodes']} episodes, {whole:.1f} s")
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"{stage:24s}{seconds:8.2f} s {seconds / whole:7.1%}")
    forward = sum(seconds for stage, seconds in stages.items() if stage.endswith("forward"))
    print(f"outside the forward passes {1 - forward / whole:.1%}")


if __name__ == "__main__":
    main()

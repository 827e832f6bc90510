"""How good the `motion` annotators are on scenes that were not used to build them, undisturbed and disturbed.

    python benchmarks/motion_quality.py --out DIR [--episodes 20] [--seed 2026]

Records `--episodes` demonstrations of each of three LIBERO suites; copies them, once cut before the arm goes home, and once
with the camera shaken by up to three pixels; annotates and evaluates each set, and prints one table. Data sets that DIR
already holds are used again. Needs the extra [sim]; about half an hour for 60 episodes on two cores.
"""

import argparse
from pathlib import Path
from typing import Any

from annotation_table import figures, quality_table
from rich.console import Console

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from evaluation.annotations import evaluate
from simulation import truth
from simulation.perturb import cut_before_home, shake_camera
from simulation.recording import record_sample

SUITES = ("libero_object", "libero_spatial", "libero_goal")


def prepare(out: Path, episodes: int, seed: int) -> dict[str, list[Path]]:
    """Record and disturb the data sets that do not exist yet; returns the data directories of each condition."""
    conditions: dict[str, list[Path]] = {"undisturbed": [], "cut before home": [], "camera shaken": []}
    for suite in SUITES:
        recorded, cut, shaken = (out / kind / suite for kind in ("recorded", "cut", "shaken"))
        if not recorded.exists():
            print(f"recording {episodes} episodes of {suite} ...", flush=True)
            record_sample(suite, episodes, seed, recorded)
        if not cut.exists():
            cut_before_home(recorded, cut)
        if not shaken.exists():
            shake_camera(recorded, shaken)
        for paths, path in zip(conditions.values(), (recorded, cut, shaken), strict=True):
            paths.append(path)
    return conditions


def measure(data_dir: Path) -> dict[str, Any]:
    """Annotate a data set from scratch and evaluate it against its truth."""
    annotations = data_dir.with_name(f"{data_dir.name}-annotations")
    annotate("libero", data_dir, annotations, AnnotateSettings(annotators="motion"), Execution())
    return evaluate(annotations, data_dir / truth.FILE_NAME, data_dir.with_name(f"{data_dir.name}-evaluation"))


def main() -> None:
    """Print the table, one row per condition and suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=20, help="of each suite")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    report = quality_table("condition", "suite")
    for condition, directories in prepare(arguments.out, arguments.episodes, arguments.seed).items():
        results = [measure(directory) for directory in directories]
        for suite, result in zip(SUITES, results, strict=True):
            report.add_row(condition, suite, *figures([result["overall"]]))
        report.add_row(condition, "all", *figures([result["overall"] for result in results]), end_section=True)
    Console(width=200).print(report)


if __name__ == "__main__":
    main()

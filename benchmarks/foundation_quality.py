"""How good `foundation` with the tiny checkpoints is on held-out scenes, with and without motion; and `motion`.

    python -m tiny_models.record --evaluation --out DIR          # once: 100 episodes of known tasks, 24 of unknown ones
    python benchmarks/foundation_quality.py --data DIR/seen_tasks --out OUT
    python benchmarks/foundation_quality.py --data DIR/unseen_tasks --out OUT

Prints one table, and how much of the target a larger region holds. Nothing may be tuned on these scenes.
"""

import argparse
from pathlib import Path
from typing import Any

from annotation_table import figures, quality_table
from rich.console import Console
from rich.table import Table

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from evaluation.annotations import evaluate
from simulation import truth

TINY = ("foundation.detector=tiny", "foundation.segmenter=tiny", "target.method=grammar")
WITHOUT_MOTION = ("choice.motion_weight=0", "filter.min_evidence=0", "filter.min_coverage=0")
WITH_MOTION, ALONE, MOTION = "foundation, with motion", "foundation alone", "motion"


def measure(data_dir: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Annotate one data set in the three ways and evaluate each against its truth."""
    settings = {
        "foundation": AnnotateSettings.load(None, TINY),
        "alone": AnnotateSettings.load(None, (*TINY, *WITHOUT_MOTION)),
        "motion": AnnotateSettings(annotators="motion"),
    }
    for folder, chosen in settings.items():
        annotate("libero", data_dir, out / folder, chosen, Execution())
    folders = {WITH_MOTION: "foundation", ALONE: "alone", MOTION: "motion"}
    return {
        way: evaluate(out / folder, data_dir / truth.FILE_NAME, out / f"{folder}-evaluation")
        for way, folder in folders.items()
    }


def main() -> None:
    """Print the table, one row per way and suite, and the curve of the default way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one recorded data set per suite")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = {
        data_dir.name: measure(data_dir, arguments.out / arguments.data.name / data_dir.name)
        for data_dir in sorted(path for path in arguments.data.iterdir() if path.is_dir())
    }
    report = quality_table("annotators", "suite")
    for way in (WITH_MOTION, ALONE, MOTION):
        for suite, result in results.items():
            report.add_row(way, suite, *figures([result[way]["overall"]]))
        report.add_row(way, "all", *figures([result[way]["overall"] for result in results.values()]), end_section=True)
    Console(width=200).print(report, curve([result[WITH_MOTION] for result in results.values()]))


def curve(results: list[dict[str, Any]]) -> Table:
    """A table of the region's expansion: the share of the target inside it, and its share of the image, over all suites."""
    table = Table("factor", "target inside", "region, share of the image", title="the gripper box, expanded")
    counts = [result["overall"]["region"]["n"] for result in results]
    for points in zip(*(result["region_curve"] for result in results), strict=True):
        means = [
            sum(n * point[name] for n, point in zip(counts, points, strict=True)) / sum(counts)
            for name in ("recall", "area")
        ]
        table.add_row(str(points[0]["factor"]), *(f"{mean:.3f}" for mean in means))
    return table


if __name__ == "__main__":
    main()

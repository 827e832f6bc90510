"""Drawer handles and stove knobs, which are not carried away: how often `foundation` with the tiny checkpoints finds them.

    python -m tiny_models.record --evaluation --out DIR          # records DIR/handles: 20 demonstrations of each task
    python benchmarks/handles.py --data DIR/handles/libero_goal --out OUT

Prints one row per verb class, and per wrong mask what it lies on. Nothing may be tuned on these scenes.
"""

import argparse
from pathlib import Path

from annotation_table import figures, quality_table
from foundation_quality import TINY
from rich.console import Console

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from evaluation.annotation_measures import GOOD_IOU
from evaluation.annotations import evaluate
from pixel160k.format import masks
from pixel160k.format.table import read_annotations
from simulation import truth


def main() -> None:
    """Annotate, evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the recorded data set")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    annotations = arguments.out / "annotations"
    annotate("libero", arguments.data, annotations, AnnotateSettings.load(None, TINY), Execution())
    result = evaluate(annotations, arguments.data / truth.FILE_NAME, arguments.out / "evaluation")
    report = quality_table("verb class")
    for verb, measured in result["by_verb"].items():
        report.add_row(verb, *figures([measured]))
    report.add_row("all", *figures([result["overall"]]))
    console = Console(width=200)
    console.print(report)
    truths = truth.read(arguments.data / truth.FILE_NAME)
    for row in read_annotations(annotations):
        told = truths[row.episode_id]
        found = None if row.object_mask is None else masks.decode(row.object_mask)
        if found is not None and masks.iou(found, told.mask(row.first_step)) >= GOOD_IOU:
            continue
        others = {} if found is None else {name: masks.iou(found, told.mask(0, name)) for name in told.steps[0].others}
        nearest = max(others, key=lambda name: others[name], default="nothing")
        console.print(
            f"{row.episode_id}: {row.status} {row.reason}; looked for {row.target_part or row.target_object}, found "
            f"{nearest} (IoU {others.get(nearest, 0):.2f}); {row.detail}"
        )


if __name__ == "__main__":
    main()

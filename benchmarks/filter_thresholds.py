"""What each threshold of the filter does, and each rule about masks: how much that is right it keeps, how much wrong it lets through.

    python -m tiny_models.record --out DIR                        # nothing is trained on its monitor/ episodes
    python benchmarks/filter_thresholds.py --data DIR/monitor

Annotates every episode with the tiny checkpoints, once with its own instruction and once for each of a few other objects of
the scene ("pick up the ..."). What comes out is *right*, a *wrong mask* (IoU below 0.5 with what the robot carries), or has a
*wrong name*: the mask of what the robot carries under the name of another object. One threshold changes at a time, the others
keep their defaults. Each count is given with motion and without it: then neither the choice nor the filter asks it.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
from foundation_quality import TINY, WITHOUT_MOTION
from rich.console import Console
from rich.progress import track
from rich.table import Table

from annotate.accept import accept
from annotate.annotator import annotate_episodes
from annotate.annotators import foundation
from annotate.annotators.choose import choose_annotators
from annotate.settings import AnnotateSettings, FilterSettings
from annotate.sources import SOURCES
from annotate.sources.episode import Episode
from annotate.sources.rlds import list_files, read_episodes
from evaluation.annotation_measures import GOOD_IOU
from pixel160k.format import masks, table
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.seeding import seeded_generator
from simulation import truth

MIN_OBJECT_PIXELS = 60  # an object that shows less cannot be asked for
KINDS = RIGHT, WRONG_MASK, WRONG_NAME = "right", "wrong mask", "wrong name"
VALUES = {
    "min_detection_score": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "min_supported_score": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
    "min_mask_score": (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9),
    "min_mask_area": (0.0, 0.001, 0.002, 0.005),
    "max_mask_area": (0.02, 0.05, 0.1, 0.2, 1.0),
    "min_inside_region": (0.0, 0.25, 0.5, 0.75, 0.9),
    "min_evidence": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    "min_coverage": (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
}
# Each rule about masks, switched off.
RULES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "all rules": nullcontext,
    "what sticks out of the box stays": lambda: patch.object(foundation, "near_box", lambda mask, box: mask),
    "cut boxes stay in the crop": lambda: patch.object(foundation, "reaches_out", lambda *_: False),
}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A row that has a mask, of which kind it is, and the mask's IoU with what the robot carries."""

    row: EpisodeAnnotation
    kind: str
    iou: float


def judged_rows(data_dirs: list[Path], others: int, settings: AnnotateSettings) -> Iterator[Judged]:
    """Annotate data sets; yields every row that has a mask."""
    annotators, source = choose_annotators(settings, "cpu"), SOURCES["libero"]
    for data_dir in track(data_dirs, "annotating", console=Console(stderr=True)):
        known = truth.read(data_dir / truth.FILE_NAME)
        items = [item for file in list_files(source, data_dir) for item in read_episodes(source, file)]
        episodes = [item for item in items if isinstance(item, Episode)]
        asked = [episode.instruction for episode in episodes]
        wrong = [_other_objects(known[episode.identity.episode_id], others) for episode in episodes]
        rounds = [asked] + [[f"pick up the {names[index]}" for names in wrong] for index in range(others)]
        for number, instructions in enumerate(rounds):
            renamed = [
                dataclasses.replace(episode, instruction=text)
                for episode, text in zip(episodes, instructions, strict=True)
            ]
            for row in annotate_episodes(renamed, annotators, settings)[0]:
                if row.object_mask is not None:
                    target = masks.decode(known[row.episode_id].steps[row.first_step].target)
                    iou = masks.iou(masks.decode(row.object_mask), target)
                    on_target = WRONG_NAME if number else RIGHT
                    yield Judged(row, on_target if iou >= GOOD_IOU else WRONG_MASK, iou)


def _other_objects(episode: truth.EpisodeTruth, number: int) -> list[str]:
    """The names of a few objects of the scene that are not of the target's kind, drawn at random by the episode's id."""
    visible = sorted(
        {
            name.rsplit("_", 1)[0].replace("_", " ")
            for name, mask in episode.steps[0].others.items()
            if name != "robot_arm" and masks.area(mask) >= MIN_OBJECT_PIXELS
        }
    )
    visible = [name for name in visible if name.split()[-1] != episode.target_phrase.split()[-1]]
    return seeded_generator("filter_thresholds", episode.episode_id).choice(visible, number).tolist()


def main() -> None:
    """Print one table of thresholds, one row per value, and one of rules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one recorded data set per suite")
    parser.add_argument("--others", type=int, default=3, help="wrong objects asked for per episode")
    arguments = parser.parse_args()
    data_dirs = sorted(path for path in arguments.data.iterdir() if path.is_dir())
    settings = AnnotateSettings.load(None, TINY)
    plain = AnnotateSettings.load(None, (*TINY, *WITHOUT_MOTION))
    ways = {
        name: (list(judged_rows(data_dirs, arguments.others, chosen)), chosen.filter)
        for name, chosen in (("", settings), (" (no motion)", plain))
    }
    columns = [
        f"{kind}{name}, of {sum(one.kind == kind for one in found)}"
        for name, (found, _) in ways.items()
        for kind in KINDS
    ]
    report = Table("threshold", "value", *columns)
    for name, values in VALUES.items():
        for value in values:
            shown = f"{value:g} (default)" if value == getattr(settings.filter, name) else f"{value:g}"
            counts = [
                count
                for found, chosen in ways.values()
                for count in _counts(found, chosen.model_copy(update={name: value}))
            ]
            report.add_row(name, shown, *counts)
        report.add_section()
    Console(width=160).print(report, rules(data_dirs, settings))


def rules(data_dirs: list[Path], settings: AnnotateSettings) -> Table:
    """The table of rules: each switched off, on the episodes' own instructions."""
    report = Table("rule", "right kept", "wrong masks let through", "mean IoU of all masks")
    for name, switched in RULES.items():
        with switched():
            found = list(judged_rows(data_dirs, 0, settings))
        right, wrong, _ = _counts(found, settings.filter)
        report.add_row(name, right, wrong, f"{np.mean([one.iou for one in found]):.3f}")
    return report


def _counts(found: list[Judged], settings: FilterSettings) -> list[str]:
    accepted = [one.kind for one in found if accept(one.row, settings).status == table.ACCEPTED]
    return [str(accepted.count(kind)) for kind in KINDS]


if __name__ == "__main__":
    main()

"""What each threshold of the filter does: how many good masks it keeps and how many wrong ones it lets through.

    python -m tiny_models.record --out DIR                        # nothing is trained on its monitor/ episodes
    python benchmarks/filter_thresholds.py --data DIR/monitor

Annotates every episode with the tiny checkpoints, once with its own instruction and once for each of a few other
objects of the scene ("pick up the ..."), whose masks are wrong whatever their quality. One threshold changes at a time,
the others keep their defaults; each count is printed with the motion evidence and without it.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from annotate.accept import accept
from annotate.annotator import annotate_episodes
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

TINY = ("foundation.detector=tiny", "foundation.segmenter=tiny", "target.method=grammar")
MIN_OBJECT_PIXELS = 60  # an object that shows less cannot be asked for
VALUES = {
    "min_detection_score": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "min_mask_score": (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9),
    "min_mask_area": (0.0, 0.001, 0.002, 0.005),
    "max_mask_area": (0.02, 0.05, 0.1, 0.2, 1.0),
    "min_inside_region": (0.0, 0.25, 0.5, 0.75, 0.9),
    "min_evidence": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
}


def masks_and_truth(
    data_dir: Path, others: int, settings: AnnotateSettings
) -> Iterator[tuple[EpisodeAnnotation, bool]]:
    """Annotate a data set; yields every row that has a mask, with whether that mask lies on what the robot carries."""
    known = truth.read(data_dir / truth.FILE_NAME)
    source = SOURCES["libero"]
    episodes = [
        item
        for file in list_files(source, data_dir)
        for item in read_episodes(source, file)
        if isinstance(item, Episode)
    ]
    asked = [episode.instruction for episode in episodes]
    wrong = [_other_objects(known[episode.identity.episode_id], others) for episode in episodes]
    rounds = [asked] + [[f"pick up the {names[index]}" for names in wrong] for index in range(others)]
    annotators = choose_annotators(settings, "cpu")
    for instructions in track(rounds, data_dir.name, console=Console(stderr=True)):
        items = [
            dataclasses.replace(episode, instruction=text) for episode, text in zip(episodes, instructions, strict=True)
        ]
        for row in annotate_episodes(items, annotators, settings)[0]:
            if row.object_mask is not None:
                target = masks.decode(known[row.episode_id].steps[row.first_step].target)
                yield row, masks.iou(masks.decode(row.object_mask), target) >= GOOD_IOU


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
    """Print one table: one row per value of a threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one recorded data set per suite")
    parser.add_argument("--others", type=int, default=3, help="wrong objects asked for per episode")
    arguments = parser.parse_args()
    settings = AnnotateSettings.load(None, TINY)
    found = [
        pair
        for data_dir in sorted(path for path in arguments.data.iterdir() if path.is_dir())
        for pair in masks_and_truth(data_dir, arguments.others, settings)
    ]
    good = sum(is_good for _, is_good in found)
    columns = (
        f"good kept, of {good}",
        f"wrong let through, of {len(found) - good}",
        "good, no evidence",
        "wrong, no evidence",
    )
    report = Table("threshold", "value", *columns)
    for name, values in VALUES.items():
        for value in values:
            shown = f"{value:g} (default)" if value == getattr(settings.filter, name) else f"{value:g}"
            moved = settings.filter.model_copy(update={name: value})
            report.add_row(
                name, shown, *_counts(found, moved), *_counts(found, moved.model_copy(update={"min_evidence": 0}))
            )
        report.add_section()
    Console(width=140).print(report)


def _counts(found: list[tuple[EpisodeAnnotation, bool]], settings: FilterSettings) -> list[str]:
    accepted = [is_good for row, is_good in found if accept(row, settings).status == table.ACCEPTED]
    return [str(sum(accepted)), str(len(accepted) - sum(accepted))]


if __name__ == "__main__":
    main()

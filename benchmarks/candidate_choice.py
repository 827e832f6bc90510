"""What each part of the choice among the detector's boxes brings: score, nearness to the gripper, what left its place.

    python -m tiny_models.record --out DIR                        # nothing is trained on its monitor/ episodes
    python benchmarks/candidate_choice.py --data DIR/monitor      # and DIR/train, for more scenes

Every episode's candidates are found once, by the tiny checkpoints, and chosen from with other weights. A choice is right if
its mask has an IoU of at least 0.5 with what the robot carries. *Possible* is the best that any choice could do.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from foundation_quality import TINY
from rich.console import Console
from rich.progress import track
from rich.table import Table

from annotate.annotators import foundation
from annotate.annotators.candidates import Candidate, ranked
from annotate.annotators.choose import choose_annotators
from annotate.annotators.grasps import holding_grasp
from annotate.annotators.motion import Motion
from annotate.annotators.regions import propose_region
from annotate.settings import AnnotateSettings, ChoiceSettings
from annotate.sources import SOURCES
from annotate.sources.episode import Episode
from annotate.sources.rlds import list_files, read_episodes
from evaluation.annotation_measures import GOOD_IOU
from pixel160k.format import masks
from pixel160k.format.table import Point
from simulation import truth

WEIGHTS = {  # detector's score alone, each of the others added alone, all
    "score alone": {"nearness_weight": 0.0, "motion_weight": 0.0},
    **{
        f"nearness {weight:g}": {"nearness_weight": weight, "motion_weight": 0.0}
        for weight in (0.25, 0.5, 1.0, 2.0, 4.0)
    },
    **{
        f"motion {weight:g}": {"nearness_weight": 0.0, "motion_weight": weight} for weight in (0.25, 0.5, 1.0, 3.0, 6.0)
    },
    **{
        f"nearness 1, motion {weight:g}": {"nearness_weight": 1.0, "motion_weight": weight}
        for weight in (1.0, 3.0, 6.0)
    },
    **{f"nearness 1 over {length:g}": {"nearness": length, "motion_weight": 0.0} for length in (0.05, 0.2, 0.4)},
}


@dataclass(frozen=True)
class Chance:
    """What one episode offers: its candidates, as `ranked` takes them, and the target's true mask."""

    suite: str
    candidates: Sequence[Candidate]
    fingers: Point
    motion: Motion | None
    target: np.ndarray

    def overlap(self, choice: ChoiceSettings) -> float:
        """IoU of the chosen mask and the target."""
        return masks.iou(ranked(self.candidates, self.fingers, self.motion, choice)[0].mask, self.target)

    def possible(self) -> float:
        """The same of the best candidate."""
        return max(masks.iou(candidate.mask, self.target) for candidate in self.candidates)


def chances(data_dir: Path, settings: AnnotateSettings) -> Iterator[Chance | None]:
    """What each episode of a data set offers; None where no box was found."""
    known, source = truth.read(data_dir / truth.FILE_NAME), SOURCES["libero"]
    annotators = choose_annotators(settings, "cpu")
    items = [item for file in list_files(source, data_dir) for item in read_episodes(source, file)]
    held = [holding_grasp(item, settings) for item in items if isinstance(item, Episode)]
    episodes = [keyframed for keyframed in held if keyframed is not None]
    size = annotators.group_size
    groups = [episodes[start : start + size] for start in range(0, len(episodes), size)]
    for group in track(groups, data_dir.name, console=Console(stderr=True)):
        for keyframed, gripper in zip(group, annotators.gripper.find_grippers([group])[0], strict=True):
            asked: list[tuple[Sequence[Candidate], Point, Motion | None]] = []

            def remember(
                candidates: Sequence[Candidate], fingers: Point, motion: Motion | None, choice: ChoiceSettings
            ) -> list[Candidate]:
                asked.append((candidates, fingers, motion))  # noqa: B023
                return ranked(candidates, fingers, motion, choice)

            if gripper is not None:
                region = propose_region(gripper.box, annotators.region_expansion, *gripper.mask.shape)
                targets = annotators.target.name_targets([keyframed.episode.instruction])
                with patch.object(foundation, "ranked", remember):
                    annotators.object.find_objects([keyframed], [gripper], [region], targets)
            scene = known[keyframed.episode.identity.episode_id]
            yield Chance(scene.suite, *asked[0], scene.mask(keyframed.episode.first_step)) if asked else None


def main() -> None:
    """Print one table: one row per set of weights, one column per suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one recorded data set per suite")
    arguments = parser.parse_args()
    settings = AnnotateSettings.load(None, TINY)
    found = {path.name: list(chances(path, settings)) for path in sorted(arguments.data.iterdir()) if path.is_dir()}
    report = Table("choice by", *(f"{name}, right of {len(several)}; IoU" for name, several in found.items()))

    def row(name: str, overlap_of: dict[str, list[float]]) -> None:
        report.add_row(
            name,
            *(f"{sum(one >= GOOD_IOU for one in several)}; {np.mean(several):.3f}" for several in overlap_of.values()),
        )

    for name, weights in WEIGHTS.items():
        choice = settings.choice.model_copy(update=weights)
        row(
            name,
            {suite: [0.0 if one is None else one.overlap(choice) for one in some] for suite, some in found.items()},
        )
    row("possible", {suite: [0.0 if one is None else one.possible() for one in some] for suite, some in found.items()})
    Console(width=160).print(report)


if __name__ == "__main__":
    main()

"""What a discrete video is worth, and whether it may go across scenes: the gripper on close frames, against truth.

    python -m tiny_models.record --out DIR                        # nothing is trained on its monitor/ episodes
    python benchmarks/discrete_videos.py --data DIR/monitor

The same episodes are strung together in three ways: alone (each frame by itself), by data set (one viewpoint, as
`annotate` does where there are enough), and across data sets in turn, as it does with lone viewpoints (`foundation.join_scenes`).
The tiny checkpoints find the gripper each time.
"""

import argparse
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from foundation_quality import TINY
from rich.console import Console
from rich.table import Table

from annotate.annotators.choose import choose_annotators
from annotate.annotators.grasps import holding_grasp
from annotate.annotators.roles import KeyframedEpisode
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES
from annotate.sources.episode import Episode
from annotate.sources.rlds import list_files, read_episodes
from evaluation.annotation_measures import GOOD_IOU
from pixel160k.format import masks
from simulation import truth
from simulation.environment import GRIPPER

Close = tuple[KeyframedEpisode, np.ndarray]
"""An episode, and the true mask of the gripper on its close frame, bool (height, width)."""


def close_frames(data_dir: Path, settings: AnnotateSettings) -> list[Close]:
    """The episodes of a data set in which something is grasped."""
    known, source = truth.read(data_dir / truth.FILE_NAME), SOURCES["libero"]
    items = [item for file in list_files(source, data_dir) for item in read_episodes(source, file)]
    held = [holding_grasp(item, settings) for item in items if isinstance(item, Episode)]
    return [
        (one, known[one.episode.identity.episode_id].mask(one.keyframes.grasp.close, GRIPPER))
        for one in held
        if one is not None
    ]


def cut(episodes: Sequence[Close], size: int) -> list[Sequence[Close]]:
    """Groups of this size, in order; the last may be smaller."""
    return [episodes[start : start + size] for start in range(0, len(episodes), size)]


def main() -> None:
    """Print one row per way to string episodes together, one column per data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one recorded data set per kind of scene")
    arguments = parser.parse_args()
    settings = AnnotateSettings.load(None, TINY)
    annotators = choose_annotators(settings, "cpu")
    data_sets = {path.name: close_frames(path, settings) for path in sorted(arguments.data.iterdir()) if path.is_dir()}
    name_of = {id(known): name for name, episodes in data_sets.items() for _, known in episodes}
    in_turn = [one for one in chain.from_iterable(zip_longest(*data_sets.values())) if one is not None]
    size = settings.foundation.video_length
    ways = {
        "alone": cut(in_turn, 1),
        "by viewpoint": [group for episodes in data_sets.values() for group in cut(episodes, size)],
        "across scenes": cut(in_turn, size),
    }
    report = Table("strung together", *(f"{name}: IoU; good of {len(some)}" for name, some in data_sets.items()), "all")
    for way, groups in ways.items():
        overlaps: dict[str, list[float]] = {name: [] for name in data_sets}
        for group in groups:
            (found,) = annotators.gripper.find_grippers([[keyframed for keyframed, _ in group]])
            for gripper, (_, right) in zip(found, group, strict=True):
                overlaps[name_of[id(right)]].append(0.0 if gripper is None else float(masks.iou(gripper.mask, right)))
        every = [*overlaps.values(), list(chain.from_iterable(overlaps.values()))]
        report.add_row(way, *(f"{np.mean(some):.3f}; {sum(one >= GOOD_IOU for one in some)}" for some in every))
    Console(width=160).print(report)


if __name__ == "__main__":
    main()

"""How good the masks at every step (p_t) are on held-out scenes: `annotate --tracks` with the tiny checkpoints against truth.

    python -m tiny_models.record --evaluation --out DIR          # once
    python benchmarks/track_quality.py --data DIR/seen_tasks --out OUT

Prints one row per suite, over the accepted episodes: mean IoU at the steps at which object or gripper are visible, of the
object also by phase (before the grasp, from the grasp to the way home, on the way home), and the share of all steps at which
they are rightly called visible or not. Every episode counts by its steps. Nothing may be tuned on these scenes.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from foundation_quality import TINY
from rich.console import Console
from rich.table import Table

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from pixel160k.format import masks
from pixel160k.format.masks import RLE
from pixel160k.format.tracks import StepMasks, read_tracks
from simulation import truth
from simulation.environment import GRIPPER
from simulation.truth import TARGET, EpisodeTruth

BEFORE, CARRIED, AFTER = "before the grasp", "carried", "way home"
OVERLAPS = ("object IoU", BEFORE, CARRIED, AFTER, "gripper IoU")
VISIBILITIES = ("object visibility right", "gripper visibility right")

Figures = dict[str, list[float]]
"""By the name of a column its values, one per step."""


def phase_of(step: int, known: EpisodeTruth) -> str:
    """The part of the episode that a step belongs to."""
    if step < known.grasp_step:
        return BEFORE
    return CARRIED if step < known.home_step else AFTER


def compare(tracks: dict[int, StepMasks], known: EpisodeTruth, found: Figures) -> None:
    """Add one episode's steps to the figures."""
    for step, masked in tracks.items():
        phase = phase_of(step, known)
        for name, mask, visible in (
            (TARGET, masked.object_mask, masked.object_visible),
            (GRIPPER, masked.gripper_mask, masked.gripper_visible),
        ):
            right = known.mask(step, name)
            kind = "object" if name == TARGET else "gripper"
            found[f"{kind} visibility right"].append(visible == right.any())
            if right.any():
                overlap = _overlap(mask, right)
                found[f"{kind} IoU"].append(overlap)
                if name == TARGET:
                    found[phase].append(overlap)


def _overlap(mask: RLE | None, right: np.ndarray) -> float:
    return 0.0 if mask is None else float(masks.iou(masks.decode(mask), right))


def measure(data_dir: Path, annotations: Path) -> tuple[int, Figures]:
    """Annotate a data set with tracks, and compare every step of the accepted episodes with its truth."""
    annotate("libero", data_dir, annotations, AnnotateSettings.load(None, (*TINY, "tracks=accepted")), Execution())
    known = truth.read(data_dir / truth.FILE_NAME)
    found: Figures = defaultdict(list)
    episodes = 0
    for part in sorted((annotations / "tracks").glob("part-*.parquet")):
        for episode_id, tracks in read_tracks(part).items():
            compare(tracks, known[episode_id], found)
            episodes += 1
    return episodes, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one recorded data set per suite")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = Table("suite", "accepted episodes", "steps", *OVERLAPS, *VISIBILITIES)
    together: Figures = defaultdict(list)
    total = 0

    def add(label: str, episodes: int, found: Figures) -> None:
        means = (f"{np.mean(found[name]):.3f}" if found[name] else "" for name in (*OVERLAPS, *VISIBILITIES))
        report.add_row(label, str(episodes), str(len(found["object visibility right"])), *means)

    for data_dir in sorted(path for path in arguments.data.iterdir() if path.is_dir()):
        episodes, found = measure(data_dir, arguments.out / arguments.data.name / data_dir.name)
        add(data_dir.name, episodes, found)
        total += episodes
        for name, values in found.items():
            together[name] += values
    report.add_section()
    add("all", total, together)
    Console(width=200).print(report)


if __name__ == "__main__":
    main()

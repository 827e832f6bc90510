"""Is the grasp that holds found among others that fail, and are the masks right? On scenes not used to build anything.

    python benchmarks/grasps.py --out DIR [--episodes 20] [--foundation]

Records `--episodes` demonstrations with mishaps (simulation/mishaps.py) of each of three LIBERO suites, in initial states
that nothing was trained or tuned on (tiny_models/record.py); annotates them, once as they are and once without the measured
fingers, with `motion` and, if asked for, with `foundation` and the tiny checkpoints; prints one table. Recordings that DIR
already holds are used again. Needs the extra [sim]; recording 60 episodes takes about half an hour on two free cores.
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
from evaluation.annotation_measures import GOOD_IOU
from pixel160k.format import masks, table
from simulation import truth
from simulation.mishaps import MISHAPS
from simulation.perturb import hide_fingers
from simulation.recording import record_sample
from tiny_models.record import EVALUATION_STATES, TASKS, TRAINING_STATES


def main() -> None:
    """Print the table: one row per annotators, fingers and mishap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=20, help="of each suite")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--foundation", action="store_true", help="also with the tiny checkpoints")
    parser.add_argument("--tuning", action="store_true", help="in the training scenes instead: to build, not to report")
    arguments = parser.parse_args()
    states = TRAINING_STATES if arguments.tuning else EVALUATION_STATES
    known: dict[str, list[Path]] = {"measured": [], "unknown": []}
    for suite, tasks in TASKS.items():
        recorded, hidden = arguments.out / "recorded" / suite, arguments.out / "hidden" / suite
        if not recorded.exists():
            print(f"recording {arguments.episodes} episodes of {suite} ...", flush=True)
            record_sample(
                suite, arguments.episodes, arguments.seed, recorded,
                tasks={suite: tasks}, initial_states=states, mishaps=tuple(MISHAPS),
            )  # fmt: skip
        if not hidden.exists():
            hide_fingers(recorded, hidden)
        known["measured"].append(recorded)
        known["unknown"].append(hidden)
    ways = {"motion": ("annotators=motion",)} | ({"foundation": TINY} if arguments.foundation else {})
    columns = (
        "episodes",
        "close right",
        "accepted",
        f"IoU >= {GOOD_IOU} of accepted",
        "IoU of accepted",
        "rejected as",
    )
    report = Table("annotators", "fingers", "mishap", *columns)
    for way, overrides in ways.items():
        for fingers, directories in known.items():
            results = [result for directory in directories for result in measure(directory, way, overrides)]
            groups = {mishap: [result for result in results if result[0] == mishap] for mishap in MISHAPS}
            for mishap, group in (groups | {"all": results}).items():
                report.add_row(way, fingers, mishap, *figures(group), end_section=mishap == "all")
    Console(width=200).print(report)


Result = tuple[str, bool, table.EpisodeAnnotation, float]
"""Of one episode: its mishap, whether the close step is right, its row, and its mask's IoU with the truth, 0 for no mask."""


def measure(data_dir: Path, way: str, overrides: tuple[str, ...]) -> list[Result]:
    """Annotate a data set and compare every row with its truth."""
    annotations = data_dir.with_name(f"{data_dir.name}-{way}")
    annotate("libero", data_dir, annotations, AnnotateSettings.load(None, overrides), Execution())
    known = truth.read(data_dir / truth.FILE_NAME)
    results = []
    for row in table.read_annotations(annotations):
        right = known[row.episode_id]
        mask = row.object_mask
        iou = masks.iou(masks.decode(mask), right.mask(row.first_step)) if mask is not None else 0.0
        results.append((row.native_id.rsplit("/", 1)[-1], row.close_step == right.grasp_step, row, float(iou)))
    return results


def figures(results: list[Result]) -> list[str]:
    """One row of the table."""
    accepted = [iou for _, _, row, iou in results if row.status == table.ACCEPTED]
    reasons: dict[str, int] = defaultdict(int)
    for _, _, row, _ in results:
        if row.reason:
            reasons[row.reason] += 1
    return [
        str(len(results)),
        str(sum(right for _, right, _, _ in results)),
        str(len(accepted)),
        str(sum(iou >= GOOD_IOU for iou in accepted)),
        f"{np.mean(accepted):.3f}" if accepted else "",
        ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())),
    ]


if __name__ == "__main__":
    main()

"""How good the `motion` annotators are on scenes never used while building them, undisturbed and disturbed.

    python benchmarks/motion_quality.py --out DIR [--episodes 20] [--seed 2026]

Records `--episodes` demonstrations of each of three LIBERO suites, then the same episodes cut before the arm goes home, and
with the camera shaken by up to three pixels; annotates and evaluates each set, and prints one table. Data sets that DIR
already holds are used again. Needs the extra [sim]; about half an hour for 60 episodes on two cores.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from annotate.annotate_job import annotate
from annotate.jobs import Execution
from annotate.settings import AnnotateSettings
from evaluation.annotations import evaluate
from simulation import truth
from simulation.perturb import cut_before_home, shake_camera
from simulation.recording import record_sample

SUITES = ("libero_object", "libero_spatial", "libero_goal")


def prepare(out: Path, episodes: int, seed: int) -> dict[str, list[Path]]:
    """Record and disturb what is not there yet; returns the data directories of each condition."""
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
    """Print the table, a row a condition and suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=20, help="of each suite")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    names = ["condition", "suite", "episodes", "masks", "IoU", "IoU, none = 0", "accepted", "IoU of accepted"]
    report = Table(*names, "gripper IoU", "region recall", "region area", "evidence AUC", "episodes with evidence")
    for condition, directories in prepare(arguments.out, arguments.episodes, arguments.seed).items():
        results = [measure(directory) for directory in directories]
        for suite, result in zip(SUITES, results, strict=True):
            report.add_row(condition, suite, *figures([result["overall"]]))
        report.add_row(condition, "all", *figures([result["overall"] for result in results]), end_section=True)
    Console(width=200).print(report)


def figures(groups: list[dict[str, Any]]) -> list[str]:
    """The columns of one row: sums, and means weighted by how many each is over."""

    def total(*path: str) -> int:
        return sum(_at(group, path) for group in groups)

    def mean(value: str, count: str, *path: str) -> str:
        weights = [_at(group, (*path, count)) for group in groups]
        values = [_at(group, (*path, value)) or 0.0 for group in groups]
        return f"{sum(w * v for w, v in zip(weights, values, strict=True)) / max(1, sum(weights)):.3f}"

    masks = total("object_mask", "n")
    iou = mean("iou", "n", "object_mask")
    return [
        str(total("episodes")),
        str(masks),
        iou,
        f"{float(iou) * masks / total('episodes'):.3f}",
        str(sum(group["status"].get("accepted", 0) for group in groups)),
        mean("iou", "n", "object_mask_accepted"),
        mean("iou", "n", "gripper_mask"),
        mean("recall", "n", "region"),
        mean("area", "n", "region"),
        mean("auc", "n", "evidence"),
        str(total("evidence", "n")),
    ]


def _at(group: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = group
    for name in path:
        value = value[name]
    return value


if __name__ == "__main__":
    main()

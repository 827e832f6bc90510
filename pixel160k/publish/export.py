"""Shards in the formats of others: LeRobot, COCO, and annotations without images. docs/export.md says what each holds.

Each exporter streams the shards once, split by split, so the same shards give the same bytes, and one episode is in memory at
a time; only for LeRobot's statistics all actions and states are.
"""

import math
from collections.abc import Callable
from typing import Any

from pixel160k.errors import InputError
from pixel160k.files import new_folder
from pixel160k.format.origins import origin_of
from pixel160k.paths import AnyPath, open_path
from pixel160k.publish import annotations_only, coco, lerobot
from pixel160k.publish.steps import read_episodes
from pixel160k.read.episodes import ShardDirectory

FORMATS = {"lerobot": "meta/info.json", "coco": "annotations/", "hf": "README.md"}
"""The formats, and the file or folder of each without which readers see nothing: in an object store it is written last."""


def export(
    directory: str | AnyPath,
    to: str,
    out: str | AnyPath,
    fps: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Export a shard directory; returns what was written, counted.

    Everything is written elsewhere first and gets its place at the end, so that `out` is whole or not there.

    Args:
        directory: output of `pixelcli build-shards`.
        to: "lerobot", "coco" or "hf".
        out: a new or empty directory.
        fps: for lerobot, the control rate in Hz where the source has no fixed one.
        progress: called with the number of samples read so far.

    Raises:
        InputError: no shards, no samples in them or damaged ones, an unknown format, an `out` that is not empty, or a missing `fps`.
    """
    out = open_path(out)
    shards = ShardDirectory(directory)
    if not shards.episode_ids:
        raise InputError(f"{directory} holds no samples, so there is nothing to export")
    if to not in FORMATS:
        raise InputError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    rate = _control_rate(shards.manifest, fps) if to == "lerobot" else 0.0
    episodes = read_episodes(shards, progress or (lambda samples: None))
    with new_folder(out, last=FORMATS[to]) as folder:
        if to == "lerobot":
            return lerobot.export(episodes, shards.manifest, folder, rate)
        if to == "coco":
            return coco.export(episodes, shards.manifest, folder)
        return annotations_only.export(episodes, shards.manifest, folder)


def _control_rate(manifest: dict[str, Any], fps: float | None) -> float:
    rate = fps if fps is not None else origin_of(manifest).hz
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"a control rate is a number of steps per second, above 0, not {rate}")
    if rate is None:
        source = manifest["annotations"]["source"]
        raise InputError(f"data sets of source {source!r} have no fixed control rate; give it in Hz with --fps")
    return rate

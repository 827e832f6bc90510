"""Shards in the formats of others: LeRobot, COCO, and annotations without images. docs/export.md says what each holds.

Each exporter streams the shards once, in their order, so memory stays flat and the same shards give the same bytes.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixel160k.errors import InputError
from pixel160k.publish import annotations_only, coco, lerobot
from pixel160k.publish.steps import read_episodes
from pixel160k.read.episodes import ShardDirectory

FORMATS = ("lerobot", "coco", "hf")
_FPS = {"sample": 5.0, "bridge_orig": 5.0, "fractal": 3.0}  # control rates of the sources; LIBERO's data sets differ


def export(
    directory: str | Path,
    to: str,
    out: str | Path,
    fps: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Export a shard directory; returns what was written, counted.

    Everything is written beside `out` first and renamed at the end, so that `out` is whole or not there.

    Args:
        directory: output of `pixelcli build-shards`.
        to: "lerobot", "coco" or "hf".
        out: a new or empty directory.
        fps: for lerobot, the control rate in Hz where the source has no fixed one.
        progress: called with the number of samples read so far.

    Raises:
        InputError: no shards, no samples in them or damaged ones, an unknown format, an `out` that is not empty, or a missing `fps`.
    """
    out = Path(out)
    shards = ShardDirectory(directory)
    if not shards.episode_ids:
        raise InputError(f"{directory} holds no samples, so there is nothing to export")
    if to not in FORMATS:
        raise InputError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; choose a new --out")
    rate = _control_rate(shards.manifest, fps) if to == "lerobot" else 0.0
    episodes = read_episodes(shards, progress or (lambda samples: None))
    unfinished = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        if to == "lerobot":
            counts = lerobot.export(episodes, shards.manifest, unfinished, rate)
        elif to == "coco":
            counts = coco.export(episodes, shards.manifest, unfinished)
        else:
            counts = annotations_only.export(episodes, shards.manifest, unfinished)
        unfinished.replace(out)  # takes the place of an empty directory too
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return counts


def _control_rate(manifest: dict[str, Any], fps: float | None) -> float:
    source = manifest["annotations"]["source"]
    if fps is None and source not in _FPS:
        raise InputError(f"data sets of source {source!r} have no fixed control rate; give it in Hz with --fps")
    return fps if fps is not None else _FPS[source]

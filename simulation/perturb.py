"""Two ways to make a recorded set harder, for the tables of the benchmark: no way home, and a camera that shakes.

Motion evidence leans on both: the arm leaves the place it took the object from, and the camera stands still. Each
function rewrites a recorded set (RLDS and truth) under the same names, so that episode ids stay.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pixel160k.format.masks import RLE, decode, encode
from simulation import truth
from simulation.demonstration import IMAGE_QUALITY, jpeg
from simulation.rlds import (
    check_empty,
    encode_episode,
    find_dataset,
    libero_features,
    read_libero_episodes,
    write_encoded_rlds,
)
from simulation.truth import EpisodeTruth, StepTruth

Episode = dict[str, Any]


def cut_before_home(src_dir: Path, out_dir: Path) -> None:
    """Copy a recorded set, every episode cut where the arm's way home begins (its truth's home_step)."""

    def cut_episode(episode: Episode, known: EpisodeTruth) -> Episode:
        steps = [dict(step) for step in episode["steps"][: known.home_step]]
        steps[-1] |= {"is_last": True, "is_terminal": True, "reward": 1.0}
        return {**episode, "steps": steps}

    def cut_truth(known: EpisodeTruth) -> EpisodeTruth:
        return replace(known, steps=known.steps[: known.home_step])

    _rewrite(src_dir, out_dir, cut_episode, cut_truth)


def shake_camera(src_dir: Path, out_dir: Path, pixels: int = 3, seed: int = 0) -> None:
    """Copy a recorded set, every frame after an episode's first moved by up to ±`pixels` in x and in y.

    The moves are whole pixels, drawn from `seed`; the image's border is repeated, that of the masks is empty. The agent
    view is encoded again; the wrist image, whose camera moves anyway, and the first frame stay as they are.
    """

    def moves_of(known: EpisodeTruth) -> np.ndarray:
        return _camera_moves(known.episode_id, len(known.steps), pixels, seed)

    def shake_episode(episode: Episode, known: EpisodeTruth) -> Episode:
        pairs = zip(episode["steps"], moves_of(known), strict=True)
        return {**episode, "steps": [_move_step(step, move) if move.any() else step for step, move in pairs]}

    def shake_truth(known: EpisodeTruth) -> EpisodeTruth:
        pairs = zip(known.steps, moves_of(known), strict=True)
        return replace(known, steps=[_move_truth(step, move) for step, move in pairs])

    _rewrite(src_dir, out_dir, shake_episode, shake_truth)


def _rewrite(
    src_dir: Path,
    out_dir: Path,
    change_episode: Callable[[Episode, EpisodeTruth], Episode],
    change_truth: Callable[[EpisodeTruth], EpisodeTruth],
) -> None:
    """Write a recorded set again with every episode and its truth changed, one at a time."""
    check_empty(out_dir)
    folder = find_dataset(src_dir)
    known = truth.read(src_dir / truth.FILE_NAME)
    name, version = folder.parent.name, folder.name
    features = libero_features()

    def rewritten(file: int, path: Path) -> Iterator[bytes]:
        for number, episode in enumerate(read_libero_episodes(path)):
            identifier = f"{name}-train-{file:05d}-{number:05d}"
            yield encode_episode(change_episode(episode, known[identifier]), features)

    out_dir.mkdir(parents=True, exist_ok=True)
    truth.write(map(change_truth, known.values()), out_dir / truth.FILE_NAME)
    files = [rewritten(file, path) for file, path in enumerate(sorted(folder.glob(f"{name}-train.tfrecord-*")))]
    write_encoded_rlds(out_dir, name, version, features, {"train": files})


def _camera_moves(episode_id: str, steps: int, pixels: int, seed: int) -> np.ndarray:
    """The moves in (x, y), int (steps, 2) in pixels, the first none; another row of numbers for every episode."""
    random = np.random.default_rng([seed, *episode_id.encode("ascii")])
    moves = random.integers(-pixels, pixels, size=(steps, 2), endpoint=True)
    moves[0] = 0
    return moves


def _move_step(step: dict[str, Any], move: np.ndarray) -> dict[str, Any]:
    image = np.asarray(Image.open(step["observation"]["image"]))
    moved = io.BytesIO(jpeg(_moved(image, move, "edge"), IMAGE_QUALITY))
    return {**step, "observation": {**step["observation"], "image": moved}}


def _move_truth(step: StepTruth, move: np.ndarray) -> StepTruth:
    def moved(mask: RLE) -> RLE:
        return encode(_moved(decode(mask), move, "constant"))

    others = {name: shifted for name, mask in step.others.items() if decode(shifted := moved(mask)).any()}
    return StepTruth(moved(step.gripper), moved(step.target), others)


def _moved(image: np.ndarray, move: np.ndarray, border: Literal["edge", "constant"]) -> np.ndarray:
    """An image or mask moved by (x, y) whole pixels; `border` is numpy's padding mode for what comes in."""
    x, y = (int(shift) for shift in move)
    margin = max(abs(x), abs(y))
    padded = np.pad(image, [(margin, margin), (margin, margin)] + [(0, 0)] * (image.ndim - 2), mode=border)
    height, width = image.shape[:2]
    return np.ascontiguousarray(padded[margin - y : margin - y + height, margin - x : margin - x + width])

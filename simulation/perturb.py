"""Ways to make a recorded data set harder, for a benchmark: the arm does not go home, the camera shakes, nobody measures
the fingers.

Motion evidence relies on the first two: the arm goes away from where the object was, and the camera stands still. The last
leaves it to motion which grasp holds. Each function copies a recorded data set (RLDS and truth) under the same names, so that episode ids stay the same.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pixel160k.files import new_folder
from pixel160k.format.masks import RLE, decode, encode
from simulation import truth
from simulation.demonstration import IMAGE_QUALITY, encode_jpeg
from simulation.rlds import (
    RldsEpisode,
    encode_episode,
    find_dataset,
    libero_features,
    read_libero_episodes,
    write_encoded_rlds,
)
from simulation.truth import EpisodeTruth, StepTruth


def cut_before_home(src_dir: Path, out_dir: Path) -> None:
    """Copy a recorded data set; every episode ends where the arm's way home begins (`home_step` of its truth).

    Raises:
        InputError: `src_dir` holds no recorded data set, or `out_dir` is not empty.
    """

    def cut_episode(episode: RldsEpisode, known: EpisodeTruth) -> RldsEpisode:
        steps = [dict(step) for step in episode["steps"][: known.home_step]]
        steps[-1] |= {"is_last": True, "is_terminal": True, "reward": 1.0}
        return {**episode, "steps": steps}

    def cut_truth(known: EpisodeTruth) -> EpisodeTruth:
        return replace(known, steps=known.steps[: known.home_step])

    _rewrite(src_dir, out_dir, cut_episode, cut_truth)


def shake_camera(src_dir: Path, out_dir: Path, pixels: int = 3, seed: int = 0) -> None:
    """Copy a recorded data set; every frame but an episode's first is shifted by up to ±`pixels` in x and in y.

    The shifts are whole pixels, drawn from `seed`. What enters at the border repeats the image's edge and is empty in
    the masks. Shifted images of the agent view are encoded again; the wrist images stay as they are.

    Raises:
        InputError: `src_dir` holds no recorded data set, or `out_dir` is not empty.
    """

    def moves_of(known: EpisodeTruth) -> np.ndarray:
        return _camera_moves(known.episode_id, len(known.steps), pixels, seed)

    def shake_episode(episode: RldsEpisode, known: EpisodeTruth) -> RldsEpisode:
        pairs = zip(episode["steps"], moves_of(known), strict=True)
        return {**episode, "steps": [_move_step(step, move) if move.any() else step for step, move in pairs]}

    def shake_truth(known: EpisodeTruth) -> EpisodeTruth:
        pairs = zip(known.steps, moves_of(known), strict=True)
        return replace(known, steps=[_move_truth(step, move) for step, move in pairs])

    _rewrite(src_dir, out_dir, shake_episode, shake_truth)


def hide_fingers(src_dir: Path, out_dir: Path) -> None:
    """Copy a recorded data set; the fingers' positions in the state are 0 at every step, as where nobody measures them.

    Raises:
        InputError: `src_dir` holds no recorded data set, or `out_dir` is not empty.
    """

    def hide(episode: RldsEpisode, known: EpisodeTruth) -> RldsEpisode:
        steps = []
        for step in episode["steps"]:
            state = step["observation"]["state"].copy()
            state[6:] = 0
            steps.append({**step, "observation": {**step["observation"], "state": state}})
        return {**episode, "steps": steps}

    _rewrite(src_dir, out_dir, hide, lambda known: known)


def _rewrite(
    src_dir: Path,
    out_dir: Path,
    change_episode: Callable[[RldsEpisode, EpisodeTruth], RldsEpisode],
    change_truth: Callable[[EpisodeTruth], EpisodeTruth],
) -> None:
    """Copy a recorded data set with every episode and its truth changed, one episode at a time."""
    features = libero_features()

    def changed_payloads(file: int, path: Path) -> Iterator[bytes]:
        for number, episode in enumerate(read_libero_episodes(path)):
            episode_id = f"{name}-train-{file:05d}-{number:05d}"
            yield encode_episode(change_episode(episode, known[episode_id]), features)

    with new_folder(out_dir) as out:
        dataset = find_dataset(src_dir)
        name, version = dataset.parent.name, dataset.name
        known = truth.read(src_dir / truth.FILE_NAME)
        versions = truth.read_versions(src_dir / truth.FILE_NAME)
        truth.write(map(change_truth, known.values()), out / truth.FILE_NAME, versions)
        paths = sorted(dataset.glob(f"{name}-train.tfrecord-*"))
        files = [changed_payloads(file, path) for file, path in enumerate(paths)]
        write_encoded_rlds(out, name, version, features, {"train": files})


def _camera_moves(episode_id: str, steps: int, pixels: int, seed: int) -> np.ndarray:
    """The shifts of an episode's frames in x and y, int (steps, 2) in pixels; the first frame is not shifted."""
    random = np.random.default_rng([seed, *episode_id.encode("ascii")])
    moves = random.integers(-pixels, pixels, size=(steps, 2), endpoint=True)
    moves[0] = 0
    return moves


def _move_step(step: dict[str, Any], move: np.ndarray) -> dict[str, Any]:
    image = np.asarray(Image.open(step["observation"]["image"]))
    moved = io.BytesIO(encode_jpeg(_moved(image, move, "edge"), IMAGE_QUALITY))
    return {**step, "observation": {**step["observation"], "image": moved}}


def _move_truth(step: StepTruth, move: np.ndarray) -> StepTruth:
    def moved(mask: RLE) -> RLE:
        return encode(_moved(decode(mask), move, "constant"))

    others = {name: shifted for name, mask in step.others.items() if decode(shifted := moved(mask)).any()}
    return StepTruth(moved(step.gripper), moved(step.target), others)


def _moved(image: np.ndarray, move: np.ndarray, border: Literal["edge", "constant"]) -> np.ndarray:
    """An image or mask shifted by (x, y) whole pixels; `border` is numpy's padding mode for what enters."""
    x, y = (int(shift) for shift in move)
    margin = max(abs(x), abs(y))
    padded = np.pad(image, [(margin, margin), (margin, margin)] + [(0, 0)] * (image.ndim - 2), mode=border)
    height, width = image.shape[:2]
    return np.ascontiguousarray(padded[margin - y : margin - y + height, margin - x : margin - x + width])

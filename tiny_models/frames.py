"""The recorded demonstrations as arrays: images and label maps, so that a training step decodes no JPEG and no RLE.

`python -m tiny_models.frames --recordings DIR/train --out DIR/train_frames` writes two .npy files (memory-mapped when
read) and an index.json. The functions for windows, mirroring and light serve the training of both models.
"""

import argparse
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from pixel160k.files import read_json, write_json
from pixel160k.format.masks import decode
from simulation import truth
from simulation.environment import GRIPPER
from simulation.libero import category_of
from simulation.rlds import find_dataset, read_libero_episodes
from tiny_models.record import HANDLES

SIZE = 256
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EpisodeFrames:
    """What training needs to know of one demonstration; its frames are `first` to `first + steps - 1` of the arrays."""

    suite: str
    task_id: int
    initial_state: int
    instruction: str
    target: str  # an instance name
    first: int
    steps: int
    grasp_step: int  # the step at which the gripper closes


@dataclass(frozen=True)
class Frames:
    """All frames of a split. Label k of the label maps is the instance `names[k - 1]`; 0 is the background."""

    images: np.ndarray  # uint8 (frames, 256, 256, 3), RGB
    labels: np.ndarray  # uint8 (frames, 256, 256), the label maps
    names: list[str]
    episodes: list[EpisodeFrames]

    @classmethod
    def load(cls, folder: Path) -> "Frames":
        """Read what `write_frames` wrote; the arrays stay on disk until they are indexed.

        Raises:
            InputError: the folder has no readable index.json.
        """
        index = read_json(folder / "index.json")
        return cls(
            images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
            labels=np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False),
            names=index["names"],
            episodes=[EpisodeFrames(**episode) for episode in index["episodes"]],
        )

    def label_of(self, name: str) -> int:
        """The label of an instance, by its name."""
        return self.names.index(name) + 1

    @cached_property
    def areas(self) -> np.ndarray:
        """How many pixels each label has in each frame, int (frames, labels)."""
        return np.stack([np.bincount(labels.ravel(), minlength=len(self.names) + 1) for labels in self.labels])

    @cached_property
    def by_kind(self) -> list[list[EpisodeFrames]]:
        """The episodes of each suite, those of handles apart: one viewpoint, one kind of scene, one way to hold the hand."""
        kinds: dict[tuple[str, bool], list[EpisodeFrames]] = {}
        for episode in self.episodes:
            held = episode.suite == "libero_goal" and episode.task_id in HANDLES
            kinds.setdefault((episode.suite, held), []).append(episode)
        return [kinds[kind] for kind in sorted(kinds)]

    def draw_episode(self, random: np.random.Generator) -> EpisodeFrames:
        """An episode at random; all kinds come equally often."""
        kind = self.by_kind[random.integers(len(self.by_kind))]
        return kind[random.integers(len(kind))]

    def near_grasp(self, episode: EpisodeFrames, offset: int) -> int:
        """The index of the frame `offset` steps after the gripper closes, or the nearest one inside the episode."""
        return episode.first + int(np.clip(episode.grasp_step + offset, 0, episode.steps - 1))


def write_frames(recordings: Path, out: Path) -> None:
    """Decode all recorded data sets below `recordings` (one folder per suite) and write what `Frames.load` reads."""
    images: list[np.ndarray] = []
    label_maps: list[np.ndarray] = []
    names: list[str] = []
    episodes: list[EpisodeFrames] = []
    for folder in sorted(path.parent for path in recordings.glob(f"*/{truth.FILE_NAME}")):
        rows = truth.iterate(folder / truth.FILE_NAME)
        for file in sorted(find_dataset(folder).glob("*.tfrecord-*")):
            for recorded in read_libero_episodes(file):
                row = next(rows)
                episodes.append(_episode_of(row, first=len(images)))
                for step, masks in zip(recorded["steps"], row.steps, strict=True):
                    images.append(np.asarray(Image.open(step["observation"]["image"])))
                    label_maps.append(_label_map(masks, row.target_instance, names))
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "images.npy", np.stack(images), allow_pickle=False)
    np.save(out / "labels.npy", np.stack(label_maps), allow_pickle=False)
    index = {"names": names, "episodes": [asdict(episode) for episode in episodes]}
    write_json(out / "index.json", index)


def _episode_of(row: truth.EpisodeTruth, first: int) -> EpisodeFrames:
    return EpisodeFrames(
        suite=row.suite,
        task_id=row.task_id,
        initial_state=row.initial_state,
        instruction=row.instruction,
        target=row.target_instance,
        first=first,
        steps=len(row.steps),
        grasp_step=row.grasp_step,
    )


def _label_map(masks: truth.StepTruth, target: str, names: list[str]) -> np.ndarray:
    labels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for name, mask in [*sorted(masks.others.items()), (target, masks.target), (GRIPPER, masks.gripper)]:
        if name not in names:
            names.append(name)
        labels[decode(mask)] = names.index(name) + 1
    return labels


@dataclass(frozen=True)
class Window:
    """A rectangle of a frame, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


WHOLE_FRAME = Window(0, 0, SIZE, SIZE)


def draw_window(random: np.random.Generator, mask: np.ndarray, smallest: int = 80) -> Window:
    """A nearly square window of random size around the centre of a mask, bool (256, 256), at a random offset.

    It imitates the region proposals of the annotation: half of the windows are of their size (about 90 to 150 px), the
    others measure `smallest` pixels up to the whole frame.
    """
    size = random.uniform(85, 155) if random.random() < 0.5 else random.uniform(smallest, SIZE)
    stretch = random.uniform(0.88, 1.14)
    width, height = (int(np.clip(side, smallest, SIZE)) for side in (size * stretch, size / stretch))
    left, top, right, bottom = box_around(mask)
    corner = []
    for centre, length in (((left + right) / 2, width), ((top + bottom) / 2, height)):
        lowest, highest = centre - 0.92 * length, centre - 0.08 * length
        corner.append(int(np.clip(round(random.uniform(lowest, highest)), 0, SIZE - length)))
    return Window(corner[0], corner[1], width, height)


def cut_window(image: np.ndarray, labels: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The image and the label map inside a window, resized to 256 x 256: the image bilinear, the labels nearest."""
    if window == WHOLE_FRAME:
        return image, labels
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    return (
        cv2.resize(image[rows, columns], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR),
        cv2.resize(labels[rows, columns], (SIZE, SIZE), interpolation=cv2.INTER_NEAREST),
    )


def augment(random: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image and its label map (in 3 of 10 cases), and change the light of the image.

    Versions of MuJoCo light the same scene up to 36 grey levels apart, which the models should not mind.
    """
    if random.random() < 0.3:
        image, labels = image[:, ::-1], labels[:, ::-1]
    light = image.astype(np.float32) * random.uniform(0.7, 1.3) + random.uniform(-25, 25)
    light = light * random.uniform(0.94, 1.06, 3)
    return np.clip(light, 0, 255).astype(np.uint8), labels


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) in pixels, half-open, of a mask, bool (height, width), that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def normalize(images: np.ndarray) -> torch.Tensor:
    """Images, uint8 (batch, height, width, 3) RGB, as the float (batch, 3, height, width) that both models take."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255 - mean) / std


def categories(names: list[str]) -> list[str]:
    """The distinct categories of instance names, sorted."""
    return sorted({category_of(name) for name in names})


def main() -> None:
    """Write the arrays of one split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_frames(arguments.recordings, arguments.out)


if __name__ == "__main__":
    main()

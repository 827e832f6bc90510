"""The recorded demonstrations as arrays: every frame with a label map, so that a training step reads no JPEG and no RLE.

`python -m tiny_models.frames --recordings DIR/train --out DIR/train_frames` writes two .npy files (memory-mapped when
read) and an index.json. The views below (crops, flips, light) are what both trainers draw their examples from.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from pixel160k.format.masks import decode
from simulation import truth
from simulation.environment import GRIPPER, category_of
from simulation.rlds import find_dataset, read_libero_episodes

SIZE = 256
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Episode:
    """One demonstration: its frames are `first` to `first + steps - 1` of the arrays."""

    suite: str
    task_id: int
    initial_state: int
    instruction: str
    target: str  # an instance name
    first: int
    steps: int
    grasp_step: int


@dataclass(frozen=True)
class Frames:
    """All frames of a split. Label k of the maps is `names[k - 1]`, an instance name; 0 is the background."""

    images: np.ndarray  # uint8 (frames, 256, 256, 3), RGB
    labels: np.ndarray  # uint8 (frames, 256, 256)
    names: list[str]
    episodes: list[Episode]

    @classmethod
    def load(cls, folder: Path) -> "Frames":
        """Read what `write_frames` wrote; the arrays stay on disk until they are indexed."""
        index = json.loads((folder / "index.json").read_text())
        return cls(
            images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
            labels=np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False),
            names=index["names"],
            episodes=[Episode(**episode) for episode in index["episodes"]],
        )

    def label_of(self, name: str) -> int:
        """The label of an instance name."""
        return self.names.index(name) + 1

    @cached_property
    def areas(self) -> np.ndarray:
        """Visible pixels by frame and label, int (frames, labels)."""
        return np.stack([np.bincount(labels.ravel(), minlength=len(self.names) + 1) for labels in self.labels])

    def near_grasp(self, episode: Episode, offset: int) -> int:
        """The frame `offset` steps from the closing of the gripper, kept inside the episode."""
        return episode.first + int(np.clip(episode.grasp_step + offset, 0, episode.steps - 1))


def write_frames(recordings: Path, out: Path) -> None:
    """Decode every recorded set below `recordings` (one folder a suite) into the arrays of `Frames`."""
    images: list[np.ndarray] = []
    label_maps: list[np.ndarray] = []
    names: list[str] = []
    episodes: list[Episode] = []
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
    (out / "index.json").write_text(json.dumps(index, indent=1))


def _episode_of(row: truth.EpisodeTruth, first: int) -> Episode:
    return Episode(
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
    """A square-ish window of random size that holds the centre of a mask, like the regions that are asked about later.

    Half of the windows have the size of such regions (90 to 150 px), the others anything up to the frame.
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


def cut(image: np.ndarray, labels: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """A window of a frame at 256 x 256: the image bilinear, the labels nearest."""
    if window == WHOLE_FRAME:
        return image, labels
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    return (
        cv2.resize(image[rows, columns], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR),
        cv2.resize(labels[rows, columns], (SIZE, SIZE), interpolation=cv2.INTER_NEAREST),
    )


def vary(random: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror some views and change the light a little."""
    if random.random() < 0.3:
        image, labels = image[:, ::-1], labels[:, ::-1]
    light = image.astype(np.float32) * random.uniform(0.8, 1.2) + random.uniform(-15, 15)
    light = light * random.uniform(0.94, 1.06, 3)
    return np.clip(light, 0, 255).astype(np.uint8), labels


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of a mask that is not empty; right and bottom lie behind its last pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def normalize(images: np.ndarray) -> torch.Tensor:
    """uint8 (batch, height, width, 3) -> the float (batch, 3, height, width) that both models take."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255 - mean) / std


def categories(names: list[str]) -> list[str]:
    """The distinct categories of instance names, sorted."""
    return sorted({category_of(name) for name in names})


def main() -> None:
    """Write the cache of one split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_frames(arguments.recordings, arguments.out)


if __name__ == "__main__":
    main()

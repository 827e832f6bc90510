"""Clips to train the memory of the tiny SAM 2 on, as indices of frames.

The gripper is tracked through discrete videos: close frames of different episodes with one viewpoint, in which nothing
moves smoothly. Objects are tracked through consecutive frames, forwards and backwards; often the first frame, whose mask is
remembered for ever, is far from the others. In some clips one of the later frames lacks the object, from which the object
score learns to say so.
"""

from collections import Counter
from dataclasses import dataclass, field

import cv2
import numpy as np

from simulation.environment import GRIPPER, ROBOT_ARM
from simulation.libero import category_of
from tiny_models.frames import SIZE, EpisodeFrames, Frames, box_around, cut_window, draw_window

SMALLEST = 25  # pixels; no clip follows a smaller object
ZOOMED_STEPS = 6  # consecutive frames of a zoomed shot


@dataclass
class Footage:
    """The frames that clips are made of: those of the recordings, then those of the zoomed shots."""

    images: np.ndarray  # uint8 (frames, 256, 256, 3), RGB
    labels: np.ndarray  # uint8 (frames, 256, 256), the label maps
    frames: Frames  # those of the recordings
    shots: list[tuple[int, str]]  # (index of the first frame, target) of every zoomed shot
    areas: np.ndarray = field(init=False)  # int (frames, labels), the pixels of each label

    def __post_init__(self) -> None:
        """Count the pixels of the labels in the zoomed frames too."""
        labels = len(self.frames.names) + 1
        zoomed = self.labels[len(self.frames.images) :]
        counted = [np.bincount(frame.ravel(), minlength=labels) for frame in zoomed]
        self.areas = np.concatenate([self.frames.areas, np.array(counted, dtype=int).reshape(-1, labels)])


def add_zoomed_shots(frames: Frames, shots: int, random: np.random.Generator) -> Footage:
    """Add a number of zoomed shots to the frames of recordings; half of the shots show no gripper.

    A shot is one window over a few consecutive frames, like a region proposal, resized to 256 x 256.
    """
    images, labels = [np.asarray(frames.images)], [np.asarray(frames.labels)]
    firsts: list[tuple[int, str]] = []
    gripper = frames.label_of(GRIPPER)
    while len(firsts) < shots:
        episode = frames.episodes[random.integers(len(frames.episodes))]
        start = episode.first + int(random.integers(episode.steps - ZOOMED_STEPS)) * int(random.random() < 0.6)
        steps = range(start, start + ZOOMED_STEPS)
        target = frames.label_of(episode.target)
        if frames.areas[start, target] < SMALLEST:
            continue
        window = draw_window(random, frames.labels[start] == target)
        views = [cut_window(frames.images[step], frames.labels[step], window) for step in steps]
        seen = any((view[1] == gripper).any() for view in views)
        if (seen and len(firsts) % 2) or (views[0][1] == target).sum() < SMALLEST:
            continue
        firsts.append((len(frames.images) + len(firsts) * ZOOMED_STEPS, episode.target))
        images.append(np.stack([view[0] for view in views]))
        labels.append(np.stack([view[1] for view in views]))
    return Footage(np.concatenate(images), np.concatenate(labels), frames, firsts)


@dataclass(frozen=True)
class Clips:
    """A batch of clips of equal length, each with one object to follow."""

    frame_indices: np.ndarray  # int (clips, length), of the footage
    masks: np.ndarray  # bool (clips, length, 256, 256), of the object
    boxes: np.ndarray  # float32 (clips, 4), of the object on the first frame: left, top, right, bottom in pixels
    prompts: np.ndarray  # bool (clips, 256, 256), the object on the first frame, about as well cut out as by a model


class ClipMaker:
    """Draws clips from footage at random."""

    def __init__(self, footage: Footage, random: np.random.Generator) -> None:
        """Find what a clip can follow: not the arm, and through discrete videos nothing that has a twin."""
        self.footage, self.random = footage, random
        frames = footage.frames
        self.gripper, self.arm = frames.label_of(GRIPPER), frames.label_of(ROBOT_ARM)
        twins = Counter(category_of(name) for name in frames.names)
        self.unique = [
            label for label, name in enumerate(frames.names, 1) if twins[category_of(name)] == 1 and label != self.arm
        ]

    def draw(self, clips: int, length: int) -> Clips:
        """The next batch, of `clips` clips with `length` frames; boxes and prompts are a little wrong."""
        indices, masks, boxes, prompts = [], [], [], []
        for _ in range(clips):
            clip, label = self._clip(length)
            followed = self.footage.labels[clip] == label
            box = np.array(box_around(followed[0]), dtype=np.float32)
            sides = np.concatenate([box[2:] - box[:2]] * 2)
            indices.append(clip)
            masks.append(followed)
            prompts.append(self._roughly(followed[0]))
            boxes.append((box + np.clip(self.random.normal(size=4) * 0.04 * sides, -8, 8)).clip(0, SIZE))
        return Clips(np.stack(indices), np.stack(masks), np.stack(boxes).astype(np.float32), np.stack(prompts))

    def _roughly(self, mask: np.ndarray) -> np.ndarray:
        """The mask, in two of three cases shifted by up to 2 pixels and made thicker or thinner by one, if it survives that."""
        random = self.random
        if random.random() < 1 / 3:
            return mask
        shifted = np.roll(mask, random.integers(-2, 3, 2), (0, 1)).astype(np.uint8)
        change = (cv2.erode, cv2.dilate, lambda same, _: same)[random.integers(3)]
        rough = change(shifted, np.ones((3, 3), np.uint8)).astype(bool)
        return rough if rough.sum() >= SMALLEST // 2 else mask

    def _clip(self, length: int) -> tuple[np.ndarray, int]:
        areas = self.footage.areas
        while True:
            kind = self.random.random()
            if kind < 0.35:
                clip, label = self._discrete(length)
            elif kind < 0.8:
                clip, label = self._consecutive(length)
            else:
                clip, label = self._zoomed(length)
            if label and areas[clip[0], label] >= SMALLEST:
                if self.random.random() < 0.15:
                    clip = self._without_object(clip, label)
                return clip, label

    def _discrete(self, length: int) -> tuple[np.ndarray, int]:
        random, frames = self.random, self.footage.frames
        kind = frames.by_kind[random.integers(len(frames.by_kind))]
        reach = 2 if random.random() < 0.7 else 12
        chosen = [kind[number] for number in random.choice(len(kind), length, replace=False)]
        clip = np.array([frames.near_grasp(episode, int(random.integers(-reach, reach + 1))) for episode in chosen])
        if random.random() < 0.8:
            return clip, self.gripper
        return clip, self._one_of([label for label in self.unique if self._always_seen(clip, label)])

    def _consecutive(self, length: int) -> tuple[np.ndarray, int]:
        random = self.random
        episode = self.footage.frames.draw_episode(random)
        stride = 1 if random.random() < 0.7 else 2
        start = episode.first + int(random.integers(episode.steps - stride * (length - 1)))
        clip = self._maybe_backwards(start + stride * np.arange(length)).copy()
        kind = random.random()
        gripper = kind < 0.35
        if random.random() < 0.6:  # from where annotation starts: the close frame, or the first one
            clip[0] = self.footage.frames.near_grasp(episode, int(random.integers(-1, 2))) if gripper else episode.first
        if gripper:
            return clip, self.gripper
        return clip, self._target_or_other(clip, episode, target=kind < 0.85)

    def _zoomed(self, length: int) -> tuple[np.ndarray, int]:
        random, footage = self.random, self.footage
        first, target = footage.shots[random.integers(len(footage.shots))]
        clip = self._maybe_backwards(first + np.arange(length))
        if random.random() < 0.7:
            return clip, footage.frames.label_of(target)
        seen = np.flatnonzero(footage.areas[clip[0]] >= SMALLEST)
        return clip, self._one_of([int(label) for label in seen if label not in (0, self.arm)])

    def _target_or_other(self, clip: np.ndarray, episode: EpisodeFrames, target: bool) -> int:
        if target:
            return self.footage.frames.label_of(episode.target)
        seen = np.flatnonzero(self.footage.areas[clip[0]] >= SMALLEST)
        return self._one_of([int(label) for label in seen if label not in (0, self.arm)])

    def _maybe_backwards(self, clip: np.ndarray) -> np.ndarray:
        return clip[::-1] if self.random.random() < 0.4 else clip

    def _always_seen(self, clip: np.ndarray, label: int) -> bool:
        return bool((self.footage.areas[clip, label] >= SMALLEST).all())

    def _one_of(self, labels: list[int]) -> int:
        return labels[self.random.integers(len(labels))] if labels else 0

    def _without_object(self, clip: np.ndarray, label: int) -> np.ndarray:
        """Replace one of the later frames by a frame without the object."""
        without = np.flatnonzero(self.footage.areas[:, label] == 0)
        if not len(without):
            return clip
        clip = clip.copy()
        clip[self.random.integers(1, len(clip))] = without[self.random.integers(len(without))]
        return clip

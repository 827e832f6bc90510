"""What motion alone says: where the gripper closed, which object left its place, whether a mask agrees.

No weights, no language. The camera stands still, so what differs from the first frame has moved. After the grasp, the
target's first place is empty (it differs from the first frame while the object is carried and at the end), the arm is
somewhere else on every frame, and the place where the object is put down differs only at the end. Before the grasp the
target's place is unchanged, while the pixels that the arm uncovered at its start are not. The object's mask is what
differs after but not before, made exact with GrabCut on the first frame.

docs/annotation.md gives the measured quality and the weak spots. Lengths are given at an image height of 256 and scaled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from annotate.settings import AnnotateSettings, MotionSettings
from annotate.sources.episode import BadImage, Episode
from pixel160k.format.masks import box_of, inside_box
from pixel160k.format.table import SUPPORTED, Box, Evidence


@dataclass(frozen=True)
class Keyframes:
    """The few decoded frames of an episode, RGB uint8 (height, width, 3), all of one size."""

    initial: np.ndarray
    approach: list[np.ndarray]  # after the first step and well before the close
    close: np.ndarray
    evidence: list[np.ndarray]  # after the object was lifted; the last three end the episode
    evidence_steps: list[int]  # the raw step of each evidence frame
    carried: list[bool]  # per evidence frame: the gripper had not opened again yet
    lifted: bool  # the end effector went `lift_distance` away from its place at the close


def decode_keyframes(episode: Episode, settings: AnnotateSettings, initial: np.ndarray | None = None) -> Keyframes:
    """Decode the frames of an episode that the annotators look at. Its gripper must close (`close_step` >= 0).

    Args:
        episode: the episode.
        settings: how many approach and evidence frames to decode.
        initial: the first valid frame, if it is decoded already.

    Raises:
        BadImage: one of these frames is broken, or they differ in size.
    """
    close, last = episode.close_step, episode.num_steps - 1
    distance = np.linalg.norm(episode.state[:, :3] - episode.state[close, :3], axis=1)
    away = np.flatnonzero(distance[close:] > settings.motion.lift_distance)
    lift = close + int(away[0]) if len(away) else min(close + 1, last)
    opening = np.flatnonzero(episode.gripper_open[close:])
    release = close + int(opening[0]) if len(opening) else last + 1

    approach_end = max(episode.first_step, close - 3)  # the last steps before the close hide the object
    approach_steps = _spread(episode.first_step + 1, approach_end, settings.approach_frames)
    final_steps = [step for step in range(last - 2, last + 1) if step > close]
    carry_steps = _spread(lift, min(release, last), settings.evidence_frames - len(final_steps))
    evidence_steps = sorted({*carry_steps, *final_steps} - {close})
    initial = episode.frame(episode.first_step) if initial is None else initial
    frames = {step: episode.frame(step) for step in [*approach_steps, close, *evidence_steps]}
    for step, frame in frames.items():
        if frame.shape != initial.shape:
            raise BadImage(f"step {step}: the frame has another size than that of step {episode.first_step}")
    return Keyframes(
        initial=initial,
        approach=[frames[step] for step in approach_steps],
        close=frames[close],
        evidence=[frames[step] for step in evidence_steps],
        evidence_steps=evidence_steps,
        carried=[lift <= step <= release for step in evidence_steps],
        lifted=bool(len(away)),
    )


def _spread(first: int, last: int, count: int) -> list[int]:
    """Up to `count` distinct whole steps, evenly spread over first..last, both included."""
    if last < first or count < 1:
        return []
    return sorted(set(np.linspace(first, last, count).round().astype(int).tolist()))


class Motion:
    """What changed between the keyframes of one episode, as maps of the first frame's size; each is computed once.

    The finders of gripper and object and the motion evidence read them.
    """

    def __init__(self, keyframes: Keyframes, settings: MotionSettings) -> None:
        """Blur the frames, shift them onto the first one, and compare them with it; see the module's docstring."""
        self.keyframes = keyframes
        self.settings = settings
        self.height, self.width = keyframes.initial.shape[:2]
        self.pixel = self.height / 256  # lengths below are in pixels at a height of 256
        self._initial = self._blur(keyframes.initial)
        self._close = self._register(keyframes.close)
        self._evidence = [self._register(frame) for frame in keyframes.evidence]
        # Per frame, uint8 (height, width): grey levels by which each pixel differs from the first frame.
        self._approach_change = [_difference(self._register(frame), self._initial) for frame in keyframes.approach]
        self._close_change = _difference(self._close, self._initial)
        self._evidence_change = [_difference(frame, self._initial) for frame in self._evidence]

    @cached_property
    def unusable(self) -> str:
        """Why motion says nothing about this episode; "" where it does."""
        if not self.keyframes.evidence:
            return "no frame follows the gripper's close"
        if not self.keyframes.lifted:
            return "nothing was carried away: the gripper stayed where it closed"
        return "the camera moved" if self.camera_moved else ""

    @cached_property
    def camera_moved(self) -> bool:
        """Whether more of the image changed after the close than things in it could change."""
        if not self._evidence_change:
            return False
        changed = np.mean(np.stack(self._evidence_change) > self.settings.change_threshold)
        return bool(changed > self.settings.moved_camera_share)

    @cached_property
    def change_after(self) -> np.ndarray:
        """Grey levels, float32 (height, width), by which a pixel differs both while carrying and at the end."""
        ending = _percentile(self._evidence_change[-3:], 50)
        carried = zip(self._evidence_change, self.keyframes.carried, strict=True)
        carrying = [change for change, is_carried in carried if is_carried]
        # A low percentile: while the arm slows down over the goal, half of the carrying frames may show it there.
        return np.minimum(ending, _percentile(carrying, 20)) if carrying else ending

    @cached_property
    def change_before(self) -> np.ndarray:
        """Grey levels, float32 (height, width), by which a pixel differs while the gripper approaches."""
        if not self._approach_change:
            return np.zeros((self.height, self.width), np.float32)
        return _percentile(self._approach_change, 50)

    @cached_property
    def left_its_place(self) -> np.ndarray:
        """bool (height, width): changed after the grasp and not before it."""
        threshold = self.settings.change_threshold
        return (self.change_after > threshold) & (self.change_before < 0.7 * threshold)

    @cached_property
    def arm_at_close(self) -> np.ndarray:
        """bool (height, width): what differs at the close from the first frame and from the later ones."""
        later = [_difference(self._close, frame) for frame in self._evidence]
        difference = self._close_change.astype(np.float32)
        if later:
            difference = np.minimum(difference, _percentile(later, 70))
        return self._closed(self._opened(difference > self.settings.change_threshold, 3), 9)

    def gripper(self) -> tuple[Box, np.ndarray] | None:
        """The gripper on the close frame: box (xyxy, pixels) and mask (bool, height x width); None where no arm was seen.

        The gripper is the arm's end: the arm pixels nearest to what left its place, or else those farthest from where the
        arm enters the image. The mask is the arm inside the box: a region of the gripper, not its outline.
        """
        if not self.arm_at_close.any():
            return None
        half_side = self.settings.gripper_half_size * self.height
        tip = self._arm_tip()
        if not self.unusable and (objects := self.moved_objects(tip)):
            ys, xs = np.nonzero(self.arm_at_close)
            target = _centre(objects[0][1])
            distance = np.hypot(xs - target[0], ys - target[1])
            if distance.min() < 1.5 * half_side:
                nearest = distance <= max(np.percentile(distance, 3), 8 * self.pixel)
                tip = np.array([xs[nearest].mean(), ys[nearest].mean()])
        x, y = float(tip[0]), float(tip[1])
        box = (
            max(0.0, x - half_side), max(0.0, y - half_side),
            min(float(self.width), x + half_side), min(float(self.height), y + half_side),
        )  # fmt: skip
        mask = self.arm_at_close & inside_box(box, self.height, self.width)
        return (box, mask) if mask.any() else None

    def moved_objects(self, near: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """The connected regions that left their place: (weight, mask), heaviest first; masks are bool (height, width).

        The weight is the region's summed change times its nearness to `near`, a point (x, y) in pixels: the gripper.
        """
        count, labels, statistics, centres = self._moved_regions
        strength = np.clip((self.change_after - self.change_before) / self.settings.change_threshold, 0, 1.5)
        regions = []
        for label in range(1, count):
            if statistics[label, cv2.CC_STAT_AREA] < 25 * self.pixel**2:
                continue
            mask = labels == label
            distance = np.hypot(*(centres[label] - near)) / (self.settings.nearness * self.height)
            regions.append((float(strength[mask].sum() * (np.exp(-(distance**2)) + 0.02)), mask))
        return sorted(regions, key=lambda region: -region[0])

    @cached_property
    def _moved_regions(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """The connected regions that left their place, specks left out, as OpenCV gives them: count, labels, statistics, centres."""
        found = self._opened(self._closed(self.left_its_place, 5), 3)
        return cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=8)

    def moved_with(self, mask: np.ndarray) -> np.ndarray:
        """All of the regions that left their place and share at least a tenth of the smaller of the two with a mask.

        Both are bool (height, width). Where no region does, the result is empty.
        """
        count, labels, statistics, _ = self._moved_regions
        shared = np.bincount(labels[mask], minlength=count)
        smaller = np.minimum(statistics[:, cv2.CC_STAT_AREA], max(1, int(np.count_nonzero(mask))))
        moved = shared >= 0.1 * smaller
        moved[0] = False  # what stayed
        return moved[labels]

    def outline(self, region: np.ndarray) -> np.ndarray:
        """The exact mask, bool (height, width), of a moved region, by GrabCut on the first frame.

        Where GrabCut fails the region itself is returned.
        """
        around = cv2.dilate(region.astype(np.uint8), _kernel(11 * self.pixel)).astype(bool)
        labels = np.full(region.shape, cv2.GC_BGD, np.uint8)
        labels[around & (self.change_after >= 0.35 * self.settings.change_threshold)] = cv2.GC_PR_BGD
        labels[region] = cv2.GC_PR_FGD
        labels[self._eroded(region)] = cv2.GC_FGD
        if not (labels == cv2.GC_FGD).any():
            return region
        x0, y0, x1, y1 = (int(side) for side in box_of(around))
        margin = round(12 * self.pixel)
        window = np.s_[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin]
        cut = np.ascontiguousarray(labels[window])
        cv2.setRNGSeed(0)  # GrabCut seeds its colour models by k-means with OpenCV's own generator
        cv2.grabCut(
            np.ascontiguousarray(self.keyframes.initial[window]), cut, (0, 0, 0, 0),
            np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK,
        )  # fmt: skip
        mask = np.zeros(region.shape, bool)
        mask[window] = (cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)
        mask = _largest(self._opened(mask, 3))
        if not 0.5 < np.count_nonzero(mask) / np.count_nonzero(region) < 1.7:
            mask = region
        return self._closed(mask, 3)

    def evidence(self, mask: np.ndarray, min_score: float) -> Evidence:
        """The share of a mask, bool (height, width), that left its place, and whether it supports or contradicts the mask.

        The mask's rim, where blur mixes object and background, is left out. A share below `min_score` contradicts. A part of
        the right object is supported, too; `coverage` tells it from the whole.
        """
        if self.unusable:
            return Evidence()
        inner = self._eroded(mask)
        inner = inner if np.count_nonzero(inner) >= 10 else mask
        score = float(self.left_its_place[inner].mean())
        moved = self.moved_with(mask)
        coverage = float(mask[moved].mean()) if moved.any() else 1.0
        return Evidence(SUPPORTED, score, self.keyframes.evidence_steps[-1], coverage).judged(min_score)

    @cached_property
    def arm_entry(self) -> np.ndarray:
        """Where the arm enters the image (x, y): the border pixels that ever change, or else the middle of the top."""
        changes = [*self._approach_change, self._close_change, *self._evidence_change]
        changed = np.max(changes, axis=0) > self.settings.change_threshold
        rim = max(1, round(3 * self.pixel))
        changed[rim:-rim, rim:-rim] = False
        return _centre(changed) if np.count_nonzero(changed) > 5 else np.array([self.width / 2, 0.0])

    def _arm_tip(self) -> np.ndarray:
        """The arm pixels farthest from where the arm enters the image, specks left out: x, y."""
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(self.arm_at_close.astype(np.uint8))
        areas = statistics[1:, cv2.CC_STAT_AREA]
        large = np.isin(labels, 1 + np.flatnonzero(areas >= 0.15 * areas.max()))
        ys, xs = np.nonzero(large)
        entry = self.arm_entry
        distance = np.hypot(xs - entry[0], ys - entry[1])
        far = distance >= np.percentile(distance, 97)
        return np.array([xs[far].mean(), ys[far].mean()])

    def _opened(self, mask: np.ndarray, size: int) -> np.ndarray:
        """Morphological opening of a mask: specks below `size` pixels (at 256) go."""
        return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _kernel(size * self.pixel)).astype(bool)

    def _closed(self, mask: np.ndarray, size: int) -> np.ndarray:
        """Morphological closing of a mask: gaps below `size` pixels (at 256) are filled."""
        return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _kernel(size * self.pixel)).astype(bool)

    def _eroded(self, mask: np.ndarray) -> np.ndarray:
        """A mask without its outermost pixels, where blur mixes object and background."""
        return cv2.erode(mask.astype(np.uint8), _kernel(3 * self.pixel)).astype(bool)

    def _blur(self, frame: np.ndarray) -> np.ndarray:
        sigma = self.settings.blur_sigma * self.pixel
        return cv2.GaussianBlur(frame, (0, 0), sigma) if sigma > 0 else frame

    @cached_property
    def _reference(self) -> tuple[np.ndarray, np.ndarray, float]:
        """What frames are registered on: the first frame small and grey, a window for it, and how much smaller it is."""
        scale = min(1.0, 128 / self.height)  # a shift is found as well at this size, in a fraction of the time
        grey = _small_grey(self._initial, scale)
        return grey, cv2.createHanningWindow(grey.shape[::-1], cv2.CV_32F), scale

    def _register(self, frame: np.ndarray) -> np.ndarray:
        """Blur a frame and undo a shift of the camera, where undoing it makes the frame more like the first one."""
        blurred = self._blur(frame)
        reference, window, scale = self._reference
        (dx, dy), _ = cv2.phaseCorrelate(reference, _small_grey(blurred, scale), window)
        if np.hypot(dx, dy) < 0.5 * scale:
            return blurred
        shift = np.array([[1, 0, -dx / scale], [0, 1, -dy / scale]], np.float32)
        moved = cv2.warpAffine(
            blurred, shift, (self.width, self.height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        better = np.median(_difference(moved, self._initial)) < np.median(_difference(blurred, self._initial))
        return moved if better else blurred


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Per pixel how much two RGB images differ: grey levels of the channel that differs most, uint8 (height, width)."""
    red, green, blue = cv2.split(cv2.absdiff(first, second))
    return cv2.max(cv2.max(red, green), blue)


def _percentile(images: Sequence[np.ndarray], percent: float) -> np.ndarray:
    """numpy's percentile of a few uint8 images, pixel by pixel, float32; by a sorting network, many times faster."""
    ranked = list(images)
    for last in range(len(ranked) - 1, 0, -1):
        for index in range(last):
            lower, upper = ranked[index], ranked[index + 1]
            ranked[index], ranked[index + 1] = cv2.min(lower, upper), cv2.max(lower, upper)
    below, share = divmod(percent / 100 * (len(ranked) - 1), 1)
    low, high = ranked[int(below)], ranked[min(int(below) + 1, len(ranked) - 1)]
    return cv2.addWeighted(low, 1 - share, high, share, 0, dtype=cv2.CV_32F)


def _small_grey(image: np.ndarray, scale: float) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)


def _centre(mask: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(mask)
    return np.array([xs.mean(), ys.mean()])


def _kernel(size: float) -> np.ndarray:
    """A square of ones whose side is odd and at least 1."""
    side = 2 * round((size - 1) / 2) + 1
    return np.ones((max(1, side), max(1, side)), np.uint8)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax() if count > 1 else mask

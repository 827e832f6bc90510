"""What motion alone says: where the gripper closed, which object left its place, whether a mask agrees.

No weights, no language. The camera stands still, so what differs from the first frame has moved. After the grasp, the
target's first place is empty (it differs from the first frame while the object is carried and at the end), the arm is
somewhere else on every frame, and the place where the object is put down differs only at the end. Before the grasp the
target's place is unchanged, while the pixels that the arm uncovered at its start are not. The object's mask is what
differs after but not before, made exact with GrabCut on the first frame.

docs/annotation.md gives the measured quality and the weak spots. Lengths are given at an image height of 256 and scaled.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations

import cv2
import numpy as np

from annotate.annotators.keyframes import Keyframes
from annotate.settings import MotionSettings
from pixel160k.format.masks import box_of, inside_box
from pixel160k.format.table import SUPPORTED, Box, Evidence


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
        self._largest_shift = 0.0  # pixels, of all frames that were shifted
        self._close, self.close_offset = self._register(keyframes.close)  # (x, y) from the close frame to the first one
        self._evidence = [self._register(frame)[0] for frame in keyframes.evidence]
        # Per frame, uint8 (height, width): grey levels by which each pixel differs from the first frame.
        self._approach_change = [_difference(self._register(frame)[0], self._initial) for frame in keyframes.approach]
        self._close_change = _difference(self._close, self._initial)
        self._evidence_change = [_difference(frame, self._initial) for frame in self._evidence]

    @cached_property
    def unusable(self) -> str:
        """Why motion says nothing about this episode; "" where it does."""
        if not self.keyframes.evidence:
            return "no frame follows the gripper's close"
        if self.keyframes.grasp.lift < 0:
            return "nothing was carried away: the gripper stayed where it closed"
        if self.keyframes.grasp.holds is False:
            return "nothing was carried away: the fingers held nothing"
        return "the camera moved" if self.camera_moved else ""

    @cached_property
    def camera_moved(self) -> bool:
        """Whether the camera moved after the close, by more than shifts that registration undoes."""
        return bool(self._evidence_change) and self._is_moved(np.stack(self._evidence_change))

    @cached_property
    def moved_before_close(self) -> bool:
        """Whether the camera moved until the close, by more than the shift of `close_offset`."""
        return self._is_moved(self._close_change)

    def _is_moved(self, change: np.ndarray) -> bool:
        return bool(np.mean(change > self.settings.change_threshold) > self.settings.moved_camera_share)

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
        arm, (right, down) = self.arm_at_close, self.close_offset
        if right or down:  # the arm was found on the first frame's pixels; back to those of the close frame
            back = np.array([[1, 0, -right], [0, 1, -down]], np.float32)
            arm = cv2.warpAffine(arm.astype(np.uint8), back, (self.width, self.height), flags=cv2.INTER_NEAREST) > 0
        x, y = float(tip[0]) - right, float(tip[1]) - down
        box = (
            max(0.0, x - half_side), max(0.0, y - half_side),
            min(float(self.width), x + half_side), min(float(self.height), y + half_side),
        )  # fmt: skip
        mask = arm & inside_box(box, self.height, self.width)
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

    @cached_property
    def carried_away(self) -> bool:
        """Whether anything left its place near the gripper; False where motion says nothing at all."""
        if self.unusable:
            return False
        if not self.arm_at_close.any():
            return False
        tip, near = self._arm_tip(), 2 * self.settings.gripper_half_size * self.height
        for _, mask in self.moved_objects(tip):
            ys, xs = np.nonzero(mask & self.uncovered)
            if len(xs) >= 60 * self.pixel**2 and np.hypot(xs - tip[0], ys - tip[1]).min() < near:
                return True
        return False

    @cached_property
    def uncovered(self) -> np.ndarray:
        """bool (height, width): looks alike on some two frames after the lift, so nothing passes over it there.

        The last frames, on which the arm rests, count as one.
        """
        carried = zip(self._evidence, self.keyframes.carried, strict=True)
        frames = [frame for frame, is_carried in carried if is_carried] + self._evidence[-1:]
        alike = np.zeros((self.height, self.width), bool)
        for first, second in combinations(frames, 2):
            alike |= _difference(first, second) <= self.settings.change_threshold
        return alike

    def evidence(self, mask: np.ndarray, min_score: float) -> Evidence:
        """The share of a mask, bool (height, width), that left its place, and whether it supports or contradicts the mask.

        The mask's rim, where blur mixes object and background, is left out. A share below `min_score` contradicts. A part of
        the right object is supported, too; `coverage` tells it from the whole.
        """
        if self.unusable:
            return Evidence(why=self.unusable)
        inner = self._eroded(mask)
        inner = inner if np.count_nonzero(inner) >= 10 else mask
        if not self.carried_away:
            return Evidence(why="nothing left its place near the gripper")
        if self.uncovered[inner].mean() < 0.5:
            return Evidence(why="the mask's place was never uncovered")
        score = float(self.left_its_place[inner].mean())
        moved = self.moved_with(mask)
        coverage = float(mask[moved].mean()) if moved.any() else 1.0
        return Evidence(SUPPORTED, score, self.keyframes.evidence_steps[-1], coverage).judged(min_score)

    @cached_property
    def arm_entry(self) -> np.ndarray:
        """Where the arm enters the image (x, y): the border pixels that ever change, or else the middle of the top."""
        changes = [*self._approach_change, self._close_change, *self._evidence_change]
        changed = np.max(changes, axis=0) > self.settings.change_threshold
        rim = max(1, round(3 * self.pixel + self._largest_shift))  # what was shifted in is not known
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

    def _register(self, frame: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
        """Blur a frame and undo a shift of the camera, where undoing it makes the frame more like the first one.

        Also returns by how many pixels in x and y the frame was shifted.
        """
        blurred = self._blur(frame)
        reference, window, scale = self._reference
        small = _small_grey(blurred, scale)
        (dx, dy), _ = cv2.phaseCorrelate(reference.copy(), small, window)  # it writes into both
        if np.hypot(dx, dy) < 0.5 * scale:
            return blurred, (0.0, 0.0)
        # The estimate is off by up to a pixel: of it and the whole pixels around it the best one counts.
        x, y = -dx / scale, -dy / scale
        around = [(float(np.floor(x)) + right, float(np.floor(y)) + down) for right in (0, 1) for down in (0, 1)]
        shifts = [(0.0, 0.0), (x, y), *around]
        shift = min(shifts, key=lambda shift: self._unlikeness(self._shifted(blurred, shift)))
        if shift == (0.0, 0.0):
            return blurred, shift
        self._largest_shift = max(self._largest_shift, *np.abs(shift))
        # What enters at the border is not known, and counts as unchanged.
        entered = self._shifted(np.ones(blurred.shape[:2], np.uint8), shift, cv2.BORDER_CONSTANT) == 0
        moved = self._shifted(blurred, shift)
        moved[entered] = self._initial[entered]
        return moved, shift

    def _shifted(self, image: np.ndarray, shift: tuple[float, float], border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        """An image moved right and down by a number of pixels."""
        move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        return cv2.warpAffine(image, move, (self.width, self.height), flags=cv2.INTER_LINEAR, borderMode=border)

    def _unlikeness(self, frame: np.ndarray) -> tuple[float, float]:
        """How much a frame differs from the first one; most of a picture stands still, so the median comes first."""
        difference = _difference(frame, self._initial)
        return float(np.median(difference)), float(difference.mean())


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

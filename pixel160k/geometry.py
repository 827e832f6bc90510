"""How an image becomes what a policy sees, and how masks and points go through the very same geometry.

A view is a box of the image, resized to a square: stretched to it, as OpenVLA does it, or in its own aspect with black around
it, as π0 does it. The box is the whole image, a random crop of 0.9 of its area while training, the central crop of that size
while acting. Coordinates are pixels, origin top left, boxes half-open; pixel centres are at + 0.5.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

CROPPED_AREA = 0.9  # of the image: OpenVLA's, in training and in its LIBERO evaluation


@dataclass(frozen=True)
class View:
    """What is seen of an image: a box of whole pixels x0, y0, x1, y1, shown as a square of `size` pixels per side.

    With `padded` the box keeps its aspect, and black bars fill the square; else it is stretched.
    """

    box: tuple[int, int, int, int]
    size: int
    padded: bool = False

    @property
    def shown(self) -> tuple[int, int, int, int]:
        """Where the box lies in the view: x0, y0, x1, y1 in its pixels.

        Padded it is in the middle, and of two bars the one to the right or below is at most one pixel larger (openpi's
        resize_with_pad).
        """
        if not self.padded:
            return 0, 0, self.size, self.size
        x0, y0, x1, y1 = self.box
        longer = max(x1 - x0, y1 - y0)
        wide, high = (max(1, length * self.size // longer) for length in (x1 - x0, y1 - y0))
        left, top = (self.size - wide) // 2, (self.size - high) // 2
        return left, top, left + wide, top + high

    def image(self, image: np.ndarray) -> np.ndarray:
        """What is seen of an image, uint8 (height, width, 3): uint8 (size, size, 3); averaged over areas where it shrinks."""
        seen = self._crop(image)
        left, top, right, bottom = self.shown
        shrinks = seen.shape[0] >= bottom - top and seen.shape[1] >= right - left
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized = cv2.resize(seen, (right - left, bottom - top), interpolation=interpolation)
        if not self.padded:
            return resized
        square = np.zeros((self.size, self.size, 3), np.uint8)
        square[top:bottom, left:right] = resized
        return square

    def coordinates(self, coordinates: np.ndarray) -> np.ndarray:
        """Points x, y, (n, 2) in pixels of the image, as float32 (n, 2) in pixels of the view.

        A point that is not seen lies outside 0 to `size`.
        """
        x0, y0, x1, y1 = self.box
        left, top, right, bottom = self.shown
        scaled = (coordinates - (x0, y0)) * ((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
        return np.add(scaled, (left, top)).astype(np.float32)

    def patch_weights(self, mask: np.ndarray, grid: int) -> np.ndarray:
        """The share of each patch of the view that a mask, bool (height, width), covers: float32 (grid, grid) in [0, 1]."""
        return _covered(self._crop(mask), grid, self.shown, self.size)

    def _crop(self, array: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = self.box
        return array[y0:y1, x0:x1]


def resize_view(height: int, width: int, size: int, padded: bool = False) -> View:
    """A view of the whole image."""
    return View((0, 0, width, height), size, padded)


def centre_crop_view(height: int, width: int, size: int, area: float = CROPPED_AREA, *, padded: bool = False) -> View:
    """A view of the middle of an image: the share `area` of it, both sides shortened alike."""
    high, wide = _cropped(height, width, area)
    x0, y0 = (width - wide) // 2, (height - high) // 2
    return View((x0, y0, x0 + wide, y0 + high), size, padded)


def random_crop_view(
    height: int,
    width: int,
    size: int,
    area: float = CROPPED_AREA,
    *,
    generator: np.random.Generator,
    padded: bool = False,
) -> View:
    """A view of a random box of an image: the share `area` of it, both sides shortened alike."""
    high, wide = _cropped(height, width, area)
    x0, y0 = (int(generator.integers(0, most + 1)) for most in (width - wide, height - high))
    return View((x0, y0, x0 + wide, y0 + high), size, padded)


def _cropped(height: int, width: int, area: float) -> tuple[int, int]:
    return max(1, round(height * area**0.5)), max(1, round(width * area**0.5))


def patch_weights(mask: np.ndarray, grid: int) -> np.ndarray:
    """The share of each patch that a mask covers, float32 (grid, grid) in [0, 1].

    Pooled over areas of the full-resolution mask, bool (height, width), exactly at any size: the nearest pixel would
    lose small objects.
    """
    return _covered(mask, grid, (0, 0, 1, 1), 1)


def _covered(mask: np.ndarray, grid: int, shown: tuple[int, int, int, int], side: int) -> np.ndarray:
    """`patch_weights` of a square of `side` units in which the mask lies at `shown`: x0, y0, x1, y1 in these units.

    By whole numbers. Matrix products say the same; but where BLAS has many threads, ones as small as these take a loader most
    of its time.
    """
    left, top, right, bottom = shown
    sums = cv2.integral(mask.astype(np.uint8)).astype(np.int64)
    sums = _at_edges(_at_edges(sums, grid, top, bottom, side).T, grid, left, right, side).T
    return (np.diff(np.diff(sums, axis=0), axis=1) / (mask.size * side**2)).astype(np.float32)


def _at_edges(sums: np.ndarray, cells: int, begin: int, end: int, side: int) -> np.ndarray:
    """Sums up to each pixel's edge, int (pixels + 1, n), at the edges of `cells` equal parts of `side`, as whole numbers.

    The pixels lie side by side from `begin` to `end`. The sums are multiplied by cells * (end - begin).
    """
    pixels, whole = len(sums) - 1, cells * (end - begin)
    edges = (np.arange(cells + 1) * side - begin * cells) * pixels  # in pixels, times `whole`
    pixel, part = np.divmod(edges.clip(0, pixels * whole), whole)
    before, after = sums[pixel], sums[np.minimum(pixel + 1, pixels)]
    return before * whole + (after - before) * part[:, None]


def colour_jitter(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Other light and colours, uint8 (height, width, 3) RGB; nothing moves, so masks and prompts stay as they are.

    OpenVLA's and Octo's: brightness ± 0.2 of the range, contrast and saturation × 0.8 to 1.2, hue ± 0.05 of the circle.
    """
    brightness, contrast = generator.uniform(-0.2, 0.2), generator.uniform(0.8, 1.2)
    mean = np.array(cv2.mean(image)[:3]) / 255 + brightness
    levels = np.arange(256)[:, None] / 255 + brightness
    table = np.clip((levels - mean) * contrast + mean, 0, 1).astype(np.float32)
    hsv: Any = cv2.cvtColor(cv2.LUT(image, table[:, None]), cv2.COLOR_RGB2HSV)
    hue, saturation = hsv[..., 0], hsv[..., 1]
    saturation *= generator.uniform(0.8, 1.2)
    np.minimum(saturation, 1, out=saturation)
    hue += 360 * generator.uniform(-0.05, 0.05)
    hue[hue < 0] += 360
    hue[hue >= 360] -= 360
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), alpha=255)

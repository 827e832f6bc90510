"""Visual prompts, points, lines, regions and masks: a user's own, checked, and those sampled from an object's mask.

The paper samples them at random from the mask; here the seed derives from the episode's id, so that the same episode
gets the same prompts whatever runs beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pixel160k.errors import InputError
from pixel160k.format.masks import box_of
from pixel160k.format.table import Box, Point, Prompts

PromptKind = Literal["point", "line", "region", "mask"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
"""The kinds of visual prompts, in the order that gives each its number."""
PIXEL_MASK = "pixel_mask"
"""The name of p_t, the mask that the pixel-aware encoder reads, beside those of the prompts."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One thing that a user points at. `point`, `line`, `region` and `mask_prompt` make them.

    Attributes:
        kind: what it is.
        coordinates: float32 (n, 2), x and y in pixels, origin top left: one row for a point, two or more for a line, the
            upper left and the lower right corner for a region, none for a mask.
        mask: bool (height, width) of a mask, else None.
    """

    kind: PromptKind
    coordinates: np.ndarray
    mask: np.ndarray | None = None


def point(x: float, y: float) -> Prompt:
    """A click at x, y in pixels; the centre of the pixel in column c and row r is (c + 0.5, r + 0.5)."""
    return Prompt("point", _coordinates("a point", [(x, y)]))


def line(points: Sequence[Point]) -> Prompt:
    """A stroke through two or more points x, y in pixels.

    Raises:
        InputError: there are fewer than two.
    """
    coordinates = _coordinates("a line", points)
    if len(coordinates) < 2:
        raise InputError(f"a line needs two points or more, (x, y) in pixels, not {len(coordinates)}")
    return Prompt("line", coordinates)


def region(box: Box) -> Prompt:
    """A box x0, y0, x1, y1 in pixels, half-open.

    Raises:
        InputError: it is empty.
    """
    if np.shape(box) != (4,):
        raise InputError(f"a region is a box x0, y0, x1, y1 in pixels, not {box!r}")
    coordinates = _coordinates("a region", [box[:2], box[2:]])
    if not (coordinates[0] < coordinates[1]).all():
        raise InputError(f"a region is a box x0, y0, x1, y1 with x0 < x1 and y0 < y1, not {tuple(box)}")
    return Prompt("region", coordinates)


def mask_prompt(mask: np.ndarray) -> Prompt:
    """A prompt that marks an area: a mask, bool (height, width), of an image of that size.

    Raises:
        InputError: it is of another type or shape, or empty.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"a mask is a bool array (height, width), not {found}")
    if not mask.any():
        raise InputError("a mask prompt must mark something, and this one is empty")
    return Prompt("mask", np.zeros((0, 2), np.float32), mask)


def _coordinates(what: str, points: Sequence[Sequence[float]]) -> np.ndarray:
    try:
        coordinates = np.asarray(points, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{what} is given by coordinates (x, y) in pixels, not {points!r}") from None
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise InputError(f"{what} is given by coordinates (x, y) in pixels, not {points!r}")
    if not np.isfinite(coordinates).all():
        raise InputError(f"{what} has a coordinate that is not finite: {coordinates.tolist()}")
    return coordinates


def validate(prompt: Prompt, height: int, width: int) -> None:
    """Check that a prompt lies on an image of this size.

    Raises:
        InputError: it reaches out of the image, or a mask is of another size; says what was expected.
    """
    if prompt.mask is not None and prompt.mask.shape != (height, width):
        raise InputError(f"a mask prompt must have its image's size {(height, width)}, not {prompt.mask.shape}")
    outside = (prompt.coordinates < 0) | (prompt.coordinates > (width, height))
    if outside.any():
        x, y = prompt.coordinates[outside.any(1)][0].tolist()
        raise InputError(
            f"the {prompt.kind} prompt reaches to ({x:g}, {y:g}), out of the image of {width} x {height} pixels"
        )


def sample_prompts(mask: np.ndarray, points: int, generator: np.random.Generator) -> Prompts:
    """Sample prompts from a mask, bool (height, width), that is not empty.

    Points are pixel centres inside the mask, without repetition while it has enough pixels. The line is the longest of a
    few random pairs of points inside the mask, so that it says something of the object's extent; its ends may be equal
    on a one-pixel mask. All coordinates are x, y in pixels, origin top left.

    Raises:
        ValueError: the mask is empty.
    """
    ys, xs = np.nonzero(mask)
    if not len(xs):
        raise ValueError("cannot sample prompts from an empty mask")
    chosen = generator.choice(len(xs), size=points, replace=len(xs) < points)
    pairs = generator.integers(len(xs), size=(8, 2))
    lengths = np.hypot(np.ptp(xs[pairs], axis=1), np.ptp(ys[pairs], axis=1))
    ends = pairs[lengths.argmax()]

    def centres(indices: np.ndarray) -> list[Point]:
        return [(float(xs[index]) + 0.5, float(ys[index]) + 0.5) for index in indices]

    return Prompts(points=centres(chosen), line=centres(ends), region=box_of(mask))

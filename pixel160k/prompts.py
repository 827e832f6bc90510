"""Visual prompts sampled from an object's mask: points, a line, its outer box.

The paper samples them at random from the mask; here the seed derives from the episode's id, so that the same episode
gets the same prompts whatever runs beside it.
"""

import hashlib

import numpy as np

from pixel160k.masks import box_of
from pixel160k.table import Point, Prompts


def seeded_generator(*stable: object) -> np.random.Generator:
    """A random generator whose seed is a SHA-256 of stable ids, the same on every machine and in every order."""
    digest = hashlib.sha256("/".join(map(str, stable)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


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

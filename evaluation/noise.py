"""A camera that shows less: LIBERO-Plus's category Sensor Noise, for any image.

The five kinds and their ten severities are LIBERO-Plus's (libero/libero/envs/env_wrapper.py of
github.com/sylvestf/LIBERO-plus at 4976dc3), and so is their numbering: `noise_23` in the name of a task of its is severity 3 of
the third kind. Its difficulties 1 to 5 are something else: how many policies failed a task. There each image draws from
numpy's global generator, so that no run repeats another; here from what the caller says.
"""

import cv2
import numpy as np

KINDS = ("motion blur", "gaussian blur", "zoom blur", "fog", "glass blur")
_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))  # radius, sigma
_ZOOM = (  # the last zoom, and the step to it
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
_FOG: tuple[tuple[float, float], ...] = (  # how dense, how fine
    *((0.5, 3), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
_GLASS = (  # sigma, how far pixels go, how often
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)


def noisy(image: np.ndarray, noise: int, rng: np.random.Generator) -> np.ndarray:
    """An image through a noise.

    Args:
        image: RGB uint8 (height, width, 3), upright. LIBERO-Plus's is turned by 180 degrees at that point, so it is here.
        noise: 1 to 10: motion blur; 11 to 20: Gaussian blur; 21 to 30: zoom blur; 31 to 40: fog; 41 to 50: glass blur;
            severer towards the end of each.
        rng: what motion blur, fog and glass blur draw from.

    Returns:
        Like `image`.
    """
    kind, severity = divmod(noise - 1, 10)
    turned = image[::-1, ::-1].astype(np.float32) / 255
    match KINDS[kind]:
        case "motion blur":
            made = _motion_blur(turned, *_MOTION[severity], rng.uniform(-45, 45))
        case "gaussian blur":
            made = _gaussian(turned, severity + 1)
        case "zoom blur":
            made = _zoom_blur(turned, *_ZOOM[severity])
        case "fog":
            made = _fog(turned, *_FOG[severity], rng)
        case _:
            made = _glass_blur(turned, *_GLASS[severity], rng)
    return np.ascontiguousarray((np.clip(made, 0, 1) * 255).astype(np.uint8)[::-1, ::-1])


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """As scikit-image's `gaussian`: four sigmas wide, the edge goes on."""
    width = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(image, (width, width), sigma, borderType=cv2.BORDER_REPLICATE)


def _motion_blur(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """As ImageMagick's: half a Gaussian along a line; `angle` in degrees."""
    height, width = image.shape[:2]
    length = 2 * radius + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    made = np.zeros_like(image)
    for step, weight in enumerate(weights / weights.sum()):
        down = int(np.ceil(step * np.sin(np.deg2rad(angle)) - 0.5))
        right = int(np.ceil(step * np.cos(np.deg2rad(angle)) - 0.5))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        made += np.float32(weight) * image[rows][:, columns]
    return made


def _zoom_blur(image: np.ndarray, last: float, step: float) -> np.ndarray:
    """The mean of the image and of ever closer views of its middle."""
    zooms = np.arange(1, last, step)
    return (image + sum(_closer(_closer(image, zoom, 0), zoom, 1) for zoom in zooms)) / (len(zooms) + 1)


def _closer(image: np.ndarray, zoom: float, axis: int) -> np.ndarray:
    """The middle of an image, stretched along an axis to its size and a little more, which is cut off."""
    size = image.shape[axis]
    kept = int(np.ceil(size / zoom))
    at = np.linspace(0, kept - 1, round(kept * zoom), dtype=np.float32)
    trimmed = (len(at) - size) // 2
    at = at[trimmed : trimmed + size]
    low = np.minimum(at.astype(int), kept - 2)
    share = np.expand_dims(at - low, tuple(other for other in range(3) if other != axis))
    first = (size - kept) // 2 + low
    return image.take(first, axis) * (1 - share) + image.take(first + 1, axis) * share


def _fog(image: np.ndarray, density: float, decay: float, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    size = max(256, 1 << (max(height, width) - 1).bit_length())
    brightest = image.max()
    fogged = image + density * _clouds(size, decay, rng)[:height, :width, None]
    return fogged * brightest / (brightest + density)


def _clouds(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """A random landscape in [0, 1] by the diamond-square algorithm, float64 (size, size); `size` is a power of two."""
    heights, step, roughness = np.zeros((size, size)), size, 100.0

    def drawn(four: np.ndarray) -> np.ndarray:
        return four / 4 + roughness * rng.uniform(-roughness, roughness, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below = corners + np.roll(corners, -1, 0)
        centres = heights[half::step, half::step] = drawn(below + np.roll(below, -1, 1))
        beside = corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = drawn(centres + np.roll(centres, 1, 0) + beside)
        heights[half::step, ::step] = drawn(centres + np.roll(centres, 1, 1) + below)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return heights / heights.max()


def _glass_blur(image: np.ndarray, sigma: float, far: int, often: int, rng: np.random.Generator) -> np.ndarray:
    """Each pixel becomes one near it, from the last to the first, between two blurs.

    LIBERO-Plus writes it as a swap of the two, which on numpy's views copies one over the other; published numbers are of
    that.
    """
    height, width = image.shape[:2]
    sources = list(range(height * width))
    rows, columns = np.mgrid[height - far : far : -1, width - far : far : -1]
    places = (rows * width + columns).ravel()
    for _ in range(often):
        down, right = rng.integers(-far, far, (2, len(places)))
        for place, near in zip(places.tolist(), (places + down * width + right).tolist(), strict=True):
            sources[place] = sources[near]
    blurred = np.floor(_gaussian(image, sigma) * 255) / 255
    return _gaussian(blurred.reshape(-1, 3)[sources].reshape(image.shape), sigma)

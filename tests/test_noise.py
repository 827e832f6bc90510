"""LIBERO-Plus's sensor noise: its kinds and severities, the same wherever the same is drawn."""

import numpy as np
import pytest
from scipy import ndimage

from evaluation.noise import KINDS, noisy


@pytest.fixture(scope="module")
def image():
    """Smooth shapes with edges, (64, 64)."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.uniform(0, 255, (8, 8, 3)), np.ones((8, 8, 1)))
    return ndimage.gaussian_filter(blocks, (1, 1, 0)).astype(np.uint8)


def difference(image, noise):
    made = noisy(image, noise, np.random.default_rng(1))
    assert made.dtype == np.uint8 and made.shape == image.shape and made.flags.c_contiguous
    return np.abs(made.astype(int) - image).mean()


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_severer_is_further_from_the_image(image, kind):
    """Mild, middle and severe in this order, and none leaves the image as it is."""
    mild, middle, severe = (difference(image, 10 * kind + severity) for severity in (1, 5, 10))
    assert 0.5 < mild < middle < severe


@pytest.mark.parametrize("severity", [1, 4])
def test_gaussian_blur_is_scikit_images(image, severity):
    expected = ndimage.gaussian_filter(image / 255, (severity, severity, 0), mode="nearest", truncate=4) * 255
    assert np.abs(noisy(image, 10 + severity, np.random.default_rng()) - expected).max() <= 1.01


def test_zoom_blur_is_the_mean_of_scipys_zooms(image):
    """Severity 5, written as LIBERO-Plus has it, of an image turned as there."""
    turned, size, zooms = image[::-1, ::-1] / 255, 64, np.arange(1, 1.31, 0.03)
    total = turned.copy()
    for zoom in zooms:
        kept = int(np.ceil(size / zoom))
        top = (size - kept) // 2
        zoomed = ndimage.zoom(turned[top : top + kept, top : top + kept], (zoom, zoom, 1), order=1)
        trimmed = (zoomed.shape[0] - size) // 2
        total += zoomed[trimmed : trimmed + size, trimmed : trimmed + size]
    expected = (total / (len(zooms) + 1) * 255)[::-1, ::-1]
    assert np.abs(noisy(image, 25, np.random.default_rng()) - expected).max() <= 1.01


def test_motion_blur_goes_along_a_line_one_way():
    """A bright point in the middle becomes a stroke within 45 degrees of level; its light stays; here it goes right."""
    image = np.zeros((101, 101, 3), np.uint8)
    image[50, 50] = 255
    rows, columns = np.nonzero(noisy(image, 5, np.random.default_rng(3))[..., 0])
    assert columns.min() == 50 and columns.max() > 60 and np.abs(rows - 50).max() <= columns.max() - 50
    flat = np.full((101, 101, 3), 200, np.uint8)
    assert np.abs(noisy(flat, 10, np.random.default_rng(3)).astype(int) - 200).max() <= 1


def test_glass_moves_pixels_no_farther_than_it_says():
    """Severity 1 moves three times by a pixel and blurs by half of one, twice: black stays black five pixels away."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    made = noisy(image, 41, np.random.default_rng(0))
    assert not made[:, :24].any() and (made[:, 42:] > 250).all() and made[:, 31:33].std() > 10


@pytest.mark.parametrize("shape", [(48, 80, 3), (24, 260, 3)])
def test_other_sizes_work(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for noise in (10, 20, 30, 40, 50):
        assert difference(image, noise) > 1


@pytest.mark.parametrize("noise", range(1, 51, 10))
def test_what_is_drawn_alone_decides(image, noise):
    first, second = (noisy(image, noise, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, second)

"""Prompts of users, and the one geometry through which image, masks and points go."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixel160k.errors import InputError
from pixel160k.format.prompts import line, mask_prompt, point, region, validate
from pixel160k.geometry import (
    centre_crop_view,
    colour_jitter,
    patch_weights,
    random_crop_view,
    resize_view,
)
from pixel160k.seeding import seeded_generator

sizes = st.integers(40, 320)


@st.composite
def views(draw):
    """An image size and one of the three views of it, stretched or padded."""
    padded = draw(st.booleans())
    height, width, size = draw(sizes), draw(sizes), draw(st.sampled_from([96, 224]))
    kind = draw(st.sampled_from(["all", "centre", "random"]))
    if kind == "random":
        generator = seeded_generator(draw(st.integers(0, 99)))
        return height, width, random_crop_view(height, width, size, generator=generator, padded=padded)
    return height, width, (resize_view if kind == "all" else centre_crop_view)(height, width, size, padded=padded)


@given(views(), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_a_marked_point_goes_where_the_geometry_says(sized_view, across, down):
    height, width, view = sized_view
    x, y = int(width * across), int(height * down)
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    image[y - 3 : y + 4, x - 3 : x + 4] = 255
    mask[y - 3 : y + 4, x - 3 : x + 4] = True
    expected = view.coordinates(np.array([[x + 0.5, y + 0.5]]))[0]
    seen = view.image(image)[..., 0].astype(float)
    assert seen.shape == (view.size, view.size)
    ys, xs = np.mgrid[: view.size, : view.size] + 0.5
    assert np.array([(xs * seen).sum(), (ys * seen).sum()]) / seen.sum() == pytest.approx(expected, abs=1)
    weights = view.patch_weights(mask, 16)
    ys, xs = (np.mgrid[:16, :16] + 0.5) * view.size / 16
    assert np.array([(xs * weights).sum(), (ys * weights).sum()]) / weights.sum() == pytest.approx(
        expected, abs=view.size / 16
    )


@given(st.integers(1, 400), st.integers(1, 400))
def test_a_padded_view_keeps_the_aspect_in_the_middle_of_black(height, width):
    view = resize_view(height, width, 224, padded=True)
    left, top, right, bottom = view.shown
    assert max(right - left, bottom - top) == 224
    assert abs((right - left) / (bottom - top) - width / height) <= width / height * (
        1 / min(right - left, bottom - top)
    )
    assert (224 - right) - left in (0, 1) and (224 - bottom) - top in (0, 1)
    seen = view.image(np.full((height, width, 3), 200, np.uint8))
    assert (seen[top:bottom, left:right] == 200).all()
    assert int(seen.sum()) == 600 * (right - left) * (bottom - top)
    weights = view.patch_weights(np.ones((height, width), bool), 224)
    np.testing.assert_allclose(weights, seen[..., 0] / 200, atol=1e-4)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 60), st.integers(1, 60))), st.integers(1, 40))
def test_patch_weights_keep_the_area(mask, grid):
    weights = patch_weights(mask, grid)
    assert weights.dtype == np.float32 and weights.shape == (grid, grid)
    assert weights.min() >= 0 and weights.max() <= 1 + 1e-5
    assert weights.sum() / grid**2 == pytest.approx(mask.mean(), abs=1e-5)


def test_a_small_object_keeps_its_weight():
    mask = np.zeros((480, 640), bool)
    mask[3, 5] = True
    assert (patch_weights(mask, 16) > 0).sum() == 1


@given(sizes, sizes, st.integers(0, 999))
def test_crops_keep_their_area_and_stay_inside(height, width, seed):
    for view in (
        random_crop_view(height, width, 224, generator=seeded_generator(seed)),
        centre_crop_view(height, width, 224),
    ):
        x0, y0, x1, y1 = view.box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (x1 - x0) * (y1 - y0) / (width * height) == pytest.approx(0.9, abs=0.03)


def test_jitter_changes_colours_and_moves_nothing():
    image = cv2.circle(np.full((64, 64, 3), 60, np.uint8), (40, 20), 8, (220, 40, 40), -1)
    jittered = [colour_jitter(image, seeded_generator("jitter", seed)) for seed in range(8)]
    assert len({picture.tobytes() for picture in jittered}) == 8
    np.testing.assert_array_equal(jittered[0], colour_jitter(image, seeded_generator("jitter", 0)))
    disc = image[..., 0] > 100
    for picture in jittered:
        assert picture.dtype == np.uint8 and picture.shape == image.shape
        # One colour each inside and outside, as before.
        assert len(np.unique(picture[disc], axis=0)) == len(np.unique(image[disc], axis=0)) == 1
        assert np.abs(picture.astype(int) - image).mean() < 80
    assert np.abs(np.mean([picture.mean() for picture in jittered]) - image.mean()) < 25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: point(float("nan"), 3), "not finite"),
        (lambda: point("a", 3), r"coordinates \(x, y\)"),
        (lambda: line([(1, 2)]), "two points or more"),
        (lambda: line([(1, 2, 3), (4, 5, 6)]), r"coordinates \(x, y\)"),
        (lambda: line([]), r"coordinates \(x, y\)"),
        (lambda: region((5, 5, 5, 9)), "x0 < x1"),
        (lambda: region((1, 2, 3)), "x0, y0, x1, y1"),
        (lambda: mask_prompt(np.zeros((4, 4), bool)), "empty"),
        (lambda: mask_prompt(np.ones((4, 4), np.uint8)), r"bool array \(height, width\), not uint8 \(4, 4\)"),
        (lambda: mask_prompt([[True]]), "not list"),
        (lambda: validate(point(31, 5), 20, 30), r"\(31, 5\), out of the image of 30 x 20"),
        (lambda: validate(line([(1, 1), (2, -1)]), 20, 30), r"\(2, -1\)"),
        (lambda: validate(mask_prompt(np.ones((30, 20), bool)), 20, 30), r"size \(20, 30\), not \(30, 20\)"),
    ],
)
def test_wrong_prompts_are_told_what_was_expected(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_prompts_on_the_image_pass():
    for prompt in (
        point(0.5, 19.5),
        line([(0, 0), (30, 20)]),
        region((0, 0, 30, 20)),
        mask_prompt(np.ones((20, 30), bool)),
    ):
        validate(prompt, 20, 30)

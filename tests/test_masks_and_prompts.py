"""Masks, boxes and prompts: properties that every mask must keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixel160k.format import masks
from pixel160k.format.prompts import sample_prompts
from pixel160k.seeding import seeded_generator

any_mask = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24))
some_mask = any_mask.filter(lambda mask: mask.any())


@given(any_mask)
def test_rle_round_trip(mask):
    rle = masks.encode(mask)
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(masks.decode(rle), mask)
    assert masks.area(rle) == mask.sum()


@given(some_mask)
def test_box_is_tight_and_half_open(mask):
    x0, y0, x1, y1 = (int(side) for side in masks.box_of(mask))
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    inner = mask[y0:y1, x0:x1]
    assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()
    assert (masks.inside_box((x0, y0, x1, y1), *mask.shape) >= mask).all()


def test_one_pixel_has_a_box_of_size_one():
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    assert masks.box_of(mask) == (3, 2, 4, 3)
    assert masks.box_of(np.zeros((5, 7), bool)) == masks.NO_BOX


@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.sampled_from([0, 1, 2, 255])
    )
)
def test_indexed_png_round_trip(labels):
    np.testing.assert_array_equal(masks.decode_indexed_png(masks.encode_indexed_png(labels)), labels)


@given(some_mask, st.integers(1, 8), st.text(max_size=8))
def test_prompts_lie_on_the_mask_and_repeat(mask, count, episode_id):
    prompts = sample_prompts(mask, count, seeded_generator("prompts", 0, episode_id))
    assert prompts == sample_prompts(mask, count, seeded_generator("prompts", 0, episode_id))
    assert len(prompts.points) == count and len(prompts.line) == 2
    for x, y in [*prompts.points, *prompts.line]:
        assert (x % 1, y % 1) == (0.5, 0.5)  # pixel centres
        assert mask[int(y), int(x)]
    assert len(set(prompts.points)) == min(count, len(set(prompts.points)) if mask.sum() < count else count)
    assert prompts.region == masks.box_of(mask)


def test_other_episodes_get_other_prompts():
    mask = np.ones((32, 32), bool)
    first, second = (sample_prompts(mask, 3, seeded_generator("prompts", 0, name)) for name in ("a", "b"))
    assert first != second


def test_an_empty_mask_has_no_prompts():
    with pytest.raises(ValueError, match="empty mask"):
        sample_prompts(np.zeros((4, 4), bool), 3, seeded_generator("x"))

"""What a prompt covers of each patch: the same object gives like weights, in whichever way it is pointed at."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prompt_encoder import SIDE, batch, prompt, square

from model.patch_weights import patch_weights
from model.prompt_encoder import MASK_CELL
from pixel160k import geometry

GRID = SIDE // MASK_CELL

share = st.floats(0, 1, width=32)


def weights(one, **padding):
    """(GRID, GRID), with a sum of 1 where there is any."""
    found = patch_weights(batch(one, **padding), GRID)
    assert not found[0, 1:].any()  # padding
    return found[0, 0].view(GRID, GRID) / found[0, 0].sum().clamp(min=1e-12)


def centre(found):
    """x, y of the middle of the weights, as shares of the image."""
    steps = (torch.arange(GRID) + 0.5) / GRID
    return torch.stack([(found.sum(0) * steps).sum(), (found.sum(1) * steps).sum()])


@settings(max_examples=30, deadline=None)
@given(share, share, st.integers(0, 2), st.integers(0, 2))
def test_a_point_lies_where_it_lies(x, y, padding, more_points):
    found = weights(prompt("point", [(x, y)]), padding=padding, more_points=more_points)
    assert int((found > 0).sum()) <= 4 and abs(float(found.sum()) - 1) < 1e-5
    inner = torch.tensor([x, y]).clamp(0.5 / GRID, 1 - 0.5 / GRID)
    torch.testing.assert_close(centre(found), inner, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(share, share), min_size=2, max_size=4), st.integers(0, 3))
def test_a_line_weighs_all_of_its_stroke_however_it_is_cut(points, more_points):
    places = np.array(points, np.float64)
    dense = np.concatenate([a + (b - a) * np.linspace(0, 1, 400)[:, None] for a, b in pairwise(places)])
    lengths = np.linalg.norm(np.diff(places, axis=0), axis=1).repeat(400) + 1e-9
    middle = np.average(np.clip(dense, 0.5 / GRID, 1 - 0.5 / GRID), axis=0, weights=lengths)
    whole = weights(prompt("line", points), more_points=more_points)
    torch.testing.assert_close(centre(whole), torch.tensor(middle, dtype=torch.float32), rtol=0, atol=0.01)
    halves = [tuple(p) for a, b in pairwise(places) for p in (a, (a + b) / 2)] + [tuple(places[-1])]
    torch.testing.assert_close(weights(prompt("line", halves)), whole, rtol=0, atol=0.02)


def test_a_line_of_one_pixel_is_a_point():
    spot = (0.3, 0.6)
    torch.testing.assert_close(weights(prompt("line", [spot, spot])), weights(prompt("point", [spot])))


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, SIDE - 1)] * 2), st.tuples(*[st.integers(1, SIDE)] * 2))
def test_a_region_is_the_mask_of_its_box(low, size):
    high = [min(SIDE, start + length) for start, length in zip(low, size, strict=True)]
    mask = np.zeros((SIDE, SIDE), bool)
    mask[low[1] : high[1], low[0] : high[0]] = True
    corners = [[side / SIDE for side in corner] for corner in (low, high)]
    expected = torch.tensor(geometry.patch_weights(mask, GRID))
    for one in (prompt("region", corners), prompt("mask", mask=torch.tensor(mask).float())):
        torch.testing.assert_close(patch_weights(batch(one), GRID)[0, 0].view(GRID, GRID), expected, rtol=0, atol=1e-5)


def test_what_lies_beside_the_view_weighs_nothing():
    beside = [
        prompt("point", [(-0.01, 0.5)]),
        prompt("line", [(1.1, 0.2), (1.3, 0.9)]),
        prompt("region", [(-0.5, 0.1), (-0.1, 0.4)]),
        prompt("mask", mask=torch.zeros(SIDE, SIDE)),
        prompt("point"),
    ]
    assert not patch_weights(batch(*beside), GRID).any()
    half = weights(prompt("line", [(-1, 0.5), (0.9, 0.5)]))  # of what is seen alone
    assert 0.3 < float(centre(half)[0]) < 0.6


def test_no_prompt_weighs_another():
    each = [
        prompt("point", [(0.2, 0.3)]),
        prompt("region", [(0.5, 0.5), (0.9, 0.8)]),
        prompt("mask", mask=square(2, 2)),
    ]
    together = patch_weights(batch(*each), GRID)[0]
    for index, one in enumerate(each):
        torch.testing.assert_close(together[index], patch_weights(batch(one), GRID)[0, 0])

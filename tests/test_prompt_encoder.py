"""The prompt encoder: a set of prompts in any order and with any padding, each of which says where it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.prompt_encoder import PromptBatch, PromptEncoder, fourier_features
from pixel160k.format.prompts import PROMPT_KINDS

SIDE = 16  # of dense masks


def encoder():
    torch.manual_seed(0)
    return PromptEncoder(hidden_size=12).eval()


ENCODER = encoder()


def prompt(kind, points=(), mask=None):
    return PROMPT_KINDS.index(kind), list(points), mask


def batch(*prompts, padding=0, more_points=0):
    """One sample's prompts as tensors, with empty prompts and empty points after them."""
    count = len(prompts) + padding
    length = max([len(points) for _, points, _ in prompts] + [1]) + more_points
    tensors = PromptBatch(
        torch.zeros(1, count, dtype=torch.int64), torch.zeros(1, count, length, 2),
        torch.zeros(1, count, length, dtype=torch.bool), torch.zeros(1, count, SIDE, SIDE),
    )  # fmt: skip
    for index, (kind, points, mask) in enumerate(prompts):
        tensors.kinds[0, index] = kind
        for number, xy in enumerate(points):
            tensors.points[0, index, number] = torch.tensor(xy)
            tensors.point_used[0, index, number] = True
        if mask is not None:
            tensors.masks[0, index] = mask
    return tensors


def square(x, y, size=4):
    mask = torch.zeros(SIDE, SIDE)
    mask[y : y + size, x : x + size] = 1
    return mask


share = st.floats(0, 1, width=32)
spot = st.tuples(share, share)
corner = st.integers(0, SIDE - 4)
any_prompt = st.one_of(
    spot.map(lambda xy: prompt("point", [xy])),
    st.lists(spot, min_size=2, max_size=5).map(lambda points: prompt("line", points)),
    st.tuples(spot, spot).map(lambda corners: prompt("region", corners)),
    st.tuples(corner, corner).map(lambda xy: prompt("mask", mask=square(*xy))),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(any_prompt, min_size=1, max_size=6), st.randoms(), st.integers(0, 3), st.integers(0, 3))
def test_order_and_padding_change_nothing(prompts, random, padding, more_points):
    order = random.sample(range(len(prompts)), len(prompts))
    shuffled = ENCODER(batch(*[prompts[index] for index in order], padding=padding, more_points=more_points))
    for row, index in enumerate(order):
        torch.testing.assert_close(shuffled[0, row], ENCODER(batch(prompts[index]))[0, 0], rtol=0, atol=1e-5)
    assert torch.equal(shuffled[0, len(prompts) :], ENCODER.null_token.expand(padding, -1))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(0, 223), st.integers(0, 223)), st.sampled_from([(1, 0), (0, 1), (-1, 0), (5, -3)]))
def test_a_point_moved_by_a_pixel_is_another_point(pixel, shift):
    here = [(pixel[0] + 0.5) / 224, (pixel[1] + 0.5) / 224]
    there = [here[0] + shift[0] / 224, here[1] + shift[1] / 224]
    moved = ENCODER(batch(prompt("point", [here]), prompt("point", [there])))[0]
    assert (moved[0] - moved[1]).abs().max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(spot, st.booleans())
def test_the_further_apart_two_places_the_less_alike_their_waves(here, upwards):
    shifts = torch.tensor([1 / 224, 1 / 64, 1 / 16, 1 / 4, 1 / 2])[:, None] * torch.eye(2)[int(upwards)]
    apart = (fourier_features(torch.tensor(here) + shifts) - fourier_features(torch.tensor(here))).norm(dim=-1)
    assert (apart.diff() > 0).all()


def test_moved_lines_regions_and_masks_differ():
    first = [prompt("line", [(0.1, 0.1), (0.5, 0.5)]), prompt("region", [(0.1, 0.1), (0.3, 0.3)])]
    second = [prompt("line", [(0.1, 0.5), (0.5, 0.1)]), prompt("region", [(0.1, 0.1), (0.3, 0.4)])]
    first.append(prompt("mask", mask=square(0, 0)))
    second.append(prompt("mask", mask=square(8, 4)))
    difference = (ENCODER(batch(*first)) - ENCODER(batch(*second))).abs().amax(-1)
    assert (difference > 1e-3).all()


def test_the_kind_counts():
    corners = [(0.25, 0.25), (0.75, 0.75)]
    line, region = ENCODER(batch(prompt("line", corners), prompt("region", corners)))[0]
    assert (line - region).abs().max() > 1e-3


def test_the_shape_of_a_mask_counts_within_a_cell():
    """Two masks that cover half of the same cell, but another half."""
    left, top = torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    left[4:8, 4:6] = 1
    top[4:6, 4:8] = 1
    first, second = ENCODER(batch(prompt("mask", mask=left), prompt("mask", mask=top)))[0]
    assert (first - second).abs().max() > 1e-4


def test_no_prompt_and_an_empty_mask_are_the_learned_null_token():
    nothing = ENCODER(batch(prompt("point"), prompt("mask", mask=torch.zeros(SIDE, SIDE))))
    assert torch.equal(nothing, ENCODER.null_token.expand(1, 2, -1))


def test_a_batch_without_masks_needs_no_dense_tensor():
    with_zeros = batch(prompt("point", [(0.2, 0.4)]))
    without = with_zeros._replace(masks=torch.zeros(1, 1, 0, 0))
    torch.testing.assert_close(ENCODER(without), ENCODER(with_zeros))


def test_gradients_reach_every_parameter_and_are_finite():
    model = encoder()
    model(batch(prompt("point", [(0.2, 0.4)]), prompt("mask", mask=square(2, 2)), padding=1)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    prompts = batch(prompt("region", [(0.1, 0.2), (0.3, 0.9)]), prompt("mask", mask=square(3, 5)))
    torch.testing.assert_close(encoder().to(dtype)(prompts).float(), ENCODER(prompts), rtol=0, atol=0.03)

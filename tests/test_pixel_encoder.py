"""The pixel-aware encoder: it is the loop over pixels that the paper writes down, and knows empty masks."""

import numpy as np
import pytest
import torch

from model.pixel_encoder import PixelAwareEncoder
from pixel160k.geometry import patch_weights

GRID, PATCH = 4, 5  # the image is 20 x 20


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return PixelAwareEncoder(level_sizes=(6, 6, 6), hidden_size=10, tokens_per_mask=2).eval()


@pytest.fixture
def levels():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, GRID * GRID, 6, generator=generator) for _ in range(3)]


def weights_of(*masks):
    return torch.tensor(np.stack([patch_weights(mask, GRID).ravel() for mask in masks]))[None]


def blob(seed):
    mask = np.zeros((20, 20), bool)
    generator = np.random.default_rng(seed)
    (y, x), (height, width) = generator.integers(0, 12, 2), generator.integers(1, 9, 2)
    mask[y : y + height, x : x + width] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop_over_pixels(encoder, levels, seed):
    """Every pixel of the mask adds the feature of its patch; the sum is divided by the number of pixels."""
    mask = blob(seed)
    summed = torch.zeros(10)
    for level, projection in zip(levels, encoder.level_projections, strict=True):
        total, pixels = torch.zeros(6), 0
        for y, x in np.argwhere(mask):
            total += level[0, (y // PATCH) * GRID + x // PATCH]
            pixels += 1
        summed += projection.weight @ (total / pixels) + projection.bias
    expected = encoder.token_mlp(summed).view(2, 10)
    torch.testing.assert_close(encoder(levels, weights_of(mask))[0, 0], expected, rtol=0, atol=2e-6)


def test_one_pixel_of_a_large_image_is_not_lost(encoder, levels):
    mask = np.zeros((480, 640), bool)
    mask[200, 300] = True
    patch = (200 // 120) * GRID + 300 // 160
    whole = torch.zeros(1, 1, GRID * GRID)
    whole[0, 0, patch] = 1
    torch.testing.assert_close(encoder(levels, weights_of(mask)), encoder(levels, whole))


def test_masks_do_not_see_each_other_or_the_padding(encoder, levels):
    first, second = blob(1), blob(2)
    empty = np.zeros((20, 20), bool)
    together = encoder(levels, weights_of(first, second, empty))
    torch.testing.assert_close(encoder(levels, weights_of(second, empty, empty, first))[:, [3, 0, 1]], together)
    torch.testing.assert_close(encoder(levels, weights_of(first))[0, 0], together[0, 0])


def test_no_mask_is_the_learned_null_token(encoder, levels):
    empty = encoder(levels, torch.zeros(1, 2, GRID * GRID))
    assert torch.equal(empty, encoder.null_tokens.expand_as(empty))
    empty.sum().backward()
    assert encoder.null_tokens.grad.abs().sum() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters() if parameter.grad is not None)


def test_one_level_is_the_ablation(levels):
    encoder = PixelAwareEncoder(level_sizes=(6,), hidden_size=10)
    assert encoder(levels[:1], weights_of(blob(0))).shape == (1, 1, 1, 10)
    with pytest.raises(ValueError, match="longer"):
        encoder(levels, weights_of(blob(0)))


def test_bfloat16_stays_close(encoder, levels):
    exact = encoder(levels, weights_of(blob(3)))
    rounded = encoder.bfloat16()([level.bfloat16() for level in levels], weights_of(blob(3)))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.02)

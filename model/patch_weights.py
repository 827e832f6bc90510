"""What a prompt covers of each patch: the one place where points, lines, regions and masks become weights of patches.

With them the pixel-aware encoder describes what stands where somebody points, in whichever way they do it.
"""

import torch
import torch.nn.functional as F

from model.prompt_encoder import PromptBatch
from pixel160k.format.prompts import PROMPT_KINDS

_POINT, _LINE, _REGION, _MASK = range(len(PROMPT_KINDS))
_SAMPLES = 32  # along each piece of a line: one for each patch that it crosses, at 448 pixels too


def patch_weights(prompts: PromptBatch, grid: int) -> torch.Tensor:
    """The weight of each patch under each prompt: float32 (batch, prompts, grid * grid), patches row by row.

    A point is shared bilinearly between the four patches whose centres are nearest; a line likewise all along its stroke;
    a region or mask weighs a patch by the share of it that it covers. Only the ratios mean something. All weights are zero
    where there is no prompt, or where all of it lies beside what the model sees.
    """
    weights = _under_spots(*_spots(prompts), grid) + _under_regions(prompts, grid)
    if prompts.masks.shape[-1]:
        weights = weights + F.avg_pool2d(prompts.masks.float(), prompts.masks.shape[-1] // grid)
    return weights.flatten(2)


def _spots(prompts: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, and samples along lines: places (batch, prompts, spots, 2), and what each weighs (batch, prompts, spots)."""
    places, kinds = prompts.points.float(), prompts.kinds[..., None]
    points = (prompts.point_used & (kinds == _POINT)).float()
    begins, moves = places[:, :, :-1, None], places.diff(dim=2)
    steps = (torch.arange(_SAMPLES, device=places.device) + 0.5) / _SAMPLES
    along = (begins + moves[:, :, :, None] * steps[:, None]).flatten(2, 3)
    pieces = prompts.point_used[:, :, 1:] & (kinds == _LINE)  # points that are used come first
    lengths = (moves.norm(dim=-1) + 1e-6) * pieces  # a line of one pixel is a point
    return torch.cat([places, along], dim=2), torch.cat([points, lengths.repeat_interleave(_SAMPLES, dim=2)], dim=2)


def _under_spots(places: torch.Tensor, weights: torch.Tensor, grid: int) -> torch.Tensor:
    """(batch, prompts, grid, grid): each spot that is seen, spread bilinearly."""
    seen = ((places >= 0) & (places <= 1)).all(-1)
    centres = (places * grid - 0.5).clamp(0, grid - 1)
    tents = (1 - (centres[..., None] - torch.arange(grid, device=places.device)).abs()).clamp(min=0)
    return torch.einsum("bpn,bpny,bpnx->bpyx", weights * seen, tents[..., 1, :], tents[..., 0, :])


def _under_regions(prompts: PromptBatch, grid: int) -> torch.Tensor:
    """(batch, prompts, grid, grid): the share of each patch that a region covers; zero for other kinds."""
    patches = torch.arange(grid, device=prompts.points.device)
    if prompts.points.shape[2] < 2:  # the whole batch has none
        return torch.zeros(*prompts.kinds.shape, grid, grid, device=patches.device)
    low, high = (prompts.points[:, :, corner, :, None].float() * grid for corner in (0, 1))
    x, y = (torch.minimum(high, patches + 1) - torch.maximum(low, patches)).clamp(min=0).unbind(2)
    return y[..., :, None] * x[..., None, :] * (prompts.kinds == _REGION)[..., None, None]

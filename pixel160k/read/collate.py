"""Batches of samples for a torch `DataLoader` that is given no `collate_fn`."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixel160k.errors import InputError
from pixel160k.read.samples import Sample

_TEXTS = ("key", "episode_id", "dataset", "instruction", "target_object", "status", "reason")
_ARRAYS = ("image", "labels", "actions", "action_mask", "state", "history", "history_valid")


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of what all samples have: texts as lists, `step` int64 (batch,), and the arrays that were asked for stacked.

    Those are `image` uint8 (batch, height, width, 3), `labels` uint8 (batch, height, width), `actions` float32
    (batch, chunk, 7), `action_mask` bool (batch, chunk), `state` float32 (batch, S), `history` uint8 (batch, history, height,
    width, 3) and `history_valid` bool (batch, history), as torch tensors. `views` and `view_history` are dicts of such tensors
    by camera, black where a sample does not have it, and `views_valid` says by camera which have, bool (batch,). Prompts and
    metadata differ in form from sample to sample and are left out.

    Raises:
        InputError: arrays of one name differ in shape, as images of two data sets may; names the line to write.
    """
    import torch

    batch: dict[str, Any] = {name: [getattr(sample, name) for sample in samples] for name in _TEXTS}
    batch["step"] = torch.tensor([sample.step for sample in samples])
    for name in _ARRAYS:
        if arrays := [array for sample in samples if (array := getattr(sample, name)) is not None]:
            batch[name] = torch.from_numpy(_stack(name, arrays))
    if samples[0].views:
        valid = {name: [sample.views[name] is not None for sample in samples] for name in samples[0].views}
        batch["views_valid"] = {name: torch.tensor(those) for name, those in valid.items()}
        for field in ("views", "view_history") if samples[0].view_history else ("views",):
            named = {name: [getattr(sample, field)[name] for sample in samples] for name in valid}
            # Where none has it, its size is not known here: that of the main image stands in, all black.
            instead = [sample.image if field == "views" else sample.history for sample in samples]
            batch[field] = {name: torch.from_numpy(_with_black(name, of, instead)) for name, of in named.items()}
    return batch


def _with_black(name: str, arrays: Sequence[np.ndarray | None], instead: Sequence[np.ndarray | None]) -> np.ndarray:
    there = [array for array in arrays if array is not None]
    if not there:
        there = [array for array in instead if array is not None]
    if not there:
        raise InputError(
            f"no sample of this batch has {name}, nor an image that says how large it is; ask for the member 'image' too"
        )
    return _stack(name, [np.zeros_like(there[0]) if array is None else array for array in arrays])


def _stack(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    if len(shapes := sorted({array.shape for array in arrays})) > 1:
        raise InputError(
            f"{name} of the shapes {shapes[0]} and {shapes[1]} cannot be one batch; write DataLoader(..., collate_fn=list) "
            "for the samples themselves, or a collate_fn that makes them one size"
        )
    return np.stack(arrays)


def register() -> None:
    """Let torch's default collate function know samples, where there is torch; a worker process calls this for itself."""
    if sys.modules.get("torch"):
        from torch.utils.data._utils.collate import default_collate_fn_map

        default_collate_fn_map[Sample] = lambda batch, *, collate_fn_map=None: collate(batch)

"""Batches of samples for a torch `DataLoader` that is given no `collate_fn`."""

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
    width, 3) and `history_valid` bool (batch, history), as torch tensors. Prompts and metadata differ in form from sample to
    sample and are left out.

    Raises:
        InputError: arrays of one name differ in shape, as images of two data sets may; names the line to write.
    """
    import torch

    batch: dict[str, Any] = {name: [getattr(sample, name) for sample in samples] for name in _TEXTS}
    batch["step"] = torch.tensor([sample.step for sample in samples])
    for name in _ARRAYS:
        arrays = [array for sample in samples if (array := getattr(sample, name)) is not None]
        if len({array.shape for array in arrays}) > 1:
            shapes = " and ".join(map(str, sorted({array.shape for array in arrays})[:2]))
            raise InputError(
                f"{name} of the shapes {shapes} cannot be one batch; write DataLoader(..., collate_fn=list) for the samples "
                "themselves, or a collate_fn that makes them one size"
            )
        if arrays:
            batch[name] = torch.from_numpy(np.stack(arrays))
    return batch


def register() -> None:
    """Let torch's default collate function know samples."""
    from torch.utils.data._utils.collate import default_collate_fn_map

    default_collate_fn_map[Sample] = lambda batch, *, collate_fn_map=None: collate(batch)

"""The forward pass of a policy as compiled graphs, for acting: a GPU's time for one observation is mostly launching kernels.

A graph is made for each shape: the number of observations, masks and prompts, and the length of the sequence, which is
rounded up, so that another wording is rarely another shape. Making one takes a minute or more; `PixelVLA.compile` makes
those that it is shown in advance.
"""

from typing import Any

import torch

from model.processor import Batch

LENGTH_STEP = 32  # tokens that sequences are rounded up to; 256 image tokens and a text of usual length: 288 or 320
MOST_SHAPES = 64  # torch gives up on a function that it has compiled anew for more of them; its own limit is 8


class CompiledForward:
    """Stands in for a policy's forward pass, and gives the same to rounding."""

    def __init__(self, forward: Any, backend: Any) -> None:
        """Compile nothing yet.

        Args:
            forward: of the policy.
            backend: of `torch.compile`; on a GPU "inductor" also records CUDA graphs.
        """
        torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, MOST_SHAPES)
        # One graph without breaks: each would be launched, and waited for, by itself.
        mode = "reduce-overhead" if backend == "inductor" else None
        self._forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def __call__(self, batch: Batch) -> Any:
        """What the policy gives for a batch whose length is a multiple of `LENGTH_STEP`; the next call may overwrite it."""
        torch.compiler.cudagraph_mark_step_begin()
        return self._forward(batch)


def rounded_up(batch: Batch) -> Batch:
    """A batch whose sequences are padded to a multiple of `LENGTH_STEP`, and which says so even where none of it is padding."""
    length = batch.input_ids.shape[1]
    missing = -length % LENGTH_STEP
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    ids, mask = (torch.nn.functional.pad(tensor, (0, missing)) for tensor in (batch.input_ids, mask))
    return batch._replace(input_ids=ids, attention_mask=mask)

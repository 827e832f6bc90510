"""The forward pass of a policy as compiled graphs, for acting: a GPU's time for one observation is mostly launching kernels.

A graph is made for each shape: the number of observations, masks and prompts, and the length of the sequence, which is
rounded up, as are the points of a prompt, so that another wording or kind of prompt is rarely another shape. Making one takes a minute or more; `PixelVLA.compile_acting`
makes those that it is shown in advance.
"""

from typing import Any

import torch

from model.processor import Batch

LENGTH_STEP = 32  # tokens that sequences are rounded up to; 256 image tokens and a text of usual length: 288 or 320
LEAST_POINTS = 4  # that prompts are rounded up to, then to powers of two: a line drawn by hand has any number
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
        self._plain, self._shapes = forward, set[Any]()
        self._forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def __call__(self, batch: Batch) -> Any:
        """What the policy gives for a batch that is `rounded_up`; the next call may overwrite it.

        Where `MOST_SHAPES` have graphs, batches of other shapes are worked on without one.
        """
        shape = *(tensor.shape for tensor in (batch.input_ids, batch.masks)), *(part.shape for part in batch.prompts)
        if not self._shapes:  # at their first pass transformers' models put up hooks, under a lock that no graph holds
            self._plain(batch)
        if shape not in self._shapes and len(self._shapes) == MOST_SHAPES:
            return self._plain(batch)
        self._shapes.add(shape)
        torch.compiler.cudagraph_mark_step_begin()
        return self._forward(batch)


def rounded_up(batch: Batch) -> Batch:
    """The same batch in one of few shapes.

    Sequences are padded to a multiple of `LENGTH_STEP`, with a mask that says so even where none of it is padding; prompts
    to a number of points that many have, with a dense mask also where none of them has one.
    """
    length, pad = batch.input_ids.shape[1], torch.nn.functional.pad
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    ids, mask = (pad(tensor, (0, -length % LENGTH_STEP)) for tensor in (batch.input_ids, mask))
    prompts, points, side = batch.prompts, batch.prompts.points.shape[2], batch.masks.shape[-1]
    if prompts.kinds.shape[1]:
        missing = max(LEAST_POINTS, 1 << (points - 1).bit_length() if points else 0) - points
        prompts = prompts._replace(
            points=pad(prompts.points, (0, 0, 0, missing)),
            point_used=pad(prompts.point_used, (0, missing)),
            masks=pad(prompts.masks, (0, side - prompts.masks.shape[-1]) * 2),
        )
    return batch._replace(input_ids=ids, attention_mask=mask, prompts=prompts)

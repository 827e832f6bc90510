"""Whether a GPU holds a step as it is, or gradient checkpointing has to make room: what `gradient_checkpointing: auto` asks.

Nothing is run for it: the backbone is passed through with tensors that have shapes and types, and no memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.backbones.base import Backbone
from model.policy import PixelVLA
from train.settings import TrainSettings

GIB = 2**30
_SHARE = 0.9  # of a GPU's memory; the rest is CUDA's own, the modules' activations, and what is split up too finely to be used
_TRAINED = 3 * 4  # bytes of a trained number beside the number itself: its gradient, and two of AdamW's


@dataclass(frozen=True)
class StepMemory:
    """What a training step takes of a GPU's memory at its peak, in bytes.

    Attributes:
        weights: of the policy, with gradients and what the optimizer keeps; under FSDP one process's share.
        sample: what is kept of each sample from the forward to the backward pass.
        checkpointed: the same with gradient checkpointing, and what one block keeps while it is computed anew.
    """

    weights: int
    sample: int
    checkpointed: int

    def peak(self, samples: int, checkpointing: bool) -> int:
        """Of a step on a batch of so many samples."""
        return self.weights + samples * (self.checkpointed if checkpointing else self.sample)


def step_memory(policy: PixelVLA, settings: TrainSettings, length: int, processes: int) -> StepMemory:
    """What a step of this policy takes.

    Args:
        policy: after `train.stages.prepare`, on one device, without gradient checkpointing.
        settings: the recipe.
        length: tokens of the longest sequence, without the action queries.
        processes: that FSDP spreads the policy over, where it does.
    """
    backbone, spread = policy.backbone, processes if settings.fsdp else 1
    held = sum(p.numel() * (p.element_size() + _TRAINED * p.requires_grad) for p in policy.parameters())
    sample = _of_a_sample(backbone, settings, length)
    blocks = backbone.use_gradient_checkpointing()
    least = _of_a_sample(backbone, settings, length)
    backbone.use_gradient_checkpointing(False)
    return StepMemory(held // spread, sample, least + (sample - least) // max(blocks, 1))


def choose_checkpointing(memory: StepMemory, settings: TrainSettings, capacity: int) -> tuple[bool, str]:
    """Whether to use gradient checkpointing on a GPU of so many bytes, and a line that says why."""
    peaks = [memory.peak(settings.batch_size, checkpointing) for checkpointing in (False, True)]
    chosen = peaks[0] > _SHARE * capacity
    told = (
        f"gradient checkpointing: {'on' if chosen else 'off'} (auto): a step is expected to take "
        f"{peaks[chosen] / GIB:.1f} of {capacity / GIB:.1f} GiB, {memory.weights / GIB:.1f} of them for weights and optimizer"
    )
    return chosen, told + (f"; without it {peaks[0] / GIB:.1f}" if chosen else "")


def _of_a_sample(backbone: Backbone, settings: TrainSettings, length: int) -> int:
    # The difference leaves out what is kept once a batch, as the adapters in bfloat16.
    one, two = (_kept_of_a_batch(backbone, settings, length, samples) for samples in (1, 2))
    return two - one


def _kept_of_a_batch(backbone: Backbone, settings: TrainSettings, length: int, samples: int) -> int:
    device, reads = next(backbone.parameters()).device, backbone.settings
    was_training = backbone.training
    backbone.train()
    half = torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16")
    eager = torch.compiler.set_stance("force_eager")
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        torch.device(device),
        eager,
        half,
        kept_bytes(backbone, fake) as kept,
    ):
        side, patches = reads.vision.image_size, reads.vision.grid**2
        images = torch.empty(samples, side, side, 3, dtype=torch.uint8)
        seen = backbone.project(backbone.vision(backbone.pixels(images)).patch_features)
        text = backbone.embed(torch.zeros(samples, length - patches, dtype=torch.long))
        # What masks and prompts become has gradients, and so has all that comes after them.
        sequence = torch.cat([seen, text.to(seen.dtype)], dim=1)
        sequence = sequence if sequence.requires_grad else sequence.requires_grad_()
        queries = torch.empty(samples, 8, backbone.query_size).requires_grad_()
        state = torch.empty(samples, reads.state_size) if reads.reads_state else None  # type: ignore[attr-defined]
        hidden = backbone.query(sequence, torch.ones(samples, length, dtype=torch.long), queries, state)
    backbone.train(was_training)
    del hidden
    return sum(kept.values())


@contextmanager
def kept_bytes(module: nn.Module, fake: FakeTensorMode | None = None) -> Iterator[dict[int, int]]:
    """Count what autograd keeps for the backward pass: bytes by storage, the module's own parameters left out."""
    held: list[Any] = [p.untyped_storage() for p in module.parameters()]
    if fake is not None:
        held += [fake.from_tensor(p).untyped_storage() for p in module.parameters()]
    kept: dict[int, int] = {}
    own = {id(storage) for storage in held}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)  # so that no other gets its id
        if id(storage) not in own:
            kept[id(storage)] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept

"""What a run costs: samples, tokens, FLOPs, the wait for data, GPU hours; set against OpenVLA's pretraining."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.policy import PixelVLA
from model.processor import Batch

OPENVLA_PRETRAINING = 21_500  # A100 hours (arXiv 2406.09246); PixelVLA's paper claims 1.5% of it for both stages


class FlopCount:
    """Model FLOPs of a training step, from parameters and tokens as the field counts them.

    A weight costs 2 FLOPs per token forward, 2 more where gradients flow back through it, and 2 more where it is trained
    itself. They flow back through what is trained, or comes after something that is. The backbone's `token_readers` say which tokens pass through which of its parts. Attention's own products (3% of a
    7B model at these lengths), norms and what gradient checkpointing computes anew do not count.
    """

    def __init__(self, policy: PixelVLA) -> None:
        """Count the matrices of a policy that is prepared for its stage."""
        self._queries = policy.settings.chunk + policy.settings.proprioception  # the state's token goes their way
        self._patches = policy.settings.backbone.vision.grid**2
        read = policy.backbone.token_readers()
        encoders = [policy.pixel_encoder, policy.prompt_encoder]
        self._flops_per_patch = _step_flops(_matrices(read.patches), _is_trained(read.patches))
        learns_to_read = _is_trained([*read.patches, *encoders, *read.sequence])
        self._flops_per_token = _step_flops(_matrices(read.sequence), learns_to_read)
        self._flops_per_query_read = _step_flops(_matrices(read.sequence))
        self._flops_per_query = _step_flops(_matrices([*read.queries, policy.action_decoder]))
        own = [] if policy.state_encoder is None else [policy.state_encoder]
        self._flops_per_sample = _step_flops(_matrices(own))
        # The null token is no matrix, but earlier accounts have it, and a resumed run adds to its own.
        self._flops_per_mark = _step_flops([*_matrices(encoders), policy.pixel_encoder.null_tokens])

    def __call__(self, batch: Batch) -> int:
        """FLOPs of a step on a batch. Every mask and prompt counts as read by both of their encoders."""
        samples = len(batch.input_ids)
        queries = samples * self._queries
        marks = int(batch.mask_used.sum()) + int(batch.prompt_used.sum())
        return (
            (self._flops_per_sample + self._flops_per_patch * self._patches) * samples
            + self._flops_per_token * batch.token_count
            + (self._flops_per_query_read + self._flops_per_query) * queries
            + self._flops_per_mark * marks
        )


def _matrices(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The weights of all linear, convolutional and recurrent layers in modules, those of adapters included."""
    kinds = nn.Linear | nn.Conv2d | nn.RNNBase
    layers = {layer for part in parts for layer in part.modules() if isinstance(layer, kinds)}
    return [weight for layer in layers for weight in layer.parameters(recurse=False) if weight.ndim >= 2]


def _is_trained(parts: Iterable[nn.Module]) -> bool:
    return any(parameter.requires_grad for part in parts for parameter in part.parameters())


def _step_flops(matrices: Iterable[nn.Parameter], gradients_flow: bool = True) -> int:
    """FLOPs of a training step for each token that is multiplied by these matrices."""
    return sum(2 * (1 + gradients_flow + matrix.requires_grad) * matrix.numel() for matrix in matrices)


class Account:
    """Adds up what this process has spent, through all resumed parts of a run.

    Attributes:
        samples, tokens: seen; image, text, mask and prompt tokens and the action queries count.
        flops: see `FlopCount`.
        seconds: wall time of the run, with evaluation and saving.
        waited: seconds of it in which the next batch was not there yet.
    """

    def __init__(self, processes: int) -> None:
        """Start at zero: the first step of a run over `processes` processes, all of which see as many samples as this one."""
        self._processes, self._began = processes, time.perf_counter()
        self.samples = self.tokens = self.flops = 0
        self.seconds_before = self.waited = 0.0

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return self.seconds_before + time.perf_counter() - self._began

    def add(self, batch: Batch, flops: int) -> None:
        """Add a batch that this process has learned from, and the FLOPs of that step."""
        self.samples += len(batch.input_ids)
        self.tokens += batch.token_count + (0 if batch.actions is None else batch.actions[..., 0].numel())
        self.flops += flops

    def so_far(self) -> dict[str, float]:
        """The account of all processes together, by the names under which it is logged.

        Hours are those of GPUs, or of processes where there are none; "waited_for_data" is a share of the time.
        """
        hours = self.seconds * self._processes / 3600
        return {
            "samples": self.samples * self._processes,
            "tokens": self.tokens * self._processes,
            "petaflops": self.flops * self._processes / 1e15,
            "waited_for_data": self.waited / max(self.seconds, 1e-9),
            "gpu_hours" if torch.cuda.is_available() else "cpu_process_hours": hours,
        }

    def summary(self) -> str:
        """The account of all processes on one line, for the end of a run."""
        spent = self.so_far()
        hours, unit = (
            (spent["gpu_hours"], "GPU hours") if "gpu_hours" in spent else (spent["cpu_process_hours"], "CPU hours")
        )
        return (
            f"{spent['samples']:,} samples, {spent['tokens']:,} tokens, {spent['petaflops']:.3g} PFLOP, {hours:.2f} {unit} "
            f"({hours / OPENVLA_PRETRAINING:.2%} of OpenVLA's pretraining of {OPENVLA_PRETRAINING:,} A100 hours, were they "
            f"such), {spent['waited_for_data']:.1%} of the time waiting for data"
        )

    def state_dict(self) -> dict[str, Any]:
        """The account of this process so far, for `load_state_dict` of a resumed run."""
        return {
            "samples": self.samples,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds_before": self.seconds,
            "waited": self.waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an account that `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)
        self._began = time.perf_counter()

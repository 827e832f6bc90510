"""What a run costs: samples, tokens, FLOPs, the wait for data, GPU hours; set against OpenVLA's pretraining."""

import time
from collections import Counter
from typing import Any

import torch

from model.policy import PixelVLA
from model.processor import Batch

OPENVLA_PRETRAINING = 21_500  # A100 hours (arXiv 2406.09246); the paper claims 1.5% of it for both stages


class FlopCount:
    """Model FLOPs of a training step, from parameters and tokens as the field counts them.

    A weight matrix costs 2 a token forward, 2 where gradients flow back through it, and 2 where it is trained itself.
    Attention's own products (3% of a 7B model at these lengths), norms and what gradient checkpointing computes anew do
    not count.
    """

    def __init__(self, policy: PixelVLA) -> None:
        """Count the matrices of a policy that is prepared for its stage."""
        self._chunk = policy.settings.chunk
        self._image = policy.settings.backbone.vision.grid**2
        self._a_token: Counter[str] = Counter()
        sees_gradients = {"vision": False, "text": True, "queries": True, "marks": True}
        parameters = dict(policy.named_parameters())
        if any(parameters[name].requires_grad for name in parameters if _reads(name) == "vision"):
            sees_gradients["vision"] = True
        for name, parameter in parameters.items():
            if parameter.ndim >= 2 and not any(
                word in name for word in ("token", "position_embedding", "lm_head", "queries", ".kind.")
            ):
                reads = _reads(name)
                passes = 1 + sees_gradients[reads] + parameter.requires_grad
                self._a_token[reads] += 2 * passes * parameter.numel()

    def __call__(self, batch: Batch) -> int:
        """FLOPs of a step on a batch."""
        tokens = {
            "vision": len(batch.input_ids) * self._image,
            "text": int(batch.attention_mask.sum()) + len(batch.input_ids) * self._chunk,
            "queries": len(batch.input_ids) * self._chunk,
            "marks": int(batch.mask_used.sum()) + int(batch.prompt_used.sum()),
        }
        return sum(self._a_token[reads] * tokens[reads] for reads in tokens)


def _reads(parameter: str) -> str:
    """Which tokens a parameter is applied to, by its name."""
    if "vision" in parameter or ("projector." in parameter and "action_decoder" not in parameter):
        return "vision"
    if parameter.startswith(("pixel_encoder", "prompt_encoder")):
        return "marks"
    if parameter.startswith(("action_decoder", "backbone.model.dit", "backbone.state_proj")):
        return "queries"
    return "text"


class Account:
    """Adds up what this process has spent, through all resumed parts of a run.

    Attributes:
        samples, tokens: seen; image, text, mask and prompt tokens and the action queries count.
        flops: see `FlopCount`.
        seconds: of training, evaluation and saving included.
        waited: seconds of them in which the next batch was not there yet.
    """

    def __init__(self, processes: int) -> None:
        """Nothing is spent yet by any of `processes`."""
        self._processes, self._began = processes, time.perf_counter()
        self.samples = self.tokens = self.flops = 0
        self.seconds_before = self.waited = 0.0

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return self.seconds_before + time.perf_counter() - self._began

    def add(self, batch: Batch, flops: int) -> None:
        """A batch was learned from."""
        self.samples += len(batch.input_ids)
        self.tokens += int(batch.attention_mask.sum()) + (0 if batch.actions is None else batch.actions[..., 0].numel())
        self.flops += flops

    def so_far(self) -> dict[str, float]:
        """The account of all processes together, by the names that are logged; hours are of GPUs, or of CPU processes."""
        hours = self.seconds * self._processes / 3600
        return {
            "samples": self.samples * self._processes,
            "tokens": self.tokens * self._processes,
            "petaflops": self.flops * self._processes / 1e15,
            "waited_for_data": self.waited / max(self.seconds, 1e-9),
            "gpu_hours" if torch.cuda.is_available() else "cpu_process_hours": hours,
        }

    def summary(self) -> str:
        """One line for the end of a run."""
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
        """What a resumed run adds to."""
        return {
            "samples": self.samples,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds_before": self.seconds,
            "waited": self.waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved account."""
        for name, value in state.items():
            setattr(self, name, value)
        self._began = time.perf_counter()

"""A PixelVLA checkpoint as a policy, whatever stage of training wrote it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.policy import PixelVLA
from model.processor import Observation
from pixel160k.errors import InputError, one_line
from policies.base import Seen
from train.checkpoints import load_policy, statistics_of


class CheckpointPolicy:
    """Asks a trained policy. It keeps nothing of an episode."""

    def __init__(self, policy: PixelVLA, dataset: str) -> None:
        """`dataset`: whose robot acts, a key of the policy's statistics."""
        self._policy, self._dataset = policy, dataset

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "cpu",
        dataset: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "CheckpointPolicy":
        """Load a checkpoint or the last one of a run.

        Args:
            model: hub id, or the folder of a checkpoint or of a run.
            device: such as "cuda:1".
            dataset: whose robot acts; by default the only one that the checkpoint has statistics of.
            dtype: of the backbone's parameters; see `train.checkpoints.load_policy`.

        Raises:
            InputError: it cannot be loaded, or has no such statistics, or `dataset` must be named.
        """
        known = sorted(statistics_of(model))  # before a large policy is loaded
        chosen = known[0] if dataset is None and len(known) == 1 else dataset
        if chosen not in known:
            raise InputError(
                f"{model} has statistics of {', '.join(known) or 'no data set'}: name whose robot acts with --dataset"
            )
        return cls(load_policy(model, dtype, device=device), chosen)

    def reset(self, episode: str, instruction: str) -> None:
        """There is nothing to forget."""

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """The next chunks, see `policies.base.Policy.act`."""
        observed = [Observation(s.image, s.instruction, s.masks, s.prompts, s.state, self._dataset) for s in seen]
        try:
            return self._policy.act(observed)
        except torch.OutOfMemoryError as error:
            reason = one_line(error).split(". ")[0]
            raise InputError(f"the GPU does not hold {len(seen)} episodes at once ({reason}): lower --batch") from None

"""What a robot sees and is told -> tensors, through one geometry for the image, its masks and its prompts.

Masks and prompts are sets: they are put in an order of their own (by kind and position on the image), so that the order in
which they were given never matters to a causal language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from model.prompt_encoder import MASK_CELL, PromptBatch
from model.sequence import check_length, pad_ids, sequence_ids
from model.settings import ModelSettings
from pixel160k.errors import InputError
from pixel160k.format.prompts import PROMPT_KINDS, Prompt, validate
from pixel160k.geometry import View, centre_crop_view, resize_view


@dataclass(frozen=True)
class Observation:
    """One step as the robot sees it and the user explains it. Coordinates are pixels of the image.

    Attributes:
        image: RGB uint8 (height, width, 3).
        instruction: as the user or the data set words it.
        masks: of what the instruction is about, each bool (height, width); an empty one says "not to be seen".
        prompts: points, lines, regions and masks.
        state: float32 (S,) proprioception in robot units; only read where the policy was trained with it, as π0.
        dataset: the key of the statistics that scale the state; only read with a state.
    """

    image: np.ndarray
    instruction: str
    masks: Sequence[np.ndarray] = ()
    prompts: Sequence[Prompt] = ()
    state: np.ndarray | None = None
    dataset: str | None = None


class Batch(NamedTuple):
    """Observations as tensors, and for training the actions that followed.

    Attributes:
        images: RGB uint8 (batch, size, size, 3); `Backbone.pixels` normalises them where the policy is.
        input_ids: int64 (batch, length), padded on the right, with the slots of `model.sequence`.
        attention_mask: int64 (batch, length), 1 = token or slot, 0 = padding; None where no sample is padded.
        masks: float32 (batch, masks, side, side) in [0, 1]: dense masks p_t, as `PromptBatch` has those of prompts.
        mask_used: bool (batch, masks), which masks have slots in the sequence; the others are padding.
        prompts: (batch, prompts, ...).
        prompt_used: bool (batch, prompts), which prompts have slots in the sequence; the others are padding.
        state: float32 (batch, state_size) as the policy reads it, or None where it reads none, as OpenVLA.
        actions: float32 (batch, N_c, 7) normalised, or None where they are asked for.
        action_mask: bool (batch, N_c), false for steps past the end of the episode, or None.
    """

    images: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    masks: torch.Tensor
    mask_used: torch.Tensor
    prompts: PromptBatch
    prompt_used: torch.Tensor
    state: torch.Tensor | None = None
    actions: torch.Tensor | None = None
    action_mask: torch.Tensor | None = None

    @property
    def token_count(self) -> int:
        """Tokens and slots of all samples; a GPU is waited for where the batch lies on one."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; from pinned memory the host does not wait until it is there."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=tensor.is_pinned())

        moved = {name: move(tensor) for name, tensor in self._asdict().items() if isinstance(tensor, torch.Tensor)}
        return self._replace(**moved, prompts=PromptBatch(*map(move, self.prompts)))


class _Prompt(NamedTuple):
    kind: int
    points: np.ndarray  # float32 (points, 2), shares of the view
    mask: np.ndarray | None  # float32 (side, side)


class _Encoded(NamedTuple):
    """One observation as arrays, before it is padded to the others of its batch."""

    image: np.ndarray
    ids: list[int]
    masks: list[np.ndarray]
    prompts: list[_Prompt]
    state: np.ndarray | None


class Processor:
    """Makes batches for one policy: its resolution, its tokenizer, its statistics."""

    def __init__(self, settings: ModelSettings, tokenizer: PreTrainedTokenizerFast, statistics: dict[str, Any]) -> None:
        """`tokenizer`: the language model's; `statistics`: by data set, in OpenVLA's names (dataset_statistics.json)."""
        self.settings, self.tokenizer, self.statistics = settings, tokenizer, statistics

    @property
    def _mask_side(self) -> int:
        """The side of dense masks."""
        return self.settings.backbone.vision.grid * MASK_CELL

    def statistics_of(self, dataset: str | None) -> dict[str, Any]:
        """The statistics of a data set.

        Raises:
            InputError: there are none of that name; lists those there are.
        """
        if dataset not in self.statistics:
            known = ", ".join(sorted(self.statistics)) or "none: this checkpoint was never trained to act"
            wanted = "name the data set whose robot acts" if dataset is None else f"no statistics of {dataset!r}"
            raise InputError(f"{wanted}; this checkpoint has statistics of: {known}")
        return self.statistics[dataset]

    def view(self, height: int, width: int) -> View:
        """What a policy sees of an image of this size when it acts: all, or the centre where it was trained on random crops."""
        size, padded = self.settings.backbone.vision.image_size, self.settings.backbone.pad_images
        of_these = centre_crop_view if self.settings.random_crop else resize_view
        return of_these(height, width, size, padded=padded)

    def __call__(self, observations: Sequence[Observation], views: Sequence[View] | None = None) -> Batch:
        """Encode observations.

        Args:
            observations: one or more.
            views: what to see of each, as random crops for training; by default what a policy sees when it acts.

        Raises:
            InputError: an image, a mask, a prompt, an instruction or a state is not as `Observation` says; names it.
        """
        if views is None:
            views = [self.view(*_checked_image(observation.image).shape[:2]) for observation in observations]
        samples = [self._encode(observation, view) for observation, view in zip(observations, views, strict=True)]
        ids, attention_mask = pad_ids([sample.ids for sample in samples])
        states = [sample.state for sample in samples if sample.state is not None]
        return Batch(
            torch.from_numpy(np.stack([sample.image for sample in samples])),
            ids,
            attention_mask,
            *self._pad_masks(samples),
            *self._pad_prompts(samples),
            torch.from_numpy(np.stack(states)) if states else None,
        )

    def _encode(self, observation: Observation, view: View) -> _Encoded:
        image = _checked_image(observation.image)
        height, width = image.shape[:2]
        side = self._mask_side
        masks = sorted(
            (view.patch_weights(_checked_mask(mask, height, width), side) for mask in observation.masks),
            key=lambda mask: mask.ravel().tolist(),
        )
        _check_prompts(observation.prompts, height, width)
        prompts = sorted((self._encode_prompt(prompt, view) for prompt in observation.prompts), key=_order)
        if masks or prompts:  # what is absent takes the null token
            masks = masks or [np.zeros((side, side), np.float32)]
            prompts = prompts or [_Prompt(0, np.zeros((0, 2), np.float32), None)]
        ids = sequence_ids(
            self.tokenizer,
            self.settings.backbone.text_form,
            observation.instruction,
            self.settings.backbone.vision.grid**2,
            len(masks) * self.settings.tokens_per_mask,
            len(prompts),
        )
        check_length(len(ids) + self.settings.chunk, self.settings.backbone.max_positions, observation.instruction)
        return _Encoded(view.image(image), ids, masks, prompts, self._state(observation))

    def _encode_prompt(self, prompt: Prompt, view: View) -> _Prompt:
        mask = None if prompt.mask is None else view.patch_weights(prompt.mask, self._mask_side)
        size = self.settings.backbone.vision.image_size
        return _Prompt(PROMPT_KINDS.index(prompt.kind), view.coordinates(prompt.coordinates) / size, mask)

    def _state(self, observation: Observation) -> np.ndarray | None:
        """The state as the policy reads it; None where it reads none."""
        if not self.settings.reads_state:
            return None
        if observation.state is None:
            raise InputError("this policy reads the robot's state (proprioception); give it with the observation")
        proprioception = self.statistics_of(observation.dataset).get("proprio") or {}
        if "mean" not in proprioception:
            raise InputError(
                f"the statistics of {observation.dataset} have no proprio.mean, by which the state is scaled"
            )
        state, length = np.asarray(observation.state), len(proprioception["mean"])
        if state.shape != (length,) or state.dtype.kind not in "iuf":
            raise InputError(
                f"the state must be numbers ({length},), as the statistics of {observation.dataset} have it, "
                f"not {_described(state)}"
            )
        scaled = self.settings.scale_state(state, proprioception)
        if not np.isfinite(scaled).all():
            raise InputError(
                f"the state {state.tolist()}, or proprio of {observation.dataset} in the statistics, is not finite"
            )
        return scaled

    def _pad_masks(self, samples: Sequence[_Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        most = max(len(sample.masks) for sample in samples)
        masks = np.zeros((len(samples), most, self._mask_side, self._mask_side), np.float32)
        used = np.zeros((len(samples), most), bool)
        for row, sample in enumerate(samples):
            for index, mask in enumerate(sample.masks):
                masks[row, index], used[row, index] = mask, True
        return torch.from_numpy(masks), torch.from_numpy(used)

    def _pad_prompts(self, samples: Sequence[_Encoded]) -> tuple[PromptBatch, torch.Tensor]:
        prompts = [prompt for sample in samples for prompt in sample.prompts]
        most = max(len(sample.prompts) for sample in samples)
        points = max((len(prompt.points) for prompt in prompts), default=0)
        dense = any(prompt.mask is not None for prompt in prompts)
        side = self._mask_side if dense else 0
        shape = (len(samples), most)
        batch = PromptBatch(
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(*shape, points, 2),
            torch.zeros(*shape, points, dtype=torch.bool),
            torch.zeros(*shape, side, side),
        )
        used = torch.zeros(shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            for index, prompt in enumerate(sample.prompts):
                used[row, index] = True
                batch.kinds[row, index] = prompt.kind
                batch.points[row, index, : len(prompt.points)] = torch.from_numpy(prompt.points)
                batch.point_used[row, index, : len(prompt.points)] = True
                if prompt.mask is not None:
                    batch.masks[row, index] = torch.from_numpy(prompt.mask)
        return batch, used


def _order(prompt: _Prompt) -> tuple[int, list[float], list[float]]:
    """By kind, then from left to right."""
    return prompt.kind, prompt.points.ravel().tolist(), [] if prompt.mask is None else prompt.mask.ravel().tolist()


def _checked_image(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        raise InputError(f"the image must be RGB, uint8 (height, width, 3), not {_described(image)}")
    return image


def _checked_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (height, width):
        raise InputError(f"a mask must be bool ({height}, {width}), as its image, not {_described(mask)}")
    return mask


def _check_prompts(prompts: Sequence[Prompt], height: int, width: int) -> None:
    if isinstance(prompts, Prompt) or not all(isinstance(prompt, Prompt) for prompt in prompts):
        raise InputError(
            "prompts must be a list of what point, line, region and mask_prompt of pixel160k.format.prompts make"
        )
    for prompt in prompts:
        validate(prompt, height, width)


def _described(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__

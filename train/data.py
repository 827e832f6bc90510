"""From samples of shards to batches: what each sample is shown and told, drawn by its key and epoch alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model.processor import Batch, Observation, Processor
from pixel160k.format.actions import normalise
from pixel160k.format.prompts import PROMPT_KINDS, Prompt
from pixel160k.geometry import View, colour_jitter, random_crop_view
from pixel160k.read.samples import Sample
from pixel160k.seeding import seeded_generator
from train.settings import PromptSettings, TrainSettings

PIXEL_MASK = "pixel_mask"  # p_t, which the pixel-aware encoder reads


class Collator:
    """Samples with their epochs -> a batch for one policy."""

    def __init__(self, processor: Processor, settings: TrainSettings, augment: bool) -> None:
        """With `augment` images are cropped and jittered at random, as training does; without, they are seen as the policy
        sees them when it acts. Prompts are drawn either way, where the stage has any."""
        self._processor, self._settings, self._augment = processor, settings, augment

    def __call__(self, samples: Sequence[tuple[int, Sample]]) -> dict[str, Any]:
        """A batch with its actions under "batch", and the keys of its samples under "keys"."""
        seen = [self._see(epoch, sample) for epoch, sample in samples]
        batch = self._processor([observation for observation, _ in seen], [view for _, view in seen])
        only = [sample for _, sample in samples]
        return {"batch": with_actions(batch, only, self._processor), "keys": [sample.key for sample in only]}

    def _see(self, epoch: int, sample: Sample) -> tuple[Observation, View]:
        image, settings = sample.image, self._processor.settings
        assert image is not None
        height, width = image.shape[:2]
        view = self._processor.view(height, width)
        masks: list[np.ndarray] = []
        prompts: list[Prompt] = []
        generator = seeded_generator("train", self._settings.seed, epoch, sample.key)
        if self._augment:
            if settings.random_crop:
                view = random_crop_view(height, width, settings.backbone.vision.image_size, generator=generator)
            if self._settings.colour_jitter:
                image = colour_jitter(image, generator)
        if self._settings.stage == "pue":
            masks, prompts = draw_prompts(sample, self._settings.prompts, generator)
        return Observation(image, sample.instruction, masks, prompts, sample.state, sample.dataset), view


def with_actions(batch: Batch, samples: Sequence[Sample], processor: Processor) -> Batch:
    """The batch with the normalised actions that followed, float32 (batch, N_c, 7), and which of them are real."""
    actions, masks = [], []
    for sample in samples:
        assert sample.actions is not None and sample.action_mask is not None
        actions.append(normalise(sample.actions, processor.statistics_of(sample.dataset)))
        masks.append(sample.action_mask)
    return batch._replace(actions=torch.from_numpy(np.stack(actions)), action_mask=torch.from_numpy(np.stack(masks)))


def draw_prompts(
    sample: Sample, settings: PromptSettings, generator: np.random.Generator
) -> tuple[list[np.ndarray], list[Prompt]]:
    """Masks and prompts for one training sample; nothing for a sample that has none, or for the share of text alone."""
    text_only = generator.random() < settings.text_only
    with_mask, alone = generator.random(2) < (settings.pixel_mask, settings.mask_alone)
    weights = np.array([getattr(settings, kind) for kind in PROMPT_KINDS])
    kind = generator.choice(PROMPT_KINDS, p=weights / weights.sum())
    if text_only or not sample.prompts:
        return [], []
    same_kind = [prompt for prompt in sample.prompts if prompt.kind == kind]
    prompt = same_kind[generator.integers(len(same_kind))]
    mask = mask_at(sample) if with_mask else None
    if mask is None:
        return [], [prompt]
    return [mask], [] if alone else [prompt]


def point_at(sample: Sample, kind: str) -> tuple[list[np.ndarray], list[Prompt]]:
    """Masks and prompts of one kind, always the same: "none", one of `PROMPT_KINDS` (its first), or `PIXEL_MASK`."""
    if kind == "none":
        return [], []
    if kind == PIXEL_MASK:
        mask = mask_at(sample)
        return [] if mask is None else [mask], []
    return [], [prompt for prompt in sample.prompts if prompt.kind == kind][:1]


def mask_at(sample: Sample) -> np.ndarray | None:
    """p_t: the target's mask at a sample's step, bool (height, width), or None where it is not known.

    Without tracks it is known on x_0 alone; until the gripper closes the object stands where it stood then.
    """
    if sample.object_mask is not None:
        return sample.object_mask
    if sample.step >= sample.metadata.close_step >= 0:
        return None
    return next((prompt.mask for prompt in sample.prompts if prompt.kind == "mask"), None)

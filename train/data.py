"""From samples of shards to batches. What is drawn for a sample depends on its key, the epoch and the seed alone."""

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
from train.settings import PromptMixture, TrainSettings

PIXEL_MASK = "pixel_mask"
"""The name of p_t, the mask that the pixel-aware encoder reads, beside those of the prompts."""


class Collator:
    """Makes a batch for one policy out of samples and their epochs."""

    def __init__(self, processor: Processor, settings: TrainSettings, augment: bool) -> None:
        """Make a collator.

        Args:
            processor: of the policy.
            settings: the recipe; it says which prompts are drawn, which only `pue` does.
            augment: crop images and change their colours at random, as for training. Otherwise the policy sees them as it
                does when it acts.
        """
        self._processor, self._settings, self._augment = processor, settings, augment

    def __call__(self, samples: Sequence[tuple[int, Sample]]) -> dict[str, Any]:
        """The batch, with its actions, under "batch"; the keys of its samples under "keys".

        Args:
            samples: (epoch, sample) each.
        """
        observed = [self._observe(epoch, sample) for epoch, sample in samples]
        batch = self._processor([observation for observation, _ in observed], [view for _, view in observed])
        only = [sample for _, sample in samples]
        return {"batch": with_actions(batch, only, self._processor), "keys": [sample.key for sample in only]}

    def _observe(self, epoch: int, sample: Sample) -> tuple[Observation, View]:
        image, settings = sample.image, self._processor.settings
        assert image is not None
        height, width = image.shape[:2]
        view = self._processor.view(height, width)
        masks: list[np.ndarray] = []
        prompts: list[Prompt] = []
        generator = seeded_generator("train", self._settings.seed, epoch, sample.key)
        if self._augment:
            if settings.random_crop:
                size, padded = settings.backbone.vision.image_size, settings.backbone.pad_images
                view = random_crop_view(height, width, size, generator=generator, padded=padded)
            if self._settings.colour_jitter:
                image = colour_jitter(image, generator)
        if self._settings.stage == "pue":
            masks, prompts = draw_prompts(sample, self._settings.prompts, generator)
        return Observation(image, sample.instruction, masks, prompts, sample.state, sample.dataset), view


def with_actions(batch: Batch, samples: Sequence[Sample], processor: Processor) -> Batch:
    """A copy of a batch that also holds what is learned: the actions of its samples.

    `actions` are normalised, float32 (samples, N_c, 7); `action_mask`, bool (samples, N_c), is False behind an episode's end.
    """
    actions, masks = [], []
    for sample in samples:
        assert sample.actions is not None and sample.action_mask is not None
        actions.append(normalise(sample.actions, processor.statistics_of(sample.dataset)))
        masks.append(sample.action_mask)
    return batch._replace(actions=torch.from_numpy(np.stack(actions)), action_mask=torch.from_numpy(np.stack(masks)))


def draw_prompts(
    sample: Sample, mixture: PromptMixture, generator: np.random.Generator
) -> tuple[list[np.ndarray], list[Prompt]]:
    """Draw what a training sample is shown beside its image: masks p_t, bool (height, width), and prompts; at most one each.

    Both lists are empty for a sample without prompts, and for the share of samples that get their text alone.
    """
    text_only = generator.random() < mixture.text_only
    with_mask, alone = generator.random(2) < (mixture.pixel_mask, mixture.mask_alone)
    weights = np.array([getattr(mixture, kind) for kind in PROMPT_KINDS])
    kind = generator.choice(PROMPT_KINDS, p=weights / weights.sum())
    if text_only or not sample.prompts:
        return [], []
    same_kind = [prompt for prompt in sample.prompts if prompt.kind == kind]
    prompt = same_kind[generator.integers(len(same_kind))]
    mask = target_mask(sample) if with_mask else None
    if mask is None:
        return [], [prompt]
    return [mask], [] if alone else [prompt]


def masks_and_prompts(sample: Sample, kind: str) -> tuple[list[np.ndarray], list[Prompt]]:
    """What a policy is shown beside a sample's image to point at its target in one way; nothing is drawn at random.

    Args:
        sample: decoded with its prompts, for `PIXEL_MASK` with its labels too.
        kind: "none"; one of `PROMPT_KINDS`, of which the sample's first is taken; or `PIXEL_MASK`.

    Returns:
        Masks p_t, bool (height, width), and prompts; one of the lists holds one thing, or both are empty.
    """
    if kind == "none":
        return [], []
    if kind == PIXEL_MASK:
        mask = target_mask(sample)
        return [] if mask is None else [mask], []
    return [], [prompt for prompt in sample.prompts if prompt.kind == kind][:1]


def target_mask(sample: Sample) -> np.ndarray | None:
    """p_t: the target object's mask at a sample's step, bool (height, width), or None where it is not known.

    Where the shards have no tracks, only the mask on x_0 is known. It holds until the gripper closes: so long the object
    does not move.
    """
    if sample.object_mask is not None:
        return sample.object_mask
    if sample.step >= sample.metadata.close_step >= 0:
        return None
    return next((prompt.mask for prompt in sample.prompts if prompt.kind == "mask"), None)

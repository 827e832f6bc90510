"""From samples of shards to batches. What is drawn for a sample depends on its key, the epoch and the seed alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model.processor import Batch, Observation, Processor
from pixel160k.format.actions import normalise
from pixel160k.format.prompts import PIXEL_MASK, PROMPT_KINDS, Prompt, line, mask_prompt, point, region, sample_prompts
from pixel160k.geometry import View, colour_jitter, random_crop_view
from pixel160k.read.samples import Sample
from pixel160k.seeding import seeded_generator
from train.settings import PromptMixture, TrainSettings


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


def is_trained_on(sample: Sample, epoch: int, settings: TrainSettings) -> bool:
    """Whether an epoch trains on a sample: in `pue` of those whose target nothing marks only the share `prompts.unmarked` is.

    They are most of an episode, as the way home is longer than the way to the object, and nothing about pointing is learned
    from them. What is drawn depends on the sample's key, the epoch and the seed alone.
    """
    share = settings.prompts.unmarked
    if settings.stage != "pue" or share == 1 or _is_marked(sample):
        return True
    return bool(seeded_generator("unmarked", settings.seed, epoch, sample.key).random() < share)


def draw_prompts(
    sample: Sample, mixture: PromptMixture, generator: np.random.Generator
) -> tuple[list[np.ndarray], list[Prompt]]:
    """Draw what a training sample is shown beside its image: masks p_t, bool (height, width), and prompts; at most one each.

    Both lists are empty for a sample whose target nothing marks any more, and for the share of the others that get their
    text alone: their own, since the policy would else take "nothing is pointed at" for "the gripper has closed".
    """
    text_only = generator.random() < mixture.text_only
    with_mask, alone = generator.random(2) < (mixture.pixel_mask, mixture.mask_alone)
    weights = np.array([getattr(mixture, kind) for kind in PROMPT_KINDS])
    kind = generator.choice(PROMPT_KINDS, p=weights / weights.sum())
    if text_only:
        return [], []
    mask = target_mask(sample) if with_mask else None
    masks = [] if mask is None else [mask]
    same_kind = [prompt for prompt in target_prompts(sample) if prompt.kind == kind]
    if not same_kind or (masks and alone):
        return masks, []
    return masks, [same_kind[generator.integers(len(same_kind))]]


def masks_and_prompts(sample: Sample, kind: str) -> tuple[list[np.ndarray], list[Prompt]]:
    """What a policy is shown beside a sample's image to point at its target in one way; always the same.

    Args:
        sample: decoded with its prompts and labels.
        kind: "none"; one of `PROMPT_KINDS`, of which the first is taken; or `PIXEL_MASK`.

    Returns:
        Masks p_t, bool (height, width), and prompts; one of the lists holds one thing. Both are empty where nothing marks
        the target any more, see `target_prompts` and `target_mask`.
    """
    if kind == "none":
        return [], []
    if kind == PIXEL_MASK:
        mask = target_mask(sample)
        return [] if mask is None else [mask], []
    return [], [prompt for prompt in target_prompts(sample) if prompt.kind == kind][:1]


def target_prompts(sample: Sample) -> Sequence[Prompt]:
    """V: the visual prompts that mark a sample's target on its own image, of every kind, or none.

    Until the gripper closes those of the annotation on x_0 do. What they mark afterwards is the place that the object left:
    then prompts are drawn from its mask on this step, where the shards have tracks and it is seen; else there are none. A
    policy that also learns on emptied places is not led by a click.
    """
    if not _has_closed(sample):
        return sample.prompts
    mask = sample.object_mask
    if mask is None or not mask.any():
        return ()
    drawn = sample_prompts(mask, 1, seeded_generator("carried along", sample.key))
    return point(*drawn.points[0]), line(drawn.line), region(drawn.region), mask_prompt(mask)


def _is_marked(sample: Sample) -> bool:
    """Whether a prompt or a mask can mark a sample's target on its own image."""
    if not _has_closed(sample):
        return bool(sample.prompts)
    mask = sample.object_mask
    return mask is not None and bool(mask.any())


def _has_closed(sample: Sample) -> bool:
    return sample.step >= sample.metadata.close_step >= 0


def target_mask(sample: Sample) -> np.ndarray | None:
    """p_t: the target object's mask at a sample's step, bool (height, width), or None where it is not known.

    Where the shards have no tracks, only the mask on x_0 is known. It holds until the gripper closes: so long the object
    does not move.
    """
    if sample.object_mask is not None:
        return sample.object_mask
    if _has_closed(sample):
        return None
    return next((prompt.mask for prompt in sample.prompts if prompt.kind == "mask"), None)

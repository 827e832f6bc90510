"""PixelVLA, the policy: a backbone, the paper's three modules around it, and what turns images into robot actions."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from model import presets
from model.action_decoder import ActionDecoder, l1_loss
from model.backbones import random_backbone
from model.backbones.base import Backbone
from model.checkpoint import load_policy_weights, open_checkpoint, save_checkpoint
from model.compiled import CompiledForward, rounded_up
from model.patch_weights import patch_weights
from model.pixel_encoder import PixelAwareEncoder
from model.processor import Batch, Observation, Processor
from model.prompt_encoder import PromptBatch, PromptEncoder, mask_prompts
from model.sequence import IMAGE, MASK, PROMPT, fill_slots
from model.settings import ModelSettings
from model.state_encoder import StateEncoder
from model.weights import retie_weights, without_memory
from pixel160k.errors import InputError
from pixel160k.format.actions import unnormalise
from pixel160k.format.prompts import Prompt

_LOW, _HIGH = [-np.inf] * 6 + [0.0], [np.inf] * 6 + [1.0]
"""The range of actions that are not scaled: of the gripper alone it is known."""


class PolicyOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        actions: (batch, N_c, 7), normalised.
        loss: the L1 loss, or None for a batch without actions.
    """

    actions: torch.Tensor
    loss: torch.Tensor | None


class PixelVLA(nn.Module):
    """A robot policy that reads an image, an instruction, and any number of masks and visual prompts."""

    def __init__(
        self,
        settings: ModelSettings,
        tokenizer: PreTrainedTokenizerFast,
        statistics: Mapping[str, Any],
        backbone: Backbone | None = None,
    ) -> None:
        """Build it with random weights.

        Args:
            settings: backbone and modules; `model.settings.PRESETS` has some.
            tokenizer: the language model's, of transformers.
            statistics: of the data sets to act in, by name, as dataset_statistics.json has them.
            backbone: a trained one, of the settings' sizes; by default a random one.
        """
        super().__init__()
        self.settings = settings
        self.processor = Processor(settings, tokenizer, dict(statistics))
        self.backbone = random_backbone(settings.backbone) if backbone is None else backbone
        vision = settings.backbone.vision
        hidden_size = self.backbone.hidden_size
        self.pixel_encoder = PixelAwareEncoder(
            [vision.level_size] * len(vision.levels), hidden_size, settings.tokens_per_mask, settings.level_norms
        )
        self.prompt_encoder = PromptEncoder(hidden_size)
        self.action_decoder = ActionDecoder(
            self.backbone.query_size,
            settings.decoder_size,
            settings.chunk,
            settings.decoder_blocks,
            settings.decoder_norm,
        )
        self.state_encoder = StateEncoder(self.backbone.query_size) if settings.proprioception else None
        self._compiled: CompiledForward | None = None

    @classmethod
    def from_pretrained(cls, model: str | Path, dtype: torch.dtype | None = None) -> Self:
        """Load a trained policy, ready to act.

        Args:
            model: hub id or folder of a PixelVLA checkpoint.
            dtype: of the backbone's parameters; the modules around it are then float32. By default each as it is stored.

        Raises:
            InputError: it is not found, is not a PixelVLA checkpoint, or its tensors do not fit (lists them).
        """
        checkpoint = open_checkpoint(model)
        if not checkpoint.is_policy:
            raise InputError(
                f"{model} is a checkpoint of {checkpoint.kind}, which has no continuous action decoder; "
                f"train one with: pixelcli train --stage cat --init {model}"
            )
        if checkpoint.tokenizer is None:
            raise InputError(f"{checkpoint.folder} has no tokenizer.json; put the one of its language model there")
        policy = without_memory(partial(cls, checkpoint.settings, checkpoint.tokenizer, checkpoint.statistics))
        load_policy_weights(policy, checkpoint, dtype)
        return policy.eval()

    @classmethod
    def start(
        cls,
        model: str | Path,
        statistics: Mapping[str, Any] | None = None,
        overrides: Iterable[str] = (),
        tokenizer: PreTrainedTokenizerFast | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Self:
        """Make a policy to train: a pretrained or random backbone with random modules around it.

        Args:
            model: a preset ("openvla-7b", "pi0", "small", "tiny"), or hub id or folder of a backbone's published checkpoint.
            statistics: of the data sets that it will learn to act in, by name, as dataset_statistics.json has them; by
                default those that the checkpoint brings.
            overrides: settings as `key=value`, such as "decoder_blocks=3" or "backbone.vision.image_size=448".
            tokenizer: by default the checkpoint's.
            dtype: of the backbone's trained parameters; by default each as it is stored. What is random is float32.
            seed: of what is random.

        Raises:
            InputError: as `model.presets.start`.
        """
        settings, backbone, tokenizer, published = presets.start(model, overrides, tokenizer, dtype, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(settings, tokenizer, published if statistics is None else statistics, backbone)

    def own_modules(self) -> dict[str, nn.Module]:
        """What stands around the backbone, by what it is called: the paper's three modules, and the state's where it is read."""
        modules: dict[str, nn.Module] = {
            "pixel-aware encoder": self.pixel_encoder,
            "prompt encoder": self.prompt_encoder,
            "action decoder": self.action_decoder,
        }
        return modules if self.state_encoder is None else modules | {"state encoder": self.state_encoder}

    def tie_weights(self) -> None:
        """Tie the weights again that the backbone's models share; accelerate asks for it after it has moved them."""
        retie_weights(self)

    def save_pretrained(self, folder: str | Path, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write everything that acting needs: weights, settings, statistics, tokenizer; see `model.checkpoint.save_checkpoint`."""
        save_checkpoint(folder, self, self.settings, self.processor.statistics, self.processor.tokenizer, tensors)

    def forward(self, batch: Batch) -> PolicyOutput:
        """Actions of a batch, and their loss where the batch holds the true ones."""
        vision = self.backbone.vision(self.backbone.pixels(batch.images))
        sequence = self.backbone.embed(batch.input_ids.clamp(min=0))
        sequence = fill_slots(sequence, batch.input_ids, IMAGE, self.backbone.project(vision.patch_features))
        if batch.mask_used.shape[1]:
            masks = self._mask_tokens(vision.levels, batch.masks)
            sequence = fill_slots(sequence, batch.input_ids, MASK, masks, batch.mask_used)
            prompts = self._prompt_tokens(vision.levels, batch.prompts)
            sequence = fill_slots(sequence, batch.input_ids, PROMPT, prompts, batch.prompt_used)
        queries = self.action_decoder.queries.expand(len(sequence), -1, -1)
        if self.state_encoder is not None:
            assert batch.state is not None  # the processor asks for it
            queries = torch.cat([self.state_encoder(batch.state), queries], dim=1)
        read = self.backbone.query(sequence, batch.attention_mask, queries, batch.state)
        actions = self.action_decoder(read[:, -self.settings.chunk :])
        if batch.actions is None or batch.action_mask is None:
            return PolicyOutput(actions, None)
        return PolicyOutput(actions, l1_loss(actions, batch.actions, batch.action_mask))

    def _mask_tokens(self, levels: Sequence[torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
        """E_p, (batch, masks, tokens_per_mask, D): what each mask covers, and where it is."""
        prompts = mask_prompts(masks)
        weights = patch_weights(prompts, self.settings.backbone.vision.grid)
        what = self.pixel_encoder(levels, weights)
        if not self.settings.mask_places:
            return what
        where = self.prompt_encoder(prompts)[:, :, None]
        return what + torch.where(weights.any(-1)[..., None, None], where, 0)

    def _prompt_tokens(self, levels: Sequence[torch.Tensor], prompts: PromptBatch) -> torch.Tensor:
        """E_s, (batch, prompts, D): where each prompt points, and what is there."""
        where = self.prompt_encoder(prompts)
        if not self.settings.prompt_features:
            return where
        weights = patch_weights(prompts, self.settings.backbone.vision.grid)
        what = self.pixel_encoder(levels, weights).mean(2)
        return where + torch.where(weights.any(-1, keepdim=True), what, 0)

    @torch.inference_mode()
    def predict_action(
        self,
        image: np.ndarray,
        instruction: str,
        masks: Sequence[np.ndarray] | None = None,
        prompts: Sequence[Prompt] | None = None,
        dataset: str | None = None,
        state: np.ndarray | None = None,
    ) -> np.ndarray:
        """The next actions of a robot.

        Args:
            image: RGB uint8 (height, width, 3), of any size.
            instruction: what to do.
            masks: of what the instruction is about, each bool (height, width), as it is seen on this image.
            prompts: points, lines, regions, masks in pixels of the image (`pixel160k.format.prompts`), as long as they
                mark their object on it: none once it was moved.
            dataset: whose robot acts: a key of the checkpoint's statistics, as "bridge_orig".
            state: float32 (S,) proprioception in robot units; only read where the policy was trained with it, as π0.

        Returns:
            float32 (N_c, 7) in robot units: Δx, Δy, Δz, Δroll, Δpitch, Δyaw, and the gripper in [0, 1] with 1 = open.
            What lies outside the range that the policy was trained on is cut off at its ends.

        Raises:
            InputError: no statistics of `dataset` (lists those there are), or an input that is not as it should be.
        """
        observation = Observation(
            image, instruction, () if masks is None else masks, () if prompts is None else prompts, state, dataset
        )
        return self.act([observation])[0]

    def compile_acting(self, shown: Iterable[Sequence[Observation]] = (), backend: Any = "inductor") -> None:
        """Make `act` and `predict_action` faster on a GPU: from now on they run compiled graphs (`model.compiled`).

        They are called as before and give the same to rounding. Training is not touched.

        Args:
            shown: observations to act on at once, for each of which a graph is made now and not while a robot waits. Others of
                as many observations, masks and prompts use it too.
            backend: of `torch.compile`.

        Raises:
            InputError: as `act`, for what is shown.
        """
        self._compiled = CompiledForward(self.forward, backend)
        for observations in shown:
            for _ in range(2):  # CUDA graphs are recorded at the second run
                self.act(observations)

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation]) -> np.ndarray:
        """`predict_action` for several observations at once: float32 (observations, N_c, 7) in robot units."""
        statistics = [self.processor.statistics_of(observation.dataset) for observation in observations]
        batch, forward, device = self.processor(observations), self._compiled, self.action_decoder.queries.device
        output = self(batch.to(device)) if forward is None else forward(rounded_up(batch).to(device))
        actions = output.actions.float().cpu().numpy()
        chunks = []
        for chunk, known in zip(actions, statistics, strict=True):
            low, high = np.where(known["action"]["mask"], [[-1.0], [1.0]], [_LOW, _HIGH])
            chunks.append(unnormalise(np.clip(chunk, low, high), known))
        return np.stack(chunks)

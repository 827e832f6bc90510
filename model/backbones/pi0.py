"""The backbone of π0: PaliGemma reads image, text, masks and prompts; the action expert reads the state and our queries.

Where π0 feeds its expert the state token and then noisy actions mixed with time, this one feeds it the state token and
the learned action queries, under the same attention: the prefix sees itself, the state sees the prefix, the queries see all.
One forward pass takes the place of π0's ten denoising steps.
"""

from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.pi0.modeling_pi0 import PI0Model

from model.backbones import pi0_checkpoint
from model.backbones.base import ADAPTER, Backbone, TokenReaders, VisionOutput
from model.backbones.pi0_checkpoint import pi0_config
from model.backbones.settings import Pi0Settings
from model.weights import load_weights, stored_types, tensor_files, without_memory


class Pi0Backbone(Backbone):
    """PaliGemma and the action expert in the pieces that a policy needs."""

    settings: Pi0Settings

    def __init__(self, settings: Pi0Settings) -> None:
        """Build it with random weights; `load` gives trained ones."""
        super().__init__(settings)
        self.hidden_size = settings.language.hidden_size
        self.query_size = settings.expert.hidden_size
        self.model = PI0Model(pi0_config(settings))
        self.model.dit.register_module("embed_tokens", nn.Identity())
        self.state_proj = nn.Linear(settings.state_size, self.query_size)

    @classmethod
    def read_settings(cls, folder: Path) -> Pi0Settings:
        """The sizes of a π0 checkpoint; see `model.backbones.pi0_checkpoint.read_settings`."""
        return pi0_checkpoint.read_settings(folder)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """The backbone of a π0 checkpoint, of LeRobot or of transformers; see `Backbone.load`."""
        backbone = without_memory(partial(cls, cls.read_settings(folder)))
        sources, unused = pi0_checkpoint.tensor_sources(backbone, folder)
        if dtype is None and len(stored_types(tensor_files(folder))) > 1:
            dtype = torch.float32  # some were published in mixed types, and one model computes in one
        load_weights(backbone, folder, sources, unused, dtype)
        return backbone.eval()

    def vision(self, pixel_values: torch.Tensor) -> VisionOutput:
        """SigLIP's final features and levels.

        Args:
            pixel_values: (batch, 3, image_size, image_size), the RGB image normalised with mean and deviation 0.5.

        Raises:
            ValueError: the pixels have another shape.
        """
        side = self.settings.vision.image_size
        if pixel_values.shape[1:] != (3, side, side):
            raise ValueError(f"pixel_values must be (batch, 3, {side}, {side}), not {tuple(pixel_values.shape)}")
        output = self.model.vlm.vision_tower(pixel_values, output_hidden_states=True)
        blocks = output.hidden_states[1:]
        return VisionOutput(output.last_hidden_state, [blocks[level] for level in self.settings.vision.levels])

    def project(self, patch_features: torch.Tensor) -> torch.Tensor:
        """(batch, patches, SigLIP's channels) -> visual tokens (batch, patches, hidden_size)."""
        return self.model.vlm.multi_modal_projector(patch_features)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (batch, tokens) -> (batch, tokens, hidden_size), scaled as Gemma does."""
        return self.model.vlm.get_input_embeddings()(input_ids)

    def query(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        queries: torch.Tensor,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states of the expert (batch, N_c, query_size) at queries that follow prefix and state.

        Args:
            inputs_embeds: the prefix, (batch, length, hidden_size); every token of it sees every other.
            attention_mask: (batch, length), 1 = token, 0 = padding, wherever it is; None where no sample is padded.
            queries: (batch, N_c, query_size).
            state: (batch, state_size), normalised and padded with zeros.

        Raises:
            ValueError: there is no state.
        """
        if state is None:
            raise ValueError("π0 reads the robot's state (proprioception); give it with the image")
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        # `PI0Model` runs the prefix by itself only where it is also given pixels; so it is run here, as π0's own
        # `sample_actions` does. Token types of zero make its attention bidirectional.
        prefix = self.model.vlm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=attention_mask.cumsum(1) - 1,
            token_type_ids=torch.zeros_like(attention_mask),
            use_cache=True,
        )
        suffix = torch.cat([self.state_proj(state.to(self.state_proj.weight.dtype))[:, None], queries], dim=1)
        output = self.model(
            action_embeds=suffix.to(inputs_embeds.dtype),
            attention_mask=attention_mask,
            past_key_values=prefix.past_key_values,
        )
        return output.last_hidden_state[:, -queries.shape[1] :]

    def get_language_model(self) -> PreTrainedModel:
        """PaliGemma's Gemma."""
        return self.model.vlm.language_model

    def get_adapted_models(self) -> dict[str, PreTrainedModel]:
        """PaliGemma's Gemma, and the action expert, which reads the queries."""
        return {**super().get_adapted_models(), f"{ADAPTER}_expert": self.model.dit}

    def position_tables(self) -> tuple[str, ...]:
        """That of SigLIP."""
        return ("model.vlm.vision_tower.embeddings.position_embedding.weight",)

    def token_readers(self) -> TokenReaders:
        """The queries pass through the expert alone."""
        vlm = self.model.vlm
        return TokenReaders(
            patches=[vlm.vision_tower, vlm.multi_modal_projector],
            sequence=[vlm.language_model],
            queries=[self.model.dit, self.state_proj],
        )

    def use_gradient_checkpointing(self, wanted: bool = True) -> int:
        """As of any backbone; but keys and values stay, since the expert reads them, and they are small with one head.

        transformers' own checkpointing takes a layer's cache away, so that there would be none to read.
        """
        layers: Any = self.get_language_model().layers
        self.is_checkpointed = wanted
        for layer in layers:
            if wanted:
                layer.forward = _ComputedAnew(layer.forward, layer.self_attn.layer_idx)
            else:
                layer.forward = layer.forward.forward
        return len(layers)

    def after_sharding(self, adapted: bool) -> None:
        """Keep the last layer whole in the backward pass, and let gradients of adapters come in one order."""
        language: Any = self.get_language_model()
        # Of its last layer keys and values alone are read, so that the backward pass would not gather it again.
        language.layers[-1].set_reshard_after_forward(False)
        if adapted:  # with and without masks, gradients come in the same order
            language.enable_input_require_grads()


class _ComputedAnew:
    """A layer's forward whose activations are not kept but computed anew in the backward pass, all but keys and values."""

    def __init__(self, forward: Any, layer: int) -> None:
        self.forward, self._layer = forward, layer

    def __call__(self, hidden_states: torch.Tensor, past_key_values: Any = None, **rest: Any) -> torch.Tensor:
        if past_key_values is None or not torch.is_grad_enabled():
            return self.forward(hidden_states, past_key_values=past_key_values, **rest)

        def compute(hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            kept = _KeysAndValues()
            computed = self.forward(hidden_states, past_key_values=kept, **rest)
            return computed, kept.keys, kept.values

        computed, keys, values = checkpoint(compute, hidden_states, use_reentrant=False)
        past_key_values.update(keys, values, self._layer)
        return computed


class _KeysAndValues:
    """Stands in for a cache in one layer: the layer attends to what it gives, and the cache itself is filled only once."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What transformers' attention calls."""
        self.keys, self.values = keys, values
        return keys, values

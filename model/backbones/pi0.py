"""The backbone of π0: PaliGemma reads image, text, masks and prompts; the action expert reads the state and our queries.

Where π0 feeds its expert the state token and then noisy actions mixed with time, this one feeds it the state token and
the learned action queries, under the same attention: the prefix sees itself, the state sees the prefix, the queries see all.
One forward pass takes the place of π0's ten denoising steps, and `UNUSED` names the tensors that have no part in it.
"""

import torch
from torch import nn
from transformers import PI0Config
from transformers.models.pi0.modeling_pi0 import PI0Model

from model.backbones.vision import VisionOutput
from model.settings import GemmaSettings, Pi0Settings
from pixel160k.errors import InputError

UNUSED = (
    "embed_action_time.action_in_proj.weight",
    "embed_action_time.action_in_proj.bias",
    "embed_action_time.action_time_mlp_in.weight",
    "embed_action_time.action_time_mlp_in.bias",
    "embed_action_time.action_time_mlp_out.weight",
    "embed_action_time.action_time_mlp_out.bias",
    "action_out_proj.weight",
    "action_out_proj.bias",
    "model.dit.embed_tokens.weight",
)
"""Tensors of a π0 checkpoint, as transformers names them, that this variant does without: flow matching, and the expert's
word embeddings, which π0 never reads either."""


def pi0_config(settings: Pi0Settings) -> PI0Config:
    """transformers' configuration of the whole π0."""
    vision = settings.vision

    def gemma(sizes: GemmaSettings) -> dict[str, object]:
        return {
            "model_type": "gemma",
            **sizes.model_dump(),
            **settings.model_dump(
                include={"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"}
            ),
            "vocab_size": settings.vocab_size,
        }

    return PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": gemma(settings.language),
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": vision.siglip.hidden_size,
                "intermediate_size": vision.siglip.mlp_size,
                "num_hidden_layers": vision.siglip.depth,
                "num_attention_heads": vision.siglip.heads,
                "layer_norm_eps": vision.siglip.layer_norm_eps,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "vision_use_head": False,
            },
            "projection_dim": settings.language.hidden_size,
            "image_token_id": settings.vocab_size,
        },
        dit_config=gemma(settings.expert),
        max_state_dim=settings.state_size,
    )


class Pi0Backbone(nn.Module):
    """PaliGemma and the action expert in the pieces that a policy needs."""

    def __init__(self, settings: Pi0Settings) -> None:
        """Build it with random weights; `model.checkpoint` loads trained ones."""
        super().__init__()
        self.settings = settings
        self.hidden_size = settings.language.hidden_size
        self.query_size = settings.expert.hidden_size
        self.model = PI0Model(pi0_config(settings))
        self.model.dit.register_module("embed_tokens", nn.Identity())
        self.state_proj = nn.Linear(settings.state_size, self.query_size)

    def vision(self, pixel_values: torch.Tensor) -> VisionOutput:
        """SigLIP's final features and levels.

        Args:
            pixel_values: (batch, 3, image_size, image_size), the RGB image normalised with mean and deviation 0.5.

        Raises:
            InputError: the pixels have another shape.
        """
        side = self.settings.vision.image_size
        if pixel_values.shape[1:] != (3, side, side):
            raise InputError(f"pixel_values must be (batch, 3, {side}, {side}), not {tuple(pixel_values.shape)}")
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
        attention_mask: torch.Tensor,
        queries: torch.Tensor,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states of the expert (batch, N_c, query_size) at queries that follow prefix and state.

        Args:
            inputs_embeds: the prefix, (batch, length, hidden_size); every token of it sees every other.
            attention_mask: (batch, length), 1 = token, 0 = padding, wherever it is.
            queries: (batch, N_c, query_size).
            state: (batch, state_size), normalised and padded with zeros.

        Raises:
            InputError: there is no state.
        """
        if state is None:
            raise InputError("π0 reads the robot's state (proprioception); give it with the image")
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

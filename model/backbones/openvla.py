"""The backbone of OpenVLA: vision, projector and Llama, computing what the original code computes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.backbones import openvla_checkpoint
from model.backbones.base import Backbone, TokenReaders, VisionOutput
from model.backbones.projector import Projector
from model.backbones.settings import LlamaSettings, OpenVLASettings
from model.backbones.vision import FusedVision
from model.weights import load_weights, without_memory


@dataclass(frozen=True)
class OpenVLAOutput:
    """Everything that the original OpenVLA computes on the way from pixels and text to logits.

    The sequence is BOS, the patches, then the rest of the text: length = patches + tokens.

    Attributes:
        patch_features: (batch, patches, channels) of DINOv2, then of SigLIP.
        projected: (batch, patches, hidden_size).
        last_hidden_state: (batch, length, hidden_size) after the final norm.
        logits: (batch, length, vocab_size), over the padded vocabulary.
    """

    patch_features: torch.Tensor
    projected: torch.Tensor
    last_hidden_state: torch.Tensor
    logits: torch.Tensor


def llama_config(settings: LlamaSettings) -> LlamaConfig:
    """transformers' configuration of the language model.

    Random weights are as large as the width asks for: at LlamaConfig's 0.02, meant for thousands, a narrow model hardly attends.
    """
    sizes = settings.model_dump(exclude={"rope_theta"})
    return LlamaConfig(
        **sizes,
        initializer_range=settings.hidden_size**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
    )


class OpenVLABackbone(Backbone):
    """Vision, projector and Llama in the pieces that a policy needs, and as the whole that the original is."""

    settings: OpenVLASettings

    def __init__(self, settings: OpenVLASettings) -> None:
        """Build it with random weights; `load` gives trained ones."""
        super().__init__(settings)
        self.hidden_size = self.query_size = settings.language.hidden_size
        self.vision_backbone = FusedVision(settings.vision)
        self.projector = Projector(settings.vision.feature_size, self.hidden_size)
        self.language_model = LlamaForCausalLM(llama_config(settings.language))

    @classmethod
    def read_settings(cls, folder: Path) -> OpenVLASettings:
        """The sizes of an OpenVLA checkpoint; see `model.backbones.openvla_checkpoint.read_settings`."""
        return openvla_checkpoint.read_settings(folder)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """The backbone of an OpenVLA checkpoint; see `Backbone.load`."""
        backbone = without_memory(partial(cls, cls.read_settings(folder)))
        unused = openvla_checkpoint.unused_tensors(backbone.settings)
        load_weights(backbone, folder, openvla_checkpoint.tensor_sources(backbone, backbone.settings), unused, dtype)
        return backbone.eval()

    def vision(self, pixel_values: torch.Tensor) -> VisionOutput:
        """Patch features and SigLIP levels of (batch, 6, image_size, image_size); see `FusedVision`."""
        return self.vision_backbone(pixel_values)

    def project(self, patch_features: torch.Tensor) -> torch.Tensor:
        """(batch, patches, channels) -> visual tokens (batch, patches, hidden_size)."""
        return self.projector(patch_features)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (batch, tokens) -> word embeddings (batch, tokens, hidden_size)."""
        return self.language_model.get_input_embeddings()(input_ids)

    def get_language_model(self) -> LlamaForCausalLM:
        """The Llama, with its head over the vocabulary."""
        return self.language_model

    def position_tables(self) -> tuple[str, ...]:
        """Those of DINOv2, whose first row is the class token's, and of SigLIP."""
        tower = "vision_backbone"
        return (
            f"{tower}.dino.embeddings.position_embeddings",
            f"{tower}.siglip.embeddings.position_embedding.weight",
        )

    def token_readers(self) -> TokenReaders:
        """The queries pass through the Llama like all other tokens; its head is not asked."""
        return TokenReaders([self.vision_backbone, self.projector], [self.language_model.model])

    def read_sequence(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states after the final norm, under a causal mask; no logits are computed.

        Args:
            inputs_embeds: (batch, length, hidden_size).
            attention_mask: (batch, length), 1 = token, 0 = padding.
            position_ids: (batch, length); by default 0, 1, 2 ... without regard to padding, as in OpenVLA.

        Returns:
            (batch, length, hidden_size); what stands at padding is of no meaning.
        """
        output = self.language_model.model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return output.last_hidden_state

    def query(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        queries: torch.Tensor,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states at action queries that follow a sequence.

        Positions count tokens alone, so the queries stand directly after the last token and padding changes nothing.

        Args:
            inputs_embeds: (batch, length, hidden_size).
            attention_mask: (batch, length), 1 = token, 0 = padding; None where no sample is padded.
            queries: (batch, N_c, query_size).
            state: not read.

        Returns:
            (batch, N_c, query_size).
        """
        count, queries = queries.shape[1], queries.to(inputs_embeds.dtype)
        if attention_mask is None and self.settings.bidirectional_queries:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        whole: dict[str, torch.Tensor] = {}
        before, after = whole, whole
        if attention_mask is not None:
            mask = torch.cat([attention_mask, attention_mask.new_ones(queries.shape[:2])], dim=1)
            allowed = _causal(mask, count if self.settings.bidirectional_queries else 0)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            whole = {"attention_mask": allowed, "position_ids": positions}
            before = {"attention_mask": allowed[:, :, :-count, :-count], "position_ids": positions[:, :-count]}
            after = {"attention_mask": allowed[:, :, -count:], "position_ids": positions[:, -count:]}
        read = self.language_model.model
        if not torch.is_grad_enabled() or inputs_embeds.requires_grad or self._learns_to_read():
            sequence = torch.cat([inputs_embeds, queries], dim=1)
            return read(inputs_embeds=sequence, use_cache=False, **whole).last_hidden_state[:, -count:]
        # Nothing before the queries is learned, and under a causal mask nothing before them depends on them: the sequence
        # is read without a graph, and the backward pass goes through the queries alone. That is all of the stage `cat`.
        with torch.no_grad():
            past = read(inputs_embeds=inputs_embeds, use_cache=True, **before).past_key_values
        return read(inputs_embeds=queries, past_key_values=past, **after).last_hidden_state

    def _learns_to_read(self) -> bool:
        return any(parameter.requires_grad for parameter in self.language_model.model.parameters())

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> OpenVLAOutput:
        """The computation of the original OpenVLA.

        Args:
            pixel_values: (batch, 6, image_size, image_size); see `FusedVision`.
            input_ids: (batch, tokens) int64, BOS first.
            attention_mask: (batch, tokens), 1 = token, 0 = padding; of the text alone.
        """
        patch_features = self.vision(pixel_values).patch_features
        projected = self.project(patch_features)
        text = self.embed(input_ids)
        last_hidden_state = self.read_sequence(
            torch.cat([text[:, :1], projected, text[:, 1:]], dim=1),
            mask_with_patches(attention_mask, projected.shape[1]),
        )
        logits = self.language_model.lm_head(last_hidden_state)
        return OpenVLAOutput(patch_features, projected, last_hidden_state, logits)


def _causal(mask: torch.Tensor, together: int = 0) -> torch.Tensor:
    """Who sees whom, bool (batch, 1, length, length), of a mask (batch, length): each token itself and the tokens before it.

    transformers makes the same of `mask`, but looks at its values first, for which a GPU has to be waited. Padding sees
    itself, since a row without anything to see would be no number. The last `together` tokens all see each other.
    """
    length = mask.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    if together:
        before[-together:, -together:] = True
    return (before & mask[:, None, None].bool()) | torch.eye(length, dtype=torch.bool, device=mask.device)


def mask_with_patches(attention_mask: torch.Tensor, patches: int) -> torch.Tensor:
    """The attention mask of text and image together: that of BOS, ones for the patches, that of the rest of the text.

    Args:
        attention_mask: of the text alone, (batch, tokens), 1 = token, 0 = padding.
        patches: how many visual tokens follow BOS.

    Returns:
        (batch, patches + tokens).
    """
    seen = attention_mask.new_ones(len(attention_mask), patches)
    return torch.cat([attention_mask[:, :1], seen, attention_mask[:, 1:]], dim=1)

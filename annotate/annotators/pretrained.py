"""Finding and loading pretrained models: by hub id, by local folder, or the tiny ones that ship with the package."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pixel160k.errors import InputError

Loaded = TypeVar("Loaded")


def resolve(model: str, role: str) -> str:
    """The hub id or folder of a setting; "tiny" is the shipped checkpoint of the role ("detector" or "segmenter")."""
    return str(Path(str(files("annotate.annotators"))) / "tiny" / role) if model == "tiny" else model


def load(setting: str, model: str, loader: Callable[[str], Loaded]) -> Loaded:
    """Call a `from_pretrained`, turning its failures into one line that names the model and the way out.

    Raises:
        InputError: the model is neither a folder, nor in the local cache, nor reachable on the hub.
    """
    try:
        return loader(model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise InputError(
            f"cannot load {model!r} from a folder, the local cache or the hub ({reason}); "
            f"name a folder that holds it with --set {setting}=FOLDER"
        ) from None


def check(setting: str, model: str) -> None:
    """Read a model's configuration alone: a quick check, before workers start, that the model can be had.

    Raises:
        InputError: as `load`.
    """
    from transformers import AutoConfig

    load(setting, model, AutoConfig.from_pretrained)


def torch_dtype(name: str) -> Any:
    """The torch dtype of a setting's name."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]

"""Finding and loading pretrained models: by hub id, by local folder, or the tiny ones that ship with the package."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pixel160k.errors import InputError, one_line

Loaded = TypeVar("Loaded")


def resolve(model: str, role: str) -> str:
    """The hub id or folder that a setting names.

    Args:
        model: the setting's value: a hub id, a folder, or "tiny" for the checkpoint that ships with the package.
        role: whose tiny checkpoint: "detector" or "segmenter".
    """
    return str(Path(str(files("annotate.annotators"))) / "tiny" / role) if model == "tiny" else model


def load(setting: str, model: str, loader: Callable[[str], Loaded]) -> Loaded:
    """Load a model by a `from_pretrained`; its failures become one line that names the model and the way out.

    Args:
        setting: the setting that named the model, for that line.
        model: hub id or folder.
        loader: a `from_pretrained`, or what calls nothing else.

    Raises:
        InputError: the model is neither a folder, nor in the local cache, nor reachable on the hub; or it is broken.
    """
    try:
        return loader(model)
    except Exception as error:  # whatever a library raises at a folder that is missing, of another model, or damaged
        reason = one_line(error).split(". ")[0]
        raise InputError(
            f"cannot load {model!r} from a folder, the local cache or the hub ({reason}); "
            f"name a folder that holds it with --set {setting}=FOLDER"
        ) from None


def check_model(setting: str, model: str) -> None:
    """Check that a model can be had, quickly: its configuration is read, its weights are not.

    Raises:
        InputError: as `load`.
    """
    from transformers import AutoConfig

    load(setting, model, AutoConfig.from_pretrained)


def check_device(device: str) -> None:
    """Check that torch can compute on a device of this machine.

    Raises:
        InputError: torch does not know it, or cannot use it here.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the second where it was built without CUDA
        raise InputError(f"--device {device} cannot be used: {one_line(error).split('. ')[0]}") from None


def torch_dtype(name: str) -> Any:
    """The torch dtype called "float32" or "bfloat16" in the settings."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]

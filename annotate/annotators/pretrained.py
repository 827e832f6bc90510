"""Finding and loading pretrained models: by hub id, by local folder, or the tiny ones that ship with the package.

A setting names a model as `NAME` or `NAME@REVISION`. The revision of a hub id is a commit, a branch or a tag, that of a
folder is `sha256:` and a digest of its files. A command pins each model once, and its workers load exactly that.
"""

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from annotate.faults import WorkerUnusable
from pixel160k.errors import InputError, one_line
from pixel160k.files import sha256_of

Loaded = TypeVar("Loaded")

_LOADED = {".jinja", ".json", ".model", ".safetensors", ".txt"}  # weights, configurations, tokenizers


def resolve(model: str, role: str) -> str:
    """The hub id or folder that a setting names, with its revision where it says one.

    Args:
        model: the setting's value: a hub id, a folder, or "tiny" for the checkpoint that ships with the package.
        role: whose tiny checkpoint: "detector" or "segmenter".
    """
    name, at, revision = model.partition("@")
    return f"{files('annotate.annotators') / 'tiny' / role}{at}{revision}" if name == "tiny" else model


def load(setting: str, model: str, loader: Callable[..., Loaded]) -> Loaded:
    """Load a model by a `from_pretrained`; its failures become one line that names the model and the way out.

    Args:
        setting: the setting that named the model, for that line.
        model: hub id or folder, with or without a revision.
        loader: a `from_pretrained`, or what calls nothing else; gets `revision=` where a hub id has one.

    Raises:
        InputError: the model is neither a folder, nor in the local cache, nor reachable on the hub; or it is broken; or a
            folder has another revision.
    """
    name, revision = _split(model)
    if os.path.isdir(name):
        if revision and (found := _digest(name)) != revision:
            raise InputError(
                f"the model in {name} is another one than this run began with: {found}, not {revision}; "
                f"put its files back, or annotate into another --out"
            )
        return _load(setting, name, lambda: loader(name))
    return _load(setting, model, lambda: loader(name, **({"revision": revision} if revision else {})))


def _load(setting: str, model: str, loader: Callable[[], Loaded]) -> Loaded:
    try:
        return loader()
    except Exception as error:  # whatever a library raises at a folder that is missing, of another model, or damaged
        reason = one_line(error).split(". ")[0]
        raise InputError(
            f"cannot load {model!r} from a folder, the local cache or the hub ({reason}); "
            f"name a folder that holds it with --set {setting}=FOLDER"
        ) from None


def pin(setting: str, model: str) -> str:
    """`NAME@REVISION` of a model as it is now; checks that it can be had: its configuration is read, its weights are not.

    The commit of a hub id is the hub's answer, or, where the hub cannot be reached, what the local cache has of it.

    Args:
        setting: the setting that names the model; its last part is the role.
        model: its value.

    Raises:
        InputError: as `load`.
    """
    from huggingface_hub import resolve_revision
    from transformers import AutoConfig

    located = resolve(model, setting.rpartition(".")[2])
    name, revision = _split(located)
    if os.path.isdir(name):
        load(setting, located, AutoConfig.from_pretrained)
        return f"{_split(model)[0]}@{_digest(name)}"
    commit = _load(setting, located, lambda: resolve_revision(name, revision=revision or None).resolved)
    load(setting, f"{name}@{commit}", AutoConfig.from_pretrained)
    return f"{name}@{commit}"


def elsewhere(pinned: str) -> str:
    """A pinned model as a worker may be told that has another working directory: a folder's path is absolute."""
    name, revision = _split(pinned)
    return f"{os.path.abspath(name)}@{revision}" if name != "tiny" and os.path.isdir(name) else pinned


def _split(model: str) -> tuple[str, str]:
    """Name and revision; "" where it says none. A folder may have an @ in its name."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at and not os.path.isdir(model) else (model, "")


def _digest(folder: str) -> str:
    """The revision of a folder: of the files in it that may be loaded, what `sha256sum NAMES | sha256sum` says, sorted.

    The files are read once per process, 900 MB in 0.7 s on a core with SHA instructions.
    """
    found = sorted(path for path in Path(folder).iterdir() if path.suffix in _LOADED and path.is_file())
    return _digest_of(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found))


@lru_cache(maxsize=16)
def _digest_of(found: tuple[tuple[Path, int, int], ...]) -> str:
    lines = [f"{sha256_of(path)}  {path.name}\n" for path, _, _ in found]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def check_device(device: str) -> None:
    """Check that torch can compute on a device of this machine.

    Raises:
        WorkerUnusable: torch does not know it, or cannot use it here.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the second where it was built without CUDA
        raise WorkerUnusable(f"--device {device} cannot be used: {one_line(error).split('. ')[0]}") from None


def torch_dtype(name: str) -> Any:
    """The torch dtype called "float32" or "bfloat16" in the settings."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]

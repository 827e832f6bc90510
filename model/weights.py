"""Weights between disk and modules: safetensors only, one tensor at a time, so that memory holds one copy of them.

A checkpoint may come from anyone. Nothing here unpickles, runs code of a checkpoint, or leaves the checkpoint's folder.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from pixel160k.errors import InputError, one_line
from pixel160k.files import read_json_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F16", "BF16", "F32", "F64"}
_NAMED = 8  # of each fault, so many tensors are named

_DEVICE: ContextVar[torch.device | str] = ContextVar("device", default="cpu")
_VALUES: ContextVar[bool] = ContextVar("values", default=True)

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def reading(device: torch.device | str = "cpu", values: bool = True) -> Iterator[None]:
    """Where `load_weights` puts tensors meanwhile, and whether it reads them, so that many processes fit on one machine.

    Args:
        device: each tensor goes there straight from the pages of its file, which all processes of the machine share.
        values: False leaves the values to another process that will send them, as FSDP's first does: parameters have their
            place, and since nobody touches it no memory is behind it.
    """
    before = _DEVICE.set(device), _VALUES.set(values)
    try:
        yield
    finally:
        _DEVICE.reset(before[0])
        _VALUES.reset(before[1])


def are_values_read() -> bool:
    """Whether weights that are loaded now have values; see `reading`."""
    return _VALUES.get()


def locate(model: str | Path) -> Path:
    """The folder of a checkpoint: `model` itself, or the local copy of a hub id, fetched if need be.

    Only safetensors and JSON files are fetched.

    Raises:
        InputError: `model` is neither a folder, nor in the local cache, nor reachable on the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, HFValidationError) as error:
        reason = one_line(error).split(". ")[0]
        raise InputError(
            f"cannot load {str(model)!r} from a folder, the local cache or the hub ({reason}); "
            "give the path of a folder that holds it instead"
        ) from None


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of a checkpoint holds each tensor, by the tensor's name: one file, or the shards that its index names.

    Raises:
        InputError: there are no safetensors, a file cannot be read, or the index leads out of the folder.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{folder / INDEX} must say in weight_map which file holds each tensor")
        shards = {str(shard) for shard in weight_map.values()}
        if strange := sorted(shard for shard in shards if Path(shard).name != shard):
            raise InputError(f"{folder / INDEX} must name files of its own folder, not {', '.join(strange)}")
    elif (folder / WEIGHTS).is_file():
        shards = {WEIGHTS}
    else:
        raise InputError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; pickled weights are never read")
    files: dict[str, Path] = {}
    for shard in sorted(shards):
        with _open(folder / shard) as handle:
            if twice := sorted(files.keys() & handle.keys()):
                raise InputError(f"{folder / shard} repeats tensors of another shard: {', '.join(twice)}")
            files |= dict.fromkeys(handle.keys(), folder / shard)
    return files


def stored_types(files: Mapping[str, Path]) -> set[str]:
    """The types of tensors in the files of `tensor_files`, as safetensors names them: "F32", "BF16"."""
    types = set()
    for file in set(files.values()):
        with _open(file) as handle:
            types |= {handle.get_slice(name).get_dtype() for name in handle.keys() if name in files}  # noqa: SIM118
    return types


@dataclass(frozen=True)
class TensorSource:
    """Which tensor of a checkpoint a parameter comes from.

    Attributes:
        name: that tensor's name in the checkpoint.
        shape: the shape that it must have there.
        take: makes the parameter's values of it.
        dtype: of the parameter; by default what `load_weights` is told.
    """

    name: str
    shape: tuple[int, ...]
    take: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    dtype: torch.dtype | None = None


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and persistent buffers by name; those that are tied to each other once, under the first name."""
    tensors = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


def without_memory(build: Callable[[], Module]) -> Module:
    """Build a module whose parameters have shapes but no memory; `load_weights` gives them memory and values.

    Buffers that no checkpoint holds (rotary frequencies, position ids) are real.
    """
    with init_empty_weights(include_buffers=False):
        module = build()
    retie_weights(module)
    return module


def load_weights(
    module: nn.Module,
    folder: Path,
    sources: Mapping[str, TensorSource],
    unused: Iterable[str] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Fill every parameter of a module from a checkpoint, one tensor at a time, where and if `reading` says so.

    All names, shapes and types are checked before the first tensor is read.

    Args:
        module: made by `without_memory`, or any other of the same shapes.
        folder: holds the safetensors.
        sources: where each parameter of `module` comes from.
        unused: tensors of the checkpoint that the module knowingly does without.
        dtype: of the parameters; by default each as it is stored.

    Raises:
        InputError: one line that names what is missing, unexpected, or of a wrong shape or type, the first tensors of each.
    """
    files = tensor_files(folder)
    _check(files, folder, {source.name: source.shape for source in sources.values()}, set(unused))
    readers: dict[str, list[str]] = {}
    for target, source in sources.items():
        readers.setdefault(source.name, []).append(target)
    for name in (name for name in files if name in readers):
        # Opened anew each time: an open file keeps every page in memory that was ever read from it.
        with _open(files[name]) as handle:
            tensor = handle.get_tensor(name)
        for target in readers[name]:
            parent, _, leaf = target.rpartition(".")
            taken, own_type = sources[target].take(tensor), sources[target].dtype or dtype or tensor.dtype
            form: Any = {"dtype": own_type, "device": _DEVICE.get(), "memory_format": torch.contiguous_format}
            value = taken.to(copy=True, **form) if are_values_read() else torch.empty_like(taken, **form)
            module.get_submodule(parent).load_state_dict({leaf: value}, strict=False, assign=True)
    retie_weights(module)


def on_device(module: Module, device: str) -> Module:
    """A module on a device, named as torch names it: "cpu", "cuda:1".

    Raises:
        InputError: torch does not know the device, cannot use it here, or it has too little memory.
    """
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises the second where it was built without CUDA
        raise _unusable(device, error) from None


def check_device(device: str) -> None:
    """Check a device that a user has named, before anything is made for it.

    Raises:
        InputError: as `on_device`.
    """
    on_device(nn.Linear(1, 1), device)


@contextmanager
def reading_to(device: str) -> Iterator[None]:
    """`reading` to a device that a user has named.

    Raises:
        InputError: as `on_device`; what torch does not know or cannot use is said before the block begins.
    """
    check_device(device)
    try:
        with reading(device):
            yield
    except torch.OutOfMemoryError as error:
        raise _unusable(device, error) from None


def _unusable(device: str, error: Exception) -> InputError:
    return InputError(f"--device {device} cannot be used: {one_line(error).split('. ')[0]}")


def retie_weights(module: nn.Module) -> None:
    """Tie the weights of transformers' models inside a module again, such as input and output embedding, after assigning some."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.tie_weights()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell what cannot be written by an OSError that names the folder, whatever library writes there.

    safetensors and tokenizers raise errors of their own that end in "(os error 28)", as Rust puts it; torch a RuntimeError of
    the writer of its archives, which does not say why. Other errors pass.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        told = one_line(error)
        number = re.search(r"\(os error (\d+)\)", told)
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
        if isinstance(error, RuntimeError) and re.search("inline_container|PytorchStreamWriter", told):
            raise OSError(errno.EIO, f"torch cannot write, as where the disk is full: {told}", str(folder)) from error
        raise


def save_weights(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the `own_tensors` of a module under their names, in shards of at most 5 GB, in the types that they have.

    Raises:
        OSError: the disk is full, or whatever else keeps them from being written.
    """
    with writing(folder):
        save_torch_state_dict({name: tensor.detach() for name, tensor in tensors.items()}, folder)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {file}: {_instead(file) or one_line(error)}") from None


def _instead(file: Path) -> str:
    """What lies in the place of weights, where a copy or clone of a checkpoint did not fetch them; "" where that is not known."""
    if not file.is_file():
        return "it is not there; copy or fetch the checkpoint anew"
    with file.open("rb") as content:
        begin = content.read(64)
    if begin.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer and not the weights, which `git lfs pull` fetches"
    return "it is empty; copy or fetch the checkpoint anew" if not begin else ""


def _check(files: dict[str, Path], folder: Path, expected: dict[str, tuple[int, ...]], unused: set[str]) -> None:
    faults = {
        "missing": sorted(expected.keys() - files.keys()),
        "unexpected": sorted(files.keys() - expected.keys() - unused),
        "wrong": [],
    }
    for file in dict.fromkeys(files.values()):
        with _open(file) as handle:
            for name in sorted(expected.keys() & handle.keys()):
                found = handle.get_slice(name)
                shape, kind = tuple(found.get_shape()), found.get_dtype()
                if shape != expected[name] or kind not in _FLOATS:
                    faults["wrong"].append(f"{name} is {kind} {shape} and should be a float {expected[name]}")
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {_first(names)}" for fault, names in faults.items() if names)
        raise InputError(f"the tensors of {folder} do not fit: {listed}")


def _first(names: list[str]) -> str:
    """Names in a line that a person still reads: the first of them, and how many others there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} others" if more > 0 else "")

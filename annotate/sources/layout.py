"""How an RLDS data set lies on a disk: its folder, what it is called, its columns, and how many records its files hold.

`tensorflow_datasets` writes NAME/VERSION/ or NAME/CONFIG/VERSION/; people copy that in other ways, into a home directory or
beside another version. So name and version are those of dataset_info.json, wherever the folder lies.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from pixel160k.errors import InputError
from pixel160k.files import read_json
from pixel160k.paths import AnyPath

_NAME = re.compile(r"[A-Za-z0-9_]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INSTEAD = {  # how files begin, in small letters, that stand where the data should be
    (b"version https://git-lfs",): "a Git LFS pointer and not the data, which `git lfs pull` fetches",
    (b"<!doctype", b"<html", b"<?xml"): "a web page and not the data",
    (b"\x1f\x8b",): "compressed by gzip; unpack it",
    (bytes(12),): "filled with zeros, as a download that did not end leaves it",
}


class _Split(BaseModel):
    """A split in dataset_info.json; `shard_lengths` is how many records each of its files holds, [] where it does not say."""

    name: str
    shard_lengths: list[int] = Field([], alias="shardLengths")


class DatasetInfo(BaseModel):
    """What is read of dataset_info.json; "" where it does not say."""

    name: str = ""
    config: str = Field("", alias="configName")
    version: str = ""
    splits: list[_Split] = []

    @field_validator("splits", mode="before")
    @classmethod
    def _as_list(cls, splits: Any) -> Any:
        """Some write the splits as an object, by their names."""
        if not isinstance(splits, Mapping):
            return splits
        return [{"name": name, **split} if isinstance(split, Mapping) else split for name, split in splits.items()]


class _Sequence(BaseModel):
    """A feature of features.json that is repeated."""

    feature: "_Feature"


class _FeaturesDict(BaseModel):
    """Features of features.json by name."""

    features: "dict[str, _Feature]" = {}


class _Feature(BaseModel):
    """What is read of a node of the features.json tree: its children; a leaf has none."""

    features_dict: _FeaturesDict | None = Field(None, alias="featuresDict")
    sequence: _Sequence | None = None


Description = TypeVar("Description", bound=BaseModel)


def find_dataset(data_dir: AnyPath) -> AnyPath:
    """The folder that holds dataset_info.json: this one, or the only such at most two levels below it.

    Raises:
        InputError: there is none, or there are several.
    """
    if not data_dir.is_dir():
        raise InputError(f"{data_dir} is not a directory; --data-dir names the folder with the TFRecord files")
    for depth in ("", "*/", "*/*/"):
        found = sorted((path.parent for path in data_dir.glob(f"{depth}dataset_info.json")), key=str)
        if len(found) == 1:
            return found[0]
        if found:
            versions = all(_VERSION.fullmatch(path.name) and path.parent == found[0].parent for path in found)
            what = f"versions of {found[0].parent.name}" if versions else "data sets"
            raise InputError(f"{data_dir} holds {len(found)} {what}; name one: {', '.join(map(str, found[:4]))}")
    raise InputError(f"{data_dir} holds no RLDS data set (no dataset_info.json there or two folders below)")


def read_info(directory: AnyPath) -> DatasetInfo:
    """What dataset_info.json says. Raises InputError where tensorflow_datasets did not write it."""
    return _read_description(directory / "dataset_info.json", DatasetInfo)


def read_columns(directory: AnyPath) -> set[str]:
    """The columns that features.json says. Raises InputError where tensorflow_datasets did not write it."""
    return set(_column_names(_read_description(directory / "features.json", _Feature)))


def name_of(directory: AnyPath, info: DatasetInfo, folders: str) -> str:
    """What a data set is called: as dataset_info.json says, configuration included.

    Args:
        directory: the folder of dataset_info.json.
        info: what that says.
        folders: a pattern of folders whose name is better known than what stands in their dataset_info.json; "" for none.

    Raises:
        InputError: the name cannot be part of an episode id.
    """
    folder = directory.resolve()
    if _VERSION.fullmatch(folder.name):
        folder = folder.parent
    name = folder.name if re.fullmatch(folders, folder.name) else "_".join(filter(None, (info.name, info.config)))
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the data set's name {name!r} may hold only letters, digits and _; "
            f"write another `name` into {directory / 'dataset_info.json'}"
        )
    return name


def split_of_file(stem: str, info: DatasetInfo) -> str:
    """The split of a file that is called `{stem}.tfrecord-...`, where stem is `{name}-{split}`."""
    if info.name and stem.startswith(f"{info.name}-"):
        return stem.removeprefix(f"{info.name}-")
    known = [split.name for split in info.splits if stem.endswith(f"-{split.name}")]
    return max(known, key=len, default=stem.rpartition("-")[2])


def check_split(split: str, file: AnyPath) -> None:
    """Check that the name of a file's split can be part of an episode id.

    Raises:
        InputError: it cannot.
    """
    if not _NAME.fullmatch(split):
        raise InputError(
            f"{file}: the split's name {split!r} may hold only letters, digits and _; "
            "rename its files, or choose another with --split"
        )


def instead_of_data(path: AnyPath) -> str:
    """What a file is that holds no data, where its beginning tells; "" where it does not."""
    with path.open("rb") as file:
        beginning = file.read(64).lower()
    what = next((what for starts, what in _INSTEAD.items() if beginning.startswith(starts)), "")
    return f"the file is {what}" if what else ""


def _read_description(path: AnyPath, form: type[Description]) -> Description:
    """Read a JSON file of tensorflow_datasets; an InputError names the file and its first fault."""
    try:
        content = read_json(path)
    except InputError:
        if path.is_file() and (instead := instead_of_data(path)):
            raise InputError(f"cannot read {path}: {instead}") from None
        raise
    try:
        return form.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise InputError(f"{path} is not as tensorflow_datasets writes it: {where}: {fault['msg']}") from None


def _column_names(feature: _Feature, prefix: str = "") -> Iterator[str]:
    """The flat column names of a features.json tree, as tensorflow_datasets lays them out in a tf.Example."""
    if feature.features_dict is not None:
        for name, child in feature.features_dict.features.items():
            yield from _column_names(child, f"{prefix}/{name}" if prefix else name)
    elif feature.sequence is not None:
        yield from _column_names(feature.sequence.feature, prefix)
    else:
        yield prefix

"""LeRobot v3.0 data sets, written without depending on lerobot; a test loads them with it.

Frames are stored as LeRobot's `image` features, not as video: the images' bytes stand in the Parquet files, so
nothing is encoded again. The layout follows lerobot 0.4.4 (`lerobot.datasets.utils`, Apache-2.0): `data/` with whole
episodes per file, `meta/info.json`, `meta/tasks.parquet`, `meta/episodes/` with one row per episode, `meta/stats.json`.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError
from pixel160k.files import write_json
from pixel160k.format.metadata import PER_STEP
from pixel160k.format.origins import origin_of
from pixel160k.format.shards import IMAGES, TRAIN, form_of, split_of
from pixel160k.publish.card import declared_splits, front_matter, how_to_cite
from pixel160k.publish.features import IMAGE, METADATA
from pixel160k.publish.steps import Step
from pixel160k.read.foreign import decode_image

_FILE_BYTES = 100 * 2**20  # a new data file begins once one holds this much
_FILES_PER_CHUNK = 1000
_ROWS_PER_GROUP = 100
_FILE = "chunk-{:03d}/file-{:03d}.parquet"
_MASK = "observation.mask"
_ACTION_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def export(episodes: Iterable[list[Step]], manifest: dict[str, Any], folder: Path, fps: float) -> dict[str, int]:
    """Write the data set into an empty folder; returns episodes, frames and tasks. There must be at least one episode.

    Episodes come split by split, `train` first. Each split begins a chunk of its own in `data/`, so that a pattern names
    its files. Statistics are over `train` where it is there.

    Raises:
        InputError: images or states differ in size between episodes, which LeRobot does not allow, or an image is damaged.
    """
    iterator = iter(episodes)
    opening = next(iterator)
    size = _decode(opening[0].image_name, opening[0].image).shape
    views = {
        name: _only_size(name, camera["sizes"])
        for name, camera in manifest.get("cameras", {}).items()
        if camera["sizes"]
    }
    features = _features(opening[0], size, views)
    tasks: dict[str, int] = {}
    total = _Statistics(_camera(opening[0]), views)
    counts = {"episodes": 0, "frames": 0}
    splits: dict[str, _Split] = {}
    train_only = split_of(opening[0].metadata.episode_id) == TRAIN
    with _DataFiles(folder, _data_schema(features)) as data, _EpisodeTable(folder) as table:
        for episode in itertools.chain([opening], iterator):
            statistics = _Statistics(total.camera, views)
            for step in episode:
                _check_size(step, features)
                statistics.add(step)
            task = tasks.setdefault(episode[0].metadata.instruction, len(tasks))
            if (name := split_of(episode[0].metadata.episode_id)) not in splits:
                data.end_chunk()
                splits[name] = _Split(counts["episodes"], counts["episodes"], [])
            file_number = data.write(_columns(episode, views, counts["episodes"], counts["frames"], task, fps))
            table.write(_episode_row(episode, counts["episodes"], counts["frames"], file_number, statistics.summary()))
            if name == TRAIN or not train_only:
                total.merge(statistics)
            counts["episodes"] += 1
            splits[name].end = counts["episodes"]
            if (chunk := file_number // _FILES_PER_CHUNK) not in splits[name].chunks:
                splits[name].chunks.append(chunk)
            counts["frames"] += len(episode)
    counts["tasks"] = len(tasks)
    _write_tasks(folder / "meta" / "tasks.parquet", list(tasks))
    write_json(folder / "meta" / "stats.json", total.summary())
    write_json(folder / "meta" / "info.json", _info(manifest, features, fps, counts, splits))
    (folder / "README.md").write_text(_card(manifest, counts, splits), encoding="utf-8")
    return counts


@dataclass
class _Split:
    """A split of the source: its first episode and the one after its last, and the chunks of `data/` it lies in."""

    begin: int
    end: int
    chunks: list[int]


class _DataFiles:
    """`data/`: whole episodes per file, one row group per episode; a new file begins once one is full."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._writer: pq.ParquetWriter | None = None
        self._number, self._bytes = -1, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def end_chunk(self) -> None:
        """Let the next episode begin a file in a chunk of its own."""
        self.__exit__()
        self._writer = None
        self._number += -(self._number + 1) % _FILES_PER_CHUNK

    def write(self, columns: dict[str, Any]) -> int:
        """Append the frames of an episode; returns the number of the file they are in."""
        if self._writer is None or self._bytes >= _FILE_BYTES:
            self.__exit__()
            self._number, self._bytes = self._number + 1, 0
            path = self._folder / "data" / _FILE.format(*divmod(self._number, _FILES_PER_CHUNK))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, self._schema)
        table = pa.Table.from_pydict(columns, schema=self._schema)
        self._writer.write_table(table)
        self._bytes += table.nbytes
        return self._number


class _EpisodeTable:
    """`meta/episodes/`: one row per episode, many per row group, since each group costs memory until the end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "meta" / "episodes" / _FILE.format(0, 0)
        self._path.parent.mkdir(parents=True)
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        if self._writer:
            self._writer.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; all have the same columns."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer = self._writer or pq.ParquetWriter(self._path, _episode_schema(self._rows[0]))
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._writer.schema))
        self._rows = []


class _Statistics:
    """LeRobot's statistics. Vectors are kept; of pixels it counts how often each of 256 levels occurs in each channel.

    The mask's only channel is given as three: LeRobot wants statistics of every image feature, and its tools three channels.
    """

    def __init__(self, camera: str, views: dict[str, tuple[int, int]]) -> None:
        self.camera, self._views = camera, views
        self._vectors: dict[str, list[np.ndarray]] = {"action": [], "observation.state": []}
        self._levels = {name: np.zeros((3, 256), np.int64) for name in (camera, *map(_view, views), _MASK)}

    def add(self, step: Step) -> None:
        """Count one step."""
        self._vectors["action"].append(step.action[None])
        self._vectors["observation.state"].append(step.state[None])
        images = {self.camera: (step.image_name, step.image)} | {
            _view(name): step.view(name, size) for name, size in self._views.items()
        }
        for name, encoded in images.items():
            image = _decode(*encoded)
            for channel in range(3):
                self._levels[name][channel] += np.bincount(image[:, :, channel].ravel(), minlength=256)
        self._levels[_MASK] += np.bincount(step.labels.ravel(), minlength=256)

    def merge(self, other: Self) -> None:
        """Add what another has counted."""
        for name, parts in other._vectors.items():
            self._vectors[name].append(np.concatenate(parts))
        for name, levels in other._levels.items():
            self._levels[name] += levels

    def summary(self) -> dict[str, dict[str, Any]]:
        """Feature -> measure -> values: one number per dimension of a vector; of an image (3, 1, 1), in [0, 1]."""
        count = {"count": [sum(map(len, self._vectors["action"]))]}
        return {
            name: _of_vectors(np.concatenate(parts, dtype=np.float64)) | count for name, parts in self._vectors.items()
        } | {name: _of_levels(levels) | count for name, levels in self._levels.items()}


def _of_vectors(values: np.ndarray) -> dict[str, list[float]]:
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(_QUANTILES.values()), axis=0, overwrite_input=True)
    found |= dict(zip(_QUANTILES, quantiles, strict=True))
    return {name: row.tolist() for name, row in found.items()}


def _of_levels(counted: np.ndarray) -> dict[str, list[Any]]:
    levels = np.arange(256) / 255
    total = counted.sum(1)
    mean = counted @ levels / total
    found = {
        "min": levels[(counted > 0).argmax(1)],
        "max": levels[255 - (counted[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(counted @ levels**2 / total - mean**2, 0)),
    }
    below = np.cumsum(counted, axis=1) / total[:, None]
    found |= {name: levels[(below >= share).argmax(1)] for name, share in _QUANTILES.items()}
    return {name: row.reshape(3, 1, 1).tolist() for name, row in found.items()}


def _decode(name: str, image: bytes) -> np.ndarray:
    """The image of this file name, RGB, uint8 (height, width, 3); InputError where it is damaged."""
    try:
        return np.asarray(decode_image(image, IMAGES[form_of(image)]).convert("RGB"))
    except InputError as error:
        raise InputError(f"{name} is damaged ({error}); `pixelcli verify` says more") from None


def _only_size(camera: str, sizes: list[list[int]]) -> tuple[int, int]:
    if len(sizes) > 1:
        raise InputError(f"{camera} has images of the sizes {sizes}: LeRobot wants one size; export such shards apart")
    return sizes[0][0], sizes[0][1]


def _view(camera: str) -> str:
    """LeRobot's name of a further camera's images."""
    return f"observation.images.{camera}"


def _check_size(step: Step, features: dict[str, dict[str, Any]]) -> None:
    found = [*step.labels.shape, len(step.state)]
    expected = [*features[_MASK]["shape"][:2], *features["observation.state"]["shape"]]
    if found != expected:
        raise InputError(
            f"{step.key} has height, width and length of state {found}, the first sample {expected}: "
            "LeRobot wants one size; export such shards apart"
        )


def _camera(step: Step) -> str:
    return f"observation.images.{step.metadata.camera}"


def _features(step: Step, size: tuple[int, ...], views: dict[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """LeRobot's description of the columns of `data/`; dtype "image" is RGB for the camera, labels for the mask."""

    def column(dtype: str, *shape: int, names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": names}

    axes = ["height", "width", "channels"]
    return {
        _camera(step): column("image", *size, names=axes),
        **{_view(name): column("image", *of_view, 3, names=axes) for name, of_view in views.items()},
        _MASK: column("image", *size[:2], 1, names=axes),
        "observation.state": column("float32", len(step.state)),
        "action": column("float32", 7, names=_ACTION_NAMES),
        "annotation.step": column("int64", 1),
        "annotation.object_mask_valid": column("bool", 1),
        "annotation.gripper_mask_valid": column("bool", 1),
        **{f"annotation.{name}_valid": column("bool", 1) for name in views},
        "timestamp": column("float32", 1),
        "frame_index": column("int64", 1),
        "episode_index": column("int64", 1),
        "index": column("int64", 1),
        "task_index": column("int64", 1),
    }


def _data_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    def arrow(feature: dict[str, Any]) -> pa.DataType:
        if feature["dtype"] == "image":
            return IMAGE
        (length,) = feature["shape"]
        scalar = pa.type_for_alias(feature["dtype"])
        return scalar if length == 1 else pa.list_(scalar, length)

    return pa.schema({name: arrow(feature) for name, feature in features.items()})


def _columns(
    episode: list[Step],
    views: dict[str, tuple[int, int]],
    episode_index: int,
    first_frame: int,
    task: int,
    fps: float,
) -> dict[str, Any]:
    """The frames of an episode, one list per column."""
    further = {_view(name): [step.view(name, size) for step in episode] for name, size in views.items()}
    return {
        _camera(episode[0]): [{"bytes": step.image, "path": step.image_name} for step in episode],
        **{name: [{"bytes": image, "path": path} for path, image in images] for name, images in further.items()},
        _MASK: [{"bytes": step.mask_png, "path": f"{step.key}.mask.png"} for step in episode],
        "observation.state": [step.state.tolist() for step in episode],
        "action": [step.action.tolist() for step in episode],
        **{f"annotation.{name}": [getattr(step.metadata, name) for step in episode] for name in PER_STEP},
        **{f"annotation.{name}_valid": [name in step.views for step in episode] for name in views},
        "timestamp": [frame / fps for frame in range(len(episode))],
        "frame_index": range(len(episode)),
        "episode_index": [episode_index] * len(episode),
        "index": range(first_frame, first_frame + len(episode)),
        "task_index": [task] * len(episode),
    }


def _episode_row(
    episode: list[Step], episode_index: int, first_frame: int, file_number: int, statistics: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    chunk_index, file_index = divmod(file_number, _FILES_PER_CHUNK)
    return {
        "episode_index": episode_index,
        "tasks": [episode[0].metadata.instruction],
        "length": len(episode),
        "data/chunk_index": chunk_index,
        "data/file_index": file_index,
        "dataset_from_index": first_frame,
        "dataset_to_index": first_frame + len(episode),
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **{f"annotation/{name}": value for name, value in sorted(episode[0].metadata.of_episode().items())},
        **{f"stats/{name}/{measure}": value for name, row in statistics.items() for measure, value in row.items()},
    }


def _episode_schema(row: dict[str, Any]) -> pa.Schema:
    """Arrow's own guess, but for the annotations, whose types are declared."""
    declared = {f"annotation/{key.name}": key.type for key in METADATA}
    guessed = pa.Table.from_pylist([row]).schema
    return pa.schema({field.name: declared.get(field.name, field.type) for field in guessed})


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """The table of tasks as pandas writes it, the task being its index: that is how LeRobot looks it up."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": kind, "metadata": None}
        for name, kind in (("task_index", "int64"), ("task", "unicode"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _info(
    manifest: dict[str, Any],
    features: dict[str, dict[str, Any]],
    fps: float,
    counts: dict[str, int],
    splits: dict[str, _Split],
) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": origin_of(manifest).robot,
        "total_episodes": counts["episodes"],
        "total_frames": counts["frames"],
        "total_tasks": counts["tasks"],
        "chunks_size": _FILES_PER_CHUNK,
        "data_files_size_in_mb": _FILE_BYTES // 2**20,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps == int(fps) else fps,
        "splits": {name: f"{split.begin}:{split.end}" for name, split in splits.items()},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }


def _card(manifest: dict[str, Any], counts: dict[str, int], splits: dict[str, _Split]) -> str:
    origin = origin_of(manifest)
    header = {
        "tags": ["LeRobot", "robotics", "pixel160k"],
        "configs": declared_splits(
            {name: [f"data/chunk-{chunk:03d}/*.parquet" for chunk in split.chunks] for name, split in splits.items()}
        ),
    }
    return (
        f"{front_matter(header, origin)}\n"
        f"# {manifest['dataset']}: pixel annotations as LeRobot v3.0\n\n"
        f"{counts['frames']} frames of {counts['episodes']} episodes, {counts['tasks']} tasks, exported by pixelvla "
        f"{manifest['software']} from {origin.credit}. {how_to_cite(origin)}\n\n"
        "`observation.mask` is an indexed image: 0 background, 1 gripper, 2 target object, 255 not annotated. LeRobot gives\n"
        "it as float (1, height, width) in [0, 1]; `(255 * mask).round()` are the labels again. Columns `annotation/...` of\n"
        "`meta/episodes` hold what was found: status, target object, boxes, prompts, scores.\n"
    )

"""LeRobot v3.0 data sets, written without depending on lerobot; a test loads them with it.

Frames are stored as LeRobot's `image` features, not as video: the source's own JPEG bytes stand in the Parquet files, so
nothing is encoded again. The layout follows lerobot 0.4.4 (`lerobot.datasets.utils`, Apache-2.0): `data/` with whole
episodes a file, `meta/info.json`, `meta/tasks.parquet`, `meta/episodes/` with one row an episode, `meta/stats.json`.
"""

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pixel160k.card import ORIGINS, arrow_type, metadata_features
from pixel160k.export.raw import RawSample, ShardReader

_FILE_BYTES = 100 * 2**20  # a new data file begins once one holds this much
_FILES_A_CHUNK = 1000
_ROWS_A_GROUP = 100  # of meta/episodes: a row group an episode would cost more memory than the episodes
_FILE = "chunk-{:03d}/file-{:03d}.parquet"
_ACTION_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
_PER_STEP = {"step", "object_mask_valid", "gripper_mask_valid"}  # the other keys of the JSON are the episode's
_ROBOTS = {"bridge_orig": "widowx", "fractal": "google_robot", "libero": "panda", "sample": "panda"}
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def export(reader: ShardReader, folder: Path, fps: float) -> dict[str, int]:
    """Write the data set into an empty folder; returns episodes, frames and tasks.

    Raises:
        ValueError: images or states differ in size between episodes, which LeRobot does not allow; or no episodes.
    """
    tasks: dict[str, int] = {}
    first: RawSample | None = None
    size = (0, 0)
    frames = number = file_number = file_bytes = 0
    described: list[dict[str, Any]] = []  # rows of meta/episodes, not yet written
    vectors: dict[str, list[np.ndarray]] = {"action": [], "observation.state": []}
    pixels = np.zeros((3, 256), np.int64)
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    with ExitStack() as data, ExitStack() as meta:
        data_writer = episode_writer = None
        for number, episode in enumerate(reader.episodes()):
            if first is None:
                first, size = episode[0], _decode(episode[0]).shape[:2]
            counted = np.sum([_count_levels(sample, first, size) for sample in episode], axis=0)
            if data_writer is None or file_bytes >= _FILE_BYTES:
                data.close()
                file_number += data_writer is not None
                path = folder / "data" / _FILE.format(*divmod(file_number, _FILES_A_CHUNK))
                path.parent.mkdir(parents=True, exist_ok=True)
                data_writer = data.enter_context(pq.ParquetWriter(path, _data_schema(first)))
                file_bytes = 0
            task = tasks.setdefault(episode[0].about["instruction"], len(tasks))
            data_writer.write_table(_data_table(episode, data_writer.schema, number, frames, task, fps))
            file_bytes += sum(len(sample.jpeg) + len(sample.mask_png) for sample in episode)
            values = {"action": [sample.action for sample in episode], "observation.state": [s.state for s in episode]}
            statistics = {name: _vector_statistics(np.stack(rows)) for name, rows in values.items()}
            statistics[_camera(first)] = _image_statistics(counted, len(episode))
            described.append(_episode_row(episode, number, frames, file_number, statistics))
            if episode_writer is None:
                path = folder / "meta" / "episodes" / _FILE.format(0, 0)
                episode_writer = meta.enter_context(pq.ParquetWriter(path, _episode_schema(described[0])))
            if len(described) == _ROWS_A_GROUP:
                episode_writer.write_table(pa.Table.from_pylist(described, schema=episode_writer.schema))
                described = []
            for name, rows in values.items():
                vectors[name].append(np.stack(rows))
            pixels += counted
            frames += len(episode)
        if episode_writer is not None and described:
            episode_writer.write_table(pa.Table.from_pylist(described, schema=episode_writer.schema))
    if first is None:
        raise ValueError(f"{reader.directory} holds no episodes, so there is nothing to export")
    statistics = {name: _vector_statistics(np.concatenate(parts)) for name, parts in vectors.items()}
    statistics[_camera(first)] = _image_statistics(pixels, frames)
    counts = {"episodes": number + 1, "frames": frames, "tasks": len(tasks)}
    _write_tasks(folder / "meta" / "tasks.parquet", list(tasks))
    _write_json(folder / "meta" / "stats.json", statistics)
    _write_json(folder / "meta" / "info.json", _info(reader.manifest, first, size, fps, counts))
    (folder / "README.md").write_text(_card(reader.manifest, counts), encoding="utf-8")
    return counts


def _camera(sample: RawSample) -> str:
    return f"observation.images.{sample.about['camera']}"


def _features(sample: RawSample, size: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """LeRobot's description of the columns of `data/`; dtype "image" is RGB for the camera, labels for the mask."""

    def column(dtype: str, *shape: int, names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": names}

    axes = ["height", "width", "channels"]
    return {
        _camera(sample): column("image", *size, 3, names=axes),
        "observation.mask": column("image", *size, 1, names=axes),
        "observation.state": column("float32", len(sample.state)),
        "action": column("float32", 7, names=_ACTION_NAMES),
        "annotation.step": column("int64", 1),
        "annotation.object_mask_valid": column("bool", 1),
        "annotation.gripper_mask_valid": column("bool", 1),
        "timestamp": column("float32", 1),
        "frame_index": column("int64", 1),
        "episode_index": column("int64", 1),
        "index": column("int64", 1),
        "task_index": column("int64", 1),
    }


def _data_schema(sample: RawSample) -> pa.Schema:
    def arrow(feature: dict[str, Any]) -> pa.DataType:
        if feature["dtype"] == "image":
            return _IMAGE
        (length,) = feature["shape"]
        scalar = pa.type_for_alias(feature["dtype"])
        return scalar if length == 1 else pa.list_(scalar, length)

    return pa.schema({name: arrow(feature) for name, feature in _features(sample, (0, 0)).items()})


def _data_table(
    episode: list[RawSample], schema: pa.Schema, number: int, frames: int, task: int, fps: float
) -> pa.Table:
    columns = {
        _camera(episode[0]): [{"bytes": sample.jpeg, "path": f"{sample.key}.jpg"} for sample in episode],
        "observation.mask": [{"bytes": sample.mask_png, "path": f"{sample.key}.mask.png"} for sample in episode],
        "observation.state": [sample.state.tolist() for sample in episode],
        "action": [sample.action.tolist() for sample in episode],
        "timestamp": [place / fps for place in range(len(episode))],
        "frame_index": range(len(episode)),
        "episode_index": [number] * len(episode),
        "index": range(frames, frames + len(episode)),
        "task_index": [task] * len(episode),
    }
    columns |= {f"annotation.{name}": [sample.about[name] for sample in episode] for name in _PER_STEP}
    return pa.Table.from_pydict(columns, schema=schema)


def _decode(sample: RawSample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.jpeg)).convert("RGB"))


def _count_levels(sample: RawSample, first: RawSample, size: tuple[int, ...]) -> np.ndarray:
    """How often each level occurs in each channel, int64 (3, 256), of an image whose size is checked."""
    image = _decode(sample)
    if image.shape[:2] != size or len(sample.state) != len(first.state):
        raise ValueError(
            f"{sample.key} has an image of {image.shape[1]}x{image.shape[0]} and a state of {len(sample.state)}, "
            f"{first.key} {size[1]}x{size[0]} and {len(first.state)}: LeRobot wants one size; export such shards apart"
        )
    return np.stack([np.bincount(image[:, :, channel].ravel(), minlength=256) for channel in range(3)])


def _episode_row(
    episode: list[RawSample], number: int, frames: int, file_number: int, statistics: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    chunk_index, file_index = divmod(file_number, _FILES_A_CHUNK)
    about = {name: value for name, value in episode[0].about.items() if name not in _PER_STEP}
    return {
        "episode_index": number,
        "tasks": [about["instruction"]],
        "length": len(episode),
        "data/chunk_index": chunk_index,
        "data/file_index": file_index,
        "dataset_from_index": frames,
        "dataset_to_index": frames + len(episode),
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **{f"annotation/{name}": value for name, value in about.items()},
        **{f"stats/{name}/{measure}": value for name, row in statistics.items() for measure, value in row.items()},
    }


def _episode_schema(row: dict[str, Any]) -> pa.Schema:
    """Arrow's own guess, but for the annotations, whose types are declared."""
    declared = {f"annotation/{feature['name']}": arrow_type(feature) for feature in metadata_features()}
    guessed = pa.Table.from_pylist([row]).schema
    return pa.schema({field.name: declared.get(field.name, field.type) for field in guessed})


def _vector_statistics(values: np.ndarray) -> dict[str, Any]:
    """LeRobot's statistics of float32 (N, D), each of D numbers."""
    values = values.astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found |= {name: np.quantile(values, share, axis=0) for name, share in _QUANTILES.items()}
    return {name: row.tolist() for name, row in found.items()} | {"count": [len(values)]}


def _image_statistics(counted: np.ndarray, frames: int) -> dict[str, Any]:
    """LeRobot's statistics of images, in [0, 1], each of shape (3, 1, 1), from how often each of 256 levels occurs."""
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
    return {name: row.reshape(3, 1, 1).tolist() for name, row in found.items()} | {"count": [frames]}


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
    manifest: dict[str, Any], first: RawSample, size: tuple[int, ...], fps: float, counts: dict[str, int]
) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": _ROBOTS[manifest["annotations"]["source"]],
        "total_episodes": counts["episodes"],
        "total_frames": counts["frames"],
        "total_tasks": counts["tasks"],
        "chunks_size": _FILES_A_CHUNK,
        "data_files_size_in_mb": _FILE_BYTES // 2**20,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps == int(fps) else fps,
        "splits": {"train": f"0:{counts['episodes']}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": _features(first, size),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4), encoding="utf-8")


def _card(manifest: dict[str, Any], counts: dict[str, int]) -> str:
    origin = ORIGINS[manifest["annotations"]["source"]]
    licence = f"license: {origin.hub_licence}\n" if origin.hub_licence else ""
    return (
        f"---\n{licence}tags:\n- LeRobot\n- robotics\n- pixel160k\nconfigs:\n- config_name: default\n"
        "  data_files: data/*/*.parquet\n---\n"
        f"# {manifest['dataset']}: pixel annotations as LeRobot v3.0\n\n"
        f"{counts['frames']} frames of {counts['episodes']} episodes, {counts['tasks']} tasks, exported by pixelvla "
        f"{manifest['software']} from {origin.title}{f', {origin.licence}' if origin.licence else ''}.\n\n"
        "`observation.mask` is an indexed image: 0 background, 1 gripper, 2 target object, 255 not annotated. LeRobot gives\n"
        "it as float (1, height, width) in [0, 1]; `(255 * mask).round()` are the labels again. Columns `annotation/...` of\n"
        "`meta/episodes` hold what was found: status, target object, boxes, prompts, scores.\n"
    )

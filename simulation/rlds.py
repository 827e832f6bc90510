"""Write and read RLDS data sets (TFDS on disk) without TensorFlow: records, features.json, dataset_info.json.

What is written loads with `tfds.builder_from_directory`, and its records with `features.deserialize_example_np`. JPEG
bytes given as `io.BytesIO` pass into the records as they are, never decoded and encoded again.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixel160k.errors import InputError
from pixel160k.files import write_text
from pixel160k.tfrecord import read_records, write_records

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DATASET_INFO = "dataset_info.json"
LIBERO_CAMERAS = ("image", "wrist_image")

RldsEpisode = dict[str, Any]
"""One episode, nested as the features of its data set say: {"steps": [one dict per step], "episode_metadata": {...}}."""


def libero_features() -> "tfds.features.FeaturesDict":
    """The schema of OpenVLA's `modified_libero_rlds` (data sets such as `libero_object_no_noops`).

    state: tool position (m), axis-angle (rad), two finger positions (m). action: LIBERO's controller input, gripper
    -1 = open, +1 = close. Both images are the simulator's, turned by 180 degrees.
    """
    import tensorflow_datasets as tfds

    def image() -> tfds.features.Image:
        return tfds.features.Image(shape=(256, 256, 3), dtype=np.uint8, encoding_format="jpeg")

    def vector(length: int) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(length,), dtype=np.float32)

    observation = {"image": image(), "wrist_image": image(), "state": vector(8), "joint_state": vector(7)}
    step = {
        "observation": tfds.features.FeaturesDict(observation),
        "action": vector(7),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
        "language_instruction": tfds.features.Text(),
    }
    metadata = {"file_path": tfds.features.Text()}
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": tfds.features.FeaturesDict(metadata)}
    )


def encode_episode(episode: RldsEpisode, features: "tfds.features.FeaturesDict") -> bytes:
    """Encode an episode as the payload of one TFRecord record (a serialized tf.train.Example).

    An image is an array, or an `io.BytesIO` of JPEG bytes, which pass into the record as they are. Equal episodes give equal bytes, which TFDS's own serializer does not promise: a protobuf map has no order.
    """
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(features.get_serialized_info())
    return serializer.get_tf_example(features.encode_example(episode)).SerializeToString(deterministic=True)


def write_rlds(
    directory: Path,
    name: str,
    version: str,
    features: "tfds.features.FeaturesDict",
    splits: dict[str, list[list[RldsEpisode]]],
) -> None:
    """Write the data set `<directory>/<name>/<version>/`; `splits` are split -> files -> episodes."""
    encoded = {
        split: [(encode_episode(episode, features) for episode in episodes) for episodes in files]
        for split, files in splits.items()
    }
    write_encoded_rlds(directory, name, version, features, encoded)


def write_encoded_rlds(
    directory: Path,
    name: str,
    version: str,
    features: "tfds.features.FeaturesDict",
    splits: Mapping[str, Sequence[Iterable[bytes]]],
    description: str = "",
) -> None:
    """Write the data set `<directory>/<name>/<version>/` from encoded episodes (see `encode_episode`).

    `splits` are split -> files -> payloads, which may be generators: each is read once, in order. dataset_info.json is
    written last: no reader takes a directory without it for a data set, so an interrupted run does not look finished.
    """
    folder = directory / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATASET_INFO).unlink(missing_ok=True)
    split_infos = [_write_split(folder, name, split, files) for split, files in splits.items()]
    features.save_config(str(folder))
    info = {
        "description": description,
        "fileFormat": "tfrecord",
        "name": name,
        "splits": split_infos,
        "version": version,
    }
    write_text(folder / DATASET_INFO, json.dumps(info, indent=2, sort_keys=True) + "\n")


def _write_split(folder: Path, name: str, split: str, files: Sequence[Iterable[bytes]]) -> dict[str, Any]:
    """Write a split's files and return its entry in dataset_info.json."""
    lengths, total_bytes = [], 0

    def measured(payloads: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal total_bytes
        for payload in payloads:
            total_bytes += len(payload)
            yield payload

    for number, payloads in enumerate(files):
        path = folder / f"{name}-{split}.tfrecord-{number:05d}-of-{len(files):05d}"
        lengths.append(write_records(path, measured(payloads)))
    return {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(total_bytes),
        "shardLengths": [str(length) for length in lengths],
    }


def find_dataset(directory: Path) -> Path:
    """The folder `<directory>/<name>/<version>/` of the one finished data set below a directory.

    Raises:
        InputError: there is none, or more than one.
    """
    found = sorted(path.parent for path in directory.glob(f"*/*/{DATASET_INFO}"))
    if len(found) != 1:
        raise InputError(f"{directory}: holds {len(found)} finished RLDS data sets, expected <name>/<version>/ once")
    return found[0]


def read_libero_episodes(path: Path) -> Iterator[RldsEpisode]:
    """Yield the episodes of one TFRecord file of a `libero_features()` data set, images as `io.BytesIO` of JPEG bytes.

    Raises:
        InputError: a record is damaged.
    """
    import tensorflow_datasets as tfds

    features = libero_features()
    keep_bytes = {camera: tfds.decode.SkipDecoding() for camera in LIBERO_CAMERAS}
    for record in read_records(path):
        if record.fault:
            raise InputError(f"{path} record {record.number}: {record.fault}; record the data set again")
        episode = features.deserialize_example_np(record.payload, decoders={"steps": {"observation": keep_bytes}})
        yield {
            "steps": [_with_image_bytes(step) for step in episode["steps"]],
            "episode_metadata": episode["episode_metadata"],
        }


def _with_image_bytes(step: dict[str, Any]) -> dict[str, Any]:
    observation = step["observation"]
    images = {camera: io.BytesIO(observation[camera]) for camera in LIBERO_CAMERAS}
    return {**step, "observation": {**observation, **images}}

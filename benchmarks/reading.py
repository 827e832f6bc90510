"""How fast TFRecord files are scanned: as annotate does, decoding everything, with tfds, and at the physical limit.

    python benchmarks/reading.py [--src sample --data-dir DIR] [--rounds 7]

All ways scan the same files in one run, in turn, so that the machine's drift hits them alike; medians are printed.
- annotate:   this project's reader, with checksums; it decodes the initial, approach, close and evidence frames.
- its limit:  the files' bytes are read and the same frames decoded with OpenCV, nothing else.
- everything: this project's reader; every frame of every camera is decoded, every number converted.
- tfds:       `features.deserialize_example_np` on the same records, which decodes everything too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import tensorflow_datasets as tfds

from annotate.annotators.grasps import holding_grasp
from annotate.jobs.annotate import default_data_dir
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES
from annotate.sources.episode import Episode
from annotate.sources.rlds import Columns, SourceFile, list_files, read_episodes
from pixel160k.tfrecord import read_records

SETTINGS = AnnotateSettings(annotators="motion")


def scan_as_annotate(source: str, files: list[SourceFile]) -> int:
    """Read the files and decode the frames that annotate decodes; returns the number of episodes."""
    episodes = [item for file in files for item in _episodes(source, file)]
    return len(episodes)


def _episodes(source: str, file: SourceFile) -> list[str]:
    read = []
    for episode in read_episodes(SOURCES[source], file):
        assert isinstance(episode, Episode), episode
        holding_grasp(episode, SETTINGS)
        read.append(episode.identity.episode_id)
    return read


def keyframe_jpegs(source: str, files: list[SourceFile]) -> list[bytes]:
    """The encoded frames that `scan_as_annotate` decodes."""
    jpegs: list[bytes] = []
    real = Episode.frame

    def remember(episode: Episode, step: int) -> np.ndarray:
        jpegs.append(episode.images[step])
        return real(episode, step)

    with patch.object(Episode, "frame", remember):
        scan_as_annotate(source, files)
    return jpegs


def scan_at_limit(files: list[SourceFile], jpegs: list[bytes]) -> None:
    """Read the bytes of the files and decode the given frames with OpenCV."""
    for file in files:
        file.path.read_bytes()
    for jpeg in jpegs:
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


def scan_everything(source: str, files: list[SourceFile], features: tfds.features.FeaturesDict) -> None:
    """Decode every frame of every camera and convert all numbers of every step, with this project's reader."""
    observation = features["steps"]["observation"]
    images = [
        f"steps/observation/{name}" for name, feature in observation.items() if isinstance(feature, tfds.features.Image)
    ]
    numbers = {
        f"steps/{prefix}{name}": int(np.prod(feature.shape))
        for prefix, group in (("", features["steps"]), ("observation/", observation))
        for name, feature in group.items()
        if isinstance(feature, tfds.features.Tensor) and feature.np_dtype == np.float32 and feature.shape
    }
    for file in files:
        for record in read_records(file.path):
            columns = Columns(record.payload)
            SOURCES[source].to_episode(
                columns, file.identify(record.number, record.masked_crc32c), SOURCES[source].cameras[0]
            )
            for name in images:
                for jpeg in columns.strings(name):
                    cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            for name, width in numbers.items():
                columns.floats(name, width)


def scan_with_tfds(files: list[SourceFile], features: tfds.features.FeaturesDict) -> None:
    """Decode everything with tensorflow_datasets, which needs no TensorFlow for it."""
    for file in files:
        for record in read_records(file.path):
            for _ in features.deserialize_example_np(record.payload)["steps"]:
                pass


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Run all ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", default="sample", choices=SOURCES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    files = list_files(SOURCES[arguments.src], default_data_dir(arguments.src, arguments.data_dir))
    features = tfds.builder_from_directory(files[0].path.parent).info.features
    episodes = scan_as_annotate(arguments.src, files)  # warm caches and imports
    jpegs = keyframe_jpegs(arguments.src, files)
    ways: dict[str, Callable[[], object]] = {
        "annotate": lambda: scan_as_annotate(arguments.src, files),
        "its limit": lambda: scan_at_limit(files, jpegs),
        "everything": lambda: scan_everything(arguments.src, files, features),
        "tfds": lambda: scan_with_tfds(files, features),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, work in ways.items():
            times[name].append(seconds(work))

    def ratio(slower: str, faster: str) -> float:
        return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))

    print(f"{files[0].dataset}: {len(files)} files, {episodes} episodes, {len(jpegs)} frames decoded by annotate")
    for name, taken in times.items():
        print(f"{name:12s}{episodes / statistics.median(taken):9.1f} episodes/s")
    print(f"everything against tfds (like with like)   {ratio('tfds', 'everything'):.2f} x")
    print(f"annotate against everything                {ratio('everything', 'annotate'):.2f} x")
    print(f"annotate, share of its physical limit      {ratio('its limit', 'annotate'):.2f}")


if __name__ == "__main__":
    main()

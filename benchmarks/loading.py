"""How fast shards are loaded and with how much memory: against bare decoding and the loaders of others.

    python benchmarks/loading.py [--work DIR] [--rounds 7] [--buffer 1000] [--episodes 48]
        [--times-only] [--lerobot PYTHON] [--streaming PYTHON]

The shipped sample is annotated and built into shards, which are repeated under other keys until there are as many
episodes as needed. Every way gives images (and labels) of 224 x 224 pixels in random order. All take turns on one thread, so
that a change of the machine's speed affects them alike. CPU seconds count; ratios are medians over the rounds.
- limit:       OpenCV decodes and resizes the same JPEG bytes, which are in memory already; nothing else.
- open_shards: this project, drawing from 64 shards at once.
- webdataset:  the same decoders in a pipeline of webdataset as one writes it by hand: no types, no checks, no prompts.
- tfds:        `features.deserialize_example_np` on the RLDS records: every step with everything in it (two cameras). The
               decoded steps go through a shuffle buffer of as many samples as in the other ways.
- tfds, cut:   the same, with features cut by hand to one camera and to what else the shards hold of a step.
- lerobot:     LeRobot's own data set on `pixelcli export --to lerobot`, in its own environment (`make .venv-lerobot/.all`); it
               always decodes everything.
- streaming:   mosaicml-streaming on the same members, with webdataset's decoders, in its own environment.

Memory is measured in a process of its own for each way: the peak, less what the process holds after imports and one
sample.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
import webdataset

from annotate.jobs.annotate import default_data_dir
from annotate.sources import SOURCES
from annotate.sources.rlds import list_files
from pixel160k import ShardDirectory, open_shards
from pixel160k.files import sha256_of, write_json
from pixel160k.format import masks, shards
from pixel160k.read.folder import read_manifest
from pixel160k.read.samples import MEMBERS
from pixel160k.tfrecord import read_records

SIZE = 224
TIMED = 48  # episodes, to measure times, and memory against tfds, if nothing else is said
FEW, MANY = 10, 1000  # episodes, to see whether memory grows


def resized(image: np.ndarray) -> np.ndarray:
    """An image at the size that all ways give."""
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def labels_resized(labels: np.ndarray) -> np.ndarray:
    """A label image at the size that all ways give."""
    return cv2.resize(labels, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)


def decoded(jpeg: bytes) -> np.ndarray:
    """A JPEG, decoded by OpenCV to RGB."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def at_limit(jpegs: list[bytes]) -> Iterator[np.ndarray]:
    """The limit: decode and resize, nothing else."""
    for jpeg in jpegs:
        yield resized(decoded(jpeg))


def with_open_shards(directory: Path, everything: bool, buffer: int) -> Iterator[Any]:
    """This project's loader, which needs no buffer."""
    for sample in open_shards(directory, members=tuple(MEMBERS) if everything else ("image",)):
        assert sample.image is not None
        if everything:
            assert sample.labels is not None
            yield resized(sample.image), labels_resized(sample.labels), sample
        else:
            yield resized(sample.image)


def with_webdataset(directory: Path, everything: bool, buffer: int) -> Iterator[Any]:
    """Plain webdataset, which decodes the same members."""

    def decode(sample: dict[str, Any]) -> Any:
        image = resized(decoded(sample["jpg"]))
        if not everything:
            return image
        labels = labels_resized(masks.decode_indexed_png(sample["mask.png"]))
        arrays = [np.load(io.BytesIO(sample[name]), allow_pickle=False) for name in ("action.npy", "state.npy")]
        return image, labels, json.loads(sample["json"]), *arrays

    tars = sorted(str(tar) for tar in directory.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None, workersplitter=None)
    yield from dataset.shuffle(buffer, initial=buffer).map(decode)


def with_tfds(episodes: int, everything: bool, buffer: int, cut: bool = False) -> Iterator[Any]:
    """So many episodes from RLDS records, each step decoded, then shuffled; with `cut`, only what shards hold of a step."""
    files = list_files(SOURCES["sample"], default_data_dir("sample", None))
    features = tfds.builder_from_directory(files[0].path.parent).info.features
    if cut:
        observation = features["steps"]["observation"]
        names = ("image", "state") if everything else ("image",)
        step = {"observation": tfds.features.FeaturesDict({name: observation[name] for name in names})}
        if everything:
            step |= {name: features["steps"][name] for name in ("action", "language_instruction")}
        features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    generator = random.Random(0)

    def records() -> Iterator[bytes]:
        while True:
            for file in generator.sample(files, len(files)):
                for record in read_records(file.path):
                    yield record.payload

    def steps() -> Iterator[dict[str, Any]]:
        for payload in islice(records(), episodes):
            yield from features.deserialize_example_np(payload)["steps"]

    for one in webdataset.shuffle(buffer, initial=buffer, rng=generator)(steps()):
        yield resized(one["observation"]["image"]), one


def with_cut_tfds(episodes: int, everything: bool, buffer: int) -> Iterator[Any]:
    """`with_tfds` that decodes only what shards hold of a step."""
    return with_tfds(episodes, everything, buffer, cut=True)


def repeated(source: Path, out: Path, episodes: int) -> Path:
    """Write shards with so many episodes: those of `source` again and again, under new keys; returns their folder."""
    out.mkdir()
    manifest = read_manifest(source)
    index: list[shards.IndexRow] = []
    tars: list[dict[str, Any]] = []
    left = episodes
    while left:
        for entry in manifest["shards"]:
            number = len(tars)
            rename = {row.key: row for row in shards.read_index(source / "index.parquet") if row.shard == entry["name"]}
            kept = list(dict.fromkeys(row.episode_id for row in rename.values()))[:left]
            left -= len(kept)
            if kept:
                name = f"{manifest['dataset']}-train-{number:05d}.tar"
                index += _repeat_tar(source / entry["name"], out / name, rename, set(kept), number)
                samples = sum(row.shard == name for row in index)
                size, digest = (out / name).stat().st_size, sha256_of(out / name)
                tars.append({"name": name, "bytes": size, "sha256": digest, "samples": samples})
    shards.write_index(out / "index.parquet", index)
    write_json(out / "manifest.json", manifest | {"shards": tars, "samples": len(index), "episodes": episodes})
    (out / "dataset_statistics.json").write_bytes((source / "dataset_statistics.json").read_bytes())
    return out


def _repeat_tar(
    source: Path, out: Path, rows: dict[str, shards.IndexRow], kept: set[str], number: int
) -> list[shards.IndexRow]:
    index: dict[str, shards.IndexRow] = {}
    with tarfile.open(source) as tar, tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as copy:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            row = rows[key]
            if row.episode_id not in kept:
                continue
            dataset, split, _, record = row.episode_id.rsplit("-", 3)
            episode_id = f"{dataset}-{split}-{number:05d}-{record}"
            key = shards.sample_key(episode_id, row.step)
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if suffix == "json":
                content = json.dumps(json.loads(content) | {"episode_id": episode_id}, sort_keys=True).encode()
            begin = index[key].offset if key in index else copy.offset
            header = tarfile.TarInfo(f"{key}.{suffix}")
            header.size = len(content)
            copy.addfile(header, io.BytesIO(content))
            size = copy.offset - begin
            index[key] = shards.IndexRow(key, episode_id, row.step, row.status, out.name, begin, size)
    return list(index.values())


def kilobytes(what: str) -> int:
    """The memory in kB that this process holds (VmRSS) or held at most (VmHWM). `ru_maxrss` would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0])


def memory_of(way: Callable[..., Iterable[Any]], *arguments: Any) -> tuple[int, int]:
    """The memory in kB after imports and one sample, and at most; to be called in a process of its own."""
    cv2.setNumThreads(1)
    *others, _ = arguments
    next(iter(way(*others, 1)))
    before = kilobytes("VmRSS")
    for _ in way(*arguments):
        pass
    return before, kilobytes("VmHWM")


def measure_memory(way: Callable[..., Iterable[Any]], *arguments: Any) -> tuple[int, int]:
    """`memory_of` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_of, way, *arguments).result()


def cpu_seconds(samples: Iterable[Any]) -> float:
    """CPU time of going through samples once."""
    started = time.process_time()
    for _ in samples:
        pass
    return time.process_time() - started


class Elsewhere:
    """A loader in an environment of its own, which waits for its turn: benchmarks/loading_others.py."""

    def __init__(self, python: Path, *arguments: str | Path) -> None:
        command = [str(python), str(Path(__file__).with_name("loading_others.py")), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.found: dict[str, Any] = {}

    def seconds(self, everything: bool) -> float:
        """CPU seconds of one epoch."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("all\n" if everything else "image\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("{"):
            assert line, "it ended"  # its own words are above
        self.found = json.loads(line)
        return float(self.found["seconds"])

    def end(self) -> None:
        """End it."""
        self._process.communicate()


def compare_times(directory: Path, buffer: int, rounds: int, others: dict[str, Elsewhere]) -> None:
    """Print the samples per second of all ways, and the ratios."""
    opened = ShardDirectory(directory)
    jpegs = [opened.members(id, step)["jpg"] for id in opened.episode_ids for step in opened.steps(id)]
    print(f"{len(jpegs)} samples in {len(opened.episode_ids)} episodes, the others shuffle in a buffer of {buffer}\n")
    print("                       image only                     all members")
    episodes = len(opened.episode_ids)
    ways: dict[str, Callable[[bool], float]] = {
        "limit": lambda everything: cpu_seconds(at_limit(jpegs)),
        "open_shards": lambda everything: cpu_seconds(with_open_shards(directory, everything, buffer)),
        "webdataset": lambda everything: cpu_seconds(with_webdataset(directory, everything, buffer)),
        "tfds": lambda everything: cpu_seconds(with_tfds(episodes, everything, buffer)),
        "tfds, cut": lambda everything: cpu_seconds(with_cut_tfds(episodes, everything, buffer)),
        **{name: other.seconds for name, other in others.items()},
    }
    times: dict[tuple[str, bool], list[float]] = {(name, all_): [] for name in ways for all_ in (False, True)}
    for round_ in range(rounds + 1):
        for (name, everything), taken in times.items():
            seconds = ways[name](everything)
            if round_:  # the first warms caches
                taken.append(seconds)

    def ratio(name: str, everything: bool) -> float:
        pairs = zip(times[name, everything], times["open_shards", everything], strict=True)
        return statistics.median(other / ours for other, ours in pairs)

    for name in ways:
        row = f"{name:12s}"
        for everything in (False, True):
            rate = len(jpegs) / statistics.median(times[name, everything])
            row += f"{rate:9.0f} samples/s" + (
                f"  ours {ratio(name, everything):5.2f} x" if name != "open_shards" else " " * 14
            )
        print(row)
    for name, other in others.items():
        before, peak = other.found["memory"]
        assert other.found["samples"] == len(jpegs)
        print(f"{name} {other.found['version']}: {(peak - before) / 1024:.1f} MiB beyond imports, all members")


def start_others(work: Path, directory: Path, lerobot: Path | None, streaming: Path | None) -> dict[str, Elsewhere]:
    """Write the data of loaders that have an environment of their own, and start them."""
    others = {}
    if lerobot:
        export = ["export", "--to", "lerobot", "--fps", "5", "--shards", str(directory), "--out", str(work / "lerobot")]
        subprocess.run([sys.executable, "-m", "cli", *export], check=True, stdout=subprocess.DEVNULL)
        others["lerobot"] = Elsewhere(lerobot, "lerobot", work / "lerobot")
    if streaming:
        Elsewhere(streaming, "write-streaming", directory, work / "streaming").end()
        others["streaming"] = Elsewhere(streaming, "streaming", work / "streaming")
    return others


def compare_memory(work: Path, directory: Path, sample: Path, buffer: int) -> None:
    """Print what open_shards and tfds hold beyond the imports, and whether open_shards' memory grows with the data."""
    print("\nmemory beyond imports, image only / all members")
    episodes = len(ShardDirectory(directory).episode_ids)
    ways: dict[str, tuple[Callable[..., Iterable[Any]], Any]] = {
        "open_shards": (with_open_shards, directory),
        "tfds": (with_tfds, episodes),
        "tfds, cut": (with_cut_tfds, episodes),
    }
    held: dict[str, list[int]] = {}
    for name, (way, source) in ways.items():
        peaks = [measure_memory(way, source, everything, buffer) for everything in (False, True)]
        held[name] = [peak - before for before, peak in peaks]
        shares = [ours / theirs for ours, theirs in zip(held["open_shards"], held[name], strict=True)]
        row = f"{name:12s}{held[name][0] / 1024:7.1f} / {held[name][1] / 1024:.1f} MiB"
        print(row + (f"   ours {shares[0]:.2f} / {shares[1]:.2f} of that" if name != "open_shards" else ""))
    whole = []
    for episodes in (FEW, MANY):
        many = repeated(sample, work / f"{episodes}-episodes", episodes)
        whole.append(measure_memory(with_open_shards, many, True, buffer)[1])
        print(f"peak RSS over {episodes:4d} episodes, all members: {whole[-1] / 1024:.1f} MiB")
    print(f"difference {whole[1] / whole[0] - 1:+.1%}")


def build_sample(work: Path) -> Path:
    """The shards of the shipped sample, rejected episodes too."""
    cli = [sys.executable, "-m", "cli"]
    annotations, out = work / "annotations", work / "shards"
    annotate = ["annotate", "--src", "sample", "--set", "annotators=motion", "--out", str(annotations)]
    build = ["build-shards", "--include", "all", "--annotations", str(annotations), "--out", str(out)]
    for command in (annotate, build):
        subprocess.run([*cli, *command], check=True, stdout=subprocess.DEVNULL)
    return out


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a new folder for the shards (1.2 GB); by default a temporary one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--buffer", type=int, default=1000, help="samples in the others' shuffle buffer")
    parser.add_argument("--episodes", type=int, default=TIMED, help="to measure times with")
    parser.add_argument("--times-only", action="store_true", help="no memory")
    parser.add_argument("--lerobot", type=Path, help="the Python of an environment with lerobot")
    parser.add_argument("--streaming", type=Path, help="the Python of an environment with mosaicml-streaming")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="loading-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sample = build_sample(work)
        directory = repeated(sample, work / "timed", arguments.episodes)
        others = start_others(work, directory, arguments.lerobot, arguments.streaming)
        compare_times(directory, arguments.buffer, arguments.rounds, others)
        for other in others.values():
            other.end()
        if not arguments.times_only:
            compare_memory(work, directory, sample, arguments.buffer)


if __name__ == "__main__":
    main()

"""How much memory `build-shards` and `verify` take for many samples, how `verify` scales, and what a shard costs.

    python benchmarks/size.py --out DIR [--samples 200000] [--rounds 5]

*Samples*: a data set in LIBERO's schema of episodes of 40 frames of 64×64, in files of 5,000 samples, with annotations that
say that all are accepted (nothing is annotated: the rows are written). Then the commands, one after the other, with the
peak memory of each process, and what a data set of one file takes: the difference is what size costs.

*A shard*: 60 episodes of the shipped sample (256×256, two cameras) as one file, some 2,500 samples. Building its shard, hash
included, in turn with copying the same tar and hashing it, in this process; medians. `--samples 0` measures that alone.

Processor time is user and system, of a command and its workers. Prints what it finds and writes DIR/size.json.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scale import draw_episode, run

from annotate.jobs.annotate import describe_run
from annotate.jobs.shards import HORIZON, _BuildShard
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES
from annotate.sources.episode import Episode
from annotate.sources.rlds import list_files, read_episodes
from annotate.sources.sample import default_directory
from pixel160k.files import sha256_of, write_json
from pixel160k.format import masks, table
from pixel160k.format.prompts import sample_prompts
from pixel160k.seeding import seeded_generator
from pixel160k.tfrecord import read_records
from simulation.rlds import encode_episode, libero_features, write_encoded_rlds

STEPS, EPISODES = 40, 125  # per episode, per file


def accept_all(source: str, data: Path, out: Path) -> None:
    """Write annotations that accept every episode of a data set, with a disc as the mask of its object."""
    files = list_files(SOURCES[source], data)
    out.mkdir(parents=True)
    for file in files:
        episodes = [episode for episode in read_episodes(SOURCES[source], file) if isinstance(episode, Episode)]
        table.write_part(out / f"part-{file.name}.parquet", [accepted(episode) for episode in episodes], {})
    described = describe_run(source, files[0].dataset, AnnotateSettings(annotators="motion"))
    write_json(out / "run.json", described | {"files": [[file.path.name, 0] for file in files]})
    counts = {"episodes": 0, "status": {}, "reasons": {}, "stages": {}, "files_missing": 0, "work_seconds": 0}
    write_json(out / "stats.json", counts | {"data_dir": str(data.resolve())})


def accepted(episode: Episode) -> table.EpisodeAnnotation:
    """The row of an accepted episode."""
    height, width = episode.frame(episode.first_step).shape[:2]
    ys, xs = np.mgrid[:height, :width]
    disc = (xs - width / 2) ** 2 + (ys - height / 2) ** 2 < (width / 8) ** 2
    return table.EpisodeAnnotation(
        **asdict(episode.identity),
        instruction=episode.instruction,
        num_steps=episode.num_steps,
        first_step=episode.first_step,
        last_step=episode.last_step,
        close_step=episode.first_step,
        image_height=height,
        image_width=width,
        status=table.ACCEPTED,
        target_object="red disc",
        object_mask=masks.encode(disc),
        gripper_mask=masks.encode(disc),
        prompts=sample_prompts(disc, 3, seeded_generator(episode.identity.episode_id)),
    )


def write_data(out: Path, files: int) -> None:
    """Write a data set of so many files, from three different episodes, and annotations of it."""
    features = libero_features()
    payloads = [encode_episode(draw_episode(kind, STEPS), features) for kind in range(3)]
    each: list[Iterable[bytes]] = [(payloads[number % 3] for number in range(EPISODES)) for _ in range(files)]
    write_encoded_rlds(out / "data", "drawn", "1.0.0", features, {"train": each})
    accept_all("libero", out / "data", out / "annotations")


def measure_commands(out: Path, files: int) -> dict[str, Any]:
    """What the commands take on a data set of so many files."""
    shutil.rmtree(out, ignore_errors=True)
    write_data(out, files)
    build = ("build-shards", "--annotations", out / "annotations", "--out", out / "shards")
    verify = ("verify", "--shards", out / "shards")
    found: dict[str, Any] = {"samples": files * EPISODES * STEPS}
    for name, command in {
        "build-shards": build,
        "verify": verify,
        "verify, 2 workers": (*verify, "--workers", "2"),
    }.items():
        found[name] = run(*command)
        print(f"{found['samples']} samples, {name}: {found[name]}", flush=True)
    shutil.rmtree(out)
    return found


def measure_shard(out: Path, rounds: int) -> dict[str, Any]:
    """The seconds per sample that a shard costs, and that copying and hashing its bytes costs, processor and wall time."""
    shutil.rmtree(out, ignore_errors=True)
    payloads = [
        record.payload
        for file in list_files(SOURCES["sample"], default_directory())
        for record in read_records(file.path)
    ]
    each = [(payloads[number % len(payloads)] for number in range(60))]
    write_encoded_rlds(out / "data", "drawn", "1.0.0", libero_features(), {"train": each})
    accept_all("libero", out / "data", out / "annotations")
    (out / ".done").mkdir()
    (file,) = list_files(SOURCES["libero"], out / "data")
    work = _BuildShard("libero", "", str(out / "annotations"), "all", False, HORIZON, str(out))
    tar, copied = out / "shard" / f"{file.dataset}-{file.name}.tar", out / "copied.tar"
    samples = 0

    def build() -> None:
        nonlocal samples
        shutil.rmtree(tar.parent, ignore_errors=True)
        tar.parent.mkdir()
        samples = work(file, tar.parent, "cpu")["samples"]
        sha256_of(tar)

    def copy() -> None:
        copied.unlink(missing_ok=True)
        with open(tar, "rb") as read, open(copied, "wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
        sha256_of(copied)

    seconds = [(_seconds(build), _seconds(copy)) for _ in range(rounds)]
    found: dict[str, Any] = {"samples": samples, "bytes per sample": tar.stat().st_size / samples}
    for clock, name in enumerate(("processor", "wall")):
        built, copied_in = ([both[which][clock] for both in seconds] for which in (0, 1))
        found[name] = {
            "ms per sample, built": 1000 * statistics.median(built) / samples,
            "ms per sample, copied and hashed": 1000 * statistics.median(copied_in) / samples,
            "speed against copying and hashing": statistics.median(
                b / a for a, b in zip(built, copied_in, strict=True)
            ),
        }
    shutil.rmtree(out)
    return found


def _seconds(of: Callable[[], None]) -> tuple[float, float]:
    """Processor and wall seconds."""
    began = time.process_time(), time.perf_counter()
    of()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def main() -> None:
    """Measure both; write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = {"shard": measure_shard(arguments.out / "shard", arguments.rounds)}
    print(json.dumps(found, indent=1), flush=True)
    for files in sorted({1, arguments.samples // (EPISODES * STEPS)}) if arguments.samples else ():
        found[f"{files} files"] = measure_commands(arguments.out / "work", files)
    (arguments.out / "size.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

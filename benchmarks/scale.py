"""Whether time and memory stay in proportion: data sets of up to 1,024 files and 20,000 small episodes, through every command.

    python benchmarks/scale.py --out DIR [--files 128,256,512,1024] [--workers 2]
        [--joined-files 1024] [--store-files 32,128]

Draws data sets in LIBERO's schema, 20,000 episodes per 1,024 files: 12 frames of 64×64, many of them picked up and carried
(accepted), others left where they lie (rejected), others broken. A second data set of each size holds no record that can be
parsed: there annotating is nothing but listing, claiming, writing and joining. Episodes are drawn from 60 different ones,
so that making them takes seconds; records, ids and rows are all there.

Runs the commands one after the other and samples the memory of the client and its workers twice a second. Prints a table
and writes DIR/scale.json. Processor time is that of a command and its workers, user and system: it is what to compare on a
machine that does other things too.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from pixel160k.format import shards
from pixel160k.format.statistics import Transitions
from pixel160k.seeding import seeded_generator
from simulation.rlds import encode_episode, libero_features, write_encoded_rlds

ROOT = Path(__file__).resolve().parents[1]
EPISODES_PER_FILE = 20_000 / 1024
SIZE, STEPS, CLOSE, OPEN = 64, 12, 4, 9
KINDS = 60  # different episodes


def draw_episode(number: int, length: int = STEPS) -> dict[str, Any]:
    """An episode: a hand comes to a disc, closes, carries it away, opens. Of every ten, two leave the disc where it lies, one
    never closes, and one has a broken first frame.
    """
    kind, generator = number % 10, seeded_generator("scale", number)
    background = cv2.resize(generator.integers(90, 170, (8, 8, 3)).astype(np.uint8), (SIZE, SIZE))
    disc, goal, start = generator.uniform((12, 30), (26, 52)), generator.uniform((40, 30), (54, 52)), np.array((32, 8))
    steps = []
    for step in range(length):
        there = min(1.0, step / CLOSE)
        carried = np.clip((step - CLOSE) / (OPEN - CLOSE), 0, 1)
        hand = start + (disc - start) * there + (goal - disc) * carried
        image = background.copy()
        thing = hand if step > CLOSE and kind < 6 else disc
        cv2.circle(image, tuple(map(round, thing)), 4, (200, 40, 40), -1)
        cv2.line(image, (round(hand[0]), 0), (round(hand[0]), round(hand[1]) - 3), (30, 30, 30), 4)
        data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        state = np.zeros(8, np.float32)
        state[:2] = hand / SIZE
        closed = CLOSE <= step < OPEN and kind != 8
        steps.append(
            {
                "observation": {
                    "image": io.BytesIO(data[: len(data) // 3] if kind == 9 and step == 0 else data),
                    "wrist_image": io.BytesIO(data),
                    "state": state,
                    "joint_state": np.zeros(7, np.float32),
                },
                "action": np.array([*generator.normal(0, 0.1, 6), 1 if closed else -1], np.float32),
                "discount": 1.0,
                "reward": 0.0,
                "is_first": step == 0,
                "is_last": step == length - 1,
                "is_terminal": step == length - 1,
                "language_instruction": f"pick up the red disc number {number} and place it on the plate",
            }
        )
    return {"steps": steps, "episode_metadata": {"file_path": f"drawn {number}"}}


def write_data(folder: Path, files: int, payloads: Sequence[bytes]) -> int:
    """Write a data set of so many files with episodes chosen from these; returns how many episodes it has."""
    ends = [round(EPISODES_PER_FILE * number) for number in range(files + 1)]

    def records(number: int) -> Iterator[bytes]:
        chosen = seeded_generator("scale", "file", number).integers(0, len(payloads), ends[number + 1] - ends[number])
        return (payloads[index] for index in chosen)

    splits = {"train": [records(number) for number in range(files)]}
    write_encoded_rlds(folder, "drawn", "1.0.0", libero_features(), splits)
    return ends[-1]


def run(*arguments: str | Path, expected: int = 0) -> dict[str, Any]:
    """Run a command of pixelcli that ends with the `expected` exit code.

    Returns `wall` and `cpu` seconds and, of the client and of its workers, `memory` in MB: the peak as it was half a second
    before the end, and the greatest of the first and of the last quarter of the time.
    """
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, began = os.times(), time.monotonic()
    sizes: dict[int, list[int]] = defaultdict(list)
    peaks: dict[int, int] = {}
    with tempfile.TemporaryFile() as output:
        client = psutil.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)
        while client.poll() is None:
            for process in _family(client):
                with suppress(psutil.NoSuchProcess):
                    sizes[process.pid].append(process.memory_info().rss >> 20)
                with suppress(OSError, StopIteration):
                    peaks[process.pid] = _peak(process.pid)
            time.sleep(0.5)
        if client.returncode != expected:
            output.seek(0)
            sys.exit(f"failed: {' '.join(command)}\n{output.read().decode()}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    found = {process: _quarters(size) | {"peak": peaks.get(process, 0)} for process, size in sizes.items()}
    memory = {
        "client": found.pop(client.pid),
        "workers": [found[process] for process in found if len(sizes[process]) > 4],
    }
    return {"wall": time.monotonic() - began, "cpu": cpu, "memory": memory}


def _family(client: psutil.Popen) -> list[psutil.Process]:
    try:
        return [client, *client.children()]
    except psutil.NoSuchProcess:
        return []


def _quarters(sizes: list[int]) -> dict[str, int]:
    """Without the first 4 seconds, in which a process imports what it needs."""
    later = sizes[8:]
    quarter = len(later) // 4
    return {"first": max(later[:quarter]), "last": max(later[-quarter:])} if quarter else {}


def measure(out: Path, files: int, workers: int, payloads: Sequence[bytes]) -> dict[str, Any]:
    """Make a data set and run every command on it; returns what `run` says of each."""
    shutil.rmtree(out, ignore_errors=True)
    episodes = write_data(out / "data", files, payloads)
    write_data(out / "unreadable", files, [b"\xff"])
    annotate = ("annotate", "--src", "libero", "--set", "annotators=motion", "--workers", str(workers))
    build = ("build-shards", "--annotations", out / "annotations", "--out", out / "shards", "--workers", str(workers))
    commands = {
        "annotate": (*annotate, "--data-dir", out / "data", "--out", out / "annotations"),
        "annotate, nothing to decode": (*annotate, "--data-dir", out / "unreadable", "--out", out / "nothing"),
        "annotate, all is done": (*annotate, "--data-dir", out / "data", "--out", out / "annotations"),
        "annotate --refilter": (
            "annotate", "--refilter", out / "annotations", "--set", "filter.min_evidence=0.5", "--out", out / "stricter",
        ),
        "build-shards": build,
        "build-shards, all is done": build,
        "verify": ("verify", "--shards", out / "shards"),
        "stats": ("stats", "--shards", out / "shards", "--out", out / "stats"),
    }  # fmt: skip
    found: dict[str, Any] = {"files": files, "episodes": episodes, "commands": {}}
    for name, command in commands.items():
        # Where nothing can be annotated, that is said and the exit code is 1.
        found["commands"][name] = run(*command, expected=1 if "nothing to decode" in name else 0)
        print(f"{files} files, {name}: {found['commands'][name]}", flush=True)
    totals = json.loads((out / "annotations" / "stats.json").read_text("utf-8"))
    manifest = json.loads((out / "shards" / "manifest.json").read_text("utf-8"))
    found |= {"status": totals["status"], "stages": totals["stages"], "samples": manifest["samples"]}
    shutil.rmtree(out)
    return found


def count_requests(out: Path, files: int, workers: int, payloads: Sequence[bytes]) -> dict[str, dict[str, int]]:
    """Annotate from local files into an S3 server on loopback, and build shards there; returns the requests by kind."""
    sys.path.append(str(ROOT / "tests"))
    from s3_server import serve

    bucket = f"bucket-{files}"
    shutil.rmtree(out, ignore_errors=True)
    write_data(out, files, payloads)
    commands = {
        "annotate": ("annotate", "--src", "libero", "--set", "annotators=motion", "--data-dir", out),
        "build-shards": ("build-shards", "--annotations", f"s3://{bucket}/annotations"),
    }
    found = {}
    with serve(bucket) as requests:
        for name, folder in (("annotate", "annotations"), ("build-shards", "shards")):
            again = (*commands[name], "--out", f"s3://{bucket}/{folder}", "--workers", str(workers))
            for kind in (name, f"{name}, all is done"):
                requests.clear()
                run(*again)
                listed = Counter("LIST" if path.strip("/") == bucket else method for method, path in requests)
                found[kind] = dict(sorted(listed.items()))
                print(f"{files} files in a store, {kind}: {found[kind]}", flush=True)
    shutil.rmtree(out)
    return found


def measure_joining(out: Path, files: int) -> dict[str, float]:
    """Join so many times the index of a file with 4,900 samples and compute the statistics, as the end of `build-shards` does.

    Returns CPU seconds and the peak memory in MB after each step, of a process that does nothing else.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tar = "fractal20220817_data-train-00000"
    rows = [(f"{tar}-{place // 40:05d}", place % 40, 20_480 * place) for place in range(4900)]
    index = [
        shards.IndexRow(shards.sample_key(episode, step), episode, step, "accepted", f"{tar}.tar", offset, 20_480)
        for episode, step, offset in rows
    ]
    shards.write_index(out / "one.parquet", index)
    generator = seeded_generator("scale", "joining")
    action, state = (generator.random((4900, width), np.float32) for width in (7, 8))
    np.savez(out / "one.npz", action=action, state=state)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_join, (out, files))
    print(f"joining: {found}", flush=True)
    shutil.rmtree(out)
    return found


def _join(folder: Path, files: int) -> dict[str, float]:
    found: dict[str, float] = {"peak before": _peak()}
    began = time.process_time()
    samples, _ = shards.join_indices([folder / "one.parquet"] * files, folder / "all.parquet")
    found |= {"samples": samples, "peak, index joined": _peak(), "cpu, index joined": time.process_time() - began}
    with Transitions(folder) as transitions:
        for _ in range(files):
            part = np.load(folder / "one.npz")
            transitions.add(part["action"], part["state"])
        transitions.statistics(1)
    return found | {"peak": _peak(), "cpu": time.process_time() - began}


def _peak(process: int | str = "self") -> int:
    """The peak memory of a process in MB, of this program alone: getrusage counts what was there before exec."""
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def print_table(results: list[dict[str, Any]]) -> None:
    """Print per command and size: CPU and wall seconds, memory; and the ratios of the last size to the first."""
    for result in results:
        print(
            f"\n{result['files']} files, {result['episodes']} episodes ({result['status']}), {result['samples']} samples"
        )
        print(f"{'':30s}{'CPU s':>8}{'wall s':>8}{'ms CPU/episode':>16}   MB: peak (first -> last quarter)")
        for name, found in result["commands"].items():
            of = {"client": [found["memory"]["client"]], "worker": found["memory"]["workers"]}
            memory = "; ".join(f"{who} {_in_words(one)}" for who, every in of.items() for one in every)
            each = 1000 * found["cpu"] / result["episodes"]
            print(f"{name:30s}{found['cpu']:8.1f}{found['wall']:8.1f}{each:16.2f}   {memory}")
    if not results:
        return
    print("\nms of CPU per further episode, from each size to the next; the client's peak in MB")
    for name in results[0]["commands"]:
        found = [(result["episodes"], result["commands"][name]) for result in results]
        further = [
            1000 * (after["cpu"] - before["cpu"]) / (more - less)
            for (less, before), (more, after) in itertools.pairwise(found)
        ]
        peaks = [one["memory"]["client"]["peak"] for _, one in found]
        print(f"{name:30s}{' '.join(f'{one:7.2f}' for one in further)}   {' '.join(f'{peak:6d}' for peak in peaks)}")


def _in_words(memory: dict[str, int]) -> str:
    quarters = f" ({memory['first']} -> {memory['last']})" if "first" in memory else ""
    return f"{memory['peak']}{quarters}"


def main() -> None:
    """Measure each size; write what was found after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", default="128,256,512,1024")
    parser.add_argument("--joined-files", type=int, default=0, help="also join 4,900 samples of each of so many files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--store-files", default="", help="also count the requests to an S3 server on loopback, as 32,128"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    features = libero_features()
    payloads = [encode_episode(draw_episode(number), features) for number in range(KINDS)]
    results = []
    for files in map(int, filter(None, arguments.files.split(","))):
        results.append(measure(arguments.out / "work", files, arguments.workers, payloads))
        (arguments.out / "scale.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print_table(results)
    if arguments.joined_files:
        joined = measure_joining(arguments.out / "joining", arguments.joined_files)
        (arguments.out / "joining.json").write_text(json.dumps(joined, indent=1), encoding="utf-8")
    if arguments.store_files:
        numbers = list(map(int, arguments.store_files.split(",")))
        found = {
            str(files): count_requests(arguments.out / "store", files, arguments.workers, payloads) for files in numbers
        }
        (arguments.out / "requests.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long `pixelcli browse` takes to open a large set, to show a page and to write a sheet of the worst, and what it holds.

    python benchmarks/browsing.py --out DIR [--episodes 60000]

Draws a set first, if DIR holds none: frames of 128x128, an index of 36 samples per episode, of which only those that are shown
(the first step and the close step) are in the tars; the other rows point at the first. All tars are one, under other names.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pixel160k.format import episode_rows, masks, shards, table
from pixel160k.format.prompts import sample_prompts

SIDE, STEPS, CLOSE, PER_SHARD = 128, 36, 12, 60
VERBS = ("pick_place", "open", "close", "push", "turn", "wipe", "fold")
OBJECTS = ("red cup", "blue spoon", "yellow corn", "silver pot", "green towel", "drawer handle", "orange carrot")


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """bool (SIDE, SIDE)."""
    ys, xs = np.mgrid[:SIDE, :SIDE]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def drawn(number: int) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Masks of object and gripper, and the JPEGs of both frames, of one of a few hundred scenes."""
    random = np.random.default_rng(number)
    x, y = random.uniform(30, SIDE - 30, 2)
    target, gripper = disc(x, y, random.uniform(8, 16)), disc(x + 14, y - 12, 10)
    ground = cv2.resize(
        random.integers(60, 200, (4, 4, 3)).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC
    )
    colour = random.integers(0, 255, 3)
    frames = []
    for close in (False, True):
        image = ground.copy()
        image[target] = colour
        if close:
            image[gripper] = 40
        frames.append(cv2.imencode(".jpg", image)[1].tobytes())
    return target, gripper, frames


def annotation(shard: int, record: int, scene: tuple[np.ndarray, np.ndarray, list[bytes]]) -> table.EpisodeAnnotation:
    """An episode's row; two of three are accepted."""
    target, gripper, _ = scene
    number = shard * PER_SHARD + record
    random = np.random.default_rng([1, number])
    verb, thing = VERBS[number % len(VERBS)], OBJECTS[number % len(OBJECTS)]
    rejected = number % 3 == 2
    reasons = ("low_confidence", "contradicted_by_motion", "mask_too_small", "outside_region")
    return table.EpisodeAnnotation(
        episode_id=f"drawn-train-{shard:05d}-{record:05d}", dataset="drawn", split="train", shard=shard, record=record,
        record_crc32c=0, camera="image_0", instruction=f"{verb.replace('_', ' and ')} the {thing}", verb=verb,
        num_steps=STEPS, first_step=0, last_step=STEPS - 1, image_height=SIDE, image_width=SIDE,
        status=table.REJECTED if rejected else table.ACCEPTED, reason=reasons[number % 4] if rejected else "",
        close_step=CLOSE, gripper_box=masks.box_of(gripper), gripper_mask=masks.encode(gripper),
        region_box=(10.0, 10.0, 118.0, 118.0), target_object=thing, object_box=masks.box_of(target),
        detection_score=float(random.uniform(0.2, 1)), object_mask=masks.encode(target),
        mask_score=float(random.uniform(0.4, 1)), evidence=table.Evidence(table.SUPPORTED, float(random.uniform()), 20),
        prompts=sample_prompts(target, 3, random),
    )  # fmt: skip


def write_set(out: Path, episodes: int) -> None:
    """Write the drawn set: one shard, then the same under other names, with other scores in the table of episodes."""
    out.mkdir(parents=True)
    scenes = [drawn(number) for number in range(PER_SHARD)]
    action, state = np.zeros((1, 7), np.float32), np.zeros(7, np.float32)
    written = [annotation(0, record, scene) for record, scene in enumerate(scenes)]
    with shards.ShardWriter(out / "drawn-train-00000.tar") as writer:
        for row, scene in zip(written, scenes, strict=True):
            for step, jpeg in ((0, scene[2][0]), (CLOSE, scene[2][1])):
                writer.write(row, shards.step_masks(row, step), jpeg, action, state)
    drawn_tar = (out / "drawn-train-00000.tar").read_bytes()
    with tarfile.open(out / "drawn-train-00000.tar") as tar:
        headers = [member.offset for member in tar]
    listed = [
        vars(close if step == CLOSE else first) | {"key": shards.sample_key(first.episode_id, step), "step": step}
        for first, close in zip(writer.index[::2], writer.index[1::2], strict=True)
        for step in range(STEPS)
    ]
    index = pa.Table.from_pylist(listed, schema=shards.INDEX_SCHEMA)
    rows, count = [], -(-episodes // PER_SHARD)
    with pq.ParquetWriter(out / "index.parquet", shards.INDEX_SCHEMA, compression="zstd") as file:
        for shard in range(count):
            name = f"train-{shard:05d}"
            (out / f"drawn-{name}.tar").write_bytes(renamed(drawn_tar, headers, name))
            columns = [
                pc.replace_substring(column, "train-00000", name) if pa.types.is_string(column.type) else column
                for column in index.columns
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=shards.INDEX_SCHEMA))
            random = np.random.default_rng(shard)
            for row in written:
                one = episode_rows.row_of_annotation(row)
                first, second, third = (float(score) for score in random.uniform(0.2, 1, 3))
                episode = row.episode_id.replace("train-00000", name)
                rows.append(
                    dataclasses.replace(one, episode_id=episode, score=first, mask_score=second, evidence_score=third)
                )
    episode_rows.write_rows(out / episode_rows.EPISODES, rows)
    statuses = [row.status for row in rows]
    manifest = {
        "format_version": shards.FORMAT_VERSION, "dataset": "drawn", "include": "all", "horizon": 1,
        "samples": len(rows) * STEPS, "episodes": len(rows), "shards": [], "left_out": {},
        "annotated": {"status": {name: statuses.count(name) for name in sorted(set(statuses))}, "reasons": {}},
        "annotations": {"source": "bridge_orig", "models": {"object": "drawn"}, "settings": {}}, "software": "0",
        "files": {episode_rows.EPISODES: "0" * 64},
    }  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest))


def renamed(tar: bytes, headers: list[int], name: str) -> bytes:
    """A drawn tar under another name of the same length, in all members and in their headers' checksums."""
    changed = bytearray(tar.replace(b"train-00000", name.encode()))
    for start in headers:
        changed[start + 148 : start + 156] = b" " * 8
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)


def fetch(address: str) -> bytes:
    """The content at an address."""
    with urllib.request.urlopen(address) as answer:
        return answer.read()


def processor_seconds(process: int) -> float:
    """What a process has used of a processor so far: a busy machine changes this less than the clock's time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=60000)
    arguments = parser.parse_args()
    directory = arguments.out / f"drawn-{arguments.episodes}"
    if not (directory / "manifest.json").exists():
        write_set(directory, arguments.episodes)
    command = [sys.executable, "-m", "cli", "browse", "--shards", str(directory)]
    started = time.monotonic()
    server = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        first = fetch(address)
        print(
            f"from the command to its first page: {time.monotonic() - started:.2f} s, "
            f"{processor_seconds(server.pid):.2f} s of a processor, {len(first) / 1e3:.0f} kB"
        )
        for query in ("?page=500", "?verb=open&reason=low_confidence", "?worst=evidence_score", "?text=carrot+00700"):
            started = time.monotonic()
            used = processor_seconds(server.pid)
            size = len(fetch(f"{address}{query}"))
            print(
                f"{query}: {time.monotonic() - started:.2f} s, {processor_seconds(server.pid) - used:.2f} s of a processor, "
                f"{size / 1e3:.0f} kB"
            )
        started, used = time.monotonic(), processor_seconds(server.pid)
        sizes = [
            len(fetch(f"{address}picture?episode=drawn-train-{number:05d}-00007&step={step}"))
            for number in range(0, arguments.episodes // PER_SHARD, 20) for step in (0, CLOSE)
        ]  # fmt: skip
        spent = (
            1e3 * (time.monotonic() - started) / len(sizes),
            1e3 * (processor_seconds(server.pid) - used) / len(sizes),
        )
        print(f"a picture: {spent[0]:.1f} ms, {spent[1]:.1f} ms of a processor, {np.mean(sizes) / 1e3:.1f} kB")
        status = Path(f"/proc/{server.pid}/status").read_text()
        print("peak memory of the server:", next(line for line in status.splitlines() if line.startswith("VmHWM")))
    finally:
        server.terminate()
        server.wait()
    started = time.monotonic()
    sheet = arguments.out / "worst.html"
    subprocess.run([*command, "--worst", "mask_score", "--out", str(sheet)], check=True)
    print(f"200 worst as a file: {time.monotonic() - started:.2f} s, {sheet.stat().st_size / 1e6:.1f} MB")
    print(
        f"largest peak memory of both commands: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3:.0f} MB"
    )


if __name__ == "__main__":
    main()

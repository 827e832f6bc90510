"""Checks that shards are what their manifest says, and that every sample can be used.

A tar that is cut between two records reads without an error, and readers drop broken samples silently; so counts and
checksums are compared with the manifest, and members, keys and contents one by one.
"""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel160k import masks, shards
from pixel160k.table import EpisodeAnnotation

_KEY = re.compile(r"[A-Za-z0-9_]+-[A-Za-z0-9_]+-\d{5}-\d{5}-\d{4,}")
_ANY_ROW = EpisodeAnnotation("", "", "", 0, 0, 0)
_METADATA_KEYS = set(shards.sample_metadata(_ANY_ROW, shards.step_masks(_ANY_ROW, 0)))
_LABELS = {masks.BACKGROUND, masks.GRIPPER, masks.TARGET, masks.NOT_ANNOTATED}


def verify(directory: str | Path) -> list[str]:
    """Check a shard directory and return its faults, one line each; none where all is well.

    Raises:
        ValueError: the directory holds no shards, or shards of an unknown format version.
    """
    directory = Path(directory)
    manifest = shards.read_manifest(directory)
    return list(_faults(directory, manifest))


def _faults(directory: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, digest in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            yield f"{name}: missing"
        elif shards.sha256_of(path) != digest:
            yield f"{name}: differs from the manifest's SHA-256"
    listed = {shard["name"] for shard in manifest["shards"]}
    for stray in sorted(path.name for path in directory.glob("*.tar") if path.name not in listed):
        yield f"{stray}: not in the manifest"
    keys: Counter[str] = Counter()
    for shard in manifest["shards"]:
        path = directory / shard["name"]
        if not path.is_file():
            yield f"{shard['name']}: missing"
            continue
        if path.stat().st_size != shard["bytes"]:
            yield f"{shard['name']}: {path.stat().st_size} bytes, the manifest says {shard['bytes']}"
        if shards.sha256_of(path) != shard["sha256"]:
            yield f"{shard['name']}: differs from the manifest's SHA-256"
        found: list[str] = []
        yield from _shard_faults(path, manifest, found)
        if len(found) != shard["samples"]:
            yield f"{shard['name']}: {len(found)} samples, the manifest says {shard['samples']}"
        keys.update(found)
    yield from (f"{key}: stands {count} times in the shards" for key, count in keys.items() if count > 1)
    if (directory / "index.parquet").is_file():
        try:
            indexed = {row.key for row in shards.read_index(directory / "index.parquet")}
        except (OSError, ValueError) as error:
            yield f"index.parquet: cannot be read: {' '.join(str(error).split())}"
            return
        yield from (f"{key}: in the index, in no shard" for key in sorted(indexed - set(keys)))
        yield from (f"{key}: in a shard, not in the index" for key in sorted(set(keys) - indexed))


def _shard_faults(path: Path, manifest: dict[str, Any], found: list[str]) -> Iterator[str]:
    """Faults of one tar; appends the keys of its samples to `found`."""
    key = ""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                base, _, suffix = member.name.partition(".")
                if not member.isfile():
                    yield f"{path.name}: {member.name!r} is no regular file"
                elif not _KEY.fullmatch(base) or suffix not in shards.MEMBERS:
                    yield f"{path.name}: foreign member {member.name!r}"
                else:
                    if base != key:
                        if key:
                            found.append(key)
                            yield from _sample_faults(key, members, manifest)
                        key, members = base, {}
                    if suffix in members:
                        yield f"{key}: member {suffix} stands twice"
                    content = tar.extractfile(member)
                    members[suffix] = content.read() if content else b""
            if key:
                found.append(key)
                yield from _sample_faults(key, members, manifest)
    except (tarfile.TarError, EOFError, OSError) as error:
        yield f"{path.name}: broken tar after sample {key or '(none)'}: {error}"


def _sample_faults(key: str, members: dict[str, bytes], manifest: dict[str, Any]) -> Iterator[str]:
    missing = [name for name in shards.MEMBERS if name not in members]
    if missing:
        yield f"{key}: lacks {', '.join(missing)}"
        return
    try:
        about = json.loads(members["json"])
        expected = shards.sample_key(about["episode_id"], about["step"])
        if expected != key:
            yield f"{key}: its JSON is of {expected}"
        if about["dataset"] != manifest["dataset"]:
            yield f"{key}: its JSON is of the data set {about['dataset']}"
        if wrong := _METADATA_KEYS.symmetric_difference(about):
            yield f"{key}: its JSON keys differ from the format's: {', '.join(sorted(wrong))}"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{key}: unreadable JSON ({error!r})"
    try:
        image = Image.open(io.BytesIO(members["jpg"]))
        image.load()
        labels = masks.decode_indexed_png(members["mask.png"])
        if labels.shape != image.size[::-1]:
            yield f"{key}: the mask is {labels.shape[1]}x{labels.shape[0]}, the image {image.size[0]}x{image.size[1]}"
        if not set(np.unique(labels).tolist()) <= _LABELS:
            yield f"{key}: the mask holds labels other than 0, 1, 2, 255"
    except (OSError, SyntaxError, ValueError) as error:
        yield f"{key}: image or mask does not decode ({error})"
    for name, shape in (("action.npy", (manifest["horizon"], 7)), ("state.npy", None)):
        try:
            values = np.load(io.BytesIO(members[name]), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            yield f"{key}: {name} cannot be read ({error})"
            continue
        if values.dtype != np.float32 or (shape and values.shape != shape):
            yield f"{key}: {name} is {values.dtype} {values.shape}"
        elif not np.isfinite(values).all():
            yield f"{key}: {name} holds a value that is not finite"

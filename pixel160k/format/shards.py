"""Shards: WebDataset tars of samples, one per valid step, with an index, a manifest and the statistics beside them.

docs/format.md is the format in full. A sample always has all its members; JSON keys are fixed and hold sentinels instead
of nulls or empty lists, since readers infer types from the first samples. Same input, same settings: the same bytes.
"""

import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError, one_line
from pixel160k.format import masks, tar
from pixel160k.format.arrow import arrow_schema
from pixel160k.format.metadata import Metadata
from pixel160k.format.table import FAILED, EpisodeAnnotation
from pixel160k.format.tracks import StepMasks
from pixel160k.paths import AnyPath, open_parquet

FORMAT_VERSION = 1
WITH_PNG_VERSION = 2  # of shards that hold PNG images, which readers of version 1 would not find
WITH_CAMERAS_VERSION = 3  # of shards that hold images of further cameras, which readers of version 2 take for foreign
IMAGES: dict[str, Literal["JPEG", "PNG"]] = {"jpg": "JPEG", "png": "PNG"}  # the image member, as its image is encoded
MEMBERS = ("jpg", "mask.png", "json", "action.npy", "state.npy")  # of a sample whose image is a JPEG
TRAIN = "train"
"""The split that statistics are over and that training reads, where a data set has it."""

_ROW_GROUP = 1 << 18  # rows of the index that are written together: some 40 MB
NO_POINTS = [[-1.0, -1.0]]
NO_RLE: masks.RLE = {"size": [0, 0], "counts": ""}


@dataclass(frozen=True)
class IndexRow:
    """One row of the index: where a sample lies."""

    key: Annotated[str, "the sample's key"]
    episode_id: Annotated[str, "the episode that it belongs to"]
    step: Annotated[int, "its raw step in the episode"]
    status: Annotated[str, "the episode's: `accepted` or `rejected`"]
    shard: Annotated[str, "file name of the tar that holds it"]
    offset: Annotated[int, pa.int64(), "where its members begin in that tar, in bytes"]
    bytes: Annotated[int, pa.int64(), "how long they are together, in bytes"]


INDEX_SCHEMA = arrow_schema(IndexRow)


def sample_key(episode_id: str, step: int) -> str:
    """`{episode_id}-{step:04d}`, the raw step index; ASCII and without dots, which WebDataset would cut at."""
    return f"{episode_id}-{step:04d}"


def split_of(episode_id: str) -> str:
    """The split of the source that an episode is of: an id is `{dataset}-{split}-{shard}-{record}`; "" where it is no id."""
    parts = episode_id.rsplit("-", 3)
    return parts[1] if len(parts) == 4 else ""


def split_of_shard(name: str) -> str:
    """The split that a tar is of, by its file name `{dataset}-{split}-{shard}.tar`; a tar holds one source file's episodes."""
    return split_of(f"{name}-")


def order_splits(names: Iterable[str]) -> list[str]:
    """Each split once: `train` first, as readers expect that know no other, then the others as they come."""
    return sorted(dict.fromkeys(names), key=lambda name: name != TRAIN)


def image_member(members: Collection[str]) -> str:
    """Which member of a sample is its image: `jpg` where none of them is one."""
    return next((name for name in IMAGES if name in members), "jpg")


def camera_member(members: Collection[str], camera: str) -> str:
    """Which member of a sample is the image of a further camera, `{camera}.jpg` or `{camera}.png`; "" where none is."""
    return next((name for form in IMAGES if (name := f"{camera}.{form}") in members), "")


def missing_members(members: Collection[str]) -> list[str]:
    """What these members of a sample lack."""
    return [name for name in (image_member(members), *MEMBERS[1:]) if name not in members]


class ShardWriter:
    """Writes one shard. Bytes depend on the samples alone: fixed times, owners and JSON layout."""

    def __init__(self, path: Path) -> None:
        """Open the tar for writing at `path`, whose file name is the shard's name."""
        self._name, self._offset = path.name, 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self.index: list[IndexRow] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.write(tar.end(self._offset))
        self._file.close()

    def write(
        self, row: EpisodeAnnotation, masked: StepMasks, image: bytes, action: np.ndarray, state: np.ndarray
    ) -> None:
        """Append one sample; the arguments are those of `sample_members`."""
        self.append(row, masked.step, sample_members(row, masked, json_maker(row)(masked), image, action, state))

    def append(self, row: EpisodeAnnotation, step: int, members: dict[str, bytes]) -> None:
        """Append one sample whose members are made."""
        key = sample_key(row.episode_id, step)
        content = b"".join(tar.member(f"{key}.{suffix}", members[suffix]) for suffix in sorted(members))
        self._file.write(content)
        self.index.append(IndexRow(key, row.episode_id, step, row.status, self._name, self._offset, len(content)))
        self._offset += len(content)


def sample_members(
    row: EpisodeAnnotation, masked: StepMasks, described: bytes, image: bytes, action: np.ndarray, state: np.ndarray
) -> dict[str, bytes]:
    """The members of a sample by their suffixes.

    Args:
        row: the annotation of the sample's episode.
        masked: the raw step and what is marked on it.
        described: the `.json` member, as the episode's `json_maker` makes it.
        image: JPEG or PNG, the source's own bytes where they can pass through.
        action: float32 (horizon, 7).
        state: float32 (S,).
    """
    return {
        form_of(image): image,
        "mask.png": _label_png(row, masked),
        "json": described,
        "action.npy": _npy(action),
        "state.npy": _npy(state),
    }


def form_of(image: bytes) -> Literal["jpg", "png"]:
    """What the name of an image's member ends with."""
    return "jpg" if image.startswith(b"\xff\xd8") else "png"


def sample_metadata(row: EpisodeAnnotation, masked: StepMasks) -> Metadata:
    """The `.json` member: fixed keys, sentinels for what is absent (box of −1s, point [[−1, −1]], empty RLE)."""
    assert row.status != FAILED  # such an episode has no samples
    prompts = row.prompts
    return Metadata(
        dataset=row.dataset,
        episode_id=row.episode_id,
        num_steps=row.num_steps,
        first_step=row.first_step,
        last_step=row.last_step,
        close_step=row.close_step,
        camera=row.camera,
        instruction=row.instruction,
        target_object=row.target_object,
        status=row.status,
        reason=row.reason,
        detail=row.detail,
        score=float(row.detection_score),
        mask_score=float(row.mask_score),
        evidence_status=row.evidence.status,
        evidence_score=float(row.evidence.score),
        object_box=list(row.object_box or masks.NO_BOX),
        region_box=list(row.region_box or masks.NO_BOX),
        gripper_box=list(row.gripper_box or masks.NO_BOX),
        points=[list(point) for point in prompts.points] if prompts else NO_POINTS,
        line=[list(point) for point in prompts.line] if prompts else NO_POINTS,
        object_mask=row.object_mask or NO_RLE,
        prompt_step=row.first_step if prompts else -1,
        **_of_step(masked),
    )


def json_maker(row: EpisodeAnnotation) -> Callable[[StepMasks], bytes]:
    """What makes the `.json` member of each sample of an episode; what is the same in all of them is written once."""
    episode = sample_metadata(row, step_masks(row, row.first_step))
    texts = {
        name: f'"{name}": {json.dumps(value, sort_keys=True)}' for name, value in sorted(episode.as_dict().items())
    }

    def make(masked: StepMasks) -> bytes:
        for name, value in _of_step(masked).items():
            texts[name] = f'"{name}": {json.dumps(value)}'
        return f"{{{', '.join(texts.values())}}}".encode()

    return make


def _of_step(masked: StepMasks) -> dict[str, Any]:
    """The keys and values of the metadata that differ from step to step, `PER_STEP`."""
    return {
        "step": masked.step,
        "object_mask_valid": masked.object_mask is not None,
        "gripper_mask_valid": masked.gripper_mask is not None,
    }


def step_masks(row: EpisodeAnnotation, step: int, track: StepMasks | None = None) -> StepMasks:
    """What is marked on a step: its track, or else the object on the first valid step and the gripper on the close step."""
    if track is not None:
        return track
    object_mask = row.object_mask if step == row.first_step else None
    gripper_mask = row.gripper_mask if step == row.close_step else None
    return StepMasks(row.episode_id, step, object_mask, object_mask is not None, gripper_mask, gripper_mask is not None)


def _label_png(row: EpisodeAnnotation, masked: StepMasks) -> bytes:
    """The label image of a step as PNG. The gripper lies over the target object."""
    height, width = row.image_height, row.image_width
    if masked.object_mask is None and masked.gripper_mask is None:
        return _blank_png(height, width)
    labels = np.full((height, width), masks.BACKGROUND, np.uint8)
    if masked.object_mask is not None:
        labels[masks.decode(masked.object_mask)] = masks.TARGET
    if masked.gripper_mask is not None:
        labels[masks.decode(masked.gripper_mask)] = masks.GRIPPER
    return masks.encode_indexed_png(labels)


@lru_cache(maxsize=8)
def _blank_png(height: int, width: int) -> bytes:
    """The label image of a step on which nothing is annotated."""
    return masks.encode_indexed_png(np.full((height, width), masks.NOT_ANNOTATED, np.uint8))


def write_index(path: Path, rows: list[IndexRow]) -> None:
    """Write index rows as Parquet."""
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=INDEX_SCHEMA)
    pq.write_table(table, path, compression="zstd")


def join_indices(paths: Sequence[AnyPath], out: Path) -> tuple[int, int]:
    """Write the index rows of several files into one, in their order; returns how many samples and episodes they are.

    No episode may stand in two files. However many samples there are, about one row group of them is in memory.
    """
    waiting: list[pa.Table] = []
    held = samples = episodes = 0
    with pq.ParquetWriter(out, INDEX_SCHEMA, compression="zstd") as writer:
        for path in paths:
            with pq.ParquetFile(open_parquet(path)) as parquet:
                rows = parquet.read(use_threads=False)
            samples, episodes = samples + len(rows), episodes + len(rows["episode_id"].unique())
            waiting.append(rows)
            held += len(rows)
            if held >= _ROW_GROUP:
                together, held = pa.concat_tables(waiting), held % _ROW_GROUP
                writer.write_table(together.slice(0, len(together) - held), _ROW_GROUP)
                waiting = [together.slice(len(together) - held)]
        writer.write_table(pa.concat_tables(waiting))
    return samples, episodes


def read_index(path: AnyPath) -> list[IndexRow]:
    """Read index rows back."""
    return [IndexRow(**row) for row in pq.read_table(open_parquet(path), schema=INDEX_SCHEMA).to_pylist()]


def read_index_table(file: Path | BinaryIO, where: str, columns: Sequence[str] = tuple(INDEX_SCHEMA.names)) -> pa.Table:
    """Columns of the index as a table, for whoever needs a few things of very many rows; `where` is what errors name.

    Columns whose values repeat (episode, status, shard) are dictionaries, each value held once.

    Raises:
        InputError: it cannot be read.
    """
    try:
        # Not pq.read_table: it imports all of pyarrow.dataset, and its threads hold memory of their own.
        with pq.ParquetFile(file, read_dictionary=["episode_id", "status", "shard"]) as parquet:
            table = parquet.read(columns=list(columns), use_threads=False)
        return table.select(columns).unify_dictionaries().combine_chunks()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{where} cannot be read ({one_line(error)}); build these shards again") from None


def _npy(array: np.ndarray) -> bytes:
    """An array as `np.save` writes it, float32."""
    return _npy_header(array.shape) + np.ascontiguousarray(array, np.float32).tobytes()


@lru_cache(maxsize=64)  # the shapes are few, and making the text takes more time than all else
def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()

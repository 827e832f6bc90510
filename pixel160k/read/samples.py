"""A sample as people use it: one step of one episode, decoded from the members of its tar; docs/format.md is the format.

Only what is asked for is decoded, and nothing is ever unpickled: a member is decoded by its known name alone.
"""

import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from pixel160k.errors import InputError
from pixel160k.format import masks, prompts, shards
from pixel160k.format.actions import ACTION_DIMENSIONS, chunk_mask
from pixel160k.format.metadata import Metadata
from pixel160k.format.prompts import Prompt
from pixel160k.format.table import Point

# What can be asked for, and the member of the tar that holds it. The JSON is always read.
MEMBERS = {
    "image": "jpg",
    "labels": "mask.png",
    "prompts": "json",
    "actions": "action.npy",
    "state": "state.npy",
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One step of one episode. What was not asked for is None, or empty. Arrays may be shared, and then are read-only.

    Attributes:
        key: the sample's key, `{episode_id}-{step:04d}`.
        episode_id: `{dataset}-{split}-{shard}-{record}` of the source.
        dataset: the data set's name, by which statistics are kept.
        step: the raw step within the episode.
        instruction: what the robot is told; "" where the source says nothing.
        target_object: the words of the object it is about; "" where none was found.
        status: "accepted" or "rejected".
        reason: why it was rejected, of the closed list `pixel160k.format.table.REASONS`; "" when accepted.
        image: RGB, uint8 (height, width, 3).
        labels: uint8 (height, width): 0 background, 1 gripper, 2 target object, 255 not annotated; where only one of
            the two classes is annotated, 0 says only that this one is not there: use `object_mask`, `gripper_mask`.
        prompts: points, a line, a region and a mask on the image of the step `metadata.prompt_step`, in its pixels;
            empty where the episode has none.
        actions: float32 (chunk, 7) in robot units: this step's action and those after it; past the episode's end zero
            motion with the gripper held.
        action_mask: bool (chunk,): which of the actions are the episode's own.
        state: proprioception, float32 (S,).
        metadata: the JSON member with everything else.
    """

    key: str
    episode_id: str
    dataset: str
    step: int
    instruction: str
    target_object: str
    status: str
    reason: str
    image: np.ndarray | None = field(repr=False)
    labels: np.ndarray | None = field(repr=False)
    prompts: tuple[Prompt, ...] = field(repr=False)
    actions: np.ndarray | None = field(repr=False)
    action_mask: np.ndarray | None = field(repr=False)
    state: np.ndarray | None = field(repr=False)
    metadata: Metadata = field(repr=False)

    @property
    def object_mask(self) -> np.ndarray | None:
        """The target object, bool (height, width); None where it is not annotated on this step.

        Raises:
            InputError: the labels were not asked for.
        """
        return self._mask(masks.TARGET, self.metadata.object_mask_valid)

    @property
    def gripper_mask(self) -> np.ndarray | None:
        """The gripper, bool (height, width); None where it is not annotated on this step.

        Raises:
            InputError: the labels were not asked for.
        """
        return self._mask(masks.GRIPPER, self.metadata.gripper_mask_valid)

    def _repr_html_(self) -> str:
        """What a notebook shows: the image with what is marked on it, and what is known of the sample."""
        from pixel160k.show.sample_html import sample_html

        return sample_html(self)

    def _mask(self, label: int, valid: bool) -> np.ndarray | None:
        if self.labels is None:
            raise InputError(f"{self.key} was read without its masks; ask for the member 'labels'")
        return self.labels == label if valid else None


def check_members(wanted: Collection[str]) -> frozenset[str]:
    """The members asked for, as a set.

    Raises:
        InputError: one of them does not exist.
    """
    names = frozenset([wanted] if isinstance(wanted, str) else wanted)
    if unknown := sorted(names - set(MEMBERS)):
        raise InputError(f"samples have no member {unknown[0]!r}; there are {', '.join(MEMBERS)}")
    return names


def check_chunk(chunk: int, horizon: int, where: str) -> None:
    """Check that shards of this horizon hold chunks as long as are asked for.

    Raises:
        InputError: they do not.
    """
    if not 1 <= chunk <= horizon:
        raise InputError(f"{where} holds {horizon} actions a sample; a chunk of {chunk} cannot be cut from that")


def decode(key: str, members: Mapping[str, bytes], wanted: Collection[str] = tuple(MEMBERS), chunk: int = 0) -> Sample:
    """Decode a sample.

    Args:
        key: the key that its members have in the tar.
        members: the bytes of each member by its suffix (`jpg`, `mask.png`, ...); others than those of the format are
            left alone.
        wanted: what of `MEMBERS` to decode.
        chunk: how many actions; 0 for all that there are.

    Raises:
        InputError: a member is missing or damaged; names the key and the member.
    """
    suffix = "json"
    try:
        values = json.loads(members["json"])
        if shards.sample_key(values["episode_id"], values["step"]) != key:
            raise InputError(f"it is of {values['episode_id']}, step {values['step']}")
        metadata = Metadata.unchecked(values)
        decoded: dict[str, Any] = {}
        if "prompts" in wanted:
            decoded["prompts"] = _prompts(metadata)
        if "image" in wanted:
            suffix = "jpg"
            decoded["image"] = _image(members[suffix])
        if "labels" in wanted:
            suffix = "mask.png"
            decoded["labels"] = _labels(members[suffix])
        if "actions" in wanted:
            suffix = "action.npy"
            actions = _floats(members[suffix], 2)
            if actions.shape[1] != ACTION_DIMENSIONS or len(actions) < chunk:
                raise InputError(f"its shape is {actions.shape}, not ({chunk or 'horizon'}, {ACTION_DIMENSIONS})")
            decoded["actions"] = actions[: chunk or None]
            decoded["action_mask"] = chunk_mask(metadata.step, metadata.last_step, len(decoded["actions"]))
        if "state" in wanted:
            suffix = "state.npy"
            decoded["state"] = _floats(members[suffix], 1)
        suffix = "json"
        texts = ("episode_id", "dataset", "step", "instruction", "target_object", "status", "reason")
        return Sample(
            key=key,
            metadata=metadata,
            **{name: values[name] for name in texts},
            **{"image": None, "labels": None, "prompts": (), "actions": None, "action_mask": None, "state": None}
            | decoded,
        )
    except (KeyError, TypeError, IndexError, ValueError, OSError, SyntaxError, EOFError, cv2.error) as error:
        fault = f"lacks {error}" if isinstance(error, KeyError) else f"{suffix} is damaged ({error})"
        raise InputError(f"{key}: {' '.join(fault.split())}") from None


def _image(jpeg: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None or not jpeg.rstrip(b"\0").endswith(b"\xff\xd9"):  # OpenCV makes the rest of a cut JPEG grey
        raise InputError("no image" if image is None else "the JPEG is cut")
    return image


@lru_cache(maxsize=8)  # where nothing is annotated, the bytes are the same at every step
def _labels(png: bytes) -> np.ndarray:
    labels = masks.decode_indexed_png(png)
    labels.flags.writeable = False
    return labels


def _floats(npy: bytes, dimensions: int) -> np.ndarray:
    """As np.load(allow_pickle=False) would read it, which spends its time on headers that are all the same."""
    begin = 10 + int.from_bytes(npy[8:10], "little")
    shape, fortran, dtype = _npy_header(npy[:begin])
    if dtype != np.float32 or len(shape) != dimensions or fortran:
        raise InputError(f"no float32 array of {dimensions} dimensions")
    return np.frombuffer(npy, np.float32, offset=begin).reshape(shape).copy()


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise InputError("no .npy file of version 1.0")
    return np.lib.format.read_array_header_1_0(file)


def _prompts(metadata: Metadata) -> tuple[Prompt, ...]:
    if metadata.prompt_step < 0:
        return ()
    points, line = (tuple((x, y) for x, y in ends) for ends in (metadata.points, metadata.line))
    height, width = metadata.object_mask["size"]
    return _episode_prompts(points, line, (height, width), metadata.object_mask["counts"])


@lru_cache(maxsize=64)  # an episode's samples all hold the same
def _episode_prompts(
    points: tuple[Point, ...], line: tuple[Point, ...], size: tuple[int, int], counts: str
) -> tuple[Prompt, ...]:
    """The visual prompts that the annotation job sampled, and the object's box and mask."""
    mask = masks.decode({"size": list(size), "counts": counts})
    mask.flags.writeable = False
    return (
        *(prompts.point(x, y) for x, y in points),
        prompts.line(line),
        prompts.region(masks.box_of(mask)),
        prompts.mask_prompt(mask),
    )

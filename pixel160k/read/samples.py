"""A sample as people use it: one step of one episode, decoded from the members of its tar; docs/format.md is the format.

Only what is asked for is decoded. Each member is decoded in the way that its name says, and nothing is ever unpickled.
"""

import io
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TypeVar

import cv2
import numpy as np
from pydantic import ValidationError

from pixel160k.errors import InputError, one_line
from pixel160k.format import masks, prompts, shards
from pixel160k.format.actions import ACTION_DIMENSIONS, chunk_mask
from pixel160k.format.metadata import Metadata
from pixel160k.format.prompts import Prompt
from pixel160k.format.schema import check_metadata
from pixel160k.format.table import Point
from pixel160k.read import foreign
from pixel160k.read.folder import explain

_Parsed = TypeVar("_Parsed")

# What can be asked for, and the member of the tar that holds it. The JSON is always read.
MEMBERS = {
    "image": "jpg",  # or png
    "labels": "mask.png",
    "prompts": "json",
    "actions": "action.npy",
    "state": "state.npy",
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One step of one episode. What was not asked for is None; prompts are then empty.

    Samples may share arrays; such arrays are read-only.

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
        labels: uint8 (height, width): 0 background, 1 gripper, 2 target object, 255 not annotated. Where only one of the
            two classes is annotated, 0 says nothing of the other: `object_mask` and `gripper_mask` are None for a class
            that is not annotated.
        prompts: points, a line, a region and a mask on the image of the step `metadata.prompt_step`, in its pixels;
            empty where the episode has none.
        actions: float32 (chunk, 7) in robot units: this step's action and those after it; past the episode's end zero
            motion with the gripper held.
        action_mask: bool (chunk,): which of the actions are the episode's own.
        state: proprioception, float32 (S,).
        metadata: the JSON member with everything else.
        history: RGB, uint8 (history, height, width, 3): the images of the steps before this one, oldest first. Before the
            episode's first valid step its image stands again and again, as in Octo and LeRobot (`octo.data.traj_transforms.
            chunk_act_obs`, `delta_timestamps`).
        history_valid: bool (history,): which of them are the episode's own.
        views: of each further camera that was asked for, by its name: RGB, uint8 of a height and width of its own; None
            where this episode does not have it. Labels, masks and prompts are on `image` alone.
        view_history: of each such camera what `history` is of the main one.
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
    history: np.ndarray | None = field(default=None, repr=False)
    history_valid: np.ndarray | None = field(default=None, repr=False)
    views: Mapping[str, np.ndarray | None] = field(default_factory=dict, repr=False)
    view_history: Mapping[str, np.ndarray | None] = field(default_factory=dict, repr=False)

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
    """The set of the members asked for, each of which must be one of `MEMBERS`.

    Raises:
        InputError: one of them is not; names those that there are.
    """
    names = frozenset([wanted] if isinstance(wanted, str) else wanted)
    if unknown := sorted(names - set(MEMBERS)):
        raise InputError(f"samples have no member {unknown[0]!r}; there are {', '.join(MEMBERS)}")
    return names


def check_chunk(chunk: int, horizon: int, where: str) -> None:
    """Check that chunks of this many actions can be cut from samples that hold `horizon` actions.

    Raises:
        InputError: they cannot; the message begins with `where`.
    """
    if not 1 <= chunk <= horizon:
        raise InputError(f"{where} holds {horizon} actions per sample; a chunk of {chunk} cannot be cut from that")


def check_cameras(wanted: Collection[str], known: Collection[str], where: str) -> tuple[str, ...]:
    """The further cameras asked for, each of which must be one of those known.

    Raises:
        InputError: one of them is not; the message begins with `where` and names those that there are.
    """
    names = (wanted,) if isinstance(wanted, str) else tuple(dict.fromkeys(wanted))
    if unknown := [name for name in names if name not in known]:
        there = f"there are {', '.join(known)}" if known else "`pixelcli build-shards --cameras` makes shards with some"
        raise InputError(f"{where} holds no further camera {unknown[0]!r}; {there}")
    return names


def check_history(history: int, members: Collection[str], cameras: Collection[str]) -> None:
    """Check that samples with these members and further cameras can have the images of so many steps before them.

    Raises:
        InputError: it is no such number, or images are not asked for.
    """
    if history < 0:
        raise InputError(f"history is a number of steps, 0 for none, not {history}")
    if history and "image" not in members and not cameras:
        raise InputError("history is of images; ask for the member 'image' too")


def decode(
    key: str,
    members: Mapping[str, bytes],
    wanted: Collection[str] = tuple(MEMBERS),
    chunk: int = 0,
    history: int = 0,
    past: Mapping[str, Mapping[str, bytes]] = MappingProxyType({}),
    cameras: Collection[str] = (),
) -> Sample:
    """Decode a sample from the bytes of its members.

    Args:
        key: the key that its members have in the tar.
        members: the bytes of each member by its suffix (`jpg`, `mask.png`, ...). Other members are left alone.
        wanted: what of `MEMBERS` to decode.
        chunk: how many actions; 0 for all that there are.
        history: of how many steps before it the images are wanted.
        past: of these steps the members of those that there are, by their keys, oldest first.
        cameras: further cameras whose images are wanted.

    Raises:
        InputError: a member is missing or damaged; names the key and the member.
    """

    def parse(suffix: str, parser: Callable[[bytes], _Parsed]) -> _Parsed:
        return _parse(key, members, suffix, parser)

    metadata = parse("json", lambda content: _metadata(content, key))
    actions = parse("action.npy", lambda content: _actions(content, chunk)) if "actions" in wanted else None
    steps = {**past, key: members}
    image, before = _images(steps, shards.image_member, history) if "image" in wanted else (None, None)
    views = {name: _images(steps, partial(shards.camera_member, camera=name), history) for name in cameras}
    return Sample(
        key=key,
        episode_id=metadata.episode_id,
        dataset=metadata.dataset,
        step=metadata.step,
        instruction=metadata.instruction,
        target_object=metadata.target_object,
        status=metadata.status,
        reason=metadata.reason,
        image=image,
        labels=parse("mask.png", _labels) if "labels" in wanted else None,
        prompts=parse("json", lambda _: _prompts(metadata)) if "prompts" in wanted else (),
        actions=actions,
        action_mask=None if actions is None else chunk_mask(metadata.step, metadata.last_step, len(actions)),
        state=parse("state.npy", lambda content: _floats(content, 1)) if "state" in wanted else None,
        metadata=metadata,
        history=before,
        history_valid=np.arange(history) >= history - len(past) if history else None,
        views={name: view for name, (view, _) in views.items()},
        view_history={name: seen for name, (_, seen) in views.items()} if history else {},
    )


def _parse(key: str, members: Mapping[str, bytes], suffix: str, parser: Callable[[bytes], _Parsed]) -> _Parsed:
    if suffix not in members:
        raise InputError(f"{key}: lacks {suffix!r}")
    try:
        return parser(members[suffix])
    except InputError as error:
        raise InputError(f"{key}: {suffix} is damaged ({one_line(error)})") from None


def _images(
    steps: Mapping[str, Mapping[str, bytes]], member_of: Callable[[Mapping[str, bytes]], str], history: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A camera's image at the last of these steps, and those before it: uint8 (history, height, width, 3); None without history.

    Where the steps are fewer, the first of all comes again. None and None: the last step has no such member.
    """
    key, members = list(steps.items())[-1]
    if not (name := member_of(members)):
        return None, None
    *before, image = (_parse(step, of, member_of(of) or name, _image) for step, of in steps.items())
    if not history:
        return image, None
    if {frame.shape for frame in before} - {image.shape}:
        raise InputError(f"{key}: the images before it are of another size; `pixelcli verify` says more")
    first = before[0] if before else image
    return image, np.stack([*[first] * (history - len(before)), *before])


def _metadata(content: bytes, key: str) -> Metadata:
    try:
        metadata = check_metadata(content)
    except ValidationError as error:
        raise InputError(explain(error)[0]) from None
    if shards.sample_key(metadata.episode_id, metadata.step) != key:
        raise InputError(f"it is of {metadata.episode_id}, step {metadata.step}")
    return metadata


def _image(encoded: bytes) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # of no bytes, or of too large an image
        raise InputError(f"no image: {one_line(error)}") from None
    if image is None:
        raise InputError("no image")
    end = b"\xff\xd9" if encoded.startswith(b"\xff\xd8") else b"IEND\xaeB`\x82"
    if not encoded.rstrip(b"\0").endswith(end):  # OpenCV makes the rest of a cut image grey
        raise InputError("the image is cut")
    return image


@lru_cache(maxsize=8)  # where nothing is annotated, the bytes are the same at every step
def _labels(png: bytes) -> np.ndarray:
    labels = foreign.decode_labels(png)
    labels.flags.writeable = False
    return labels


def _actions(npy: bytes, chunk: int) -> np.ndarray:
    actions = _floats(npy, 2)
    if actions.shape[1] != ACTION_DIMENSIONS or len(actions) < chunk:
        raise InputError(f"its shape is {actions.shape}, not ({chunk or 'horizon'}, {ACTION_DIMENSIONS})")
    return actions[: chunk or None]


def _floats(npy: bytes, dimensions: int) -> np.ndarray:
    """A float32 array as `foreign.decode_array` reads it, which spends its time on headers that are all the same."""
    begin = 10 + int.from_bytes(npy[8:10], "little")
    shape = _npy_shape(npy[:begin])
    if len(shape) != dimensions or len(npy) - begin != 4 * math.prod(shape):
        raise InputError(f"no float32 array of {dimensions} dimensions")
    return np.frombuffer(npy, np.float32, offset=begin).reshape(shape).copy()


@lru_cache(maxsize=64)
def _npy_shape(header: bytes) -> tuple[int, ...]:
    """The shape that a `.npy` header says, of an array of float32 in C order without its values."""
    file = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise InputError("no .npy file of version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except foreign.ARRAY_ERRORS as error:
        raise InputError(one_line(error)) from None
    if dtype != np.float32 or fortran:
        raise InputError(f"no float32 array in C order but {dtype}{' in Fortran order' if fortran else ''}")
    return shape


def _prompts(metadata: Metadata) -> tuple[Prompt, ...]:
    if metadata.prompt_step < 0:
        return ()
    points, line = (tuple(map(tuple, ends)) for ends in (metadata.points, metadata.line))
    height, width = metadata.object_mask["size"]
    return _episode_prompts(points, line, (height, width), metadata.object_mask["counts"])


@lru_cache(maxsize=64)  # all samples of an episode hold the same
def _episode_prompts(
    points: tuple[Point, ...], line: tuple[Point, ...], size: tuple[int, int], counts: str
) -> tuple[Prompt, ...]:
    """The visual prompts that the annotation job sampled, and the object's box and mask."""
    mask = foreign.decode_rle({"size": list(size), "counts": counts})
    mask.flags.writeable = False
    return (
        *(prompts.point(x, y) for x, y in points),
        prompts.line(line),
        prompts.region(masks.box_of(mask)),
        prompts.mask_prompt(mask),
    )

"""One episode, the same form for every source: the rest of the project sees robot data in no other form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from annotate.sources import frames
from pixel160k.errors import InputError, one_line


class BadImage(InputError):
    """A frame that is missing, blank, of another size, or not the same picture to every reader; says which step and why."""


class Published(NamedTuple):
    """A frame as shards hold it: JPEG or PNG, RGB of 8 bits; `was` says what it was where it had to be converted, else ""."""

    image: bytes
    was: str


@dataclass(frozen=True)
class RecordId:
    """Which record of a data set an episode is, and that record's checksum: by it another copy of the data is noticed."""

    episode_id: str  # {dataset}-{split}-{shard:05d}-{record:05d}
    dataset: str
    split: str
    shard: int
    record: int
    record_crc32c: int  # masked CRC32C from the TFRecord frame


@dataclass(frozen=True)
class Grasp:
    """From a close of the gripper to its next opening, as the states tell it; all are raw steps.

    Attributes:
        close: the first step that is closed.
        release: the next step that is open; T where none is.
        lift: the first step, the gripper still closed, at which the end effector is away from where it closed; −1: none.
        holds: whether the fingers, from the lift to the release, stay apart; None where the source does not tell.
    """

    close: int
    release: int
    lift: int
    holds: bool | None


@dataclass(frozen=True)
class Episode:
    """An episode of T raw steps; everything is indexed by the raw step, whether that step is valid or not.

    Attributes:
        images: T encoded frames of the chosen camera, the source's own bytes, JPEG or PNG; decoded only by `frame`.
        actions: float32 (T, 7): Δx, Δy, Δz, Δroll, Δpitch, Δyaw in the source's units, gripper in [0, 1] with 1 = open.
        gripper_open: bool (T,), the gripper's absolute commanded state, over all raw steps.
        state: float32 (T, S); the first three are the end effector's x, y, z in metres.
        finger_opening: float32 (T,), how far the fingers are apart as measured, not as commanded, in any unit; 0: they meet.
            None where the source does not say.
        first_step, last_step: the valid raw steps, both included; empty where last_step < first_step.
        viewpoint: episodes of one file with the same viewpoint see the same scene from the same camera.
        base_moves: the robot's base drives during the episode, so the camera does too.
        views: of each further camera that was asked for T encoded frames, or why the record does not hold them.
    """

    identity: RecordId
    native_id: str
    camera: str
    viewpoint: str
    instruction: str
    images: Sequence[bytes]
    actions: np.ndarray
    gripper_open: np.ndarray
    state: np.ndarray
    first_step: int
    last_step: int
    base_moves: bool = False
    finger_opening: np.ndarray | None = None
    views: Mapping[str, Sequence[bytes] | InputError] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Number of raw steps."""
        return len(self.images)

    @property
    def fingers_contradict(self) -> bool:
        """Whether the measured fingers are clearly nearer to each other where the gripper is told to be open than elsewhere.

        That is no gripper that is slow, or held apart by what it holds: its actions mean the opposite of what was read.
        """
        opening, told = self.finger_opening, self.gripper_open
        if opening is None or told.all() or not told.any() or _is_still(opening):
            return False
        return bool(opening[told].mean() < opening[~told].mean() - 0.3 * np.ptp(opening))

    @cached_property
    def close_steps(self) -> list[int]:
        """The raw steps at which the gripper goes from open to closed."""
        return [int(step) + 1 for step in np.flatnonzero(self.gripper_open[:-1] & ~self.gripper_open[1:])]

    def grasps(self, lift_distance: float, least_opening: float) -> list[Grasp]:
        """One `Grasp` per close, in their order.

        Args:
            lift_distance: metres from its place at the close at which the end effector counts as away.
            least_opening: share of the episode's widest opening; fingers nearer to each other hold nothing.
        """
        opening, found = self.finger_opening, []
        if opening is not None and _is_still(opening):
            opening = None
        for close in self.close_steps:
            opened = np.flatnonzero(self.gripper_open[close:])
            release = close + int(opened[0]) if len(opened) else self.num_steps
            places = self.state[close : release + 1, :3]  # at the release the gripper is still closed
            away = np.flatnonzero(np.linalg.norm(places - places[0], axis=1) > lift_distance)
            lift = close + int(away[0]) if len(away) else -1
            holds = None
            if opening is not None:
                held = opening[lift : release + 1] if lift >= 0 else opening[min(release, self.num_steps - 1)]
                holds = bool(np.median(held) > least_opening * opening.max())
            found.append(Grasp(close, release, lift, holds))
        return found

    def check_sizes(self) -> None:
        """Check, without decoding, that the frames of all raw steps are of one size; those without a size are left out.

        Raises:
            BadImage: one has another size than that of the first valid step.
        """
        first = self._size(self.first_step)
        for step in range(self.num_steps):
            if first and (size := self._size(step)) and size != first:
                raise BadImage(_other_size(step, size, f"that of step {self.first_step}", first))

    def _size(self, step: int) -> tuple[int, int] | None:
        """Height and width of a frame in pixels, as its header has them; None where it has none."""
        try:
            header = frames.read_header(self.images[step])
        except InputError:
            return None
        return header.height, header.width

    def frame(self, step: int) -> np.ndarray:
        """Decode the frame of a raw step to RGB, uint8 (height, width, 3).

        Raises:
            BadImage: it cannot be published (`frames.look`), or is blank (one colour, as Bridge's missing cameras are).
        """
        data = self.images[step]
        _look(data, step)
        if (image := frames.decode(data)) is None:
            raise BadImage(f"step {step}: the frame does not decode")
        if _is_blank(image):
            raise BadImage(f"step {step}: the frame is blank")
        return image

    def published(self, step: int, size: tuple[int, int]) -> Published:
        """The frame of a raw step as shards hold it; it is not decoded but where `frames.look` has to.

        Args:
            step: the raw step.
            size: height and width in pixels that it must have.

        Raises:
            BadImage: it cannot be published, or has another size.
        """
        return _published(self.images[step], step, size, "the annotated one")

    def view(self, camera: str) -> list[Published] | None:
        """The frames of a further camera at the valid steps, of which there are some, as shards hold them.

        None where its frames at the first, the middle and the last of them are blank: so records of Bridge hold a camera
        that was not there, whatever their `has_image_k` say.

        Raises:
            BadImage: one cannot be published, they differ in size, or the record does not hold them.
        """
        images = self.views[camera]
        if isinstance(images, InputError):
            raise BadImage(one_line(images))
        steps = range(self.first_step, self.last_step + 1)
        first = _look(images[steps[0]], steps[0])
        some = (frames.decode(images[step]) for step in (steps[0], steps[len(steps) // 2], steps[-1]))
        if all(image is not None and _is_blank(image) for image in some):
            return None
        size = first.height, first.width
        return [_published(images[step], step, size, f"that of step {self.first_step}") for step in steps]


def _is_blank(image: np.ndarray) -> bool:
    """Whether an image shows one colour; every eighth pixel tells that, at a fraction of the time."""
    few = image[::8, ::8]
    return int(few.max()) - int(few.min()) < 8


def _published(data: bytes, step: int, size: tuple[int, int], what: str) -> Published:
    """A frame as shards hold it. Raises BadImage: it cannot be published, or has not the size, which is that of `what`."""
    found = _look(data, step)
    if (found.height, found.width) != size:
        raise BadImage(_other_size(step, (found.height, found.width), what, size))
    return Published(frames.rgb_png(data) if found.kind else data, found.kind)


def _is_still(opening: np.ndarray) -> bool:
    """Whether a reading of the fingers never moves, and so tells nothing."""
    return bool(np.ptp(opening) <= 0.05 * opening.max())


def _look(data: bytes, step: int) -> frames.Look:
    try:
        return frames.look(data)
    except InputError as error:
        raise BadImage(f"step {step}: {one_line(error)}") from None


def _other_size(step: int, found: tuple[int, int], what: str, expected: tuple[int, int]) -> str:
    return f"step {step}: the frame is {found[1]}x{found[0]}, {what} {expected[1]}x{expected[0]}"

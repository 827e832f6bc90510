"""One episode, the same form for every source: the rest of the project sees robot data in no other form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from pixel160k.errors import InputError


class BadImage(InputError):
    """A frame that is missing, blank, of another size or does not decode; says which step and why."""


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
        images: T encoded frames of the chosen camera, the source's own JPEG bytes; decoded only by `frame`.
        actions: float32 (T, 7): Δx, Δy, Δz, Δroll, Δpitch, Δyaw in the source's units, gripper in [0, 1] with 1 = open.
        gripper_open: bool (T,), the gripper's absolute commanded state, over all raw steps.
        state: float32 (T, S); the first three are the end effector's x, y, z in metres.
        finger_opening: float32 (T,), how far the fingers are apart as measured, not as commanded, in any unit; 0: they meet.
            None where the source does not say.
        first_step, last_step: the valid raw steps, both included; empty where last_step < first_step.
        viewpoint: episodes of one file with the same viewpoint see the same scene from the same camera.
        base_moves: the robot's base drives during the episode, so the camera does too.
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

    @property
    def num_steps(self) -> int:
        """Number of raw steps."""
        return len(self.images)

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
        if opening is not None and np.ptp(opening) <= 0.05 * opening.max():
            opening = None  # a reading that never moves tells nothing
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
        first = _jpeg_size(self.images[self.first_step])
        for step, image in enumerate(self.images):
            if first and (size := _jpeg_size(image)) and size != first:
                raise BadImage(f"step {step}: the frame has another size than that of step {self.first_step}")

    def frame(self, step: int) -> np.ndarray:
        """Decode the frame of a raw step to RGB, uint8 (height, width, 3).

        Raises:
            BadImage: it is not a whole JPEG, does not decode, or is blank (one colour, as Bridge's missing cameras are).
        """
        data = self.images[step]
        check_jpeg(data, step)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:  # such as a header that claims more pixels than OpenCV decodes
            image = None
        if image is None:
            raise BadImage(f"step {step}: the JPEG does not decode")
        few = image[::8, ::8]  # enough to tell a picture from a blank, at a fraction of the time
        if int(few.max()) - int(few.min()) < 8:
            raise BadImage(f"step {step}: the frame is blank")
        return image


def check_jpeg(data: bytes, step: int) -> None:
    """Check cheaply, without decoding, that the bytes of a frame begin and end as a JPEG does.

    Raises:
        BadImage: they do not.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        raise BadImage(f"step {step}: the frame is {'empty' if not data else 'no JPEG'}")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise BadImage(f"step {step}: the JPEG is cut short")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as a JPEG's header has them, in pixels; None where it has none."""
    offset = 2  # after the marker that begins a JPEG
    while offset + 9 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF0 to SOF15, without DHT, JPG and DAC
            return int.from_bytes(data[offset + 5 : offset + 7]), int.from_bytes(data[offset + 7 : offset + 9])
        # 0xFF may be repeated before a marker.
        offset += 1 if marker == 0xFF else 2 + int.from_bytes(data[offset + 2 : offset + 4])
    return None

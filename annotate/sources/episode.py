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
class Episode:
    """An episode of T raw steps; everything is indexed by the raw step, whether that step is valid or not.

    Attributes:
        images: T encoded frames of the chosen camera, the source's own JPEG bytes; decoded only by `frame`.
        actions: float32 (T, 7): Δx, Δy, Δz, Δroll, Δpitch, Δyaw in the source's units, gripper in [0, 1] with 1 = open.
        gripper_open: bool (T,), the gripper's absolute commanded state, over all raw steps.
        state: float32 (T, S); the first three are the end effector's x, y, z in metres.
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

    @property
    def num_steps(self) -> int:
        """Number of raw steps."""
        return len(self.images)

    @cached_property
    def close_step(self) -> int:
        """The first raw step at which the gripper goes from open to closed; −1 where it never does."""
        closing = np.flatnonzero(self.gripper_open[:-1] & ~self.gripper_open[1:])
        return int(closing[0]) + 1 if len(closing) else -1

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

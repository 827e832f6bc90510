"""Parsers of bytes that nobody vouches for: tars, images, arrays and masks that came from anywhere.

Each calls one library on those bytes and turns the failures of that library into `InputError`. So whoever uses these
functions need not catch anything else, and an error of our own is never taken for damaged data. Nothing is unpickled.
"""

import io
import struct
import tarfile
import tokenize
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image

from pixel160k.errors import InputError, one_line
from pixel160k.format import masks

# What Pillow and NumPy raise on damaged bytes; fuzzing found no other.
_IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, MemoryError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
ARRAY_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, OverflowError, MemoryError, RecursionError,
    tokenize.TokenError,
)  # fmt: skip


def tar_members(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of an uncompressed tar in their order, each with its bytes; b"" for one that is no regular file.

    Raises:
        InputError: the bytes are no tar, or break off; members before the damage are yielded first.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and member.offset_data + member.size > length:
                    raise InputError("unexpected end of data")  # before a damaged size asks for any memory
                content = tar.extractfile(member) if member.isreg() else None
                yield member, content.read() if content else b""
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise InputError(one_line(error)) from None


def decode_image(content: bytes, form: Literal["JPEG", "PNG"]) -> Image.Image:
    """Decode an image of this form completely, as Pillow has it: a cut one is an error.

    Raises:
        InputError: the bytes are no such image.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=[form])
        image.load()
    except _IMAGE_ERRORS as error:
        raise InputError(one_line(error)) from None
    return image


def decode_picture(content: bytes, form: Literal["JPEG", "PNG"]) -> tuple[Image.Image, str]:
    """Decode an image and say what it is: "" for RGB of 8 bits a channel, which every reader sees alike.

    Else it is "grey", "palette" or "opaque alpha": it stands for an RGB picture, but readers give it other channels.

    Raises:
        InputError: the bytes are no such image, or readers see different pictures in it (it lies on its side by its EXIF
            data, is transparent, has other colours or more bits, holds several pictures); says which.
    """
    image = decode_image(content, form)
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _IMAGE_ERRORS:
        raise InputError("its EXIF data is damaged") from None
    if turned in range(2, 9):
        raise InputError(f"its EXIF orientation is {turned}, which not every reader applies")
    if getattr(image, "n_frames", 1) > 1:
        raise InputError("it holds several pictures")
    if form == "PNG" and content[24] > 8:  # of which Pillow says nothing
        raise InputError(f"it has {content[24]} bits a channel, not 8")
    kinds = {"RGB": "", "L": "grey", "1": "grey", "LA": "grey", "P": "palette", "RGBA": "opaque alpha"}
    if image.mode not in kinds:
        raise InputError(f"its colours are {image.mode}, not RGB")
    if not image.has_transparency_data:
        return image, kinds[image.mode]
    if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError("it is transparent")
    return image, kinds[image.mode] or "opaque alpha"


def decode_labels(png: bytes) -> np.ndarray:
    """Decode the indexed PNG of a `.mask.png` member to its label image, uint8 (height, width).

    Raises:
        InputError: the bytes are no PNG, or none with a palette.
    """
    image = decode_image(png, "PNG")
    if image.mode != "P":
        raise InputError(f"the mask is no indexed image but {image.mode}")
    return np.asarray(image)


def decode_array(npy: bytes) -> np.ndarray:
    """Decode a `.npy` file of any shape and type but Python objects.

    Raises:
        InputError: the bytes are no such file.
    """
    try:
        return np.lib.format.read_array(io.BytesIO(npy), allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise InputError(one_line(error)) from None


def decode_rle(rle: masks.RLE) -> np.ndarray:
    """Decode a run-length encoded mask to bool (height, width).

    pycocotools does not check its input and would write beyond the mask, so the runs are added up before.

    Raises:
        InputError: its runs are not as long as `size` says, or `counts` is no text of COCO's form.
    """
    height, width = rle["size"]
    if not _covers(rle["counts"].encode("utf-8"), height * width):
        raise InputError(f"no RLE of a mask of {width}x{height}")
    return masks.decode(rle)


def _covers(counts: bytes, pixels: int) -> bool:
    """Whether COCO's compressed counts are run lengths, none negative, that add up to this number of pixels.

    Each number is written in groups of five bits, the lowest first: bit 5 says that another group follows, bit 4 of the
    last group is the sign. From the fourth on it is the difference to the length of the run two before.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return pixels == 0
    last = codes & 32 == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return False
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    group = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if group.max() > 6:  # beyond 32 bits
        return False
    lengths = np.add.reduceat((codes & 31) << 5 * group, starts)
    lengths -= np.where(codes[ends] & 16, 1 << 5 * (group[ends] + 1), 0)
    lengths[1::2] = lengths[1::2].cumsum()
    lengths[2::2] = lengths[2::2].cumsum()
    return bool(lengths.min() >= 0 and lengths.sum() == pixels)

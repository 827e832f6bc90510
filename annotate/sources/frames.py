"""The frames of a source as bytes: how large they are by their header, and which can be published, and as what.

A frame is published where every reader sees the same picture: Pillow and OpenCV decode it to the same RGB pixels of 8 bits.
A JPEG or PNG of that kind passes through as it is. What stands for such a picture without being one (grey, a palette, an
alpha channel that hides nothing) becomes an RGB PNG of the very pixels. All else is refused, and the cause said.

To decode every frame would take far longer than to copy it, and is not needed: whether a decoder takes a frame, and as what,
follows from what precedes its pixels. So the first frame with a given head is decoded by both; those that follow with the same
head are not, as long as their pixels stand as the form asks, without a marker among them, or with sound checksums. The codes of a
JPEG's Huffman tables do not count as long as they are sound: some encoders make them anew for every picture.
"""

import io
import re
import zlib
from functools import lru_cache
from operator import lshift
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from pixel160k.errors import InputError, one_line
from pixel160k.read import foreign

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # among a JPEG's pixels only restarts and escaped bytes may follow 0xFF
_MOST_PIXELS = 1 << 26  # what claims more is damaged, or no robot's camera took it
_PLACES = range(15, -1, -1)  # of codes of 1 to 16 bits: how many of 16 bits begin with each, as a power of 2
_HEADS = 1000  # that are remembered; with one encoder there are few

_known: dict[bytes, str] = {}  # head -> `Look.kind` of the frames that begin with it


class Header(NamedTuple):
    """What a frame's bytes say before its pixels, which begin at `pixels`; height and width are in pixels."""

    form: Literal["JPEG", "PNG"]
    height: int
    width: int
    pixels: int


class Look(NamedTuple):
    """A frame that can be published; `kind` is "" for one that passes through, else what it is instead of RGB."""

    height: int
    width: int
    kind: str


def read_header(data: bytes) -> Header:
    """Read a frame's header; its pixels are not looked at.

    Raises:
        InputError: it is neither JPEG nor PNG, or its header is damaged.
    """
    if data.startswith(_JPEG):
        header = _jpeg_header(data)
    elif data.startswith(_PNG):
        header = _png_header(data)
    else:
        raise InputError("the frame is neither JPEG nor PNG" if data else "the frame is empty")
    if header is None or not 0 < header.height * header.width <= _MOST_PIXELS:
        raise InputError(f"the header of the {'JPEG' if data.startswith(_JPEG) else 'PNG'} is damaged")
    return header


def _jpeg_header(data: bytes) -> Header | None:
    size, offset = (0, 0), 2  # after the marker that begins a JPEG
    while offset + 9 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF0 to SOF15, without DHT, JPG and DAC
            size = int.from_bytes(data[offset + 5 : offset + 7]), int.from_bytes(data[offset + 7 : offset + 9])
        # 0xFF may be repeated before a marker.
        offset += 1 if marker == 0xFF else 2 + length
        if marker == 0xDA:
            return Header("JPEG", *size, offset)
    return None


def _png_header(data: bytes) -> Header | None:
    offset = len(_PNG)
    while offset + 8 <= len(data):
        if data[offset + 4 : offset + 8] == b"IDAT" and data[12:16] == b"IHDR":
            return Header("PNG", int.from_bytes(data[20:24]), int.from_bytes(data[16:20]), offset)
        offset += 12 + int.from_bytes(data[offset : offset + 4])  # length, name, contents, checksum
    return None


def look(data: bytes) -> Look:
    """Look at a frame's bytes: whether they are whole, and what every reader sees.

    Raises:
        InputError: it cannot be published; says why.
    """
    if data.startswith(_JPEG) and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise InputError("the JPEG is cut short")
    header = read_header(data)
    plain = _plain_jpeg(data, header.pixels) if header.form == "JPEG" else _plain_png(data, header.pixels)
    head = _without_codes(data[: header.pixels]) if header.form == "JPEG" else data[: header.pixels]
    kind = _known.get(head) if plain else None
    if kind is None:
        kind = _decoded_kind(data, header)
        if plain:
            if len(_known) >= _HEADS:
                _known.clear()
            _known[head] = kind
    return Look(header.height, header.width, kind)


def _plain_jpeg(data: bytes, pixels: int) -> bool:
    """Whether one scan and nothing else follows the head: then no decoder does more than guess at damaged pixels."""
    return _MARKER.search(data, pixels, len(data.rstrip(b"\0")) - 2) is None


@lru_cache(maxsize=8)  # encoders with the same tables for every picture make the same head each time
def _without_codes(head: bytes) -> bytes:
    """A JPEG's head in which sound Huffman tables are cut down to their numbers."""
    parts, offset = [], 2
    while offset < len(head):
        marker, end = head[offset + 1], offset + 2 + int.from_bytes(head[offset + 2 : offset + 4])
        if marker == 0xFF:  # may be repeated
            offset += 1
            continue
        tables = _table_numbers(head[offset + 4 : end]) if marker == 0xC4 else None
        parts.append(head[offset:end] if tables is None else b"\xff\xc4" + tables)
        offset = end
    return b"".join(parts)


def _table_numbers(segment: bytes) -> bytes | None:
    """The numbers of the Huffman tables in a DHT segment; None where libjpeg would refuse one (get_dht,
    jpeg_make_d_derived_tbl): codes must fit into their lengths, none all ones, and differences have at most 15 bits.
    """
    numbers, offset = bytearray(), 0
    while offset < len(segment):
        number, counts = segment[offset], segment[offset + 1 : offset + 17]
        symbols = segment[offset + 17 : offset + 17 + sum(counts)]
        if number & 0xEC or len(counts) < 16 or not len(symbols) == sum(counts) <= 256:
            return None
        if sum(map(lshift, counts, _PLACES)) >= 1 << 16:  # a code of length n takes up 1 of 2 ** n places
            return None
        if number < 16 and max(symbols, default=0) > 15:
            return None
        numbers.append(number)
        offset += 17 + len(symbols)
    return bytes(numbers)


def _plain_png(data: bytes, offset: int) -> bool:
    """Whether pixels and nothing else follow the head. Raises InputError where they are cut or a checksum is wrong."""
    view, plain = memoryview(data), True
    while offset + 12 <= len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4])
        if end > len(data):
            break
        if zlib.crc32(view[offset + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise InputError("the PNG is damaged: a checksum is wrong")
        if data[offset + 4 : offset + 8] == b"IEND":
            return plain and not any(data[end:])
        plain = plain and data[offset + 4 : offset + 8] == b"IDAT"
        offset = end
    raise InputError("the PNG is cut short")


def _decoded_kind(data: bytes, header: Header) -> str:
    """Decode a frame by Pillow and OpenCV; returns `Look.kind`, InputError where they do not see the same."""
    try:
        image, kind = foreign.decode_picture(data, header.form)
    except InputError as error:
        raise InputError(f"the {header.form} is unusable: {one_line(error)}") from None
    pixels = np.asarray(image.convert("RGB"), np.int16)
    found = decode(data)
    # Decoders may round otherwise: by a level here and there, never by one on average.
    if found is None or found.shape != pixels.shape or np.abs(pixels - found).mean() > 1:
        raise InputError(f"the {header.form} is unusable: OpenCV and Pillow see different pixels")
    if pixels.shape[:2] != (header.height, header.width):
        raise InputError(f"the header of the {header.form} is damaged")
    return kind


def decode(data: bytes) -> np.ndarray | None:
    """The RGB pixels of a frame, uint8 (height, width, 3), as OpenCV decodes them; None where it does not."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # such as a header that claims more pixels than OpenCV decodes
        return None


def rgb_png(data: bytes) -> bytes:
    """The RGB PNG of a frame that stands for an RGB picture: the very pixels, and nothing else of what it holds."""
    buffer = io.BytesIO()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()

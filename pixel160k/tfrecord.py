"""TFRecord framing with its checksums: read record by record and written without TensorFlow.

A record is `length (uint64 LE), masked CRC32C of it, payload, masked CRC32C of the payload`
(tensorflow/core/lib/io/record_writer.h). Damage is reported where it is found, so that one bad
record costs one record and not its file.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from pixel160k.paths import AnyPath, open_path
from pixel160k.stores import StorePath

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


class Record(NamedTuple):
    """One record of a file: its number, its payload, its CRC32C as stored, and what is wrong ("" when sound)."""

    number: int
    payload: bytes
    masked_crc32c: int
    fault: str


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: CRC32C rotated right by 15 bits plus a constant, as uint32."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: str | AnyPath) -> Iterator[Record]:
    """Yield the records of one file in order, each verified.

    A payload with a wrong checksum is yielded with its fault and reading goes on. Where the framing itself is broken
    (a cut file, a wrong length checksum) nothing after it can be trusted: a last record with the fault ends the file.
    """
    path = open_path(path)
    remaining = path.stat().st_size
    with path.open("rb") if isinstance(path, StorePath) else open(path, "rb", buffering=1 << 20) as file:
        number = 0
        while header := file.read(_HEADER.size):
            remaining -= _HEADER.size
            if len(header) < _HEADER.size:
                yield Record(number, b"", 0, "the file ends inside a record header")
                return
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                yield Record(number, b"", 0, "the length checksum does not match")
                return
            if length + _FOOTER.size > remaining:  # checked before reading: a damaged length may ask for any memory
                yield Record(number, b"", 0, "the file ends inside a record")
                return
            payload = file.read(length)
            (crc,) = _FOOTER.unpack(file.read(_FOOTER.size))
            remaining -= length + _FOOTER.size
            fault = "" if masked_crc32c(payload) == crc else "the payload checksum does not match"
            yield Record(number, payload, crc, fault)
            number += 1


def write_records(path: str | Path, payloads: Iterable[bytes]) -> int:
    """Write the payloads as one TFRecord file and return how many there were."""
    count = 0
    with open(path, "wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _FOOTER.pack(masked_crc32c(length)))
            file.write(payload)
            file.write(_FOOTER.pack(masked_crc32c(payload)))
            count += 1
    return count

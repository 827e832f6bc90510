"""Members of a tar as `tarfile` writes and reads them, byte for byte, in a twentieth of its time.

A header is 512 bytes, of which only the name, the size and the checksum differ from member to member. `tarfile` makes each
anew, in more time than it takes to copy and to hash a whole sample.
"""

import tarfile
from functools import cache

OWNER = "pixelvla"
_BLOCK = tarfile.BLOCKSIZE
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # of a ustar header
_TYPE, _PREFIX, _NO_PREFIX = slice(156, 157), slice(345, 500), bytes(155)  # the prefix begins a long name


def member(name: str, content: bytes) -> bytes:
    """A regular file in a tar: header, content, and zeros up to a whole block. Its time and owner are always the same."""
    return b"".join((_header(name, len(content)), content, bytes(-len(content) % _BLOCK)))


def end(length: int) -> bytes:
    """What ends a tar whose members are this long together: two blocks of zeros, and more up to a whole record."""
    return bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % tarfile.RECORDSIZE)


def read_header(header: bytes) -> tuple[str, int] | None:
    """The name and the size in bytes of a regular file, from its header of 512 bytes.

    None: `tarfile` has to be asked, since it is something else (a long name, a link, a folder), damaged, or cut.
    """
    checksum = header[_CHECKSUM]
    try:
        name = header[_NAME].partition(b"\0")[0].decode("ascii")
        size, summed = int(header[_SIZE].strip(b"\0 "), 8), int(checksum.strip(b"\0 "), 8)
    except ValueError:
        return None
    plain = header[_TYPE] == tarfile.REGTYPE and header[_PREFIX] == _NO_PREFIX and size >= 0
    return (name, size) if plain and sum(header) - sum(checksum) + 8 * ord(" ") == summed else None


def _header(name: str, size: int) -> bytes:
    encoded, length = name.encode("ascii"), b"%011o\0" % size
    if len(encoded) > 100 or len(length) > 12:  # these need an extended header
        return _by_tarfile(name, size)
    before, middle, after, summed = _blank()
    checksum = b"%06o\0 " % (summed + sum(encoded) + sum(length))
    return b"".join((encoded.ljust(100, b"\0"), before, length, middle, checksum, after))


@cache
def _blank() -> tuple[bytes, bytes, bytes, int]:
    """What stands between name, size and checksum, and after them, in a header; the sum that its checksum begins with."""
    blank = bytearray(_by_tarfile("", 0))
    blank[_SIZE], blank[_CHECKSUM] = bytes(12), b" " * 8  # a checksum is of a header that holds spaces in its place
    header = bytes(blank)
    before, middle = header[_NAME.stop : _SIZE.start], header[_SIZE.stop : _CHECKSUM.start]
    return before, middle, header[_CHECKSUM.stop :], sum(header)


def _by_tarfile(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.uname, header.gname = size, 0o444, OWNER, OWNER
    return header.tobuf(tarfile.PAX_FORMAT)

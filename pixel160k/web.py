"""Files of web servers over connections that may drop: what came is kept, and the next connection asks for the rest.

Connections are fsspec's; fsspec itself begins anew where one drops, or says that there is no such file.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

_PIECE = 1 << 18  # bytes that are taken from a connection at once
_SMALLEST = 1 << 9  # bytes that a connection is asked for at least, where connections drop
_WHOLE_ONLY = "this server gives whole files only; read with cache_dir=, or copy the folder"

Connect = Callable[[int, int | None], AbstractContextManager[Any]]
"""Opens a file from one byte to before another, or to its end: fsspec's stream, whose `r` is aiohttp's response.

What fails raises OSError, with EIO where it may be the connection's fault, with ERANGE where the file has no such bytes.
"""


def pieces(connect: Connect, name: str, start: int, stop: int | None) -> Iterator[bytes]:
    """The bytes from `start` to before `stop`, or to the end, in pieces as they come.

    Raises:
        OSError: the file cannot be had, five connections in a row brought nothing, or one dropped and the server gives
            no parts of files; names the file.
    """
    tries = _Tries()
    span: int | None = None  # bytes to ask for; None: all
    while stop is None or start < stop:
        before = start
        try:
            with connect(start, stop if span is None else start + span) as stream:
                whole = stream.r.status != 206
                if start and whole:
                    raise OSError(errno.ENOTSUP, _WHOLE_ONLY, name)
                said = stream.r.headers.get("Content-Length") if whole else _total(stream)
                stop = int(said) if stop is None and said else stop
                while (stop is None or start < stop) and (piece := stream.read(_PIECE)):
                    piece = piece if stop is None else piece[: stop - start]
                    start += len(piece)
                    yield piece
            if stop is None:
                return
            if start == before:
                raise OSError(errno.EIO, f"the connection ended at byte {start} of {stop}", name)
            tries, span = _Tries(), None if span is None else 2 * span
        except OSError as error:
            # aiohttp throws away what came just before a connection dropped. To ask for less is to get something.
            tries = tries if start == before else _Tries()
            span = max(_SMALLEST, (span or _PIECE) // 4)
            tries.failed(error)


def size(connect: Connect) -> int:
    """The size of a file in bytes. Raises OSError as `pieces` does."""
    tries = _Tries()
    while True:
        try:
            with connect(0, 1) as stream:
                return int(_total(stream) or stream.r.headers.get("Content-Length", 0))
        except OSError as error:
            if error.errno == errno.ERANGE:  # there is no first byte
                return 0
            tries.failed(error)


def _total(stream: Any) -> str:
    """The size of the whole file in an answer that is a part of it; "" where it says none."""
    total: str = stream.r.headers.get("Content-Range", "").rpartition("/")[2]
    return total if total.isdecimal() else ""


class _Tries:
    """Failures in a row, after each of which one waits longer."""

    def __init__(self) -> None:
        self._left = [0.1, 0.1, 0.3, 1.0, 3.0]  # seconds

    def failed(self, error: OSError) -> None:
        """Wait before the next try; raises the error where it is none of the connection, or one too many."""
        if error.errno != errno.EIO or not self._left:
            raise error
        time.sleep(self._left.pop(0))

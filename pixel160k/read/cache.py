"""Whole shards of a store or the web on a local disk: each copied once, checked, and deleted when others need the room.

All processes of a machine may share a folder. A shard is copied by the one that asks first, while the others wait.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pixel160k.errors import InputError, one_line
from pixel160k.files import written_atomically
from pixel160k.owner import TEMPORARY
from pixel160k.paths import open_path
from pixel160k.stores import StorePath

_OURS = re.compile(rf"(?P<unfinished>{re.escape(TEMPORARY)}.*?-)?(?P<copy>[0-9a-f]{{16}}-.*\.tar)")


def open_cache(folder: str | Path, limit: int, at_once: int) -> "ShardCache":
    """The cache in a folder.

    Args:
        folder: a local one; it is made if there is none.
        limit: how many bytes it may hold.
        at_once: how many bytes the shards have that are read at once.

    Raises:
        InputError: it lies in a store, cannot be made, or may hold too little.
    """
    path = open_path(folder)
    if isinstance(path, StorePath):
        raise InputError(f"cache_dir is a local folder, not {path}")
    if at_once > limit:
        raise InputError(
            f"cache_bytes={limit} is too little for the {at_once} bytes of the shards that are read at once; "
            "raise it, or lower interleave"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache_dir={folder} cannot be made: {error.strerror}") from None
    return ShardCache(path, limit)


class ShardCache:
    """A local folder that holds copies of shards, the last used ones, up to a number of bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use a folder that is there. What else lies in it is neither counted nor deleted."""
        self._folder, self._limit = folder, limit

    def copy(self, path: StorePath, size: int, sha256: str) -> Path:
        """The local copy of a shard with this size and digest; it is made where there is none.

        It may be deleted at any time to make room; who has opened it can read on.

        Raises:
            InputError: the shard is not what the manifest says.
            OSError: it cannot be read, or not be kept. It is a FileNotFoundError only where the store has no such shard.
        """
        target = self._folder / f"{sha256[:16]}-{path.name}"
        try:
            with self._locked(target.name):
                if not target.exists():
                    self._download(path, size, sha256, target)
                with suppress(FileNotFoundError):
                    os.utime(target)  # the last used are kept
        except OSError as error:
            if error.filename == str(path):
                raise
            raise OSError(
                errno.EIO, f"it cannot be kept in {self._folder}: {error.strerror or one_line(error)}"
            ) from None
        return target

    def _download(self, path: StorePath, size: int, sha256: str, target: Path) -> None:
        digest = hashlib.sha256()
        for left in self._folder.glob(f"{TEMPORARY}*-{target.name}"):  # whoever wrote it holds the lock no more
            left.unlink(missing_ok=True)
        with written_atomically(target) as temporary, open(temporary, "wb") as file:
            with self._locked("room"):
                self._make_room(size)
                file.truncate(size)  # the room is taken
            for piece in path.pieces(0, size):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != sha256:
                raise InputError("it differs from the manifest's SHA-256")

    @contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        with open((self._folder / name).with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, how)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open, too

    def _make_room(self, size: int) -> None:
        """Delete what was used longest ago; where others are just written, wait until they are there to be deleted."""
        while True:
            copies, held = [], size
            for path in self._folder.glob("*.tar"):
                if (found := _OURS.fullmatch(path.name)) is None:
                    continue
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    if found["unfinished"] and not self._is_locked(found["copy"]):
                        path.unlink()  # who wrote it is dead
                        continue
                    held += stat.st_size
                    if not found["unfinished"]:
                        copies.append((stat.st_mtime, stat.st_size, path))
            for _, length, path in sorted(copies):
                if held > self._limit:
                    path.unlink(missing_ok=True)
                    held -= length
            if held <= self._limit:
                return
            time.sleep(0.05)

    def _is_locked(self, name: str) -> bool:
        try:
            with self._locked(name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
        except BlockingIOError:
            return True

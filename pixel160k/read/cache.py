"""Whole shards of a store or the web on a local disk: each copied once, checked, and deleted when others need the room.

All processes of a machine may share a folder. A shard is copied by the one that asks first, while the others wait.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pixel160k.errors import InputError
from pixel160k.files import written_atomically
from pixel160k.owner import TEMPORARY
from pixel160k.stores import StorePath

_ABANDONED = 3600  # seconds after which nobody writes to a file any more


class ShardCache:
    """A local folder that holds copies of shards, the last used ones, up to a number of bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use a folder; it is made if there is none."""
        self._folder, self._limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def copy(self, path: StorePath, size: int, sha256: str) -> Path:
        """The local copy of a shard with this size and digest; it is made where there is none.

        It may be deleted at any time to make room; who has opened it can read on.

        Raises:
            InputError: the shard is not what the manifest says.
            OSError: it cannot be read, or the disk is full.
        """
        target = self._folder / f"{sha256[:16]}-{path.name}"
        with self._locked(target.with_suffix(".lock")):
            if not target.exists():
                self._download(path, size, sha256, target)
            with suppress(FileNotFoundError):
                os.utime(target)  # the last used are kept
        return target

    def _download(self, path: StorePath, size: int, sha256: str, target: Path) -> None:
        digest = hashlib.sha256()
        with written_atomically(target) as temporary, open(temporary, "wb") as file:
            with self._locked(self._folder / "room.lock"):
                self._make_room(size)
                file.truncate(size)  # the room is taken
            for piece in path.pieces(0, size):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != sha256:
                raise InputError("it differs from the manifest's SHA-256")

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # closing it unlocks
            yield

    def _make_room(self, size: int) -> None:
        """Delete what was used longest ago; where others are just written, wait until they are there to be deleted."""
        while True:
            copies, held = [], size
            for path in self._folder.glob("*.tar"):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    unfinished = path.name.startswith(TEMPORARY)
                    if unfinished and time.time() - stat.st_mtime > _ABANDONED:
                        path.unlink()
                        continue
                    held += stat.st_size
                    if not unfinished:
                        copies.append((stat.st_mtime, stat.st_size, path))
            for _, length, path in sorted(copies):
                if held > self._limit:
                    path.unlink(missing_ok=True)
                    held -= length
            if held <= self._limit:
                return
            time.sleep(0.05)

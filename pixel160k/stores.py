"""Objects of the stores `s3://`, `gs://` and `hf://`, behind those methods of `pathlib.Path` that this project needs.

`pixel160k.paths` makes them. They talk to the store through fsspec and the store's package, which are imported when they
are first needed. Stores have no folders, no renaming and no appending: an object appears whole when it is written, and a
folder is a common beginning of names. Files of web servers (`http://`, `https://`) are such objects too, to be read only.

The stores' packages try again what failed on the way; for the web `pixel160k.web` does.
"""

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pixel160k import web
from pixel160k.errors import one_line

STORES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
"""The schemes of object stores and of the web, and the package that reads and writes each."""
WEB = ("http", "https")
"""Those that are read only, and list nothing."""

_BLOCK = 8 << 20  # bytes per request when an object is read from front to back
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "LocalTokenNotFoundError",
}


class Stat(NamedTuple):
    """What a store says of a name.

    Attributes:
        st_size: in bytes.
        st_mtime: when it was written, in seconds by the store's clock; 0 where the store does not say.
        is_folder: whether it is a common beginning of names.
    """

    st_size: int
    st_mtime: float
    is_folder: bool


@dataclass(frozen=True, order=True)
class StorePath:
    """An object of a store, or a folder of objects. Its methods do what those of `pathlib.Path` do.

    A path that `iterdir` or `glob` gave remembers what the listing said: it answers `exists`, `is_dir`, `is_file` and
    `stat` as it was then, without another request. It forgets that when it is pickled.

    Every failure of a store is an OSError that names the path.

    Attributes:
        scheme: a key of `STORES`.
        key: the bucket (or host) and the object's name in it, without a slash at either end.
    """

    scheme: str
    key: str
    _listed: Stat | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return StorePath, (self.scheme, self.key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath(
            self.scheme, "/".join(part for part in f"{self.key}/{name}".split("/") if part not in ("", "."))
        )

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The last part's suffix with its dot."""
        return Path(self.name).suffix

    @property
    def parent(self) -> "StorePath":
        """The folder that holds it; a bucket is its own parent."""
        return StorePath(self.scheme, self.key.rpartition("/")[0] or self.key)

    def with_name(self, name: str) -> "StorePath":
        """Another name in the same folder."""
        return self.parent / name

    def absolute(self) -> "StorePath":
        """Itself."""
        return self

    def resolve(self) -> "StorePath":
        """Itself."""
        return self

    def stat(self) -> Stat:
        """What the store says of it.

        Raises:
            FileNotFoundError: there is no such object, and no object in such a folder.
        """
        if self._listed is not None:
            return self._listed
        if self.scheme in WEB:
            return Stat(web.size(self._connection), 0.0, False)
        with self._translated() as store:
            return _stat(store.info(self.key))

    def exists(self) -> bool:
        """Whether there is such an object, or an object in such a folder."""
        return self._find() is not None

    def is_dir(self) -> bool:
        """Whether there is an object in this folder."""
        found = self._find()
        return found is not None and found.is_folder

    def is_file(self) -> bool:
        """Whether there is such an object."""
        found = self._find()
        return found is not None and not found.is_folder

    def _find(self) -> Stat | None:
        try:
            return self.stat()
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator["StorePath"]:
        """What lies in the folder, from one listing.

        Raises:
            FileNotFoundError: nothing lies there.
        """
        with self._translated() as store:
            listing = store.ls(self.key, detail=True)
        for entry in listing:
            name = entry["name"].strip("/")
            if name != self.key:  # some tools mark a folder by an empty object of its name
                yield StorePath(self.scheme, name, _stat(entry))

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """What lies in the folder under a pattern as `*/part-*.parquet`; nothing where there is no folder."""
        first, _, rest = pattern.partition("/")
        try:
            found = [path for path in self.iterdir() if fnmatchcase(path.name, first)]
        except FileNotFoundError:
            return
        for path in found:
            if not rest:
                yield path
            elif path.is_dir():
                yield from path.glob(rest)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there as soon as it holds an object."""

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open an object for reading bytes; from front to back it is read in large blocks.

        Raises:
            FileNotFoundError: there is no such object.
        """
        if mode != "rb":
            raise ValueError(
                f"objects are opened to read bytes, not as {mode!r}; write_bytes and upload write them whole"
            )
        return io.BufferedReader(_Object(self, self.stat().st_size), _BLOCK)

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`, in one request. Both must lie within the object."""
        if start == stop:
            return b""
        if self.scheme in WEB:
            content = b"".join(self.pieces(start, stop))
        else:
            with self._translated(anew=False) as store:
                content = bytes(store.cat_file(self.key, start=start, end=stop, **_RANGE.get(self.scheme, {})))
        if len(content) != stop - start:
            raise OSError(errno.EIO, f"{len(content)} bytes came from {start}, not {stop - start}", str(self))
        return content

    def read_bytes(self) -> bytes:
        """The whole object, in one request."""
        if self.scheme in WEB:
            return b"".join(self.pieces(0, None))
        with self._translated() as store:
            return bytes(store.cat_file(self.key, **_WHOLE.get(self.scheme, {})))

    def read_with(self, paths: "Sequence[StorePath]") -> list[bytes | None]:
        """The whole objects at these paths of the same store, asked for together; None where there is none."""
        if self.scheme in WEB:
            return [path.read_bytes() if path.exists() else None for path in paths]
        with self._translated() as store:
            contents = store.cat_ranges([path.key for path in paths], None, None, **_WHOLE.get(self.scheme, {}))
            for content in contents:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return [None if isinstance(content, Exception) else bytes(content) for content in contents]

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> int:
        """Write the object, which appears whole."""
        self._check_writable()
        with self._translated() as store:
            store.pipe_file(self.key, content)
        return len(content)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        """Write the object as text."""
        return self.write_bytes(text.encode(encoding))

    def upload(self, file: Path) -> None:
        """Write the object from a local file; it appears whole."""
        self._check_writable()
        with self._translated() as store:
            store.put_file(str(file), self.key)

    def create(self, content: bytes) -> None:
        """Write the object only where there is none.

        Raises:
            FileExistsError: there is one. Of several that create it at once, one succeeds (on s3 and gs).
        """
        self._check_writable()
        if self.scheme == "hf" and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        with self._translated() as store:
            store.pipe_file(self.key, content, mode="overwrite" if self.scheme == "hf" else "create")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with self._translated() as store:
                store.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _check_writable(self) -> None:
        if self.scheme in WEB:
            raise OSError(errno.EROFS, "the web can only be read", str(self))

    def pieces(self, start: int, stop: int | None) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`, or to the end, in pieces as they come.

        Of the web it takes as many connections as are needed: one that drops is followed by one that asks for the rest.
        """
        if self.scheme not in WEB:
            stop = self.stat().st_size if stop is None else stop
            for begin in range(start, stop, _BLOCK):
                yield self.read_range(begin, min(begin + _BLOCK, stop))
            return
        yield from web.pieces(self._connection, str(self), start, stop)

    @contextmanager
    def _connection(self, begin: int, stop: int | None) -> Iterator[Any]:
        """Yield fsspec's stream of a file of the web from `begin` on; its `r` is aiohttp's response."""
        headers = {"Accept-Encoding": "identity"}
        if begin or stop is not None:
            headers["Range"] = f"bytes={begin}-{'' if stop is None else stop - 1}"
        # The size is given so that it is not asked for; a stream makes no use of it.
        with self._translated() as store, store.open(str(self), block_size=0, size=1, headers=headers) as stream:
            yield stream

    @contextmanager
    def _translated(self, anew: bool = True) -> Iterator[Any]:
        """Yield fsspec's file system of the scheme; what its calls raise becomes an OSError that names this path.

        With `anew` it asks the hub again what there is: other processes write there too.
        """
        import fsspec

        try:
            # No cached listings. fsspec keeps one such object per process and thread.
            store = fsspec.filesystem(self.scheme, use_listings_cache=False, **_settings(self.scheme))
            if anew:
                store.invalidate_cache()  # of hf, which has a cache of its own
            yield store
        except (AssertionError, AttributeError, NameError, TypeError):  # bugs, ours or theirs
            raise
        except OSError as error:
            if error.filename == str(self):  # it is ours already
                raise
            raise self._error(error) from None
        except Exception as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> OSError:
        number = next((number for kind, number in _ERRORS.items() if isinstance(error, kind)), errno.EIO)
        status = getattr(error, "status", None)  # of the web
        if type(error).__name__ in _NO_CREDENTIALS or status in (401, 403):
            number = errno.EACCES
        elif status == 416:
            number = errno.ERANGE
        what = os.strerror(number) if number in (errno.ENOENT, errno.EEXIST) else one_line(error)
        return OSError(number, what, str(self))  # FileNotFoundError and so on, by the number


def _settings(scheme: str) -> dict[str, Any]:
    """How fsspec opens a store. A host that does not answer is given up after half a minute.

    Credentials, endpoints, regions and proxies are those of the environment, as the store's own tools read them.
    """
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}
    if scheme in WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=8, sock_read=60)
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    return {}


_WHOLE = {"s3": {"max_concurrency": 1}}  # of whole objects: else s3fs asks for the size first
_RANGE = {"hf": {"cache_type": "none"}}  # of parts of objects: else five more megabytes come with each
_ERRORS: dict[type[Exception], int] = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
}


def _stat(entry: dict[str, Any]) -> Stat:
    written = entry.get("LastModified") or entry.get("mtime") or getattr(entry.get("last_commit"), "date", None)
    modified = written.timestamp() if isinstance(written, datetime) else 0.0
    return Stat(int(entry.get("size") or 0), modified, entry["type"] == "directory")


class _Object(io.RawIOBase):
    """The bytes of an object by position; each read is one request."""

    def __init__(self, path: StorePath, size: int) -> None:
        self._path, self._size, self._position = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._size, self._position + len(buffer))
        if stop <= self._position:
            return 0
        content = self._path.read_range(self._position, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)

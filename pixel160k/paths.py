"""Where data lies: local paths, objects of the stores `s3://`, `gs://` and `hf://`, and web servers, for the same functions.

`open_path` makes a path of what a user typed. A local one is a `pathlib.Path`. One of a store is a `StorePath`, which has
the same methods.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse
from urllib.request import url2pathname

from pixel160k.errors import InputError
from pixel160k.packages import require_packages
from pixel160k.stores import STORES, WEB, StorePath

_AT_ONCE = 256  # objects that are read together

AnyPath = Path | StorePath
"""A local path, or one of an object store."""


def open_path(text: str | AnyPath) -> AnyPath:
    """Turn what a user typed into a path: a local one, `~` expanded and `file:` too, or one of a store or web server.

    A local path may hold colons. What is a path already stays as it is.

    Raises:
        InputError: the scheme is none that can be read, its package is not installed, or no bucket is named.
    """
    if isinstance(text, Path) and text.parts[:1] in [(f"{scheme}:",) for scheme in STORES] and not text.exists():
        raise InputError(f"{text} was a URL before it became a Path, which drops a slash; give the URL as text")
    if not isinstance(text, str):
        return text
    scheme, colon, rest = text.partition(":")
    if colon and scheme in STORES and rest.startswith("//") and not Path(text).exists():
        require_packages("cloud", "fsspec", STORES[scheme])
        path = StorePath(scheme, "") / rest
        if not path.key:
            what, form = ("host", "HOST") if scheme in WEB else ("bucket", "BUCKET")
            raise InputError(f"{text} names no {what}; write {scheme}://{form}/FOLDER")
        return path
    if colon and not Path(text).exists():
        if scheme in STORES and rest.startswith("/"):
            raise InputError(f"{text}: two slashes stand after {scheme}:, as in {scheme}://BUCKET/FOLDER")
        if scheme == "file":
            url = urlparse(text)
            if url.netloc not in ("", "localhost"):
                raise InputError(f"{text} names the host {url.netloc}; files of this machine are file:///FOLDER")
            return Path(url2pathname(url.path))
        if foreign := _foreign_scheme(text):
            known = ", ".join(f"{name}://" for name in STORES)
            raise InputError(f"{text}: {foreign}:// cannot be read; a path is local, or begins with {known}")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, no home
        return Path(text)


def _foreign_scheme(text: str) -> str:
    """The scheme of a URL, as http, that is none of ours; "" for everything else."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    known = found is None or found[1] in (*STORES, "file") or Path(text).exists()
    return "" if found is None or known else found[1]


def list_sizes(folder: AnyPath) -> dict[str, int]:
    """The files of a folder, by name, with their sizes in bytes, from one listing; none where there is no folder.

    A web server lists nothing in a way that one could rely on: `find_sizes` asks for each file.
    """
    if isinstance(folder, StorePath):
        return {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()}
    sizes = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def find_sizes(folder: AnyPath, names: Iterable[str]) -> dict[str, int]:
    """The files of a folder, as `list_sizes`; of a web server those of these names that are there."""
    if not (isinstance(folder, StorePath) and folder.scheme in WEB):
        return list_sizes(folder)
    sizes = {}
    for name in names:
        with suppress(FileNotFoundError):
            sizes[name] = (folder / name).stat().st_size
    return sizes


def read_all(paths: Sequence[AnyPath]) -> Iterator[bytes | None]:
    """The contents of small files, in the order of their paths; None where there is none. A store is asked for many at once."""
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        stored = [path for path in some if isinstance(path, StorePath)]
        found = dict(zip(stored, stored[0].read_with(stored), strict=True)) if stored else {}
        for path in some:
            if isinstance(path, StorePath):
                yield found[path]
            else:
                yield path.read_bytes() if path.exists() else None


def read_range(path: AnyPath, offset: int, length: int) -> bytes:
    """This many bytes of a file from an offset; of an object, one request.

    Raises:
        InputError: the file ends before.
    """
    stat = None if isinstance(path, StorePath) else path.stat()
    if not 0 <= offset <= offset + length or (stat and stat.st_size < offset + length):
        raise InputError(f"the file ends before byte {offset + length}")
    if isinstance(path, StorePath):
        return path.read_range(offset, offset + length)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def open_parquet(path: AnyPath) -> AnyPath | BinaryIO:
    """What pyarrow reads a Parquet file from: its path, or, in a store, its whole contents from one request."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, StorePath) else path

"""Files that are whole or not there: checksums, atomic writes, folders that appear at once, and reading JSON.

Files are written on the local disk. There they get their name by renaming, in one moment. To an object store they are
uploaded, each appearing whole; of several files that belong together, the one that says so is uploaded last.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixel160k.errors import InputError, one_line
from pixel160k.owner import TEMPORARY, temporary_name
from pixel160k.paths import AnyPath
from pixel160k.stores import WEB, StorePath

_log = logging.getLogger(__name__)


def sha256_of(path: AnyPath) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: AnyPath) -> Any:
    """The contents of a JSON file in UTF-8.

    Raises:
        InputError: it cannot be read, or is no JSON; names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise InputError(f"cannot read {path}: {cause}") from None


def read_json_object(path: AnyPath) -> dict[str, Any]:
    """The contents of a JSON file that holds an object.

    Raises:
        InputError: it cannot be read, is no JSON, or holds something else; names the file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


@contextmanager
def written_atomically(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary local path, to write a file to; when the block ends, that file becomes `path`.

    It lies beside a local `path`, and is renamed; else it is uploaded. Where the block raises, the temporary file is
    removed and `path` stays as it was.
    """
    if isinstance(path, StorePath):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
            yield (written := Path(folder, path.name))
            path.upload(written)
        return
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file in UTF-8 that is whole or not there."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: AnyPath, content: Any) -> None:
    """Write a JSON file, indented by one space, that is whole or not there."""
    write_text(path, json.dumps(content, indent=1))


def check_new_folder(out: AnyPath) -> None:
    """Check that `out` does not exist or is an empty folder.

    Raises:
        InputError: it is a file, holds something, or lies on the web.
    """
    if isinstance(out, StorePath) and out.scheme in WEB:
        raise InputError(f"{out}: the web can only be read; choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; choose a new --out")


@contextmanager
def only_writer(out: Path, lock: Path | None = None) -> Iterator[None]:
    """Let no other process write to a folder while the block runs, where two would overwrite each other's work.

    The lock is the system's, on a file: it ends with this process, however that ends, also where processes forked from it live
    on; network file systems know it, too. Within one process it refuses nothing.

    Args:
        out: a local folder; it is made where there is none.
        lock: the file; by default `.lock` in the folder. It is removed when the block ends.

    Raises:
        InputError: another process writes there now.
    """
    lock = lock or out / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
                raise BlockingIOError  # the one that held it has just ended and removed it
        except (BlockingIOError, PermissionError):
            raise InputError(f"another process writes to {out}: wait for it, or choose another --out") from None
        except OSError as error:
            _log.warning("%s has no locks (%s): see to it that no other process writes there", out, one_line(error))
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def working_folder(out: AnyPath, name: str) -> Iterator[Path]:
    """Yield a new local folder whose files `move_file` can then move to `out`; it is removed when the block ends.

    Args:
        out: a folder; where it is local, the working folder lies in it, and has a temporary name.
        name: a part of the working folder's name.
    """
    if isinstance(out, StorePath):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder = out / temporary_name(name)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_file(file: Path, target: AnyPath) -> None:
    """Give a local file its final place: rename it on the same disk, or upload it. The target's folder is made."""
    if isinstance(target, StorePath):
        target.upload(file)
        file.unlink()
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def create_file(path: AnyPath, content: bytes) -> None:
    """Write a small file only where there is none: of several processes that try it at once, one succeeds.

    Raises:
        FileExistsError: there is one.
    """
    if isinstance(path, StorePath):
        path.create(content)
        return
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)  # appears with its content, and only where there is none
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        except OSError:  # a file system without hard links
            with open(path, "xb") as file:
                file.write(content)
    finally:
        temporary.unlink(missing_ok=True)


def copy_folder(source: AnyPath, target: Path) -> None:
    """Copy the files of a folder, and of folders in it, into a local folder, but for names that begin with a dot.

    Raises:
        OSError: there is no such folder, or it cannot be read or written.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            with path.open("rb") as read, open(target / path.name, "wb") as written:
                shutil.copyfileobj(read, written, 1 << 20)


@contextmanager
def new_folder(out: AnyPath, replace: bool = False, last: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside `out`, to be filled; when the block ends, it is renamed to `out`.

    So `out` appears whole or not at all. Where the block raises, the temporary folder is removed. With `replace`, an older
    folder `out` stays until the new one is whole, and is then deleted.

    In an object store the files are uploaded one by one when the block ends, the file `last`, or the files of the
    folder `last/`, after all others: where they are, the folder is whole. `replace` is for local folders only.

    Raises:
        InputError: `out` exists and is not an empty folder (unless `replace`), or is a mount point, which no folder
            can replace; or another process fills one for it now.
    """
    if isinstance(out, StorePath):
        assert not replace
        check_new_folder(out)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as temporary:
            yield (folder := Path(temporary))
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            for name in sorted(names, key=lambda name: (name.startswith(last), name)):
                (out / name).upload(folder / name)
        return
    out = out.absolute()  # "." has no name
    if not replace:
        check_new_folder(out)
    if out.is_mount():
        raise InputError(f"{out} is a mount point; choose a folder inside it")
    unfinished, old = (out.with_name(f"{TEMPORARY}{kind}{out.name}") for kind in ("", "old-"))
    with only_writer(out, out.with_name(f"{TEMPORARY}{out.name}.lock")):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield unfinished
            if replace and out.exists():
                shutil.rmtree(old, ignore_errors=True)
                out.replace(old)
            unfinished.replace(out)  # an empty folder may be there
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

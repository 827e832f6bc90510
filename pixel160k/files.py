"""Files that are whole or not there: checksums, atomic writes, folders that appear at once, and reading JSON."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixel160k.errors import InputError, one_line
from pixel160k.owner import TEMPORARY, temporary_name


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The contents of a JSON file in UTF-8.

    Raises:
        InputError: it cannot be read, or is no JSON; names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise InputError(f"cannot read {path}: {cause}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The contents of a JSON file that holds an object.

    Raises:
        InputError: it cannot be read, is no JSON, or holds something else; names the file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, to write a file to; when the block ends, that file is renamed to `path`.

    Where the block raises, the temporary file is removed and `path` stays as it was.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that is whole or not there."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, indented by one space, that is whole or not there."""
    write_text(path, json.dumps(content, indent=1))


def check_new_folder(out: Path) -> None:
    """Check that `out` does not exist or is an empty folder.

    Raises:
        InputError: it is a file, or holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; choose a new --out")


@contextmanager
def new_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, to be filled; when the block ends, it is renamed to `out`.

    So `out` appears whole or not at all. Where the block raises, the temporary folder is removed. With `replace`, an older
    folder `out` stays until the new one is whole, and is then deleted.

    Raises:
        InputError: `out` exists and is not an empty folder (unless `replace`), or is a mount point, which no folder
            can replace.
    """
    out = out.absolute()  # "." has no name
    if not replace:
        check_new_folder(out)
    if out.is_mount():
        raise InputError(f"{out} is a mount point; choose a folder inside it")
    unfinished, old = (out.with_name(f"{TEMPORARY}{kind}{out.name}") for kind in ("", "old-"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if replace and out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.replace(old)
        unfinished.replace(out)  # an empty folder may be there
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

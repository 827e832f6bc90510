"""Who works on which file: claims, by which any number of processes share one output directory without a scheduler.

A claim is `.done/{file}.claim`. It is there from before a process works on the file until after its done-marker is written,
and says which process holds it. A process that finds a living claim leaves the file alone. The claim of a dead process is
taken over. Whether the holder lives is decided so:

- on the same host: by its process id and start time, at once;
- a process that stops and puts its file back (`put_back`) says so in its claim;
- on another host: the holder renews its claim every `RENEWAL` seconds (the file's modification time; in a store it is written
  anew). A claim that was not renewed for `LEASE` seconds is dead. Both times are the file system's or the store's own, so
  the hosts' clocks need not agree.

Claims save work, and nothing depends on them for being right: outputs are renamed into place whole, and two processes that
do the same file all the same write the same bytes.
"""

import contextlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pixel160k.files import create_file, write_text
from pixel160k.owner import TEMPORARY, is_alive, owner_of, temporary_name, this_process
from pixel160k.paths import AnyPath
from pixel160k.stores import StorePath

LEASE = 180.0  # seconds; network file systems may show a modification time up to a minute late
RENEWAL = 20.0  # seconds


@dataclass(frozen=True)
class Claim:
    """A process, `owner`, works on a file.

    `died`: the owners that died at the file before, one after the other; `owner` itself, once it has put the file back.
    """

    owner: str
    token: str
    died: list[str]


def claim_path(done: AnyPath, name: str) -> AnyPath:
    """Where the claim of the file of this name lies."""
    return done / f"{name}.claim"


def read_claim(path: AnyPath) -> Claim | None:
    """The claim in a file; None where there is none. One that cannot be read is of an unknown owner."""
    try:
        return Claim(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Claim("", "", [])


def is_held(path: AnyPath) -> bool:
    """Whether a living process holds the claim at this path."""
    claim = read_claim(path)
    return claim is not None and _is_at_work(path, claim)


def take(done: AnyPath, name: str) -> Claim | None:
    """Claim a file for this process; None where a living process holds it."""
    path, died = claim_path(done, name), []
    if (held := read_claim(path)) is not None:
        if _is_at_work(path, held) or not _evict(path, held):
            return None
        died = list(dict.fromkeys([*held.died, held.owner]))
    claim = Claim(this_process(), uuid.uuid4().hex, died)
    try:
        create_file(path, _content(claim))
    except OSError as error:
        if read_claim(path) == claim:  # a store made it, and its answer was lost
            return claim
        if isinstance(error, FileExistsError):
            return None
        raise
    return claim


def put_back(done: AnyPath, name: str, claim: Claim) -> None:
    """Give up the file of a claim as if this process had died at it: another one takes it over at once."""
    if is_ours(done, name, claim):
        given_up = replace(claim, died=[*claim.died, claim.owner])
        write_text(claim_path(done, name), _content(given_up).decode())


def _content(claim: Claim) -> bytes:
    return json.dumps(asdict(claim)).encode()


@contextmanager
def renewed(done: AnyPath, name: str, claim: Claim) -> Iterator[None]:
    """Renew a claim while the block runs, and remove it at its end, unless the file was put back."""
    path, finished = claim_path(done, name), threading.Event()

    def renew() -> None:
        while not finished.wait(RENEWAL):
            with contextlib.suppress(OSError):  # another process took it over, or the next time will do
                if not isinstance(path, StorePath):
                    os.utime(path)
                elif is_ours(done, name, claim):
                    path.write_bytes(_content(claim))

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        finished.set()
        if is_ours(done, name, claim):
            path.unlink(missing_ok=True)


def is_ours(done: AnyPath, name: str, claim: Claim) -> bool:
    """Whether this claim still holds: no other process took it over."""
    return read_claim(claim_path(done, name)) == claim


def remove_leftovers(out: AnyPath) -> None:
    """Remove the claims and unfinished outputs of dead processes from an output directory; those of others stay.

    A process of another host is dead when it holds no living claim and what it left is older than `LEASE`.
    """
    folders = [folder for folder in (out, out / ".done", out / ".work") if folder.is_dir()]
    unfinished = [path for folder in folders for path in folder.glob(f"{TEMPORARY}*")]
    living = set()
    for path in (out / ".done").glob("*.claim"):
        if (claim := read_claim(path)) is None:
            continue
        if _is_at_work(path, claim):
            living.add(claim.owner)
        else:
            _evict(path, claim)
    for path in unfinished:
        owner = owner_of(path.name)
        if owner not in living and not _lives(path, owner):
            if isinstance(path, Path) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_at_work(path: AnyPath, claim: Claim) -> bool:
    """Whether the holder of the claim at `path` works on its file."""
    return claim.owner not in claim.died and _lives(path, claim.owner)


def _lives(path: AnyPath, owner: str) -> bool:
    """Whether the owner of what lies at `path` lives, as far as can be known."""
    alive = is_alive(owner) if owner else None
    return _age(path) <= LEASE if alive is None else alive


def _age(path: AnyPath) -> float:
    """Seconds since `path` was made or renewed, by the clock of the file system."""
    probe = path.with_name(temporary_name("clock"))
    try:
        probe.write_bytes(b"")
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # it is gone: its owner was alive just now
    finally:
        probe.unlink(missing_ok=True)


def _evict(path: AnyPath, claim: Claim) -> bool:
    """Remove a dead claim; False where another process was quicker. In a store it may happen that both have it then."""
    if isinstance(path, StorePath):
        if (is_there := read_claim(path) == claim) is True:
            path.unlink(missing_ok=True)
        return is_there
    aside = path.with_name(temporary_name(path.name))
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    if (evicted := read_claim(aside)) != claim:  # a new one came between reading and renaming: give it back
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return evicted == claim

"""What is done with one source file, in whatever process: claim it, work, publish whole outputs, or note the failure.

A worker writes the outputs of a file into a temporary folder on its own disk, moves them into the output directory, and
writes a done-marker last, which holds the fingerprint of the run. An output directory in an object store works as a local
one does, but for the log (`log_path`).

A file that fails does not stop the others. What the input or the disk did (InputError, OSError) is noted in
`.done/{file}.failed`; every other exception is a bug and is noted in `.done/{file}.bug`. Both hold one line; the traceback
goes to `.done/workers.log`. Three faults are treated otherwise:

- an error that may pass (`is_transient`) is tried again up to four times with growing waits, and counted in the marker;
- a full disk stops the process (OSError), since every other file would meet it too and there is no room to note it;
- a lost device (`is_of_the_device`) is the fault of no file, and nothing works on it any more in this process. So the file
  is put back, as if the process had died at it, this process takes no other, and `.done/{process}.lost` says why. The same
  where a process cannot begin (`WorkerUnusable`), but that a later command may try it again.

A done file some of whose episodes met a bug is done again by every new command, once: the marker's token tells its own
outcome from that of an earlier command (`met_bugs`).
"""

import contextlib
import errno
import hashlib
import json
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from annotate.faults import describe_error, is_of_the_device
from annotate.jobs import claims
from annotate.sources.rlds import SourceFile
from pixel160k.errors import InputError, one_line
from pixel160k.files import move_file, sha256_of, working_folder, write_json, write_text
from pixel160k.owner import this_process
from pixel160k.paths import AnyPath, list_sizes, open_path, read_all
from pixel160k.stores import StorePath

LOG = "workers.log"  # in .done: what local workers print, and the traceback of every failure
ATTEMPTS = 3  # a file that this many processes died at is given up
WAITS = (1.0, 5.0, 20.0, 60.0)  # seconds before a transient fault's next try

Result = TypeVar("Result")
Work = Callable[[SourceFile, Path, str], dict[str, Any]]
"""Makes the outputs of one source file in the given empty folder, on the given device; returns a summary that JSON can hold.

An InputError or OSError says that the file or the disk is at fault; any other exception is a bug.
"""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EIO EAGAIN EINTR EBUSY ESTALE ETIMEDOUT ENOLCK ECONNRESET ECONNREFUSED ECONNABORTED ENETDOWN ENETUNREACH "
        "ENETRESET EHOSTDOWN EHOSTUNREACH EREMOTEIO EPIPE ENOBUFS"
    ).split()
    if hasattr(errno, name)
}


def is_transient(error: BaseException | None) -> bool:
    """Whether an error of a disk or network may pass by itself: no answer, a broken connection, an input/output error.

    So does what a reader of files made of it, an InputError that names the file.
    """
    error = error.__context__ if isinstance(error, InputError) else error
    return isinstance(error, OSError) and (
        isinstance(error, ConnectionError | TimeoutError) or error.errno in _TRANSIENT
    )


def patiently(work: Callable[[int], Result], say: Callable[[str], None]) -> Result:
    """What `work` returns. It is done again after each fault that may pass, and told how often it failed before."""
    for retries, wait in enumerate(WAITS):
        try:
            return work(retries)
        except (OSError, InputError) as error:
            if not is_transient(error):
                raise
            say(f"{one_line(error)}; next try in {wait:g} s")
        time.sleep(wait)
    return work(len(WAITS))


def says_disk_is_full(error: Exception) -> bool:
    """Whether an exception says that the disk is full. Beam hands over an exception of a worker as text."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(f"[Errno {code}]" in str(error) for code in _FULL)


_LOST: dict[str, str] = {}  # why this process does nothing more: on a device, or for the unit of a token


def lost_notes(done: AnyPath) -> dict[str, str]:
    """Why processes, by their names as owners, stopped for want of their device."""
    return {path.stem: path.read_text(encoding="utf-8") for path in done.glob("*.lost")}


def met_bugs(files: Sequence[SourceFile], markers: Sequence[dict[str, Any] | None]) -> dict[str, str]:
    """The done files in which episodes met bugs: by the file's name the marker's token ("" of earlier versions)."""
    return {
        file.name: marker.get("token", "")
        for file, marker in zip(files, markers, strict=True)
        if marker and marker["summary"].get("internal_errors")
    }


def finished(
    out: AnyPath, files: Sequence[SourceFile], fingerprint: str, again: Mapping[str, str] | None = None
) -> list[dict[str, Any] | None]:
    """Of each file the done-marker, if its outputs are all there; None where it must be done (again).

    A folder is listed once, and a marker read only where there is one.

    Args:
        out: the output directory.
        files: the files in question.
        fingerprint: of the run.
        again: markers that do not count, as `met_bugs` returns them.
    """
    sizes = {"": list_sizes(out), ".done": list_sizes(out / ".done")}
    there = [file.name for file in files if f"{file.name}.json" in sizes[".done"]]
    contents = dict(zip(there, read_all([out / ".done" / f"{name}.json" for name in there]), strict=True))

    def size_of(name: str) -> int | None:
        folder, _, last = name.rpartition("/")
        if folder not in sizes:
            sizes[folder] = list_sizes(out / folder)
        return sizes[folder].get(last)

    return [_marker(contents.get(file.name), fingerprint, size_of, (again or {}).get(file.name)) for file in files]


def _marker(
    content: bytes | None, fingerprint: str, size_of: Callable[[str], int | None], again: str | None
) -> dict[str, Any] | None:
    """A done-marker, if it is of this run, its outputs have their sizes, and its token is not `again`, that of one that no
    longer counts.
    """
    try:
        marker = json.loads(content or b"")
    except ValueError:  # there is none, or it is damaged
        return None
    if marker["fingerprint"] != fingerprint or marker.get("token", "") == again:
        return None
    return marker if all(size_of(name) == output["bytes"] for name, output in marker["outputs"].items()) else None


def settled(
    out: AnyPath, files: Sequence[SourceFile], fingerprint: str, again: Mapping[str, str] | None = None
) -> list[bool]:
    """Of each file whether it is done, or its failure is noted. Arguments as of `finished`."""
    names = {path.name for path in (out / ".done").glob("*")}
    markers = finished(out, files, fingerprint, again)
    return [
        marker is not None or any(path.name in names for path in notes(out / ".done", file).values())
        for file, marker in zip(files, markers, strict=True)
    ]


def log_path(out: AnyPath) -> Path:
    """Where the processes of this machine log their work for an output directory: in its `.done`, or, where that is in an
    object store, to which nothing can be appended, in this machine's folder for temporary files.
    """
    if isinstance(out, StorePath):
        return Path(tempfile.gettempdir(), f"pixelvla-{hashlib.sha256(str(out).encode()).hexdigest()[:12]}-{LOG}")
    return out / ".done" / LOG


def name_log(out: AnyPath) -> str:
    """The log for people to find: that of a store may be on any worker's machine."""
    return f"{log_path(out)}" + (" on the machine that met it" if isinstance(out, StorePath) else "")


def notes(done: AnyPath, file: SourceFile) -> dict[str, AnyPath]:
    """Where the failure of a file is noted: `bug` and `failed`."""
    return {kind: done / f"{file.name}.{kind}" for kind in ("bug", "failed")}


class Unit:
    """Does the work of one file, publishes its outputs and notes its failure."""

    def __init__(
        self, work: Work, out: str, fingerprint: str, device: str, again: Mapping[str, str] | None = None
    ) -> None:
        """Of what, where to, in which run, on which device, and which done files again (as `met_bugs` returns them)."""
        self.work, self.out, self.fingerprint, self.device = work, open_path(out), fingerprint, device
        self.again = dict(again or {})
        self._token = uuid.uuid4().hex  # of this command

    def lost(self) -> str:
        """Why this process can do nothing more on the device; "" where it can."""
        return _LOST.get(self.device, "") or _LOST.get(self._token, "")

    def __call__(self, file: SourceFile) -> None:
        """Do a file, unless it is done, has failed, another living process is at it, or the device is lost.

        Raises:
            OSError: the disk is full.
        """
        if self.lost():
            self._note_loss()
            return
        import cv2

        cv2.setNumThreads(1)  # one process per core; and results may not depend on a thread count
        done = self.out / ".done"
        claim = self._patiently(file, lambda _: None if self.is_settled(file) else claims.take(done, file.name))
        if claim is None:
            return
        with claims.renewed(done, file.name, claim):
            if self.is_settled(file):  # meanwhile
                return
            if claim.died:
                self._log(f"{file.path.name}: {claim.died[-1]} died at it")
            if len(claim.died) == ATTEMPTS:
                self._note(
                    file,
                    InputError(
                        f"{ATTEMPTS} workers died at it (killed, or the memory was full); "
                        "try fewer --workers, or a machine with more memory"
                    ),
                )
                return
            try:
                self._do(file, claim)
            except Exception as error:  # noted, and the other files go on; see the module's docstring
                if says_disk_is_full(error):
                    raise
                if is_of_the_device(error):
                    self._lose_device(file, claim, error)
                elif claims.is_ours(done, file.name, claim):  # or else another process thinks that this one is dead
                    self._note(file, error)

    def is_settled(self, file: SourceFile) -> bool:
        """Whether a file is done, or its failure is noted.

        Every worker asks this of every file, so nothing is listed here: folders grow with the number of files.
        """
        done = self.out / ".done"
        content, *failures = read_all([done / f"{file.name}.json", *notes(done, file).values()])

        def size_of(name: str) -> int | None:
            try:
                return (self.out / name).stat().st_size
            except FileNotFoundError:
                return None

        marker = _marker(content, self.fingerprint, size_of, self.again.get(file.name))
        return marker is not None or any(note is not None for note in failures)

    def _lose_device(self, file: SourceFile, claim: claims.Claim, error: Exception) -> None:
        """Put the file back, and take no other in this process."""
        self._log(f"{file.path.name}:\n{''.join(traceback.format_exception(error))}")
        if isinstance(error, InputError):  # it could not be used from the start, and the file did nothing to it
            _LOST[self._token] = one_line(error)
        else:
            _LOST[self.device] = f"{describe_error(error)}, at {file.path.name}"
            claims.put_back(self.out / ".done", file.name, claim)
        self._note_loss()

    def _note_loss(self) -> None:
        note = self.out / ".done" / f"{this_process()}.lost"
        if not note.exists():
            write_text(note, self.lost())

    def _do(self, file: SourceFile, claim: claims.Claim) -> None:
        """Do the work, publish its outputs, and write the marker."""
        started = time.monotonic()

        def once(retries: int) -> None:
            with working_folder(self.out, file.name) as folder:
                summary = self.work(file, folder, self.device)
                outputs = self._publish(folder)
            marker = {
                "fingerprint": self.fingerprint,
                "outputs": outputs,
                "summary": summary,
                "seconds": round(time.monotonic() - started, 3),
                "retries": retries,
                "died": claim.died,
                "token": claim.token,
            }
            write_json(self.out / ".done" / f"{file.name}.json", marker)

        self._patiently(file, once)

    def _patiently(self, file: SourceFile, work: Callable[[int], Result]) -> Result:
        return patiently(work, lambda line: self._log(f"{file.path.name}: {line}"))

    def _publish(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Move the outputs into place; returns bytes and SHA-256 of each by its name."""
        outputs = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            outputs[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            move_file(path, self.out / name)
        return outputs

    def _note(self, file: SourceFile, error: Exception) -> None:
        """Write the one line by which `run_job` learns of a failure, and its traceback into the log.

        In a store the traceback follows the line, since the log is on the machine of the worker.
        """
        trace = "".join(traceback.format_exception(error))
        self._log(f"{file.path.name}:\n{trace}")
        ours = not isinstance(error, InputError | OSError)
        cause = f"{type(error).__name__}: {one_line(error)}" if ours else one_line(error)
        if is_transient(error):
            cause += f" (tried {len(WAITS) + 1} times)"
        rest = f"\n{trace}" if isinstance(self.out, StorePath) else ""
        write_text(notes(self.out / ".done", file)["bug" if ours else "failed"], f"{file.path.name}: {cause}{rest}")

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError), open(log_path(self.out), "a", encoding="utf-8") as log:
            log.write(f"{text}\n")

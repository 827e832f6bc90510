"""What is done with one source file, in whatever process: claim it, work, publish whole outputs, or note the failure.

A worker writes the outputs of a file into a temporary folder, renames them into the output directory, and writes a
done-marker last, which holds the fingerprint of the run.

A file that fails does not stop the others. What the input or the disk did (InputError, OSError) is noted in
`.done/{file}.failed`; every other exception is a bug and is noted in `.done/{file}.bug`. Both hold one line; the traceback
goes to `.done/workers.log`. Two faults are treated otherwise:

- an OSError that may pass (`is_transient`) is tried again up to four times with growing waits, and counted in the marker;
- a full disk stops the process (OSError), since every other file would meet it too and there is no room to note it.
"""

import contextlib
import errno
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from annotate.jobs import claims
from annotate.sources.rlds import SourceFile
from pixel160k.errors import InputError, one_line
from pixel160k.files import read_json, sha256_of, write_json, write_text
from pixel160k.owner import temporary_name

LOG = "workers.log"  # in .done: what local workers print, and the traceback of every failure
ATTEMPTS = 3  # a file that this many processes died at is given up
WAITS = (1.0, 5.0, 20.0, 60.0)  # seconds before a transient fault's next try

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


def is_transient(error: OSError) -> bool:
    """Whether an error of a disk or network may pass by itself: no answer, a broken connection, an input/output error."""
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _TRANSIENT


def says_disk_is_full(error: Exception) -> bool:
    """Whether an exception says that the disk is full. Beam hands over an exception of a worker as text."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(f"[Errno {code}]" in str(error) for code in _FULL)


def finished(out: Path, file: SourceFile, fingerprint: str) -> dict[str, Any] | None:
    """The done-marker of a file whose outputs are all there; None where it must be done (again)."""
    try:
        marker = read_json(out / ".done" / f"{file.name}.json")
    except InputError:  # there is none, or it is damaged
        return None
    outputs = marker["outputs"].items()
    whole = all((out / name).is_file() and (out / name).stat().st_size == output["bytes"] for name, output in outputs)
    return marker if whole and marker["fingerprint"] == fingerprint else None


def notes(done: Path, file: SourceFile) -> dict[str, Path]:
    """Where the failure of a file is noted: `bug` and `failed`."""
    return {kind: done / f"{file.name}.{kind}" for kind in ("bug", "failed")}


class Unit:
    """Does the work of one file, publishes its outputs and notes its failure."""

    def __init__(self, work: Work, out: str, fingerprint: str, device: str) -> None:
        self.work, self.out, self.fingerprint, self.device = work, Path(out), fingerprint, device

    def __call__(self, file: SourceFile) -> None:
        """Do a file, unless it is done, has failed, or another living process is at it.

        Raises:
            OSError: the disk is full.
        """
        import cv2

        cv2.setNumThreads(1)  # one process per core; and results may not depend on a thread count
        done = self.out / ".done"
        if self.is_settled(file) or (claim := claims.take(done, file.name)) is None:
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
                self._do(file, claim.died)
            except Exception as error:  # noted, and the other files go on; see the module's docstring
                if says_disk_is_full(error):
                    raise
                if claims.is_ours(done, file.name, claim):  # or else another process thinks that this one is dead
                    self._note(file, error)

    def is_settled(self, file: SourceFile) -> bool:
        """Whether a file is done, or its failure is noted."""
        noted = any(path.exists() for path in notes(self.out / ".done", file).values())
        return noted or finished(self.out, file, self.fingerprint) is not None

    def _do(self, file: SourceFile, died: list[str]) -> None:
        """Do the work, and once more for each fault that may pass."""
        started = time.monotonic()
        for retries, wait in enumerate((*WAITS, None)):
            folder = self.out / temporary_name(file.name)
            try:
                folder.mkdir()
                summary = self.work(file, folder, self.device)
                outputs = self._publish(folder)
                marker = {
                    "fingerprint": self.fingerprint,
                    "outputs": outputs,
                    "summary": summary,
                    "seconds": round(time.monotonic() - started, 3),
                    "retries": retries,
                    "died": died,
                }
                write_json(self.out / ".done" / f"{file.name}.json", marker)
                return
            except OSError as error:
                if wait is None or not is_transient(error):
                    raise
                self._log(f"{file.path.name}: {one_line(error)}; next try in {wait:g} s")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(wait)

    def _publish(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Rename the outputs into place; returns bytes and SHA-256 of each by its name."""
        outputs = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            outputs[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            (self.out / name).parent.mkdir(exist_ok=True)
            os.replace(path, self.out / name)
        return outputs

    def _note(self, file: SourceFile, error: Exception) -> None:
        """Write the one line by which `run_job` learns of a failure, and its traceback into the log."""
        self._log(f"{file.path.name}:\n{''.join(traceback.format_exception(error))}")
        ours = not isinstance(error, InputError | OSError)
        cause = f"{type(error).__name__}: {one_line(error)}" if ours else one_line(error)
        if isinstance(error, OSError) and is_transient(error):
            cause += f" (tried {len(WAITS) + 1} times)"
        write_text(notes(self.out / ".done", file)["bug" if ours else "failed"], f"{file.path.name}: {cause}")

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError), open(self.out / ".done" / LOG, "a", encoding="utf-8") as log:
            log.write(f"{text}\n")

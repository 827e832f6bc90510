"""Beam jobs over source files: fan-out, atomic outputs, done-markers, exact restart. Shared by annotate and build-shards.

The unit of work is one source TFRecord file. Only file names travel between workers, so memory stays flat and the outputs do
not depend on how many workers there are. A worker writes the outputs of a file into a temporary folder, renames them into
the output directory, and writes a done-marker last, which holds the fingerprint of the run. A restart skips the files that
are done and does the others again.

A file that fails does not stop the others. What the input or the disk did (InputError, OSError) is noted in
`.done/{file}.failed`; every other exception is a bug and is noted in `.done/{file}.bug`. Both hold one line; the traceback
goes to `.done/workers.log`.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import apache_beam as beam

from annotate.sources.rlds import SourceFile
from pixel160k.errors import InputError, JobBug, one_line
from pixel160k.files import TEMPORARY, read_json, sha256_of, write_json, write_text

# Named in full: "DirectRunner" first tries Prism, which downloads a binary.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

_LOG = "workers.log"  # in .done: what local workers print, and the traceback of every failure

Work = Callable[[SourceFile, Path], dict[str, Any]]
"""Makes the outputs of one source file in the given empty folder and returns a summary that JSON can hold.

An InputError or OSError says that the file or the disk is at fault; any other exception is a bug.
"""


@dataclass(frozen=True)
class Execution:
    """Where a job runs. Nothing here changes a byte of the results."""

    workers: int = 1  # processes of the local runner
    runner: str = ""  # any other Beam runner by its full name
    options: Sequence[str] = ()  # Beam pipeline options of any other runner


def run_job(
    title: str, work: Work, files: list[SourceFile], out: Path, description: dict[str, Any], execution: Execution
) -> list[dict[str, Any]]:
    """Run a job over all files into `out` and return their done-markers, in the order of the files.

    A marker is a dict: `summary` (what `work` returned), `outputs` (name -> bytes and sha256), `seconds`, `fingerprint`.

    Args:
        title: names the job on the progress bar.
        work: called once per file; must be picklable.
        files: the source files; those that `out` holds results of are skipped.
        out: output directory; new, empty, or holding the same run, which is then resumed.
        description: everything that determines the results; its hash is the fingerprint of the run.
        execution: runner and workers.

    Raises:
        InputError: `out` cannot be written or holds something else, or a file failed; names the file and the cause.
        JobBug: a file met a bug.
    """
    fingerprint = _claim(out, description)
    done = out / ".done"
    unfinished = [*out.glob(f"{TEMPORARY}*"), *done.glob(f"{TEMPORARY}*")]
    for stale in [*unfinished, *done.glob("*.failed"), *done.glob("*.bug")]:
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    pending = [file for file in files if _finished(out, file, fingerprint) is None]
    if pending:
        with _worker_output_to(done / _LOG) as terminal, _progress(title, out, [file.name for file in files], terminal):
            _run_pipeline(_Unit(work, str(out.resolve()), fingerprint), pending, execution)
    markers = [_finished(out, file, fingerprint) for file in files]
    bugs, failures = (
        [path.read_text(encoding="utf-8") for path in sorted(done.glob(f"*.{kind}"))] for kind in ("bug", "failed")
    )
    if faults := bugs + failures:
        more = f" (and {len(faults) - 1} more files)" if len(faults) > 1 else ""
        rest = "the other files are done: the same command goes on from there"
        if bugs:
            raise JobBug(f"this is a bug, met at {faults[0]}{more}; the traceback is in {done / _LOG}; {rest}")
        raise InputError(f"{faults[0]}{more}; {rest}")
    if lost := [file.path.name for file, marker in zip(files, markers, strict=True) if marker is None]:
        raise InputError(f"{lost[0]} was not finished by the runner; run the same command again")
    return [marker for marker in markers if marker is not None]


def _make_writable(out: Path) -> None:
    """Make the output directory if there is none, and check that it can be written.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f"{TEMPORARY}{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None


def _claim(out: Path, description: dict[str, Any]) -> str:
    """Take `out` for this run, or check that it already is this run's; returns the fingerprint."""
    _make_writable(out)
    canonical = json.dumps(description, sort_keys=True, indent=1)
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    record = out / "run.json"
    if record.exists():
        if (earlier := read_json(record)) != (wanted := json.loads(canonical)):
            if not isinstance(earlier, dict):
                raise InputError(f"{record} describes no run; choose another --out, or delete that one")
            differing = sorted(key for key in {*earlier, *wanted} if earlier.get(key) != wanted.get(key))
            raise InputError(
                f"{out} holds the results of another run (different: {', '.join(differing)}); "
                "choose another --out, or delete that one"
            )
    elif any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no run of this kind; choose another --out")
    else:
        write_text(record, canonical)
    (out / ".done").mkdir(exist_ok=True)
    return fingerprint


def _finished(out: Path, file: SourceFile, fingerprint: str) -> dict[str, Any] | None:
    """The done-marker of a file whose outputs are all there; None where it must be done (again)."""
    try:
        marker = read_json(out / ".done" / f"{file.name}.json")
    except InputError:  # there is none, or it is damaged
        return None
    outputs = marker["outputs"].items()
    whole = all((out / name).is_file() and (out / name).stat().st_size == output["bytes"] for name, output in outputs)
    return marker if whole and marker["fingerprint"] == fingerprint else None


class _Unit(beam.DoFn):
    """Does the work of one file, publishes its outputs and notes its failure."""

    def __init__(self, work: Work, out: str, fingerprint: str) -> None:
        self.work, self.out, self.fingerprint = work, out, fingerprint

    def setup(self) -> None:
        import cv2

        cv2.setNumThreads(1)  # one process per core; and results may not depend on a thread count

    def process(self, file: SourceFile) -> Iterator[str]:
        out, started = Path(self.out), time.monotonic()
        folder = out / f"{TEMPORARY}{file.name}-{uuid.uuid4().hex}"
        try:
            folder.mkdir()
            summary = self.work(file, folder)
            outputs = {}
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(folder).as_posix()
                outputs[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                (out / name).parent.mkdir(exist_ok=True)
                os.replace(path, out / name)
            marker = {
                "fingerprint": self.fingerprint,
                "outputs": outputs,
                "summary": summary,
                "seconds": round(time.monotonic() - started, 3),
            }
            write_json(out / ".done" / f"{file.name}.json", marker)
        except Exception as error:  # noted, and the other files go on; see the module's docstring
            self._note(file, error)
        else:
            yield file.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _note(self, file: SourceFile, error: Exception) -> None:
        """Write the one line by which `run_job` learns of a failure, and its traceback into the log."""
        done = Path(self.out) / ".done"
        with open(done / _LOG, "a", encoding="utf-8") as log:
            log.write(f"{file.path.name}:\n{traceback.format_exc()}\n")
        if isinstance(error, InputError | OSError):
            write_text(done / f"{file.name}.failed", f"{file.path.name}: {one_line(error)}")
        else:
            write_text(done / f"{file.name}.bug", f"{file.path.name}: {type(error).__name__}: {one_line(error)}")


def _run_pipeline(unit: _Unit, files: list[SourceFile], execution: Execution) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    options = [f"--runner={execution.runner or LOCAL_RUNNER}", *execution.options]
    if not execution.runner:
        mode = "multi_processing" if execution.workers > 1 else "in_memory"
        options += [f"--direct_running_mode={mode}", f"--direct_num_workers={execution.workers}"]
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        created = beam.Pipeline(options=PipelineOptions(options))
    except (ImportError, AttributeError, ValueError) as error:  # how Beam says that there is no such runner
        raise InputError(f"--runner {execution.runner}: {one_line(error)}") from None
    with created as pipeline:
        _ = pipeline | beam.Create(files) | beam.Reshuffle() | beam.ParDo(unit)


@contextmanager
def _worker_output_to(log: Path) -> Iterator[TextIO]:
    """Send what this process and its children write to stderr into a file; yields the terminal's own stderr.

    Beam's local worker processes inherit stderr and chatter on it at a level that no option reaches.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(log, "ab") as file, open(terminal, "w", closefd=False) as stream:
            os.dup2(file.fileno(), 2)
            yield stream
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def _progress(title: str, out: Path, names: list[str], terminal: TextIO) -> Iterator[None]:
    """A bar that counts the done-markers, which is all that any runner shows of its progress."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeElapsedColumn())
    finished = threading.Event()

    def count() -> int:
        return sum((out / ".done" / f"{name}.json").exists() for name in names)

    with Progress(*columns, TimeRemainingColumn(), console=Console(file=terminal)) as progress:
        task = progress.add_task(title, total=len(names), completed=count())

        def watch() -> None:
            while not finished.wait(0.5):
                progress.update(task, completed=count())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            progress.update(task, completed=count())

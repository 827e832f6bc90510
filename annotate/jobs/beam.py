"""Jobs over source files: fan-out by Apache Beam, atomic outputs, done-markers, exact restart, several commands at once.
Shared by annotate and build-shards.

The unit of work is one source TFRecord file (`annotate.jobs.unit`). Only file names travel between workers, so memory stays
flat and the outputs do not depend on how many workers there are. Everywhere a file goes through the same Beam pipeline: in
this process for one local worker, in each of several local worker processes (`annotate.jobs.local`), or on the cluster that
`--runner` names. The processes of all of these, of other commands and of other machines share the files by claims
(`annotate.jobs.claims`).

So a job is a loop: run the pipeline over the files that nobody works on, then see what is left. What another living process
has is waited for, and what a dead one had is done again. A restart skips the files that are done and does the others again,
and those once more in which episodes met bugs.
"""

import hashlib
import io
import json
import logging
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam

from annotate.jobs import claims
from annotate.jobs.local import no_device_left, run_workers
from annotate.jobs.terminal import interval, progress, worker_output_to
from annotate.jobs.unit import (
    Unit,
    Work,
    finished,
    log_path,
    lost_notes,
    met_bugs,
    notes,
    patiently,
    says_disk_is_full,
    settled,
)
from annotate.sources.rlds import SourceFile
from pixel160k.errors import InputError, JobBug, PartDone, one_line
from pixel160k.files import read_json, write_text
from pixel160k.owner import TEMPORARY, temporary_name
from pixel160k.paths import AnyPath
from pixel160k.stores import StorePath

# Named in full: "DirectRunner" first tries Prism, which downloads a binary.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

_ROUNDS_WITHOUT_PROGRESS = 3  # that many end a job whose runner does nothing
_NAMED = 6  # of the differences from another run, in its error


@dataclass(frozen=True)
class Execution:
    """Where a job runs. Nothing here changes a byte of the results."""

    workers: int = 1  # local processes per device
    runner: str = ""  # any other Beam runner by its full name
    options: Sequence[str] = ()  # Beam pipeline options of any other runner
    shard: tuple[int, int] = (1, 1)  # (i, n): of every n files the i-th, counted from 1


def run_job(
    title: str,
    work: Work,
    files: list[SourceFile],
    out: AnyPath,
    description: dict[str, Any],
    execution: Execution,
    devices: Sequence[str] = ("cpu",),
) -> list[dict[str, Any]]:
    """Run a job over all files into `out` and return their done-markers, in the order of the files.

    A marker is a dict: `summary` (what `work` returned), `outputs` (name -> bytes and sha256), `seconds`, `fingerprint`,
    `retries` (how often a fault that may pass was met), `died` (the processes that died at the file before), `token` (tells
    the outcomes of several commands apart). A summary with `internal_errors` that are not empty says that episodes met bugs.

    Args:
        title: names the job on the progress bar.
        work: called once per file; must be picklable.
        files: the source files; those that `out` holds results of are skipped, but for those of this part with bugs.
        out: output directory; new, empty, or holding the same run, which is then resumed, or shared with the commands
            that work there now.
        description: everything that determines the results; its hash is the fingerprint of the run.
        execution: runner, workers, and which part of the files is this command's.
        devices: where the work computes: `execution.workers` local processes for each. Another runner takes one.

    Raises:
        InputError: `out` cannot be written or holds something else, the disk is full, no device is left, or a file
            failed; names the file and the cause.
        JobBug: a file met a bug.
        PartDone: this command's part is done, but others are not.
    """
    fingerprint = _open_run(out, description)
    done = out / ".done"
    claims.remove_leftovers(out)
    index, count = execution.shard
    part = files[index - 1 :: count]
    markers = finished(out, files, fingerprint)
    again = met_bugs(part, markers[index - 1 :: count])
    markers = [None if file.name in again else marker for file, marker in zip(files, markers, strict=True)]
    unfinished = _unfinished(files, markers)
    if pending := _unfinished(part, markers[index - 1 :: count]):
        noted = {path.name for file in pending for path in notes(done, file).values()}
        for path in done.glob("*"):
            if path.name in noted or path.name.endswith(".lost"):  # a process that still cannot work says so again
                path.unlink(missing_ok=True)  # of an earlier command
        with (
            worker_output_to(log_path(out)) as terminal,
            progress(title, done, [f.name for f in files], terminal) as say,
        ):
            unit = Unit(work, str(out.resolve()), fingerprint, devices[0], again)
            _run_until_settled(unit, pending, execution, list(devices), say)
        claims.remove_leftovers(out)
    _open_run(out, description)  # if two different runs began at the same moment, one of them ends here
    done_since = iter(finished(out, unfinished, fingerprint, again))
    markers = [next(done_since) if marker is None else marker for marker in markers]
    lost = _unfinished(files, markers)
    failed = [notes(done, file) for file in _unfinished(part, markers[index - 1 :: count])]
    bugs, failures = (
        [note[kind].read_text(encoding="utf-8").splitlines()[0] for note in failed if note[kind].exists()]
        for kind in ("bug", "failed")
    )
    if faults := bugs + failures:
        more = f" (and {len(faults) - 1} more files)" if len(faults) > 1 else ""
        rest = "the other files are done: the same command goes on from there"
        if bugs:
            trace = f"{done}/*.bug" if isinstance(out, StorePath) else log_path(out)
            raise JobBug(f"this is a bug, met at {faults[0]}{more}; the traceback is in {trace}; {rest}")
        raise InputError(f"{faults[0]}{more}; {rest}")
    if lost:
        raise PartDone(
            f"part {index} of {count} is done; of {len(files)} files {len(lost)} are missing, the first is "
            f"{lost[0].path.name}; the command that does the last one ends the run"
        )
    if isinstance(out, StorePath):  # all went well, and its log would stay among this machine's temporary files
        log_path(out).unlink(missing_ok=True)
    return [marker for marker in markers if marker is not None]


def _run_until_settled(
    unit: Unit, pending: list[SourceFile], execution: Execution, devices: list[str], say: Callable[[str], None]
) -> None:
    """Run rounds until each file is done or its failure is noted, by whomever."""
    done, idle, waiting = unit.out / ".done", 0, False
    workers = [device for _ in range(execution.workers) for device in devices]
    alone = bool(execution.runner) or len(workers) == 1
    while pending:
        free = patiently(partial(_free, done, pending), say)
        if free:
            failure = _run_round(unit, free, execution, [] if alone else workers, say)
        else:
            if not waiting:
                say(f"waiting for other commands that work on {len(pending)} files, as {pending[0].path.name}")
            waiting, failure = True, None
            time.sleep(interval(done))
        left = patiently(partial(_left, unit, pending), say)
        idle = idle + 1 if free and len(left) == len(pending) else 0
        if idle and (lost := lost_notes(done)) and (failure is not None or idle == _ROUNDS_WITHOUT_PROGRESS):
            owner, why = list(lost.items())[-1]
            raise no_device_left(f"{unit.device} of {owner}", why)
        if failure is not None:
            if idle and execution.runner and isinstance(failure, OSError):  # it cannot be reached
                raise InputError(f"--runner {execution.runner}: {one_line(failure)}")
            if idle:
                raise failure
            _log(unit.out, "".join(traceback.format_exception(failure)))
            say(f"the runner failed and is started again: {one_line(failure)[:200]}")
        if idle == _ROUNDS_WITHOUT_PROGRESS:
            raise InputError(f"{left[0].path.name} was not finished by the runner; run the same command again")
        pending = left


def _free(done: AnyPath, files: list[SourceFile], _: int) -> list[SourceFile]:
    """Those files that no living process has."""
    claimed = {path.name for path in done.glob("*.claim")}
    held = (claims.claim_path(done, file.name) for file in files)
    return [
        file for file, path in zip(files, held, strict=True) if path.name not in claimed or not claims.is_held(path)
    ]


def _left(unit: Unit, files: list[SourceFile], _: int) -> list[SourceFile]:
    """Those files that are neither done nor noted as failed."""
    found = settled(unit.out, files, unit.fingerprint, unit.again)
    return [file for file, is_settled in zip(files, found, strict=True) if not is_settled]


def _run_round(
    unit: Unit, files: list[SourceFile], execution: Execution, workers: list[str], say: Callable[[str], None]
) -> Exception | None:
    """Run the pipeline once over these files; returns how the runner failed, if it did.

    Args:
        unit: does a file.
        files: the files to do.
        execution: the runner and its options.
        workers: the devices of local worker processes, as `run_workers` takes them; empty where there are none.
        say: shows a line to the user.

    Raises:
        InputError: the disk is full, there is no such runner, or no device is left.
    """

    def tell(line: str) -> None:
        _log(unit.out, line)
        say(line)

    try:
        if workers:
            run_workers(unit, files, workers, tell)
        else:
            run_pipeline(unit, files, execution.runner, execution.options, tell)
            if not execution.runner and (why := unit.lost()):
                raise no_device_left(unit.device, why)
    except InputError:
        raise
    except Exception as error:
        if (ended := _ended_by(error)) is not None:
            raise ended from None
        if says_disk_is_full(error):
            disk = tempfile.gettempdir() if isinstance(unit.out, StorePath) else unit.out
            raise InputError(
                f"no space left on the disk of {disk}; make room: the same command goes on from there"
            ) from None
        return error
    return None


def _ended_by(error: BaseException | None) -> BaseException | None:
    """Ctrl-C or SIGTERM in the midst of the work, which Beam hands over as a RuntimeError; None where it was neither."""
    while error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        error = error.__context__
    return error


class _DoFile(beam.DoFn):
    """Hands each file to the unit."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def process(self, file: SourceFile) -> None:
        self.unit(file)


def run_pipeline(
    unit: Unit,
    files: list[SourceFile],
    runner: str = "",
    options: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the pipeline over these files: in this process, or by another Beam runner with its options.

    `say` tells of options that Beam does not know: it ignores them, but runners in other languages may not.

    Raises:
        InputError: there is no such runner, or it does not take these options.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    chosen = [f"--runner={runner or LOCAL_RUNNER}", *options]
    if not runner:
        chosen += ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            created = beam.Pipeline(options=PipelineOptions(chosen))
            # Only transforms in other languages use it, and it would stay where this process is killed.
            shutil.rmtree(created.local_tempdir)
            known, given = (created.options.get_all_options(retain_unknown_options=all_) for all_ in (False, True))
    except (ImportError, AttributeError, ValueError) as error:  # how Beam says that there is no such runner
        raise InputError(f"--runner {runner}: {one_line(error)}") from None
    except SystemExit:  # of argparse, which has printed its reason
        raise InputError(f"--runner {runner}: {complaint.getvalue().strip().rpartition('error: ')[2]}") from None
    if unknown := given.keys() - known.keys():
        say(f"--runner {runner}: Beam knows no option {', '.join(sorted(unknown))}; is it spelled rightly?")
    _ = created | beam.Create(files) | beam.Reshuffle() | beam.ParDo(_DoFile(unit))
    # Without the runner's own test, which makes a second pipeline and its folder.
    created.run(test_runner_api=False).wait_until_finish()


def _open_run(out: AnyPath, description: dict[str, Any]) -> str:
    """Take `out` for this run, or check that it already is this run's; returns the fingerprint.

    Raises:
        InputError: it cannot be made or written, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / temporary_name("probe")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None
    canonical = json.dumps(description, sort_keys=True, indent=1)
    record = out / "run.json"
    if record.exists():
        if (earlier := read_json(record)) != (wanted := json.loads(canonical)):
            if not isinstance(earlier, dict):
                raise InputError(f"{record} describes no run; choose another --out, or delete that one")
            differences = list(_differences(earlier, wanted))
            more = f", and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
            by_filter = all(name.startswith(("filter_digest", "settings.filter.")) for name in differences)
            raise InputError(
                f"{out} holds the results of another run (different: {', '.join(differences[:_NAMED])}{more}); "
                + (f"`pixelcli annotate --refilter {out}` accepts them anew, without the models; " if by_filter else "")
                + "choose another --out, or delete that one"
            )
    elif any(not path.name.startswith(TEMPORARY) for path in out.glob("*")) and not record.exists():
        raise InputError(f"{out} is not empty and holds no run of this kind; choose another --out")
    else:
        write_text(record, canonical)
    (out / ".done").mkdir(exist_ok=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _differences(earlier: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys, with dots, whose values differ; of models also the values."""
    for key in sorted({*earlier, *wanted}):
        old, new = earlier.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old}, is {new}" if prefix == "revisions." else f"{prefix}{key}"


def _unfinished(files: Sequence[SourceFile], markers: Sequence[dict[str, Any] | None]) -> list[SourceFile]:
    return [file for file, marker in zip(files, markers, strict=True) if marker is None]


def _log(out: AnyPath, text: str) -> None:
    with open(log_path(out), "a", encoding="utf-8") as log:
        log.write(f"{text}\n")

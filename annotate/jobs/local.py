"""Several worker processes on one machine, each bound to its device, watched by this process.

Each worker runs the same Beam pipeline in memory over all files, and takes those that no other process has claimed
(`annotate.jobs.claims`). So workers, several commands and several machines share the files by one mechanism. Beam's own
`multi_processing` mode is not used: it gives each worker a fixed share, and waits for ever for one that died.

A worker that dies is named in the log and on the terminal, and another one is started in its place; but not for a worker
that can do nothing more, since the next one would meet the same. Workers end when this process ends, however it ends: their
standard input closes then.
"""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from annotate.jobs.claims import claim_path, read_claim
from annotate.jobs.unit import Unit, finished, log_path, lost_notes
from annotate.sources.rlds import SourceFile
from pixel160k.errors import InputError
from pixel160k.owner import process_id

DISK_IS_FULL, DEVICE_IS_LOST = 28, 29  # exit codes of a worker
_DEATHS_WITHOUT_WORK = 3  # that many workers in a row that die before they take a file end the job


def list_devices(text: str) -> list[str]:
    """The devices that `--device` names, separated by commas; "cuda" alone stands for every GPU that torch sees.

    Raises:
        InputError: they are of different kinds, one is named that is not there, or none is named.
    """
    devices = [device.strip() for device in text.split(",")]
    if len({device.partition(":")[0] for device in devices}) != 1 or not all(devices):
        raise InputError(f"--device {text}: name devices of one kind, as cuda:0,cuda:2")
    if devices[0].startswith("cuda"):
        import torch

        count = torch.cuda.device_count()
        if devices == ["cuda"] and count > 1:
            return [f"cuda:{index}" for index in range(count)]
        known = {"cuda" if count else "", *(f"cuda:{index}" for index in range(count))}
        if wrong := [device for device in devices if device not in known]:
            raise InputError(f"--device {wrong[0]} cannot be used: torch sees {count} GPUs here")
    return devices


def run_workers(unit: Unit, files: list[SourceFile], devices: list[str], say: Callable[[str], None]) -> None:
    """Run one worker process per entry of `devices`, at most one per file, until none finds a file that it may take.

    Args:
        unit: does a file; its own device does not count.
        files: the files to do.
        devices: one entry per worker; a device may stand there several times. An entry whose worker does nothing more is
            removed.
        say: shows a line to the user.

    Raises:
        InputError: workers die before they begin, or no device is left.
        OSError: the disk is full.
    """
    running: dict[subprocess.Popen[bytes], str] = {}
    deaths_without_work = 0
    try:
        for device in devices[: len(files)]:
            running[_start(device)] = device
        for worker, device in running.items():
            _hand_over(worker, unit, files, device)
        while running:
            time.sleep(0.05)
            for worker in [worker for worker in running if worker.poll() is not None]:
                device = running.pop(worker)
                if worker.returncode == 0:
                    continue
                if worker.returncode == DISK_IS_FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                names = _files_of(unit, worker.pid, files)
                where = f" at {', '.join(names)}, which is done again" if names else ""
                if worker.returncode == DEVICE_IS_LOST:
                    notes = lost_notes(unit.out / ".done").items()
                    why = next((note for owner, note in notes if process_id(owner) == worker.pid), "")
                    say(f"worker {worker.pid} ({device}) does nothing more{where}: {why}")
                    devices.remove(device)
                    if not devices:
                        raise no_device_left(device, why)
                    continue
                deaths_without_work = 0 if names else deaths_without_work + 1
                say(f"worker {worker.pid} ({device}) {_cause(worker.returncode)}{where}")
                if deaths_without_work == _DEATHS_WITHOUT_WORK:
                    log = log_path(unit.out)
                    raise InputError(
                        f"workers end before they begin; the last one {_cause(worker.returncode)}; see {log}"
                    )
                running[following := _start(device)] = device
                _hand_over(following, unit, files, device)
    finally:
        for worker in running:
            worker.kill()
        for worker in running:
            worker.wait()


def no_device_left(device: str, why: str) -> InputError:
    """The end of a job whose workers have all lost their devices, this one the last."""
    return InputError(
        f"no worker is left, since {device} does nothing more ({why}); "
        "the same command goes on from there once that is mended, or on other --devices"
    )


def _start(device: str) -> "subprocess.Popen[bytes]":
    """Start a worker. What it prints goes where our standard error goes."""
    command = [sys.executable, "-P", "-m", "annotate.jobs.worker"]  # -P: a random.py where we work is none of ours
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, env=worker_environment(device))


def worker_environment(device: str) -> dict[str, str]:
    """The environment of a worker: it imports from where we do, and sees no other GPU than its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    kind, _, index = device.partition(":")
    if kind == "cuda" and index:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
    return environment


def _hand_over(worker: "subprocess.Popen[bytes]", unit: Unit, files: list[SourceFile], device: str) -> None:
    """Send a worker what to do. Its standard input stays open: when it closes, the worker ends."""
    assert worker.stdin is not None
    bound = "cuda" if device.startswith("cuda") else device  # the only GPU that it sees
    try:
        worker.stdin.write(pickle.dumps((Unit(unit.work, str(unit.out), unit.fingerprint, bound, unit.again), files)))
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # it has died, which is noticed next


def _files_of(unit: Unit, pid: int, files: list[SourceFile]) -> list[str]:
    """The names of the files that a worker died at, whether or not another one has taken them over or done them since."""
    found, done = [], unit.out / ".done"
    claims = {path.name: read_claim(path) for path in done.glob("*.claim")}  # before the markers, which follow them
    for file, marker in zip(files, finished(unit.out, files, unit.fingerprint), strict=True):
        claim = claims.get(claim_path(done, file.name).name)
        owners = [claim.owner, *claim.died] if claim else marker["died"] if marker else []
        if pid in map(process_id, owners):
            found.append(file.path.name)
    return found


def _cause(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name
    return f"was killed by {name}" + (" (was the memory full?)" if name == "SIGKILL" else "")

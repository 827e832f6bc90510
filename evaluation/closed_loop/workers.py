"""Simulators in processes of their own, which share one policy: it is asked here, for whichever of them wait.

A worker gets a task and the episodes to try in it; it sends what its policy is to see, and in the end a row; then it gets more,
of the same task where there are such, since to make an environment takes as long as some episodes. If a worker dies, or meets a
bug, its episode has that as its error, and another process goes on.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.closed_loop.episode import EpisodeResult, episode_name, run_episode
from evaluation.closed_loop.scenes import Scene
from evaluation.closed_loop.scripted import Scripted
from evaluation.closed_loop.settings import LiberoSettings
from evaluation.closed_loop.video import film
from evaluation.shifts import Shift
from pixel160k.errors import InputError, one_line
from policies.base import Policy, Seen, looks
from simulation.environment import TaskEnvironment

Episode = tuple[Scene, str]  # and its condition

_log = logging.getLogger(__name__)
_FAILED_AT_FIRST = 3  # episodes that fail before any ends: the others would, too


@dataclass(frozen=True)
class Unit:
    """Episodes that one environment serves, one or more, see `Scene.environment`.

    Attributes:
        todo: episodes to try, in this order.
        before: the initial states of the episodes before them, where fixtures wander from one to the next.
    """

    todo: tuple[Episode, ...]
    before: tuple[int, ...] = ()

    @property
    def place(self) -> tuple[int, str, str]:
        """What an environment is made for, see `Scene.environment`."""
        return self.todo[0][0].environment

    def without_first(self) -> "Unit":
        """What is left of it after its first episode."""
        first, *others = self.todo
        return Unit(tuple(others), (*self.before, first[0].initial_state))


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    unit: Unit
    left: Unit


def run_units(
    units: Sequence[Unit],
    settings: LiberoSettings,
    policy: Policy | Scripted,
    workers: int,
    batch: int,
    films: Path | None = None,
    bugs: Path = Path("bugs.log"),
    scratch: Path | None = None,
    ended: bool = False,
) -> Iterator[EpisodeResult]:
    """Try the episodes of all units, and yield each result as it ends.

    Args:
        units: what there is to do.
        settings: of the evaluation.
        policy: what acts; or what makes a policy beside each simulator.
        workers: processes with a simulator each.
        batch: for how many of them the policy is asked at once, at most. With 1 the results do not depend on `workers`.
        films: the folder for a film of each episode; None makes none.
        bugs: the file that the traceback of a bug is added to.
        scratch: the folder for the simulators' temporary files, which those that are killed leave; None: the system's.

        ended: whether any episode ended before, so that the simulator is known to start.

    Raises:
        InputError: as the policy; or no episode ends: the simulator's processes die or meet bugs from the first one on.
    """
    waiting, running = list(units), list[_Worker]()
    failed = 0
    beside = policy if isinstance(policy, Scripted) else looks(policy)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0), settings, beside, films, scratch))
            asked: list[tuple[_Worker, Seen]] = []
            for ready in wait([worker.pipe for worker in running]):
                worker = next(worker for worker in running if worker.pipe is ready)
                kind, content = _receive(worker, bugs)
                if kind == "reset" and not isinstance(policy, Scripted):
                    policy.reset(*content)
                elif kind == "act":
                    asked.append((worker, content))
                elif kind == "result":
                    worker.left, ended = worker.left.without_first(), True
                    yield content
                elif kind == "refused":
                    raise InputError(content)
                elif kind == "done" and waiting:
                    worker.unit = worker.left = _like(worker.unit, waiting)
                    _send(worker, worker.unit)
                else:  # there is nothing to do for it, or it met a bug, or died
                    running.remove(worker)
                    _send(worker, None)
                    worker.process.join()
                    if not worker.left.todo:
                        continue
                    (scene, condition), *_ = worker.left.todo
                    error = content or f"the simulator's process died (exit code {worker.process.exitcode})"
                    yield EpisodeResult(
                        scene.task_id, scene.target, scene.initial_state, condition, scene.shift, error=error
                    )
                    if (left := worker.left.without_first()).todo:
                        waiting.insert(0, left)
                    if not ended and (failed := failed + 1) == _FAILED_AT_FIRST:
                        raise InputError(
                            f"the first {failed} episodes all failed, {error}: if the simulator does not start on this machine, "
                            f"MUJOCO_GL names its renderer, osmesa (CPU) or egl (GPU), now {os.environ.get('MUJOCO_GL')}"
                        )
            for begin in range(0, len(asked), batch):
                together = asked[begin : begin + batch]
                assert not isinstance(policy, Scripted)
                for (worker, _), chunk in zip(together, policy.act([seen for _, seen in together]), strict=True):
                    _send(worker, chunk)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _start(
    unit: Unit, settings: LiberoSettings, beside: Scripted | bool, films: Path | None, scratch: Path | None
) -> _Worker:
    """`beside`: what makes the worker's policy; or, of a shared one, whether it looks at images."""
    context = multiprocessing.get_context("spawn")  # a forked process would share torch's threads and the renderer
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, unit, settings, beside, films, scratch), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, unit, unit)


def _like(unit: Unit, waiting: list[Unit]) -> Unit:
    """Take a unit out of those that wait: one of the same environment, else the first."""
    alike = (number for number, other in enumerate(waiting) if other.place == unit.place)
    return waiting.pop(next(alike, 0))


def _send(worker: _Worker, message: Any) -> None:
    with suppress(ConnectionError):  # it died; what can be received next says so
        worker.pipe.send(message)


def _receive(worker: _Worker, bugs: Path) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = worker.pipe.recv()
    except (EOFError, ConnectionError):
        return "died", ""
    if message[0] == "bug":
        with bugs.open("a", encoding="utf-8") as log:
            log.write(message[1])
        what = one_line(Exception(message[1].strip().rpartition("\n")[2]))
        _log.warning("a bug of pixelvla cost an episode: %s; please report it with the traceback in %s", what, bugs)
        return "bug", what
    return message


def _work(
    pipe: Connection,
    unit: Unit,
    settings: LiberoSettings,
    beside: Scripted | bool,
    films: Path | None,
    scratch: Path | None,
) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's, which then ends its workers
    tempfile.tempdir = None if scratch is None else str(scratch)
    try:
        _try_units(pipe, unit, settings, beside, films)
    except (EOFError, ConnectionError):  # the command is gone: nobody wants to know
        pass
    except InputError as error:
        pipe.send(("refused", str(error)))
    except Exception:
        pipe.send(("bug", traceback.format_exc()))


def _try_units(
    pipe: Connection, first: Unit, settings: LiberoSettings, beside: Scripted | bool, films: Path | None
) -> None:
    """Try a unit of episodes, and those that are then given, until there is none."""
    wandering = settings.fixtures == "once"
    unit: Unit | None = first
    while unit:
        scene, place = unit.todo[0][0], unit.place
        added = Shift.named(scene.shift).added(settings.suite, scene.task_id, settings.seed)
        with TaskEnvironment(
            settings.suite, scene.task_id, scene.target, settings.reflections, hard_reset=wandering, added=added
        ) as environment:
            acting: Policy = beside.make(environment) if isinstance(beside, Scripted) else _Asked(pipe, beside)
            for state in unit.before if wandering else ():
                environment.reset(state, seeded=False)
            while unit and unit.place == place:
                for episode in unit.todo:
                    pipe.send(("result", _try_one(environment, acting, settings, episode, films)))
                pipe.send(("done", ""))
                unit = pipe.recv()
                if wandering:  # its fixtures begin anew
                    break


def _try_one(
    environment: TaskEnvironment, acting: Policy, settings: LiberoSettings, episode: Episode, films: Path | None
) -> EpisodeResult:
    if films is None:
        return run_episode(environment, acting, settings, *episode)
    name = f"{episode_name(settings.suite, *episode)}.mp4"
    with film(films / name) as take:
        result = run_episode(environment, acting, settings, *episode, take)
    return result if result.error else result.filmed(name)


class _Asked:
    """The shared policy, as a worker sees it."""

    def __init__(self, pipe: Connection, looks: bool) -> None:
        self._pipe, self.blind = pipe, not looks

    def reset(self, episode: str, instruction: str) -> None:
        self._pipe.send(("reset", (episode, instruction)))

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        (one,) = seen
        self._pipe.send(("act", one))
        chunk: np.ndarray = self._pipe.recv()
        return chunk[None]

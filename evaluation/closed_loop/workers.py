"""Simulators in processes of their own, which share one policy: it is asked here, for whichever of them wait.

A worker gets a task and the episodes to try in it; it sends what its policy is to see, and in the end a row. If a worker dies,
or meets a bug, its episode has that as its error, and another process goes on.
"""

import logging
import multiprocessing
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.closed_loop.episode import EpisodeResult, episode_name, run_episode
from evaluation.closed_loop.scenes import Scene
from evaluation.closed_loop.scripted import Expert, Replay
from evaluation.closed_loop.settings import LiberoSettings
from evaluation.closed_loop.video import film
from evaluation.shifts import Shift
from pixel160k.errors import InputError, one_line
from policies.base import Policy, Seen
from simulation.environment import TaskEnvironment

Episode = tuple[Scene, str]  # and its condition
EXPERT, REPLAY = "expert", "replay:"  # policies that live in the simulators' processes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """Episodes that one environment serves, see `Scene.environment`.

    Attributes:
        todo: episodes to try, in this order.
        before: the initial states of the episodes before them, where fixtures wander from one to the next.
    """

    todo: tuple[Episode, ...]
    before: tuple[int, ...] = ()

    def without_first(self) -> "Unit":
        """What is left of it after its first episode."""
        first, *others = self.todo
        return Unit(tuple(others), (*self.before, first[0].initial_state))


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    left: Unit


def run_units(
    units: Sequence[Unit],
    settings: LiberoSettings,
    policy: Policy | str,
    workers: int,
    batch: int,
    films: Path | None = None,
    bugs: Path = Path("bugs.log"),
) -> Iterator[EpisodeResult]:
    """Try the episodes of all units, and yield each result as it ends.

    Args:
        units: what there is to do.
        settings: of the evaluation.
        policy: what acts; or "expert" or "replay:FOLDER", which live with the simulators.
        workers: processes with a simulator each.
        batch: for how many of them the policy is asked at once, at most. With 1 the results do not depend on `workers`.
        films: the folder for a film of each episode; None makes none.
        bugs: the file that the traceback of a bug is added to.

    Raises:
        InputError: as the policy.
    """
    waiting, running = list(units), list[_Worker]()
    scripted = policy if isinstance(policy, str) else ""
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0), settings, scripted, films))
            asked: list[tuple[_Worker, Seen]] = []
            for ready in wait([worker.pipe for worker in running]):
                worker = next(worker for worker in running if worker.pipe is ready)
                kind, content = _receive(worker, bugs)
                if kind == "reset" and not isinstance(policy, str):
                    policy.reset(*content)
                elif kind == "act":
                    asked.append((worker, content))
                elif kind == "result":
                    worker.left = worker.left.without_first()
                    yield content
                elif kind == "refused":
                    raise InputError(content)
                else:  # it is at its end, or met a bug, or died
                    running.remove(worker)
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
            for begin in range(0, len(asked), batch):
                together = asked[begin : begin + batch]
                assert not isinstance(policy, str)
                for (worker, _), chunk in zip(together, policy.act([seen for _, seen in together]), strict=True):
                    worker.pipe.send(chunk)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _start(unit: Unit, settings: LiberoSettings, scripted: str, films: Path | None) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process would share torch's threads and the renderer
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, unit, settings, scripted, films), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, unit)


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


def _work(pipe: Connection, unit: Unit, settings: LiberoSettings, scripted: str, films: Path | None) -> None:
    """What a worker process does."""
    try:
        _try_all(pipe, unit, settings, scripted, films)
        pipe.send(("end", ""))
    except (EOFError, BrokenPipeError):  # the command is gone: nobody wants to know
        pass
    except InputError as error:
        pipe.send(("refused", str(error)))
    except Exception:
        pipe.send(("bug", traceback.format_exc()))


def _try_all(pipe: Connection, unit: Unit, settings: LiberoSettings, scripted: str, films: Path | None) -> None:
    first = unit.todo[0][0]
    wandering = settings.fixtures == "once"
    with TaskEnvironment(
        settings.suite,
        first.task_id,
        first.target,
        settings.reflections,
        hard_reset=wandering,
        added=Shift.named(first.shift).added(settings.suite, first.task_id, settings.seed),
    ) as environment:
        acting: Policy = _Asked(pipe)
        if scripted == EXPERT:
            acting = Expert(environment)
        elif scripted.startswith(REPLAY):
            acting = Replay(Path(scripted.removeprefix(REPLAY)), environment)
        if wandering:
            for state in unit.before:
                environment.reset(state, seeded=False)
        for scene, condition in unit.todo:
            if films is None:
                result = run_episode(environment, acting, settings, scene, condition)
            else:
                name = f"{episode_name(settings.suite, scene, condition)}.mp4"
                with film(films / name) as take:
                    result = run_episode(environment, acting, settings, scene, condition, take).filmed(name)
            pipe.send(("result", result))


class _Asked:
    """The shared policy, as a worker sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def reset(self, episode: str, instruction: str) -> None:
        self._pipe.send(("reset", (episode, instruction)))

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        (one,) = seen
        self._pipe.send(("act", one))
        chunk: np.ndarray = self._pipe.recv()
        return chunk[None]

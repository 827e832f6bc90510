"""One thread that owns the policy and acts for all clients at once: what is asked for meanwhile is acted on together."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from model.processor import Observation
from pixel160k.errors import InputError


class Answer(NamedTuple):
    """What the policy says to one observation.

    Attributes:
        actions: float32 (N_c, 7) in robot units, gripper in [0, 1] with 1 = open.
        waited: seconds until its batch was begun.
        acted: seconds that the policy took for the batch.
        batch: how many observations were in it.
    """

    actions: np.ndarray
    waited: float
    acted: float
    batch: int


class _Asked(NamedTuple):
    observation: Observation
    answer: Future[Answer]
    since: float


class Actor:
    """Acts on observations of any number of clients, several at a time."""

    def __init__(self, act: Callable[[Sequence[Observation]], np.ndarray], most: int, wait: float) -> None:
        """Start the thread.

        Args:
            act: of the policy, as `PixelVLA.act`; called by this thread alone.
            most: observations of one batch.
            wait: seconds that an observation waits for others before its batch is begun.
        """
        self._act, self._most, self._wait = act, most, wait
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def ask(self, observation: Observation) -> Future[Answer]:
        """The answer, once there is one. Cancelled before its batch is begun, it costs nothing.

        What the policy raises for this observation is raised by the future; it harms no other of its batch.
        """
        asked = _Asked(observation, Future(), time.monotonic())
        self._queue.put(asked)
        return asked.answer

    def close(self) -> None:
        """Answer what was asked for before, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = self._gather(first)
            if wanted := [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]:
                self._answer(wanted)
            if last:
                return

    def _gather(self, first: _Asked) -> tuple[list[_Asked], bool]:
        """What is acted on together, and whether it is the last."""
        batch, until = [first], time.monotonic() + self._wait
        while len(batch) < self._most:
            try:
                asked = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if asked is None:
                return batch, True
            batch.append(asked)
        return batch, False

    def _answer(self, batch: Sequence[_Asked]) -> None:
        """Act on a batch; where it fails on its halves, so that each answer but those that cannot be is given, once."""
        begun = time.monotonic()
        try:
            chunks = self._act([asked.observation for asked in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            half = len(batch) // 2
            self._answer(batch[:half])
            self._answer(batch[half:])
            return
        acted = time.monotonic() - begun
        for asked, actions in zip(batch, chunks, strict=True):
            if np.isfinite(actions).all():
                asked.answer.set_result(Answer(actions, begun - asked.since, acted, len(batch)))
            else:
                asked.answer.set_exception(InputError("the policy's actions are not finite; serve another checkpoint"))

"""A policy as clients of any protocol find it: it describes itself, answers observations, and counts what it did."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.processor import Observation
from pixel160k.errors import InputError, one_line
from policies.framing import Gripper
from serve.batching import Actor, Answer
from serve.clicks import Clicks, Key
from serve.requests import ACT, OPENPI, Form
from serve.settings import ServeSettings

_log = logging.getLogger(__name__)
_LAST = 10_000  # answers that the percentiles are of
_BUG = "a bug of pixelvla; its traceback is in the server's log"


class Gone(Exception):
    """The client left before it had its answer."""


class Service:
    """Answers observations, whichever way they came.

    Attributes:
        settings: how clients are served.
        dataset: whose robot acts where a client does not say it.
        clicks: what a person points at, or None where nobody can.
    """

    def __init__(
        self,
        actor: Actor,
        settings: ServeSettings,
        dataset: str,
        about: Mapping[str, Any],
        clicks: Clicks | None = None,
    ) -> None:
        """Serve what an actor acts.

        Args:
            actor: owns the policy.
            settings: how clients are served.
            dataset: a key of the policy's statistics.
            about: what else clients are told of the policy; plain values.
            clicks: what a person points at.
        """
        self.settings, self.dataset, self.clicks = settings, dataset, clicks
        self._actor, self._about = actor, about
        self._counts: Counter[str] = Counter(answered=0, refused=0, bugs=0, gone=0)
        self._batches: Counter[int] = Counter()
        self._answers: deque[tuple[float, float, float]] = deque(maxlen=_LAST)  # seconds in all, waited, acted

    def gripper(self, form: Form) -> Gripper:
        """What the last number of an action means in this protocol."""
        return {OPENPI: self.settings.openpi_gripper, ACT: self.settings.act_gripper}[form]

    def describe(self, form: Form) -> dict[str, Any]:
        """What a client of this protocol is told before it asks."""
        return {
            "server": "pixelvla",
            **self._about,
            "dataset": self.dataset,
            "keys": list(form.keys),
            "gripper": self.gripper(form),
            "message_bytes": self.settings.message_bytes,
        }

    async def answer(
        self, observation: Observation, since: float, incoming: asyncio.Future[Any], episode: Key, single: bool = False
    ) -> Answer:
        """The policy's answer.

        Args:
            observation: as `serve.requests` read it.
            since: when the message had come, of `time.monotonic`.
            incoming: what the client says next; where that is that it is gone, nothing more is done for it.
            episode: what it is of.
            single: whether the client takes the first action alone.

        Raises:
            Gone: the client left.
            InputError: the policy cannot act on it.
        """
        answer = asyncio.ensure_future(self._answer(observation, since, episode, single))
        try:
            await asyncio.wait({answer, incoming}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and incoming.result()["type"].endswith(".disconnect"):
                raise Gone
            return await answer
        finally:
            if answer.cancel():
                await asyncio.wait({answer})  # then it is sure that nobody acts on it any more

    async def _answer(self, observation: Observation, since: float, key: Key, single: bool) -> Answer:
        if self.clicks is not None:
            episode = self.clicks.episode(key, observation)
            began = time.monotonic()
            await episode.decision()
            since += time.monotonic() - began  # a person's time is no latency
            observation = await episode.tell(observation)
        found = await asyncio.wrap_future(self._actor.ask(observation))
        if self.clicks is not None:
            episode.acted(self.clicks.carried_out(found.actions, single)[:, -1])
        self._counts["answered"] += 1
        self._batches[found.batch] += 1
        self._answers.append((time.monotonic() - since, found.waited, found.acted))
        return found

    def ended(self, episode: Key) -> None:
        """An episode has no client any more."""
        if self.clicks is not None:
            self.clicks.end(episode)

    def explain(self, error: Exception, client: str) -> tuple[int, str]:
        """The status and the line that a client gets where there is no answer; a bug's traceback goes to the log alone."""
        if isinstance(error, InputError):
            self.refused(client, one_line(error))
            return 400, one_line(error)
        self._counts["bugs"] += 1
        _log.error("%s met a bug", client, exc_info=error)
        return 500, _BUG

    def refused(self, client: str, reason: str) -> None:
        """Count and log a request that is not answered."""
        self._counts["refused"] += 1
        _log.info("%s refused: %s", client, reason)

    def left(self) -> None:
        """Count a client that did not wait for its answer."""
        self._counts["gone"] += 1

    def measures(self) -> dict[str, Any]:
        """Counts since the start; percentiles of the last answers in milliseconds; how large their batches were."""
        times = np.array(self._answers).reshape(-1, 3) * 1000
        shares = (50, 95, 99)
        found = np.percentile(times, shares, axis=0) if len(times) else np.full((3, 3), np.nan)
        return {
            **self._counts,
            "count": len(times),
            **{
                f"{name}_ms": {
                    f"p{share}": None if np.isnan(row) else round(row, 3)
                    for share, row in zip(shares, column, strict=True)
                }
                for name, column in zip(("latency", "waited", "acted"), found.T.tolist(), strict=True)
            },
            "batches": {str(size): count for size, count in sorted(self._batches.items())},
        }

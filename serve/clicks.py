"""What a person points at while a policy acts: one point or box in an episode, told with its every image until the gripper closes.

That is what training has (docs/model.md): a click marks its object as long as that stands where it was clicked. Where SAM 2
follows it, the policy gets the mask p_t of each image as well. All of this runs in the server's event loop but SAM 2 itself,
which has a thread of its own, so that other clients are answered meanwhile.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model.processor import Observation
from pixel160k.errors import InputError
from pixel160k.format.prompts import Prompt, validate
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from annotate.annotators.segmenter import Segment

Follow = Callable[[Sequence[float]], Callable[[np.ndarray], "Segment"]]
"""As `annotate.annotators.segmenter.Segmenter.follow_live`: a point or box on the first image -> image -> its segment."""
Key = tuple[str, str]
"""Which episode an observation is of: what kind of name that is, and the name."""

_OVER = 600  # seconds after which an episode that nobody asks for any more is over
_CLOSED = 0.5  # a gripper below it


class Pointing(NamedTuple):
    """How things are pointed at.

    Attributes:
        page: serve the page on which a person clicks.
        always: pointed at from the first image of every episode, of a camera that stands still.
        follow: SAM 2, or None.
    """

    page: bool = False
    always: Prompt | None = None
    follow: Follow | None = None


class Click:
    """What was pointed at, and what SAM 2 makes of it on each image."""

    def __init__(self, prompt: Prompt, follow: Follow | None, thread: ThreadPoolExecutor) -> None:
        self.prompt = prompt
        self.masks: list[np.ndarray] = []
        self._take = None if follow is None else follow(prompt.coordinates.ravel().tolist())
        self._thread, self._lock = thread, asyncio.Lock()
        self._image: np.ndarray | None = None

    async def on(self, image: np.ndarray) -> list[np.ndarray]:
        """The masks p_t, each bool (height, width), on an image: one, or none without SAM 2. Images come in their order."""
        async with self._lock:
            if self._take is not None and image is not self._image:
                segment = await asyncio.get_running_loop().run_in_executor(self._thread, self._take, image)
                self.masks = [segment.seen]
                self._image = image
            return self.masks


class Episode:
    """An episode that acts now.

    Attributes:
        number: no other has it.
        name: for people.
        told: what the policy was last told, or is about to be while it waits for a click.
        shown: which image that has: 1 is the first of all.
        by: who pointed in that: "client", "click", or "" where nobody did.
        last: when the last came, of `time.monotonic`.
        click: what goes with its observations from now on.
        ended: why there is no click any more: "closed" by the gripper, "removed" by the person, "failed" in SAM 2, or ""
            where there was none.
        holds: whether the gripper is closed now.
        until: the end of the time in which its first observation waits for a click, of `time.monotonic`.
        decided: whether it waits no more.
    """

    def __init__(self, number: int, name: str, first: Observation, wait: float) -> None:
        self.number, self.name, self.told, self.by = number, name, first, ""
        self.shown, self.last, self.until = 1, time.monotonic(), time.monotonic() + wait
        self.click: Click | None = None
        self.ended, self.holds = "", False
        self.decided = asyncio.Event()

    def begins_anew_with(self, observation: Observation) -> bool:
        """Whether an observation is of another task or camera: what was pointed at before means nothing in it."""
        told = self.told
        return observation.instruction != told.instruction or observation.image.shape != told.image.shape

    async def decision(self) -> None:
        """Wait until somebody has pointed at something, or said that nothing shall be, or the time for that is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.until - time.monotonic())):
                await self.decided.wait()
        self.decided.set()

    async def tell(self, observation: Observation) -> Observation:
        """An observation with what was clicked; as it is, where its client points at something itself."""
        if observation.prompts or observation.masks:
            return self._show(observation, "client")
        while (click := self.click) is not None:
            masks = await self._follow(click, observation.image)
            if click is self.click:  # and not removed meanwhile
                return self._show(replace(observation, prompts=[click.prompt], masks=masks), "click")
        return self._show(observation, "")

    def acted(self, grippers: np.ndarray) -> None:
        """The policy has answered. `grippers` are those of the actions that will be carried out, 1 = open."""
        closed = grippers < _CLOSED
        self.holds = bool(closed[-1])
        if closed.any() and self.click is not None:
            self.click, self.ended = None, "closed"

    async def point(self, click: Click | None) -> None:
        """Point at something that lies on the image that was seen last, or at nothing any more.

        An observation that waits goes on once SAM 2 has found it, and waits on for another click where SAM 2 fails.

        Raises:
            InputError: the gripper is closed.
        """
        if click is not None and self.holds:
            raise InputError("the gripper is closed: nothing is pointed at until it opens")
        self.click, self.ended = click, "" if click else "removed"
        if click is not None:
            await self._follow(click, self.told.image)
        self.decided.set()

    async def _follow(self, click: Click, image: np.ndarray) -> list[np.ndarray]:
        """The masks of a click on an image. One on which SAM 2 fails is removed: it would fail on every image to come."""
        try:
            return await click.on(image)
        except Exception:
            if click is not self.click:  # removed meanwhile, so that nobody wants them
                return []
            self.click, self.ended = None, "failed"
            raise

    def _show(self, observation: Observation, by: str) -> Observation:
        """The observation, which the policy is told from now on, and people are shown."""
        self.shown += observation.image is not self.told.image
        self.told, self.by = observation, by
        return observation


class Clicks:
    """The episodes that act now."""

    def __init__(self, pointing: Pointing, settings: ServeSettings) -> None:
        """Keep as many as there may be clients; of more, those that were asked for last."""
        self._pointing, self._settings = pointing, settings
        self._episodes: dict[Key, Episode] = {}  # the one that was asked for last comes last
        self._numbers = itertools.count(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segmenter")

    def episode(self, key: Key, observation: Observation) -> Episode:
        """The episode that an observation, as its client gave it, is of.

        Raises:
            InputError: it is the first, and what is pointed at in every episode does not lie on its image.
        """
        self._end_idle()
        episode = self._episodes.get(key)
        if episode is None or episode.begins_anew_with(observation):
            self.end(key)
            episode = self._begin(key, observation)
        episode.last = time.monotonic()
        self._episodes.pop(key, None)
        self._episodes[key] = episode
        if len(self._episodes) > self._settings.connections:
            self.end(next(iter(self._episodes)))
        return episode

    def acting(self) -> list[Episode]:
        """All episodes, in the order in which they were last asked for."""
        self._end_idle()
        return list(self._episodes.values())

    def find(self, number: int) -> Episode:
        """The episode with this number.

        Raises:
            InputError: it has ended.
        """
        for episode in self._episodes.values():
            if episode.number == number:
                return episode
        raise InputError(f"episode {number} has ended; point at something in one that acts now")

    def end(self, key: Key) -> None:
        """Forget an episode, where there is one."""
        if (episode := self._episodes.pop(key, None)) is not None:
            episode.decided.set()

    def click(self, prompt: Prompt) -> Click:
        """What to give to `Episode.point`: a point or box in pixels."""
        return Click(prompt, self._pointing.follow, self._thread)

    def carried_out(self, actions: np.ndarray, single: bool) -> np.ndarray:
        """The actions (n, 7) of a chunk that a client will carry out before it asks again; `single`: it takes one alone."""
        return actions[: 1 if single else self._settings.replan or None]

    def close(self) -> None:
        """End the thread of SAM 2."""
        self._thread.shutdown(cancel_futures=True)

    def _end_idle(self) -> None:
        before = time.monotonic() - _OVER
        for key in [key for key, one in self._episodes.items() if one.last < before and one.decided.is_set()]:
            self.end(key)

    def _begin(self, key: Key, first: Observation) -> Episode:
        always, wait = self._pointing.always, self._settings.point_wait_s if self._pointing.page else 0
        episode = Episode(next(self._numbers), " ".join(key), first, wait)
        if always is not None:
            try:
                validate(always, *first.image.shape[:2])
            except InputError as error:
                raise InputError(f"--point of this server: {error}") from None
            episode.click = self.click(always)
        if not wait or always is not None or first.prompts or first.masks:
            episode.decided.set()
        return episode

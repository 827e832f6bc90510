"""Policies that learned nothing: what every other one is compared with."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pixel160k.format.actions import ACTION_DIMENSIONS
from pixel160k.seeding import seeded_generator
from policies.base import Seen


class RandomPolicy:
    """Draws every action: motion uniform in [-1, 1], the gripper open or closed."""

    blind = True

    def __init__(self, seed: int = 0, chunk: int = 8) -> None:
        """`seed` and the episode decide what is drawn; `chunk` actions at once."""
        self._seed, self._chunk, self._asked = seed, chunk, Counter[str]()

    def reset(self, episode: str, instruction: str) -> None:
        """Draw from the beginning again."""
        self._asked[episode] = 0

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """The next chunks, see `policies.base.Policy.act`; what is seen does not matter."""
        chunks = []
        for one in seen:
            generator = seeded_generator("random policy", self._seed, one.episode, self._asked[one.episode])
            self._asked[one.episode] += 1
            chunk = generator.uniform(-1, 1, (self._chunk, ACTION_DIMENSIONS))
            chunk[:, -1] = chunk[:, -1] > 0
            chunks.append(chunk.astype(np.float32))
        return np.stack(chunks)

"""The one protocol of everything that acts in a closed loop: checkpoints of ours and of others, servers, scripts, records.

A harness (LIBERO, SimplerEnv, a robot's driver) makes `Seen` of its observations and carries out what `act` returns. It
alone knows its robot's conventions: policies speak the one that shards are written in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pixel160k.format.prompts import Prompt


@dataclass(frozen=True)
class Seen:
    """What a policy gets at one step. Coordinates are pixels of `image`, origin top left.

    Attributes:
        image: the main camera, RGB uint8 (height, width, 3), upright.
        instruction: what to do.
        masks: p_t, of what the instruction is about, each bool (height, width).
        prompts: points, lines, regions and masks, as long as they mark their object on this image.
        wrist_image: the hand's camera, RGB uint8, or None where there is none.
        state: float32 (S,) proprioception in robot units, or None.
        episode: which episode of the harness this is; for those who know more of it than what is seen (`Policy.reset`).
    """

    image: np.ndarray
    instruction: str
    masks: Sequence[np.ndarray] = ()
    prompts: Sequence[Prompt] = ()
    wrist_image: np.ndarray | None = field(default=None, repr=False)
    state: np.ndarray | None = None
    episode: str = ""


class Policy(Protocol):
    """Something that acts. One policy may act in several episodes at once.

    One that looks at no image says so by an attribute `blind = True`: images are what an episode costs, and a harness may then
    show it empty ones (`looks`).
    """

    def reset(self, episode: str, instruction: str) -> None:
        """An episode begins, or begins anew: forget what was kept of it. Most policies keep nothing.

        Args:
            episode: an id, unique within the harness.
            instruction: what is to be done.
        """

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """The next actions in each of several episodes.

        Returns:
            float32 (len(seen), N, 7): chunks of Δx, Δy, Δz, Δroll, Δpitch, Δyaw in robot units, and the gripper in
            [0, 1], 1 = open.

        Raises:
            InputError: what is seen cannot be acted on, or the policy cannot be asked (a server that does not answer).
        """


def looks(policy: Policy) -> bool:
    """Whether a policy looks at the images that it is shown, see `Policy`."""
    return not getattr(policy, "blind", False)


def about(policy: Policy) -> dict[str, Any]:
    """What a server that acts says of itself, JSON; empty where it says nothing, and of what acts in this process."""
    said: dict[str, Any] = getattr(policy, "about", {})
    return said

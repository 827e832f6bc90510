"""What points at the target in closed loop: by the simulator's truth, as long as the policy holds its gripper open.

Until then it is what training has: prompts drawn on the first image, or the target's mask as it is seen now. Once the
gripper has closed, nothing marks the object any more.
"""

from collections.abc import Sequence

import numpy as np

from pixel160k.errors import InputError
from pixel160k.format.prompts import Prompt, line, mask_prompt, point, region, sample_prompts
from pixel160k.seeding import seeded_generator
from simulation.environment import AGENT_VIEW, GRIPPER, ROBOT_ARM, TaskEnvironment
from simulation.libero import category_of
from train.data import PIXEL_MASK

Shown = tuple[list[np.ndarray], list[Prompt]]  # masks p_t, bool (256, 256), and visual prompts

WRONG = "wrong_"


class Pointing:
    """What a policy is shown beside its image in one episode."""

    def __init__(self, condition: str, environment: TaskEnvironment, initial_state: int) -> None:
        """Point at the target of a scene that was just reset; or, where the condition begins with "wrong_", at another object.

        Raises:
            InputError: the object cannot be seen on the first image, or there is no other.
        """
        self._environment, self._kind = environment, condition.removeprefix(WRONG)
        self._prompts: list[Prompt] = []
        self._instance = ""
        if condition == "none":
            return
        masks = {name: mask for name, mask in environment.instance_masks(AGENT_VIEW).items() if mask.any()}
        seed = (environment.task_id, initial_state)
        self._instance = environment.target
        if condition.startswith(WRONG):
            self._instance = _another(sorted(masks), environment.target, seed)
        if self._instance not in masks:
            raise InputError(f"{self._instance} cannot be seen on the first image")
        if self._kind != PIXEL_MASK:
            mask = masks[self._instance]
            drawn = sample_prompts(mask, 1, seeded_generator("click", *seed))
            prompts = (point(*drawn.points[0]), line(drawn.line), region(drawn.region), mask_prompt(mask))
            self._prompts = [prompt for prompt in prompts if prompt.kind == self._kind]

    def shown(self, closed: bool) -> Shown:
        """What marks the object now; nothing once the gripper has closed."""
        if closed or not self._instance:
            return [], []
        if self._kind == PIXEL_MASK:
            return [self._environment.instance_masks(AGENT_VIEW)[self._instance]], []
        return [], self._prompts


def _another(names: Sequence[str], target: str, seed: tuple[int, int]) -> str:
    """Another object than the target; one of its kind where there is one, else any that is seen."""
    others = [name for name in names if name not in (target, GRIPPER, ROBOT_ARM)]
    alike = [name for name in others if category_of(name) == category_of(target)]
    if not others:
        raise InputError(f"there is no other object than {target} to point at")
    chosen = alike or others
    return chosen[seeded_generator("wrong object", *seed).integers(len(chosen))]

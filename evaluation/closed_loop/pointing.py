"""What points at the target in closed loop, as long as the policy holds its gripper open.

Until then it is what training has: prompts drawn on the first image, or the target's mask as it is seen now. Once the
gripper has closed, nothing marks the object any more. The mask is the simulator's own, or what SAM 2 makes of a click or of what
Grounding DINO finds on the first image, and then follows by its memory: what a user has, who clicks once.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from annotate.settings import FoundationSettings
from evaluation.conditions import FOLLOWED_POINT, FOLLOWED_TEXT, WRONG
from pixel160k.errors import InputError
from pixel160k.format.prompts import PIXEL_MASK, Prompt, line, mask_prompt, point, region, sample_prompts
from pixel160k.seeding import seeded_generator
from simulation.environment import AGENT_VIEW, GRIPPER, ROBOT_ARM, TaskEnvironment
from simulation.libero import category_of

if TYPE_CHECKING:
    from annotate.annotators.detector import Detector
    from annotate.annotators.segmenter import Segment, Segmenter

Shown = tuple[list[np.ndarray], list[Prompt]]  # masks p_t, bool (256, 256), and visual prompts


class Pointing(Protocol):
    """What a policy is shown beside its image in one episode."""

    def shown(self, image: np.ndarray, closed: bool) -> Shown:
        """What marks the object on an image, RGB uint8; nothing once the gripper has closed. Images come in their order."""


def point_at_target(
    condition: str,
    environment: TaskEnvironment,
    initial_state: int,
    image: np.ndarray,
    instruction: str,
    models: FoundationSettings,
) -> Pointing:
    """Point at the target of a scene that was just reset; or, where the condition begins with "wrong_", at another object.

    Args:
        condition: of `settings.LiberoSettings.prompts`.
        environment: in the scene.
        initial_state: its number, which seeds what is drawn.
        image: the first.
        instruction: what the policy is told, for "followed_text".
        models: Grounding DINO and SAM 2, for the conditions that follow.

    Raises:
        InputError: the object cannot be seen on the first image, is not found, or there is no other.
    """
    if condition == "none":
        return _Drawn([])
    kind, seed = condition.removeprefix(WRONG), (environment.task_id, initial_state)
    if kind == FOLLOWED_TEXT:
        return _Followed(_segmenter(models).follow_live(_found(image, instruction, models)))
    masks = {name: mask for name, mask in environment.instance_masks(AGENT_VIEW).items() if mask.any()}
    instance = environment.target
    if condition.startswith(WRONG):
        instance = _another(sorted(masks), environment.target, seed)
    if instance not in masks:
        raise InputError(f"{instance} cannot be seen on the first image")
    if kind == PIXEL_MASK:
        return _Seen(environment, instance)
    drawn = sample_prompts(masks[instance], 1, seeded_generator("click", *seed))
    if kind == FOLLOWED_POINT:
        return _Followed(_segmenter(models).follow_live(drawn.points[0]))
    prompts = (point(*drawn.points[0]), line(drawn.line), region(drawn.region), mask_prompt(masks[instance]))
    return _Drawn([prompt for prompt in prompts if prompt.kind == kind])


class _Drawn:
    """Prompts that were drawn on the first image."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self._prompts = prompts

    def shown(self, image: np.ndarray, closed: bool) -> Shown:
        return [], [] if closed else self._prompts


class _Seen:
    """The object's own pixels, as the simulator sees them."""

    def __init__(self, environment: TaskEnvironment, instance: str) -> None:
        self._environment, self._instance = environment, instance

    def shown(self, image: np.ndarray, closed: bool) -> Shown:
        return [] if closed else [self._environment.instance_masks(AGENT_VIEW)[self._instance]], []


class _Followed:
    """The mask that SAM 2 follows; an empty one says that the object is not to be seen."""

    def __init__(self, follow: Callable[[np.ndarray], "Segment"]) -> None:
        self._follow = follow

    def shown(self, image: np.ndarray, closed: bool) -> Shown:
        if closed:
            return [], []
        return [self._follow(image).seen], []


def _found(image: np.ndarray, instruction: str, models: FoundationSettings) -> tuple[float, float, float, float]:
    """The box, xyxy, of what an instruction names on an image."""
    from annotate.annotators.grammar import GrammarNamer

    (noun,) = GrammarNamer().name_targets([instruction])
    if not noun:
        raise InputError(f"no object to look for is named by {instruction!r}")
    detector = _detector(models)
    (found,) = detector.detect([image], [detector.readable(noun)])
    if not found:
        raise InputError(f"no {noun} was found on the first image")
    return found[0].box


@lru_cache(maxsize=1)
def _segmenter(models: FoundationSettings) -> "Segmenter":
    from annotate.annotators.segmenter import Segmenter
    from annotate.timing import Stopwatch

    return Segmenter(models, "cpu", Stopwatch())


@lru_cache(maxsize=1)
def _detector(models: FoundationSettings) -> "Detector":
    from annotate.annotators.detector import Detector
    from annotate.timing import Stopwatch

    return Detector(models, "cpu", Stopwatch())


def _another(names: Sequence[str], target: str, seed: tuple[int, int]) -> str:
    """Another object than the target; one of its kind where there is one, else any that is seen."""
    others = [name for name in names if name not in (target, GRIPPER, ROBOT_ARM)]
    alike = [name for name in others if category_of(name) == category_of(target)]
    if not others:
        raise InputError(f"there is no other object than {target} to point at")
    chosen = alike or others
    return chosen[seeded_generator("wrong object", *seed).integers(len(chosen))]

"""What an evaluation in LIBERO is told: its scenes, how actions are carried out, what the policy is shown."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from annotate.settings import FoundationSettings
from evaluation.conditions import FOLLOWED_POINT, FOLLOWED_TEXT, PROMPTS
from evaluation.shifts import NONE, Shift
from pixel160k.settings import Settings
from simulation.environment import CONTROL_HZ

CONDITIONS = (*PROMPTS, FOLLOWED_POINT, FOLLOWED_TEXT)


class LiberoSettings(Settings):
    """An evaluation in LIBERO. Without changes it is OpenVLA's protocol (`run_libero_eval.py`), but for `fixtures`.

    Attributes:
        suite: libero_spatial, libero_object, libero_goal, libero_10, libero_90, or one of LIBERO-PRO, as libero_goal_swap.
        tasks: which of the suite's tasks; none stands for all.
        first_state: the first initial state of each task.
        episodes: initial states of each task.
        two_alike: instead of the tasks' own goals, scenes with two alike bowls, of which the instruction does not say which
            one is meant (`simulation.two_alike`); in half of them it is the other bowl. Only of libero_spatial.
        prompts: the conditions under which each initial state is tried: what points at the target. Those of
            `evaluation.actions`, by the simulator's truth; "followed_point", a click on the first image of which SAM 2 makes a
            mask that it follows; "followed_text", the same of what Grounding DINO finds by the instruction's noun.
        shifts: of the domain (`evaluation.shifts`), as "camera-3"; each initial state is tried under each of them and each of
            the prompts. "none" leaves the scene as it is; name it, too, to see what a shift costs.
        hz: actions per second. LIBERO's own is 20; an action of a slower policy is carried out in several equal control steps.
        replan: actions of a chunk that are carried out before the policy is asked again; 0: all of them.
        most_steps: control steps until an episode ends unsolved; 0: those of OpenVLA's protocol.
        jpeg: quality of the JPEG that each image is encoded to and decoded from, as training images were; 0: none.
        fixtures: where what no initial state holds stands. "episode": the same in each episode, so that the results do not
            depend on their order. "once": as in OpenVLA's script, wandering from episode to episode of a task.
        reflections: render the table's reflections, as LIBERO does; without them a frame takes half the time.
        wrist: render the hand's camera, too.
        foundation: Grounding DINO and SAM 2 of the conditions that follow; by default the tiny ones, which know simulated
            scenes alone.
        seed: of policies and shifts that draw.
    """

    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = ()
    first_state: Annotated[int, Field(ge=0)] = 0
    episodes: Annotated[int, Field(ge=1)] = 50
    two_alike: bool = False
    prompts: tuple[str, ...] = ("none",)
    shifts: tuple[str, ...] = (NONE,)
    hz: int = CONTROL_HZ
    replan: Annotated[int, Field(ge=0)] = 0
    most_steps: Annotated[int, Field(ge=0)] = 0
    jpeg: Annotated[int, Field(ge=0, le=100)] = 95
    fixtures: Literal["episode", "once"] = "episode"
    reflections: bool = True
    wrist: bool = False
    foundation: FoundationSettings = FoundationSettings(detector="tiny", segmenter="tiny")
    seed: int = 0

    @field_validator("hz")
    @classmethod
    def _divides(cls, hz: int) -> int:
        if hz < 1 or CONTROL_HZ % hz:
            raise ValueError(f"must divide {CONTROL_HZ}, the control steps of a second")
        return hz

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("must name each task once")
        return tasks

    @field_validator("prompts")
    @classmethod
    def _known(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(prompts) - set(CONDITIONS)):
            raise ValueError(f"has {unknown[0]!r}, which is none of {', '.join(CONDITIONS)}")
        if not prompts or len(set(prompts)) < len(prompts):
            raise ValueError("must name one or more conditions, each once")
        return prompts

    @field_validator("shifts")
    @classmethod
    def _named(cls, shifts: tuple[str, ...]) -> tuple[str, ...]:
        for name in shifts:
            Shift.named(name)
        if not shifts or len(set(shifts)) < len(shifts):
            raise ValueError("must name one or more shifts, each once")
        return shifts

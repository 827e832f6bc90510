"""Which episodes an evaluation in LIBERO has: tasks, initial states, and what is meant where two alike objects stand."""

from dataclasses import dataclass

from evaluation.closed_loop.settings import LiberoSettings
from evaluation.shifts import DISTRACTORS, NONE
from pixel160k.errors import InputError
from pixel160k.seeding import seeded_generator
from simulation import two_alike
from simulation.libero import load_task, suite_tasks

# Control steps until an episode ends unsolved: OpenVLA's (`run_libero_eval.py`), somewhat more than the longest demonstration.
_MOST_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}


@dataclass(frozen=True, order=True)
class Scene:
    """A task in an initial state, as it is or shifted.

    `target` names the object that is meant where the task has another, else it is ""; `shift` is one of
    `LiberoSettings.shifts`.
    """

    task_id: int
    target: str
    initial_state: int
    shift: str = NONE

    @property
    def environment(self) -> tuple[int, str, str]:
        """What scenes that one environment can serve have in common: a shift that adds objects needs one of its own."""
        return self.task_id, self.target, self.shift if self.shift.startswith(DISTRACTORS) else NONE


def scenes_of(settings: LiberoSettings) -> list[Scene]:
    """The scenes of an evaluation, in order.

    Raises:
        InputError: there is no such suite or task, or the task has fewer initial states.
    """
    if settings.two_alike and settings.suite != two_alike.SUITE:
        raise InputError(f"two alike bowls stand in {two_alike.SUITE} alone, not in {settings.suite}")
    known = two_alike.TASKS if settings.two_alike else range(suite_tasks(settings.suite))
    if unknown := sorted(set(settings.tasks) - set(known)):
        raise InputError(f"{settings.suite} has no task {unknown[0]}: choose of {', '.join(map(str, known))}")
    states = range(settings.first_state, settings.first_state + settings.episodes)
    scenes = []
    for task in settings.tasks or known:
        there = len(load_task(settings.suite, task).initial_states)
        if states.stop > there:
            raise InputError(
                f"task {task} of {settings.suite} has {there} initial states, not {states.stop}: "
                "lower episodes or first_state"
            )
        scenes += [
            Scene(task, _meant(task, state) if settings.two_alike else "", state, shift)
            for state in states
            for shift in settings.shifts
        ]
    return sorted(scenes)


def _meant(task: int, state: int) -> str:
    """The bowl that is meant: of two initial states that follow each other one has the first, the other the second."""
    first = seeded_generator("meant", two_alike.SUITE, task, state // 2).integers(2)
    return two_alike.TARGETS[(first + state) % 2]


def most_steps(settings: LiberoSettings) -> int:
    """Control steps until an episode ends unsolved; those of LIBERO-PRO's suites are those of the suites that they vary.

    Raises:
        InputError: OpenVLA's protocol has none for this suite, and the settings name none.
    """
    bases = sorted(_MOST_STEPS, key=len, reverse=True)
    base = next((base for base in bases if f"{settings.suite}_".startswith(f"{base}_")), "")
    if settings.most_steps or base:
        return settings.most_steps or _MOST_STEPS[base]
    raise InputError(f"OpenVLA's protocol does not have {settings.suite}: say when an episode ends with most_steps=N")

"""The whole of a task as the scripted demonstrator does it: one subtask after the other, and home.

The way home belongs to the demonstration: without it the arm would hide the spot from which the object was taken.
"""

from simulation.carrying import carry
from simulation.environment import TaskEnvironment
from simulation.fixtures import move_part
from simulation.goals import Subtask, opening
from simulation.grasping import GraspVariation
from simulation.policy import Arm, AttemptFailed, return_home


def do_task(arm: Arm, variation: GraspVariation) -> None:
    """Do what is left to do of the environment's task, then go home.

    Raises:
        AttemptFailed: the environment reports no success, the arm is not home, or the fingers touched another movable
            object before the one that was meant: that would demonstrate something else than the instruction.
    """
    environment = arm.environment
    for number, subtask in enumerate(left_to_do(environment)):
        if number:
            arm.begin()
        (carry if subtask.place else move_part)(arm, variation, subtask)
    return_home(arm)
    if not environment.succeeded():
        raise AttemptFailed("the environment reports no success at the end")


def left_to_do(environment: TaskEnvironment) -> list[Subtask]:
    """The subtasks, without those of parts that are where they shall be; a closed drawer is opened before it is filled."""
    left: list[Subtask] = []
    for subtask in environment.subtasks:
        drawer = opening(subtask.place)
        if environment.has_part(drawer.thing) and not environment.holds(drawer.predicate) and drawer not in left:
            left.append(drawer)
        if subtask.place or not environment.holds(subtask.predicate):
            left.append(subtask)
    return left

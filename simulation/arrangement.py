"""Where things of a scene of LIBERO begin when its domain shifts: objects displaced, objects added, the arm posed otherwise.

Each function changes the state that an initial state has just put the scene into, before it settles. The levels are
those of LIBERO-Plus (github.com/sylvestf/LIBERO-plus at 4976dc3): `level` objects added, a centimetre or a tenth of a radian
a level. Draws do not depend on the level.
"""

from collections.abc import Sequence

import numpy as np

from simulation.environment import TaskEnvironment

Footprint = tuple[float, float, float, float]
"""x0, y0, x1, y1 of what something covers, seen from above: m, world frame."""
_METRES, _RADIANS = 0.01, 0.1  # a level
_TRIES = 30
_TOUCHING = 0.005  # m by which footprints overlap before one thing counts as standing on the other
_ROOM = 0.02  # m around an object that is added
_SPREAD = np.array([0.2, 0.26])  # m, from the workspace's middle to where objects are added
_MORE_TRIES = 400

# Objects of LIBERO's package that a table can hold more of.
_ADDED = (
    *("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cookies", "cream_cheese", "ketchup"),
    *("macaroni_and_cheese", "milk", "moka_pot", "orange_juice", "popcorn", "porcelain_mug", "red_coffee_mug"),
    *("salad_dressing", "tomato_sauce", "white_yellow_mug"),
)


def distractors(count: int, scene: str, instruction: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Which kinds of objects to add to a scene: none that stands there, and none that a word of the instruction fits.

    Args:
        count: how many.
        scene: the text of the description.
        instruction: of the task.
        rng: what they are drawn from; fewer are the first of more.
    """
    words = set(instruction.lower().split())
    fit = [kind for kind in _ADDED if kind not in scene and not words & set(kind.split("_"))]
    return tuple(fit[index] for index in rng.permutation(len(fit))[:count])


def displace_objects(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Displace each object by a centimetre a level, with what stands on it, in a direction in which there is room.

    What stands on or in a fixture stays, and so does what has no room.
    """
    covered = _footprints(environment)
    movable = {name for name in covered if environment.is_movable(name)}
    stacks = _stacks({name: covered[name] for name in sorted(movable)})
    for stack in stacks:
        angles = rng.uniform(0, 2 * np.pi, _TRIES)
        others = [covered[name] for name in covered if name not in stack]
        if any(_overlap(covered[name], other, -_TOUCHING) for name in stack for other in others):
            continue
        for angle in angles:
            move = _METRES * level * np.array([np.cos(angle), np.sin(angle)])
            moved = {name: _shifted(covered[name], move) for name in stack}
            if not any(_overlap(footprint, other) for footprint in moved.values() for other in others):
                for name in stack:
                    environment.place(name, environment.data.xpos[environment.root_body(name)][:2] + move)
                covered |= moved
                break


def add_objects(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Put the objects that were added to the environment, `level` of them, where nothing else stands.

    Raises:
        RuntimeError: there is no room for one.
    """
    assert len(environment.added) == level, "the environment was made for another level"
    covered = _footprints(environment)
    for name in environment.added:
        own = covered.pop(name)
        middle = np.array([own[0] + own[2], own[1] + own[3]]) / 2
        # Ever farther from the middle, so that there is room in the end.
        points = rng.uniform(-1, 1, (_MORE_TRIES, 2)) * np.linspace(1, 2, _MORE_TRIES)[:, None] * _SPREAD
        waiting = {
            other for other in environment.added if environment.added.index(other) > environment.added.index(name)
        }
        standing = [footprint for other, footprint in covered.items() if other not in waiting]
        for point in points + environment.workspace[:2]:
            footprint = _shifted(own, point - middle)
            if not any(_overlap(footprint, other, _ROOM) for other in standing):
                break
        else:
            raise RuntimeError(f"no room for {name}")
        environment.place(name, environment.data.xpos[environment.root_body(name)][:2] + point - middle)
        covered[name] = footprint


def pose_arm(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Pose the arm a tenth of a radian a level from where it begins, in the space of its joints, where it touches nothing.

    Raises:
        RuntimeError: there is no such pose.
    """
    begin = environment.proprioception()[1].astype(float)
    for direction in rng.standard_normal((_TRIES, len(begin))):
        environment.pose_arm(begin + _RADIANS * level * direction / np.linalg.norm(direction))
        if not environment.arm_touches():
            return
    raise RuntimeError("the arm touches something in every pose")


def _footprints(environment: TaskEnvironment) -> dict[str, Footprint]:
    """What each object and fixture covers, by name."""
    model, data = environment.model, environment.data
    found = {}
    for name in environment.things():
        geoms = np.flatnonzero(model.body_rootid[model.geom_bodyid] == environment.root_body(name))
        rotations = data.geom_xmat[geoms].reshape(-1, 3, 3)
        middles = data.geom_xpos[geoms] + (rotations @ model.geom_aabb[geoms, :3, None])[..., 0]
        halves = (np.abs(rotations) @ model.geom_aabb[geoms, 3:, None])[..., 0]
        (x0, y0), (x1, y1) = (middles - halves).min(0)[:2], (middles + halves).max(0)[:2]
        found[name] = (float(x0), float(y0), float(x1), float(y1))
    return found


def _stacks(covered: dict[str, Footprint]) -> list[set[str]]:
    """Groups of what stands on one another."""
    stacks: list[set[str]] = []
    for name, footprint in covered.items():
        on = [stack for stack in stacks if any(_overlap(footprint, covered[other], -_TOUCHING) for other in stack)]
        stacks = [stack for stack in stacks if stack not in on] + [{name}.union(*on)]
    return stacks


def _overlap(one: Sequence[float], other: Sequence[float], room: float = 0) -> bool:
    """Whether two footprints overlap, or come closer than `room`."""
    return all(one[axis] - room < other[axis + 2] and other[axis] - room < one[axis + 2] for axis in (0, 1))


def _shifted(footprint: Footprint, move: np.ndarray) -> Footprint:
    x0, y0, x1, y1 = footprint
    x, y = map(float, move)
    return x0 + x, y0 + y, x1 + x, y1 + y

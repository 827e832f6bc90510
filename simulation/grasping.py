"""Where to grasp an object: computed from its collision geometry, so that no object needs a grasp written by hand.

There are three kinds of grasp, all straight from above: `across` the object where it fits between the fingers, else at
its `rim` where it is hollow (bowls), else at a `handle`, a side that is narrow enough. The cheapest candidate wins: it turns the hand little, and its fingers and palm keep clear of
everything else in the scene.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulation.environment import TaskEnvironment

# The Panda hand, metres, measured on robosuite's model. Its fingers open along the hand's y.
WIDEST_GRASP = 0.070  # the fingers open to 80 mm; the rest is clearance
FINGER_REACH, FINGER_HALF_WIDTH, FINGER_BELOW_TOOL = 0.062, 0.020, 0.010  # the open fingers' outer box
PALM_REACH, PALM_HALF_WIDTH, PALM_ABOVE_TOOL = 0.115, 0.045, 0.055
NEAR_REACH, NEAR_HALF_WIDTH, NEAR_BELOW_TOOL = 0.080, 0.035, 0.012  # a little room for the controller's error

# The arm's stretch is the distance from its shoulder to its wrist. The elbow locks at 0.719 m (links of 0.316 and
# 0.384 m, both offset by 0.0825 m at the elbow); beyond, the controller drives the joint into its limit and never comes
# home.
MAX_STRETCH, COMFORTABLE_STRETCH = 0.70, 0.64  # m
WRIST_ABOVE_TOOL, WRIST_BEHIND_TOOL = 0.21, 0.088  # m, from the tool to the wrist's centre, the hand pointing down

_MESH, _SPHERE, _CAPSULE, _CYLINDER, _PLANE = 7, 2, 3, 5, 0  # mjtGeom
_SAMPLE_SPACING = 0.015
_MAX_MESH_POINTS = 400


@dataclass(frozen=True)
class GraspVariation:
    """What an attempt does differently from others: how deep the fingers go, and how random the choice of grasp is."""

    depth: float  # an `across` grasp reaches at most this far below the object's top, m (deeper hits the palm)
    rim_depth: float  # a `rim` grasp reaches this far below the rim, m
    randomness: int  # 0: the cheapest candidate; n > 0: the costs get noise, drawn with seed n and growing with n


GRASP_VARIATIONS = (
    GraspVariation(0.022, 0.016, 0),  # a carton held at 26 to 30 mm often stays leaning on the basket's edge
    GraspVariation(0.030, 0.024, 1),
    GraspVariation(0.036, 0.010, 2),
    GraspVariation(0.022, 0.020, 3),
    GraspVariation(0.018, 0.028, 4),
    GraspVariation(0.026, 0.016, 5),
)


@dataclass(frozen=True)
class Grasp:
    """A grasp from above, with the hand pointing down."""

    kind: str  # "across", "rim" or "handle"
    yaw: float  # of the hand about the vertical, rad
    tool: np.ndarray  # where the point between the finger tips goes, (3,) m in the world frame


def downward_rotation(yaw: float) -> np.ndarray:
    """The rotation matrix (3, 3) of a hand that points down and is turned by `yaw` rad about the vertical."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.diag([1.0, -1.0, -1.0])


def collision_points(environment: TaskEnvironment, body: int) -> np.ndarray:
    """Points (n, 3) on or in the collision geometry of a body and all its child bodies, in metres in the world frame."""
    model, data = environment.model, environment.data
    clouds = [np.zeros((0, 3))]
    for geom in range(model.ngeom):
        collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
        if not collides or not _belongs_to(model, model.geom_bodyid[geom], body):
            continue
        local = _points_of_geom(model, geom)
        clouds.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return np.concatenate(clouds)


def _belongs_to(model: Any, body: int, ancestor: int) -> bool:
    while body not in (ancestor, 0):
        body = model.body_parentid[body]
    return body == ancestor


def _points_of_geom(model: Any, geom: int) -> np.ndarray:
    """Points (n, 3) of a geom in its own frame: a mesh's vertices, else a grid over its volume or surface."""
    kind = model.geom_type[geom]
    if kind == _PLANE:
        return np.zeros((0, 3))
    if kind == _MESH:
        mesh = model.geom_dataid[geom]
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        return model.mesh_vert[start : start + count : max(1, count // _MAX_MESH_POINTS)]
    half = model.geom_size[geom].copy()
    if kind == _SPHERE:
        half = np.repeat(half[0], 3)
    elif kind in (_CAPSULE, _CYLINDER):
        half = np.array([half[0], half[0], half[1] + (half[0] if kind == _CAPSULE else 0)])
    half = np.minimum(half, 0.5)
    axes = [np.linspace(-side, side, max(2, int(np.ceil(2 * side / _SAMPLE_SPACING)))) for side in half]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    if kind in (_SPHERE, _CYLINDER):
        return points[np.linalg.norm(points[:, :2], axis=1) <= half[0] * 1.01]
    if len(points) > 3000:  # a large box: its surface is enough
        return points[np.isclose(np.abs(points), half).any(1)]
    return points


def arm_stretch(shoulder: np.ndarray, tool: np.ndarray) -> float:
    """The distance in m from the shoulder, at (3,), to the wrist while the tool is at (3,) and the hand points down."""
    to_tool = tool - shoulder
    outwards = np.linalg.norm(to_tool[:2]) - WRIST_BEHIND_TOOL
    return float(np.hypot(outwards, to_tool[2] + WRIST_ABOVE_TOOL))


def plan_grasp(
    target: np.ndarray, obstacles: np.ndarray, carry: np.ndarray, shoulder: np.ndarray, variation: GraspVariation
) -> Grasp:
    """Choose a grasp of an object, given as points (n, 3), that keeps clear of obstacles, points (m, 3).

    `carry` (3,) leads from the object to its destination. The arm, whose shoulder is at `shoulder` (3,), should reach
    both ends of it. All lengths are in metres in the world frame.
    """
    others = _rim_grasps if _is_hollow(target) else _handle_grasps
    candidates = _across_grasps(target, variation) or others(target, variation) or _rim_grasps(target, variation)
    random = np.random.default_rng(variation.randomness)

    def cost(candidate: tuple[float, Grasp]) -> float:
        own_cost, grasp = candidate
        longest = max(arm_stretch(shoulder, grasp.tool), arm_stretch(shoulder, grasp.tool + carry))
        reach_cost = 2 * max(0.0, longest - COMFORTABLE_STRETCH)
        noise = random.uniform(0, 0.02 * variation.randomness)
        return own_cost + reach_cost + clearance_cost(grasp, obstacles) + noise

    return min(candidates, key=cost)[1]


def _across_grasps(target: np.ndarray, variation: GraspVariation) -> list[tuple[float, Grasp]]:
    """(cost, grasp) for every yaw at which the object fits between the fingers; small turns and widths cost less."""
    low, high = target.min(0), target.max(0)
    centre = (low + high) / 2
    if high[2] - low[2] > 0.04:
        height = max(centre[2], high[2] - variation.depth)
    else:  # flat: just above what it lies on
        height = max(low[2] + 0.008, centre[2] - 0.004)
    near_fingers = target[(target[:, 2] > height - 0.015) & (target[:, 2] < height + 0.030)]
    slab = near_fingers if len(near_fingers) > 8 else target
    candidates = []
    for yaw in np.deg2rad(np.arange(-90, 91, 7.5)):
        along, across = downward_rotation(yaw)[:2, 0], downward_rotation(yaw)[:2, 1]
        middle_along, _ = _middle_and_width(slab[:, :2] @ along)
        middle_across, width = _middle_and_width(slab[:, :2] @ across)
        if width < WIDEST_GRASP:
            tool = np.array([*(across * middle_across + along * middle_along), height])
            candidates.append((abs(yaw) * 0.03 + width * 0.3, Grasp("across", yaw, tool)))
    return candidates


def _middle_and_width(values: np.ndarray) -> tuple[float, float]:
    return (values.max() + values.min()) / 2, values.max() - values.min()


def _is_hollow(target: np.ndarray) -> bool:
    """Whether nothing of an object is in the middle of its top."""
    low, high = target.min(0), target.max(0)
    top = target[target[:, 2] > high[2] - 0.012]
    return bool(np.linalg.norm(top[:, :2] - (low + high)[:2] / 2, axis=1).min() > 0.2 * (high - low)[:2].min())


def _handle_grasps(target: np.ndarray, variation: GraspVariation) -> list[tuple[float, Grasp]]:
    """(cost, grasp) for the sides of an object that fit between the fingers, as far out as these are broad."""
    candidates = []
    for yaw in np.deg2rad(np.arange(-90, 91, 15)):
        along, across = downward_rotation(yaw)[:2, 0], downward_rotation(yaw)[:2, 1]
        places = target[:, :2] @ along
        for place in np.arange(places.min(), places.max(), 0.01):
            side = target[np.abs(places - place) < FINGER_HALF_WIDTH + 0.002]
            middle, width = _middle_and_width(side[:, :2] @ across)
            if len(side) > 8 and width < WIDEST_GRASP / 2:
                tool = np.array([*(along * place + across * middle), side[:, 2].max() - variation.rim_depth])
                outside = float(np.linalg.norm(tool[:2] - (target.min(0) + target.max(0))[:2] / 2))
                candidates.append((abs(yaw) * 0.02 + width * 0.3 + outside * 0.5, Grasp("handle", yaw, tool)))
    return candidates


def _rim_grasps(target: np.ndarray, variation: GraspVariation) -> list[tuple[float, Grasp]]:
    """(cost, grasp) for positions around the rim, with one finger inside it and one outside."""
    low, high = target.min(0), target.max(0)
    centre = (low + high) / 2
    top = target[target[:, 2] > high[2] - 0.012]
    radius = np.percentile(np.linalg.norm(top[:, :2] - centre[:2], axis=1), 90) - 0.004  # the middle of the wall
    candidates = []
    for yaw in np.deg2rad(np.arange(-90, 91, 15)):
        across = downward_rotation(yaw)[:2, 1]
        for side in (1, -1):
            tool = np.array([*(centre[:2] + side * radius * across), high[2] - variation.rim_depth])
            candidates.append((abs(yaw) * 0.02, Grasp("rim", yaw, tool)))
    return candidates


def clearance_cost(grasp: Grasp, obstacles: np.ndarray) -> float:
    """The cost of a grasp for obstacles inside the open fingers or the palm, or close to the fingers."""
    in_hand = (obstacles - grasp.tool) @ downward_rotation(grasp.yaw)
    beside, across, above = np.abs(in_hand[:, 0]), np.abs(in_hand[:, 1]), -in_hand[:, 2]
    fingers = (across < FINGER_REACH) & (beside < FINGER_HALF_WIDTH) & (above > -FINGER_BELOW_TOOL)
    palm = (across < PALM_REACH) & (beside < PALM_HALF_WIDTH) & (above > PALM_ABOVE_TOOL)
    near = (across < NEAR_REACH) & (beside < NEAR_HALF_WIDTH) & (above > -NEAR_BELOW_TOOL)
    hits = int(fingers.sum() + palm.sum())
    return 0.05 * (hits > 0) + 0.0004 * min(hits, 200) + 0.01 * bool(near.any())

"""What SimplerEnv's two robots are told and shown, as SimplerEnv's own policies do it.

Source: simpler_env/policies/octo/octo_model.py and utils/env of github.com/simpler-env/SimplerEnv at 4ab7178. What a policy
of ours sees (`policies.base.Seen`) is the image as it was rendered, upright and in its own size, and the environment's
instruction. There is no state and no wrist camera: SimplerEnv's policies get none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

STICKY_STEPS = 15  # how long the Google robot's gripper goes on once it was told to change
CHANGE = 0.5  # a change of the opening beyond this is meant


@dataclass(frozen=True)
class Robot:
    """What is the same in all environments of a robot.

    Attributes:
        camera: the camera that policies get: 512 x 640 pixels (Google), 480 x 640 (WidowX).
        control_mode: which of ManiSkill's controllers reads the actions.
        control_freq: actions per second.
        relative_gripper: whether the gripper is told by how much to close, rather than to be open or closed.
    """

    camera: str
    control_mode: str
    control_freq: int
    relative_gripper: bool


GOOGLE = Robot(
    camera="overhead_camera",
    control_mode=(
        "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner"
    ),
    control_freq=3,
    relative_gripper=True,
)
WIDOWX = Robot(
    camera="3rd_view_camera",
    control_mode="arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
    control_freq=5,
    relative_gripper=False,
)
ROBOTS = {"google_robot_static": GOOGLE, "widowx": WIDOWX, "widowx_sink_camera_setup": WIDOWX}


def image_of(seen: Mapping[str, Any], robot: Robot) -> np.ndarray:
    """The image that a policy gets of an observation: RGB uint8 (height, width, 3), upright, as it was rendered."""
    return seen["image"][robot.camera]["rgb"]


def rotation_vector(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Turns about the fixed axes x, then y, then z, as one: axis times angle in radians, float64 (3,).

    As `transforms3d.euler.euler2axangle` gives it, whose default order this is.
    """
    (a, b, c), (sin_a, sin_b, sin_c) = np.cos(halves := np.array([roll, pitch, yaw]) / 2), np.sin(halves)
    w = a * b * c + sin_a * sin_b * sin_c
    xyz = np.array(
        [
            sin_a * b * c - a * sin_b * sin_c,
            a * sin_b * c + sin_a * b * sin_c,
            a * b * sin_c - sin_a * sin_b * c,
        ]
    )
    length = np.linalg.norm(xyz)
    return xyz / length * 2 * np.arctan2(length, w) if length > 1e-12 else np.zeros(3)


class Driver:
    """Makes a policy's actions into a robot's, in the order in which they are carried out."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self.reset()

    def reset(self) -> None:
        """An episode or another instruction begins: what the gripper was told before is forgotten, as Octo does it."""
        self._opening: float | None = None
        self._held, self._left = 0.0, 0

    def convert(self, action: np.ndarray) -> np.ndarray:
        """What the environment's `step` takes.

        Args:
            action: float (7,): Δx, Δy, Δz in metres, Δroll, Δpitch, Δyaw in radians, the gripper in [0, 1], 1 = open.

        Returns:
            float64 (7,): the same Δx, Δy, Δz; the rotation as axis times angle; the gripper. WidowX: 1 opens, -1 closes.
            Google: by how much it closes, in [-1, 1].
        """
        opening = float(action[6])
        gripper = self._closing(opening) if self.robot.relative_gripper else (1.0 if opening > 0.5 else -1.0)
        return np.array([*action[:3], *rotation_vector(*action[3:6]), gripper], dtype=np.float64)

    def _closing(self, opening: float) -> float:
        """By how much the opening fell since the last action; a change that is meant is told for `STICKY_STEPS` steps."""
        closing = 0.0 if self._opening is None else self._opening - opening
        self._opening = opening
        if self._left == 0 and abs(closing) > CHANGE:
            self._held, self._left = closing, STICKY_STEPS
        if self._left:
            self._left -= 1
            return self._held
        return closing

"""Fractal (`fractal20220817_data` 0.1.0): Google's RT-1 data, a mobile robot at 3 Hz.

Its gripper action is relative: +1 close, −1 open, 0 hold. Failed and very short episodes belong to it. The base may
drive (`base_displacement_*`), and the camera then moves with it.
"""

import numpy as np

from annotate.sources.episode import Episode, RecordId
from annotate.sources.rlds import Columns, Source


def to_episode(columns: Columns, identity: RecordId, camera: str) -> Episode:
    """Turn a record into an Episode; state is the tool's pose (xyz, quaternion) and `gripper_closed`."""
    gripper_open = is_open(columns.floats("steps/action/gripper_closedness_action", 1)[:, 0])
    pose = columns.floats("steps/observation/base_pose_tool_reached", 7)
    base_shift = columns.floats("steps/action/base_displacement_vector", 2)
    closed = columns.floats("steps/observation/gripper_closed", 1)
    base_turn = columns.floats("steps/action/base_displacement_vertical_rotation", 1)
    return Episode(
        identity=identity,
        native_id="",  # the data set has none
        camera=camera,
        viewpoint=camera,
        instruction=columns.text("steps/observation/natural_language_instruction"),
        images=columns.strings(f"steps/observation/{camera}"),
        actions=np.concatenate(
            [
                columns.floats("steps/action/world_vector", 3),
                columns.floats("steps/action/rotation_delta", 3),
                gripper_open[:, None].astype(np.float32),
            ],
            axis=1,
        ),
        gripper_open=gripper_open,
        state=np.concatenate([pose, closed], axis=1),
        first_step=0,
        last_step=columns.num_steps - 1,
        finger_opening=1 - closed[:, 0],
        base_moves=bool(np.abs(base_shift).max() > 1e-3 or np.abs(base_turn).max() > 1e-3),
    )


def is_open(closedness: np.ndarray) -> np.ndarray:
    """Turn the relative gripper commands into the absolute state (OpenVLA's `rel2abs_gripper_actions`).

    Commands beyond ±0.1 set the state, others hold it; before the first command the state is the opposite of that
    command; with no command at all the gripper is open.

    Args:
        closedness: float32 (T,), +1 close, −1 open, 0 hold.

    Returns:
        bool (T,), True = open.
    """
    commands = np.flatnonzero(np.abs(closedness) > 0.1)
    if not len(commands):
        return np.ones(len(closedness), bool)
    last = np.searchsorted(commands, np.arange(len(closedness)), side="right") - 1
    opens = closedness[commands] < 0
    return np.where(last < 0, ~opens[0], opens[last])


SOURCE = Source(
    name="fractal",
    features=(
        "steps/observation/image",
        "steps/observation/natural_language_instruction",
        "steps/observation/base_pose_tool_reached",
        "steps/observation/gripper_closed",
        "steps/action/world_vector",
        "steps/action/rotation_delta",
        "steps/action/gripper_closedness_action",
        "steps/action/base_displacement_vector",
        "steps/action/base_displacement_vertical_rotation",
    ),
    to_episode=to_episode,
)

"""The LIBERO suites as RLDS, in OpenVLA's `modified_libero_rlds` schema (such as `libero_object_no_noops`), Panda.

The gripper action is −1 = open, +1 = close; clipped to [0, 1] and inverted it is 1 = open. Images are the simulator's
turned by 180°. Each suite is a data set with a name of its own. Of OpenVLA's copies the folder has it (`libero_10_no_noops`);
what stands in their dataset_info.json (`liber_o10`) is no key of any statistics.
"""

import numpy as np

from annotate.sources.episode import Episode, RecordId
from annotate.sources.rlds import Columns, Source


def to_episode(columns: Columns, identity: RecordId, camera: str) -> Episode:
    """Turn a record into an Episode; state is the end effector's position and axis-angle, and two finger positions."""
    actions = columns.floats("steps/action", 7)
    actions[:, 6] = 1 - np.clip(actions[:, 6], 0, 1)
    state = columns.floats("steps/observation/state", 8)
    return Episode(
        identity=identity,
        native_id=columns.episode_text("episode_metadata/file_path"),
        camera=camera,
        viewpoint=camera,  # the camera stands in the same place in every task of a suite
        instruction=columns.text("steps/language_instruction"),
        images=columns.strings(f"steps/observation/{camera}"),
        actions=actions,
        gripper_open=actions[:, 6] > 0.5,
        state=state,
        first_step=0,
        last_step=columns.num_steps - 1,
        finger_opening=np.abs(state[:, 6:8]).sum(axis=1),
    )


SOURCE = Source(
    name="libero",
    features=(
        "steps/observation/image",
        "steps/observation/state",
        "steps/action",
        "steps/language_instruction",
    ),
    to_episode=to_episode,
    folders=r"libero_(spatial|object|goal|10|90)(_no_noops)?",
)

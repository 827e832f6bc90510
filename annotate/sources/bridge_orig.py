"""BridgeData V2 (`bridge_dataset` 1.0.0, WidowX): Berkeley's own RLDS copy, which OpenVLA and Octo use.

Not the Open X-Embodiment copy `bridge` 0.1.0. The rules are OpenVLA's (`bridge_orig_dataset_transform`): step 0 (whose
action is all zeros) and the last step are dropped, so raw steps 1..T−2 are valid, and the first six action dimensions
are relabelled as differences of the state. `has_image_k` is unreliable, so blank frames are detected instead.
"""

import numpy as np

from annotate.sources.episode import Episode, RecordId
from annotate.sources.rlds import Columns, Source


def to_episode(columns: Columns, identity: RecordId, camera: str) -> Episode:
    """Turn a record into an Episode (see the module's docstring for the rules)."""
    action = columns.floats("steps/action", 7)
    state = columns.floats("steps/observation/state", 7)
    gripper_open = is_open(action[:, 6])
    actions = np.zeros_like(action)
    actions[:-1, :6] = state[1:, :6] - state[:-1, :6]
    actions[:, 6] = gripper_open
    file_path = columns.episode_text("episode_metadata/file_path")
    return Episode(
        identity=identity,
        native_id=f"{file_path}#{columns.episode_integer('episode_metadata/episode_id')}",
        camera=camera,
        viewpoint=f"{file_path.rsplit('/', 3)[0]}#{camera}",  # .../<scene>/<task>/<split>/out.npy
        instruction=columns.text("steps/language_instruction"),
        images=columns.strings(f"steps/observation/{camera}"),
        actions=actions,
        gripper_open=gripper_open,
        state=state,
        first_step=1,
        last_step=columns.num_steps - 2,
        finger_opening=state[:, 6],
    )


def is_open(gripper: np.ndarray) -> np.ndarray:
    """Binarise the gripper: above 0.95 open, below 0.05 closed, between them the next decided value.

    A trailing undecided run holds the last decided value (OpenVLA leaves the raw number there); where nothing is ever
    decided the gripper counts as open.

    Args:
        gripper: float32 (T,), 1 = open.

    Returns:
        bool (T,), True = open.
    """
    decided = (gripper > 0.95) | (gripper < 0.05)
    if not decided.any():
        return np.ones(len(gripper), bool)
    steps = np.flatnonzero(decided)
    following = np.searchsorted(steps, np.arange(len(gripper)))
    return gripper[steps[np.minimum(following, len(steps) - 1)]] > 0.5


SOURCE = Source(
    name="bridge_orig",
    features=(
        "steps/observation/image_0",
        "steps/observation/state",
        "steps/action",
        "steps/language_instruction",
        "episode_metadata/file_path",
    ),
    to_episode=to_episode,
)

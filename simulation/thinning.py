"""Thinning a 20 Hz demonstration to the few hertz of real robot data sets, without losing motion.

Bridge was recorded at 5 Hz, fractal at 3 Hz; LIBERO acts at 20 Hz. Keeping every n-th frame and its action would drop
most of the motion, so the actions of a window are composed into the one that does the same.
"""

import numpy as np

from simulation.rotations import compose

TRANSLATION_UNIT = 0.05  # m of one unit of a LIBERO action's first three dimensions (robosuite's OSC_POSE)
ROTATION_UNIT = 0.5  # rad of one unit of the next three


def window_starts(steps: int, window: int) -> np.ndarray:
    """The steps, int (ceil(steps / window),), whose observations stay."""
    return np.arange(0, steps, window)


def thin_actions(actions: np.ndarray, window: int) -> np.ndarray:
    """Compose LIBERO actions (steps, 7) over windows into float32 (ceil(steps / window), 7).

    Translations are summed. Rotations, axis-angle about axes fixed in the world and one after another, are composed as
    rotations. The gripper command is the window's last, so a change of command keeps its window.

    The unit stays the controller's (1 = 0.05 m or 0.5 rad), so a composed value may reach `window` and must not be
    handed to a 20 Hz controller in one step.
    """
    return np.stack(
        [_compose_actions(actions[start : start + window]) for start in window_starts(len(actions), window)]
    )


def _compose_actions(actions: np.ndarray) -> np.ndarray:
    exact = actions.astype(np.float64)
    translation = exact[:, :3].sum(0)
    rotation = compose(exact[:, 3:6] * ROTATION_UNIT) / ROTATION_UNIT if len(actions) > 1 else exact[0, 3:6]
    return np.concatenate([translation, rotation, exact[-1:, 6]]).astype(np.float32)

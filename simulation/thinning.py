"""Thinning a 20 Hz demonstration to the few hertz of real robot data sets, without losing motion.

Bridge was recorded at 5 Hz, Fractal at 3 Hz; LIBERO acts at 20 Hz. Keeping every n-th frame with its action would lose
most of the motion. So the actions of a window are composed into one action that does the same.
"""

import numpy as np

from simulation.rotations import compose_rotations

TRANSLATION_UNIT = 0.05  # m of one unit of a LIBERO action's first three dimensions (robosuite's OSC_POSE)
ROTATION_UNIT = 0.5  # rad of one unit of the next three


def window_starts(steps: int, window: int) -> np.ndarray:
    """The steps whose observations are kept, int (ceil(steps / window),): the first of every window of `window` steps."""
    return np.arange(0, steps, window)


def thin_actions(actions: np.ndarray, window: int) -> np.ndarray:
    """Compose LIBERO actions (steps, 7) over windows of `window` steps: float32 (ceil(steps / window), 7).

    Translations are added up. Rotations (axis-angle, about axes that are fixed in the world) are composed in their
    order. The gripper command is that of the window's last step, so a change of command stays in its window.

    The units are still those of the controller (1 = 0.05 m or 0.5 rad): a composed value may be as large as `window`,
    and a 20 Hz controller must not get it in one step.
    """
    return np.stack(
        [_compose_actions(actions[start : start + window]) for start in window_starts(len(actions), window)]
    )


def _compose_actions(actions: np.ndarray) -> np.ndarray:
    exact = actions.astype(np.float64)
    translation = exact[:, :3].sum(0)
    rotation = compose_rotations(exact[:, 3:6] * ROTATION_UNIT) / ROTATION_UNIT if len(actions) > 1 else exact[0, 3:6]
    return np.concatenate([translation, rotation, exact[-1:, 6]]).astype(np.float32)

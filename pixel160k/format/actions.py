"""Actions as policies learn them: chunks, and scaling by the quantiles of a data set.

An action is float32 [Δx, Δy, Δz, Δroll, Δpitch, Δyaw, gripper], the gripper absolute in [0, 1] with 1 = open. Scaling is
OpenVLA's (BOUNDS_Q99), so that its checkpoints and ours can read each other's statistics (`statistics.py`).
"""

from typing import Any

import numpy as np

ACTION_DIMENSIONS = 7


def action_chunk(actions: np.ndarray, step: int, last_step: int, horizon: int) -> np.ndarray:
    """The actions of `step` and the steps after it, float32 (horizon, 7).

    Past `last_step` the robot stands still: no motion, the gripper as it was. `chunk_mask` says which rows are real.
    """
    real = actions[step : min(step + horizon, last_step + 1)]
    still = np.zeros((horizon - len(real), ACTION_DIMENSIONS), np.float32)
    still[:, 6] = real[-1, 6]
    return np.concatenate([real, still]).astype(np.float32)


def chunk_mask(step: int, last_step: int, horizon: int) -> np.ndarray:
    """bool (horizon,): which rows of a chunk are the episode's own."""
    return step + np.arange(horizon) <= last_step


def normalise(actions: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """Scale actions (..., 7) in robot units to [−1, 1] by the 1% and 99% quantiles; the gripper is left as it is.

    A dimension that never varied (min = max) becomes 0.
    """
    low, high, varies, scaled = _bounds(statistics)
    unit = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
    return np.where(scaled, np.where(varies, unit, 0.0), actions).astype(np.float32)


def unnormalise(actions: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """The inverse of `normalise` within the quantiles: actions (..., 7) in [−1, 1] back to robot units."""
    low, high, _, scaled = _bounds(statistics)
    return np.where(scaled, 0.5 * (actions + 1) * (high - low) + low, actions).astype(np.float32)


def _bounds(statistics: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    action = statistics["action"]
    low, high = np.array(action["q01"]), np.array(action["q99"])
    # OpenVLA reads quantiles alone, so that its statistics may lack the extremes.
    smallest, largest = np.array(action.get("min", low)), np.array(action.get("max", high))
    return low, high, smallest != largest, np.array(action["mask"])

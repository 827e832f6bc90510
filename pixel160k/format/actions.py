"""Actions as policies learn them: chunks, the statistics of a data set, scaling by its quantiles.

An action is float32 [Δx, Δy, Δz, Δroll, Δpitch, Δyaw, gripper], the gripper absolute in [0, 1] with 1 = open. Names and
rules of the statistics are OpenVLA's (BOUNDS_Q99), so that its checkpoints and ours can read each other's files.
"""

from typing import Any

import numpy as np

ACTION_DIMENSIONS = 7
_MEASURES = ("mean", "std", "max", "min", "q01", "q99")
_SCALED = np.array([True] * 6 + [False])  # the gripper stays as it is


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


def dataset_statistics(actions: np.ndarray, states: np.ndarray, trajectories: int) -> dict[str, Any]:
    """Statistics over all valid transitions of a data set, as OpenVLA writes them in dataset_statistics.json.

    Args:
        actions: float32 (N, 7).
        states: float32 (N, S).
        trajectories: number of episodes that the transitions come from.
    """
    return {
        "action": {**_summary(actions), "mask": _SCALED.tolist()},
        "proprio": _summary(states),
        "num_transitions": len(actions),
        "num_trajectories": trajectories,
    }


def _summary(values: np.ndarray) -> dict[str, list[float]]:
    # Column by column: of millions of steps, copies of all columns in float64 would take gigabytes.
    rows = [
        (column.mean(), column.std(), column.max(), column.min(), *np.quantile(column, (0.01, 0.99)))
        for column in (column.astype(np.float64) for column in values.T)
    ]
    return {name: [float(row[place]) for row in rows] for place, name in enumerate(_MEASURES)}


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
    low, high, smallest, largest = (np.array(action[name]) for name in ("q01", "q99", "min", "max"))
    return low, high, smallest != largest, np.array(action["mask"])

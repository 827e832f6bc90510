"""The statistics of data sets that come with a checkpoint, checked when they are loaded: a wrong one would move a robot wrongly.

What OpenVLA's own loader takes is taken: it reads the quantiles of the actions and, where there is one, their mask.
"""

from typing import Any

import numpy as np

from pixel160k.errors import InputError
from pixel160k.format.actions import ACTION_DIMENSIONS

_OF_ACTIONS, _OF_STATES = ("q01", "q99", "min", "max", "mean", "std"), ("mean", "std", "q01", "q99", "min", "max")


def checked_statistics(statistics: Any, where: str) -> dict[str, Any]:
    """Statistics by data set, in OpenVLA's names, as `pixel160k.format.actions.unnormalise` takes them.

    Args:
        statistics: of any form: what a file holds.
        where: the file, for messages.

    Returns:
        The same, each with its mask: where it says none, all dimensions are scaled, as in OpenVLA.

    Raises:
        InputError: one line that names data set and key, and for a list its width and the width that it must have.
    """
    if not isinstance(statistics, dict):
        raise InputError(f"{where} must hold the statistics of data sets by name, not {_told(statistics)}")
    return {name: _checked(of_one, f"{where}: {name}") for name, of_one in statistics.items()}


def _checked(statistics: Any, where: str) -> dict[str, Any]:
    action = statistics.get("action") if isinstance(statistics, dict) else None
    if not isinstance(action, dict):
        raise InputError(f"{where}: action must hold the statistics of actions, not {_told(action)}")
    for key in _OF_ACTIONS:
        if key in action or key in ("q01", "q99"):
            _check_list(action.get(key), (int, float), ACTION_DIMENSIONS, f"{where}: action.{key}", "numbers")
    for key in ("q01", "q99"):
        if not np.isfinite(action[key]).all():
            raise InputError(f"{where}: action.{key} must be finite, not {action[key]}")
    mask = action.get("mask")
    if mask is None:
        mask = [True] * ACTION_DIMENSIONS
    _check_list(mask, bool, ACTION_DIMENSIONS, f"{where}: action.mask", "true or false")
    proprio = statistics.get("proprio")
    if proprio:
        if not isinstance(proprio, dict):
            raise InputError(f"{where}: proprio must hold the statistics of states, not {_told(proprio)}")
        width = next((len(value) for value in proprio.values() if isinstance(value, list)), 0)
        for key in _OF_STATES:
            if key in proprio:
                _check_list(proprio.get(key), (int, float), width, f"{where}: proprio.{key}", "numbers")
    return {**statistics, "action": {**action, "mask": mask}}


def _check_list(value: Any, kind: type | tuple[type, ...], width: int, where: str, what: str) -> None:
    if not isinstance(value, list) or len(value) != width or not all(isinstance(one, kind) for one in value):
        raise InputError(f"{where} must be {width} {what}, not {_told(value)}")


def _told(value: Any) -> str:
    """What a value is, for a message: a list by its width."""
    if isinstance(value, list):
        kinds = sorted({type(one).__name__ for one in value})
        return f"{len(value)} of {' and '.join(kinds)}" if value else "an empty list"
    return "nothing" if value is None else f"a {type(value).__name__}"

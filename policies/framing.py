"""What both ends of a wire to a policy agree on: arrays in openpi's msgpack and in OpenVLA's JSON, the keys of what is pointed
at, and what a gripper's number means.

Nothing is ever unpickled, and an array is made of a stranger's bytes only once its type, shape and length fit together. Both
forms are others': openpi's `msgpack_numpy` (keys are bytes; PyPI's package of that name has other keys, and pickles), and the
package json-numpy, which OpenVLA's `/act` speaks.
"""

import base64
import json
import math
import re
import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import msgpack
import numpy as np

from pixel160k.errors import InputError, one_line
from pixel160k.format.prompts import Prompt

POINTS, LINES, BOXES, MASK_PROMPTS, MASKS = "prompt/points", "prompt/lines", "prompt/boxes", "prompt/mask", "mask"
POINTING = (POINTS, LINES, BOXES, MASK_PROMPTS, MASKS)
"""The keys of an observation that point at something: our own, in both protocols (docs/serving.md)."""
DATASET = "unnorm_key"
"""The key of the data set whose robot acts: OpenVLA's, and ours in openpi's protocol."""
EPISODE = "episode"
"""The key of an observation's episode, a name, ours as well: neither protocol says where one begins."""

Gripper = Literal["unit", "signed"]
"""What the last number of an action means: `unit` is [0, 1] with 1 = open, as in shards and in OpenVLA's answers; `signed` is
-1 = open, +1 = closed, as robosuite carries it out and openpi's LIBERO client expects it."""

_NUMBERS = re.compile(
    r"[<>=|]?(b1|[iu][1248]|f[248])"
)  # bools, integers and floats: no objects, text, complex, records
_MOST_AXES = 8
_BRIEF = 60  # characters


class _Brief(reprlib.Repr):
    def repr_bytes(self, value: bytes, _: int) -> str:
        return repr(value[:_BRIEF])

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:  # reprlib's sorts all keys
        return self.repr1(list(islice(value.items(), self.maxdict)), level)

    def repr_ndarray(self, value: np.ndarray, _: int) -> str:
        return f"{value.dtype} {value.shape}"


_SAID = _Brief()
_SAID.maxstring = _SAID.maxother = _BRIEF


def brief(value: Any) -> str:
    """What a stranger said, for a message: the begin of it, of which alone something is made. It may be as large as a message
    may be, and as deep."""
    return _SAID.repr(value)[:_BRIEF]


def pack(value: Any) -> bytes:
    """A value as openpi's msgpack: of None, bools, numbers, text, bytes, arrays, and of lists and dictionaries of these.

    Raises:
        TypeError: it holds something else.
    """
    packed: bytes = msgpack.packb(value, default=_to_msgpack)
    return packed


def unpack(data: bytes) -> Any:
    """What openpi's msgpack holds. Arrays are read-only: they lie in `data`.

    Raises:
        InputError: it is no msgpack, or an array in it is not what it says.
    """
    try:
        return msgpack.unpackb(data, object_hook=_from_msgpack)
    except InputError:
        raise
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise InputError(f"the message is no msgpack: {one_line(error)}") from None


def to_json(value: Any) -> str:
    """A value as JSON with the arrays of json-numpy.

    Raises:
        TypeError: it holds something that JSON has not.
    """
    return json.dumps(value, default=_to_json)


def from_json(text: bytes | str) -> Any:
    """What JSON with the arrays of json-numpy holds. Arrays are read-only.

    Raises:
        InputError: it is no JSON, or an array in it is not what it says.
    """
    try:
        return json.loads(text, object_hook=_from_json, parse_constant=_no_number)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"the message is no JSON: {one_line(error)}") from None


def pointing(masks: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Masks p_t and prompts under their keys; what there is none of has no key.

    Args:
        masks: each bool (height, width).
        prompts: in pixels of the image.
    """
    of_kind = {
        kind: [prompt for prompt in prompts if prompt.kind == kind] for kind in ("point", "line", "region", "mask")
    }
    found = {
        POINTS: [prompt.coordinates[0] for prompt in of_kind["point"]],
        BOXES: [prompt.coordinates.ravel() for prompt in of_kind["region"]],
        MASK_PROMPTS: [prompt.mask for prompt in of_kind["mask"]],
        MASKS: list(masks),
    }
    said: dict[str, Any] = {key: np.stack(values) for key, values in found.items() if values}
    if of_kind["line"]:
        said[LINES] = [prompt.coordinates for prompt in of_kind["line"]]
    return said


def gripper_to(gripper: Gripper, actions: np.ndarray) -> np.ndarray:
    """Actions (..., 7) of a policy, gripper in [0, 1] with 1 = open, with the gripper as the wire has it."""
    return actions if gripper == "unit" else _with_gripper(actions, 1 - 2 * actions[..., -1:])


def gripper_from(gripper: Gripper, actions: np.ndarray) -> np.ndarray:
    """The way back from `gripper_to`; what lies beyond open or closed is cut off."""
    given = actions[..., -1:]
    return _with_gripper(actions, np.clip(given if gripper == "unit" else (1 - given) / 2, 0, 1))


def _with_gripper(actions: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    return np.concatenate([actions[..., :-1], gripper], -1)


def _array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """An array of bytes that say what they are."""
    if not isinstance(dtype, str) or not _NUMBERS.fullmatch(dtype):
        raise InputError(f"an array's dtype must be one of bools, integers or floats, as '|u1', not {brief(dtype)}")
    sides: list[Any] = list(shape) if isinstance(shape, list | tuple) else [None]
    if len(sides) > _MOST_AXES or not all(type(side) is int and 0 <= side < 2**31 for side in sides):
        raise InputError(f"an array's shape must be a list of at most {_MOST_AXES} lengths, not {brief(shape)}")
    if not isinstance(data, bytes):
        raise InputError(f"an array's data must be bytes, not {type(data).__name__}")
    expected = math.prod(sides) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise InputError(f"an array of shape {sides} and dtype {dtype} has {expected} bytes, not {len(data)}")
    try:
        if dtype.endswith("b1"):  # any byte may come; a bool has but two
            return np.frombuffer(data, np.uint8).reshape(sides) != 0
        return np.frombuffer(data, dtype).reshape(sides)
    except (ValueError, OverflowError):  # no element, and more of them along the other axes than can be counted
        raise InputError(f"an array's shape {sides} is too large") from None


def _scalar(data: Any, dtype: Any) -> np.generic:
    if not isinstance(dtype, str) or not _NUMBERS.fullmatch(dtype) or type(data) not in (bool, int, float):
        raise InputError(
            f"a number of NumPy must be a bool, an integer or a float, not {brief(data)} of {brief(dtype)}"
        )
    try:
        with np.errstate(over="ignore"):
            scalar: np.generic = np.dtype(dtype).type(data)
    except (ValueError, OverflowError):
        raise InputError(f"{brief(data)} is no number of dtype {dtype}") from None
    return scalar


def _to_msgpack(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and _NUMBERS.fullmatch(value.dtype.str):
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} has no form in msgpack")


def _from_msgpack(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return _array(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        return _scalar(found.get(b"data"), found.get(b"dtype"))
    return found


def _to_json(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray | np.generic) and _NUMBERS.fullmatch(value.dtype.str):
        data = base64.b64encode(value.tobytes()).decode()
        return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _from_json(found: dict[str, Any]) -> Any:
    if "__numpy__" not in found:
        return found
    text = found["__numpy__"]
    if not isinstance(text, str):
        raise InputError(f"__numpy__ must be an array's bytes as base64, not {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"__numpy__ is no base64: {one_line(error)}") from None
    return _array(data, found.get("dtype"), found.get("shape"))


def _no_number(name: str) -> float:
    raise InputError(f"the message holds {name}, which is no number")

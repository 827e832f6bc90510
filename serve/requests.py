"""An observation as a client words it, in openpi's keys or in OpenVLA's -> `model.processor.Observation`.

Whatever is not as it must be is refused with one line that names its key: a robot is about to move by the answer.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.processor import Observation
from pixel160k.errors import InputError
from pixel160k.format.prompts import Prompt, line, mask_prompt, point, region, validate
from policies.framing import BOXES, DATASET, EPISODE, LINES, MASK_PROMPTS, MASKS, POINTING, POINTS, brief

CHUNK_IMAGE = "full_image"
"""OpenVLA-OFT's key of the image: its client takes a whole chunk, OpenVLA's one action."""
_LONGEST_SIDE = 16384  # pixels of an image; JPEG, by which the page shows it, ends at 65500
_LONGEST_INSTRUCTION = 2000  # characters
_LONGEST_STATE = 256  # numbers
_LONGEST_NAME = 200  # characters, of an episode or a data set
_LONGEST_KEY = 60  # characters of a key that might be one of ours
_MOST_POINTED_AT = 64  # prompts and masks of one observation


@dataclass(frozen=True)
class Form:
    """The keys of one protocol.

    Attributes:
        images: the main camera; exactly one of these keys.
        wrist: the hand's camera; looked at by no policy of ours, and checked all the same.
        state: proprioception.
        instruction: what to do.
    """

    images: tuple[str, ...]
    wrist: str
    state: str
    instruction: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that an observation may have."""
        return (*self.images, self.wrist, self.state, self.instruction, DATASET, EPISODE, *POINTING)


OPENPI = Form(("observation/image",), "observation/wrist_image", "observation/state", "prompt")
ACT = Form(("image", CHUNK_IMAGE), "wrist_image", "state", "instruction")


def read_observation(message: Any, form: Form, dataset: str) -> Observation:
    """What a client sees and says.

    Args:
        message: as `policies.framing` unpacked it.
        form: the protocol's keys.
        dataset: whose robot acts where the message does not say it.

    Raises:
        InputError: a key is missing, unknown or not what it must be; names it.
    """
    if not isinstance(message, dict):
        raise InputError(f"an observation is a dictionary of keys and values, not {_described(message)}")
    for key in message:
        if key not in form.keys:
            begin = key[:_LONGEST_KEY] if isinstance(key, str | bytes) else key  # it may be as large as a message
            nearest = difflib.get_close_matches(str(begin), form.keys, n=1)
            meant = f"; did you mean {nearest[0]}?" if nearest else f"; there are: {', '.join(form.keys)}"
            raise InputError(f"unknown key {brief(key)}{meant}")
    given = [key for key in form.images if key in message]
    if len(given) != 1:
        raise InputError(f"give one image, as {' or '.join(form.images)}; there are {len(given)}")
    image = _image(given[0], message[given[0]])
    if message.get(form.wrist) is not None:
        _image(form.wrist, message[form.wrist])
    masks, prompts = read_pointing(message, *image.shape[:2])
    return Observation(
        image,
        _instruction(form.instruction, message.get(form.instruction)),
        masks,
        prompts,
        _state(form.state, message.get(form.state)),
        _dataset(message.get(DATASET), dataset),
    )


def _image(key: str, value: Any) -> np.ndarray:
    if (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
        and value.size
        and max(value.shape) <= _LONGEST_SIDE
    ):
        return value
    what = f"RGB, uint8 (height, width, 3), of {_LONGEST_SIDE} pixels a side at most"
    raise InputError(f"{key} must be {what}, not {_described(value)}")


def _instruction(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_INSTRUCTION:
        raise InputError(
            f"{key} must be a text of 1 to {_LONGEST_INSTRUCTION} characters that says what to do, not {_described(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which no tokenizer takes
        raise InputError(f"{key} is no text in Unicode") from None
    return value


def _state(key: str, value: Any) -> np.ndarray | None:
    if value is None:
        return None
    state = _numbers(key, value, (-1,), "the robot's state, numbers (S,)")
    if len(state) > _LONGEST_STATE:
        raise InputError(f"{key} must have {_LONGEST_STATE} numbers at most, not {len(state)}")
    return state


def _dataset(value: Any, default: str) -> str:
    return default if value is None else _name(DATASET, "data set", value) or default


def read_episode(message: dict[str, Any]) -> str:
    """The name of the episode that an observation is of; "" where the client does not say it.

    Raises:
        InputError: it is no name.
    """
    return _name(EPISODE, "episode", message.get(EPISODE, ""))


def _name(key: str, what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise InputError(
            f"{key} must be the name of a {what}, of {_LONGEST_NAME} characters at most, not {_described(value)}"
        )
    return value


def read_pointing(message: dict[str, Any], height: int, width: int) -> tuple[list[np.ndarray], list[Prompt]]:
    """Masks p_t, each bool (height, width), and visual prompts, of the keys of `policies.framing.POINTING`.

    Raises:
        InputError: one is not what it must be, or reaches out of the image; names its key.
    """
    masks = [*_masks(message, MASKS, height, width)]
    prompts = [
        *_prompts(POINTS, _rows(message, POINTS, 2, "points (n, 2)"), lambda row: point(*row)),
        *_prompts(LINES, _lines(message), line),
        *_prompts(BOXES, _rows(message, BOXES, 4, "boxes x0, y0, x1, y1 (n, 4)"), region),
        *_prompts(MASK_PROMPTS, _masks(message, MASK_PROMPTS, height, width), mask_prompt),
    ]
    if len(masks) + len(prompts) > _MOST_POINTED_AT:
        raise InputError(f"{', '.join(POINTING)} may hold {_MOST_POINTED_AT} together, not {len(masks) + len(prompts)}")
    for prompt in prompts:
        validate(prompt, height, width)
    return masks, prompts


def _prompts(key: str, values: Iterable[Any], make: Callable[[Any], Prompt]) -> list[Prompt]:
    try:
        return [make(value) for value in values]
    except InputError as error:
        raise InputError(error if str(error).startswith(key) else f"{key}: {error}") from None


def _rows(message: dict[str, Any], key: str, length: int, what: str) -> np.ndarray:
    value = message.get(key)
    empty = value is None or (isinstance(value, list) and not value)
    rows = np.zeros((0, length), np.float32) if empty else _numbers(key, value, (-1, length), f"{what} in pixels")
    return _few(key, rows)


def _lines(message: dict[str, Any]) -> Iterable[np.ndarray]:
    value = message.get(LINES)
    what = "a list of lines, each (n, 2) in pixels"
    if value is not None and not isinstance(value, list) and not (isinstance(value, np.ndarray) and value.ndim):
        raise InputError(f"{LINES} must be {what}, not {_described(value)}")
    return [_numbers(LINES, one, (-1, 2), what) for one in _few(LINES, [] if value is None else value)]


def _masks(message: dict[str, Any], key: str, height: int, width: int) -> list[np.ndarray]:
    value = message.get(key)
    if value is None:
        return []
    fits = isinstance(value, np.ndarray) and value.ndim in (2, 3) and value.shape[-2:] == (height, width)
    if not fits or value.dtype.kind not in "bu" or (value.dtype.kind == "u" and value.size and value.max() > 1):
        raise InputError(
            f"{key} must be bool, or uint8 of 0 and 1, ({height}, {width}) as its image or (n, {height}, {width}), "
            f"not {_described(value)}"
        )
    return [*_few(key, value.astype(bool).reshape(-1, height, width))]


def _few(key: str, values: Any) -> Any:
    if len(values) > _MOST_POINTED_AT:
        raise InputError(f"{key} may hold {_MOST_POINTED_AT}, not {len(values)}")
    return values


def _numbers(key: str, value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Finite numbers, as an array or as lists, as float32 of a shape whose -1 may be any length."""
    try:
        found = np.asarray(value) if _of_numbers(value, len(shape)) else None
    except ValueError:  # rows of several lengths
        found = None
    fits = (
        found is not None
        and found.ndim == len(shape)
        and all(s in (-1, f) for s, f in zip(shape, found.shape, strict=True))
    )
    if found is None or not fits or found.dtype.kind not in "iuf":
        raise InputError(f"{key} must be {what}, not {_described(value)}")
    with np.errstate(over="ignore"):
        numbers = found.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{key} holds a number that is not finite")
    return numbers


def _of_numbers(value: Any, depth: int) -> bool:
    """Whether a value is numbers, in lists so deep at most. Of texts NumPy would make an array in which each is as long as the
    longest: a small message could take all memory."""
    if isinstance(value, list):
        return depth > 0 and all(_of_numbers(one, depth - 1) for one in value)
    return isinstance(value, int | float | np.number | np.ndarray)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return brief(value)
    return "nothing" if value is None else f"{type(value).__name__} {brief(value)}"

"""`pixelcli predict`: one image and what the user points at -> a chunk of actions, and a picture of what was said."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.table import Table

from pixel160k.prompts import Prompt, line, point, region

ACTION_NAMES = ("Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper")
_COLOURS = {"mask": (224, 64, 208), "point": (255, 210, 0), "line": (0, 200, 255), "region": (60, 220, 90)}  # RGB


def read_prompts(points: Iterable[str], lines: Iterable[str], regions: Iterable[str]) -> list[Prompt]:
    """Prompts from the command line: "x,y" for a point, "x,y,x,y..." for a line, "x0,y0,x1,y1" for a region.

    Raises:
        ValueError: they are not numbers, or not as many as such a prompt has.
    """
    prompts = []
    for text in points:
        x, y = _numbers("--point", text, "x,y")
        prompts.append(point(x, y))
    for text in lines:
        numbers = _numbers("--line", text, "x,y,x,y...")
        prompts.append(line(list(zip(numbers[::2], numbers[1::2], strict=True))))
    for text in regions:
        x0, y0, x1, y1 = _numbers("--region", text, "x0,y0,x1,y1")
        prompts.append(region((x0, y0, x1, y1)))
    return prompts


def read_state(text: str | None) -> np.ndarray | None:
    """Proprioception from the command line: numbers separated by commas, as float32 (S,); None where there is none.

    Raises:
        ValueError: they are not numbers.
    """
    try:
        return None if text is None else np.array([float(number) for number in text.split(",")], np.float32)
    except ValueError:
        raise ValueError(f"--state takes numbers separated by commas, not {text!r}") from None


def _numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    """The numbers of a text of the form "x,y": as many as it has, or an even number of at least as many before "..."."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    expected, more = form.removesuffix("...").count(",") + 1, form.endswith("...")
    if len(numbers) != expected and not (more and len(numbers) > expected and len(numbers) % 2 == 0):
        raise ValueError(f"{option} takes {form} in pixels of the image, not {text!r}")
    return numbers


def read_image(file: Path) -> np.ndarray:
    """An image file as RGB, uint8 (height, width, 3).

    Raises:
        ValueError: it cannot be read as an image.
    """
    try:
        with Image.open(file) as image:
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"cannot read the image {file}: {error}") from None


def read_mask(file: Path) -> np.ndarray:
    """A mask file, black outside and one other colour inside, as bool (height, width).

    Raises:
        ValueError: it cannot be read as an image, or has more colours: grey edges or several labels do not say what is
            inside.
    """
    pixels = read_image(file)
    inside = np.asarray(pixels.any(axis=2))
    if len(np.unique(pixels[inside], axis=0)) > 1:
        raise ValueError(f"the mask {file} has several colours; make it black outside the object and white inside")
    return inside


def draw(image: np.ndarray, masks: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> np.ndarray:
    """A picture of an observation: masks tinted and outlined, prompts drawn over them; RGB uint8 (height, width, 3).

    An image narrower than 512 pixels is enlarged by a whole number, so that marks do not hide what they mark.
    """
    scale = max(1, -(-512 // image.shape[1]))
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for mask in [*masks, *(prompt.mask for prompt in prompts if prompt.mask is not None)]:
        large = np.repeat(np.repeat(mask, scale, 0), scale, 1).astype(np.uint8)
        tint = np.full_like(picture, _COLOURS["mask"])
        picture = np.where(large[..., None].astype(bool), cv2.addWeighted(picture, 0.6, tint, 0.4, 0), picture)
        outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _COLOURS["mask"], 2)
    for prompt in prompts:
        places = np.round(prompt.coordinates * scale).astype(int).tolist()
        if prompt.kind == "point":
            cv2.circle(picture, places[0], 7, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(picture, places[0], 5, _COLOURS["point"], -1, cv2.LINE_AA)
        elif prompt.kind == "line":
            cv2.polylines(picture, [np.array(places)], False, _COLOURS["line"], 3, cv2.LINE_AA)
        elif prompt.kind == "region":
            cv2.rectangle(picture, places[0], places[1], _COLOURS["region"], 2)
    return picture


def action_table(actions: np.ndarray) -> Table:
    """A chunk of actions, (N_c, 7) in robot units, one row a step."""
    table = Table("step", *ACTION_NAMES)
    for step, action in enumerate(actions):
        table.add_row(str(step), *(f"{value:+.4f}" for value in action[:-1]), f"{action[-1]:.2f}")
    return table

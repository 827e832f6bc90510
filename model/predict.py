"""`pixelcli predict`: one image and what the user points at -> a chunk of actions, and a picture of what was said."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.table import Table

from pixel160k.errors import InputError, one_line
from pixel160k.format.prompts import Prompt, line, point, region

ACTION_NAMES = ("Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper")


def read_prompts(points: Iterable[str], lines: Iterable[str], regions: Iterable[str]) -> list[Prompt]:
    """Prompts from the command line: "x,y" for a point, "x,y,x,y..." for a line, "x0,y0,x1,y1" for a region.

    Raises:
        InputError: they are not numbers, or not as many as such a prompt has.
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
        InputError: they are not numbers.
    """
    try:
        return None if text is None else np.array([float(number) for number in text.split(",")], np.float32)
    except ValueError:
        raise InputError(f"--state takes numbers separated by commas, not {text!r}") from None


def _numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    """The numbers of a text like "1,2": as many as `form` names, as "x,y"; or more pairs of them where `form` ends in "..."."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    expected, more = form.removesuffix("...").count(",") + 1, form.endswith("...")
    if len(numbers) != expected and not (more and len(numbers) > expected and len(numbers) % 2 == 0):
        raise InputError(f"{option} takes {form} in pixels of the image, not {text!r}")
    return numbers


def read_image(file: Path) -> np.ndarray:
    """An image file as RGB, uint8 (height, width, 3), as a person sees it: turned as its EXIF data says, black where transparent.

    Raises:
        InputError: it cannot be read as an image.
    """
    try:
        with Image.open(file) as image:
            seen = ImageOps.exif_transpose(image).convert("RGBA")
            return np.array(Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise InputError(f"cannot read the image {file}: {one_line(error)}") from None


def read_mask(file: Path) -> np.ndarray:
    """A mask file, black or transparent outside and one other colour inside, as bool (height, width).

    Raises:
        InputError: it cannot be read as an image, or has more colours: grey edges or several labels do not say what is
            inside.
    """
    pixels = read_image(file)
    inside = np.asarray(pixels.any(axis=2))
    if len(np.unique(pixels[inside], axis=0)) > 1:
        raise InputError(f"the mask {file} has several colours; make it black outside the object and white inside")
    return inside


def action_table(actions: np.ndarray) -> Table:
    """A chunk of actions, (N_c, 7) in robot units, one row per step."""
    table = Table("step", *ACTION_NAMES)
    for step, action in enumerate(actions):
        table.add_row(str(step), *(f"{value:+.4f}" for value in action[:-1]), f"{action[-1]:.2f}")
    return table

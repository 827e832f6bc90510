"""Annotations as inline SVG, so that a page can lay them over an untouched JPEG and switch each of them on and off.

Everything is drawn in pixels of the source image: origin top left, boxes xyxy half-open, points at pixel centres
(x + 0.5). An outline runs along the edges of a mask's pixels, so it is exact at any size. A layer is one SVG element with
CSS classes; the style sheet overlays.css gives the classes their colours and line widths.
"""

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from pixel160k.format.prompts import Prompt

if TYPE_CHECKING:
    from jinja2 import Environment


def picture(image: bytes, size: tuple[int, int], layers: Iterable[Markup], caption: str) -> Markup:
    """An HTML figure of an image with SVG layers over it and a caption below it.

    Args:
        image: JPEG or PNG; its bytes are embedded as they are.
        size: (height, width) in pixels.
        layers: as `mask_layer` and the others make them; later ones lie over earlier ones.
        caption: plain text, also for screen readers.
    """
    height, width = size
    return Markup(
        '<figure><div class="frame{small}"><img src="data:image/{form};base64,{data}" width="{width}" height="{height}" '
        'alt="{caption}" loading="lazy"><svg viewBox="0 0 {width} {height}" aria-hidden="true">{layers}</svg></div>'
        "<figcaption>{caption}</figcaption></figure>"
    ).format(
        small=" small" if width < 160 else "",  # shown so much larger than they are that pixels should stay pixels
        form="png" if image.startswith(b"\x89PNG") else "jpeg",
        data=base64.b64encode(image).decode("ascii"),
        width=width,
        height=height,
        layers=Markup().join(layers),
        caption=caption,
    )


def outline(mask: np.ndarray) -> str:
    """SVG path data of the outlines of a mask, bool (height, width), holes included; "" where it is empty.

    Meant for `fill-rule="evenodd"`: where pixels touch only at a corner, loops may cross there.
    """
    padded = np.pad(mask.astype(bool), 1)
    # Every edge between inside and outside, directed so that the inside lies to its right: start, end.
    sides = (((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)), ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0)))
    following: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for (down, right), (x0, y0), (x1, y1) in sides:
        neighbour = np.roll(padded, (-down, -right), axis=(0, 1))
        for y, x in np.argwhere((padded & ~neighbour)[1:-1, 1:-1]).tolist():
            following[x + x0, y + y0].append((x + x1, y + y1))
    loops = []
    while following:
        corner = start = next(iter(following))
        corners, heading = [], None
        while corner in following:
            ends = following[corner]
            end = ends.pop()
            if not ends:
                del following[corner]
            direction = end[0] - corner[0], end[1] - corner[1]
            if direction != heading:
                corners.append(corner)
            corner, heading = end, direction
            if corner == start:
                break
        loops.append("M" + "L".join(f"{x} {y}" for x, y in corners) + "Z")
    return "".join(loops)


def mask_layer(mask: np.ndarray, name: str) -> Markup:
    """A layer with the outline of a mask, bool (height, width). `name` is its CSS class, or several: "mask target"."""
    return Markup('<path class="{}" fill-rule="evenodd" d="{}"/>').format(name, outline(mask))


def box_layer(box: Sequence[float], name: str) -> Markup:
    """A layer with a half-open xyxy box, in pixels, as a rectangle of the CSS class `name`."""
    x0, y0, x1, y1 = map(_number, box)
    return Markup('<path class="{}" d="M{} {}H{}V{}H{}Z"/>').format(name, x0, y0, x1, y1, x0)


def line_layer(ends: Iterable[Sequence[float]], name: str) -> Markup:
    """A layer with a line through points (x, y), in pixels, of the CSS class `name`."""
    return Markup('<path class="{}" d="M{}"/>').format(name, "L".join(f"{_number(x)} {_number(y)}" for x, y in ends))


def points_layer(points: Iterable[Sequence[float]], name: str) -> Markup:
    """A layer with points (x, y), in pixels, as dots of the CSS class `name`.

    They are lines without length, drawn with round caps: so dots do not grow when the picture is enlarged.
    """
    return Markup('<path class="{}" d="{}"/>').format(name, "".join(f"M{_number(x)} {_number(y)}h0" for x, y in points))


def prompt_layer(prompt: Prompt) -> Markup:
    """A layer with a visual prompt: a point, a line, a box, or a mask's dashed outline; of the CSS class "prompt"."""
    points = prompt.coordinates.tolist()
    if prompt.mask is not None:
        return mask_layer(prompt.mask, "prompt mask-prompt")
    if prompt.kind == "region":
        (x0, y0), (x1, y1) = points
        return box_layer((x0, y0, x1, y1), "prompt")
    return points_layer(points, "prompt point") if prompt.kind == "point" else line_layer(points, "prompt")


def render(template: Path, values: dict[str, Any]) -> str:
    """The HTML of a jinja2 template with these values, which are escaped; templates may extend page.html.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@lru_cache(maxsize=4)
def _environment(folder: Path) -> "Environment":
    """The jinja2 environment of a folder. It keeps compiled templates: to compile one takes longer than to render it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _number(value: float) -> str:
    """A number as text, to a hundredth of a pixel: short, and the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".")

"""Annotations as inline SVG, so that a page can lay them over an untouched JPEG and switch each of them on and off.

Everything is drawn in pixels of the source image: origin top left, boxes xyxy half-open, points at pixel centres
(x + 0.5). An outline therefore runs along the edges of a mask's pixels, exact at any size. Colours and line widths are
left to the style sheet overlays.css, which knows the classes given here.
"""

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pixel160k.format.prompts import Prompt


def picture(jpeg: bytes, size: tuple[int, int], layers: Iterable[Markup], caption: str) -> Markup:
    """A captioned HTML figure of a frame, whose JPEG bytes it holds as they are, with SVG layers over it.

    `size` is (height, width), as of a mask's shape.
    """
    height, width = size
    return Markup(
        '<figure><div class="frame{small}"><img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
        'alt="{caption}" loading="lazy"><svg viewBox="0 0 {width} {height}" aria-hidden="true">{layers}</svg></div>'
        "<figcaption>{caption}</figcaption></figure>"
    ).format(
        small=" small" if width < 160 else "",  # shown so much larger than they are that pixels should stay pixels
        data=base64.b64encode(jpeg).decode("ascii"),
        width=width,
        height=height,
        layers=Markup().join(layers),
        caption=caption,
    )


def outline(mask: np.ndarray) -> str:
    """SVG path data along the pixel edges of a mask, bool (height, width), holes included; "" where it is empty.

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
    """A mask, bool (height, width), as an outline of the class `name`, which may be several: "mask target"."""
    return Markup('<path class="{}" fill-rule="evenodd" d="{}"/>').format(name, outline(mask))


def box_layer(box: Sequence[float], name: str) -> Markup:
    """A half-open xyxy box as a rectangle of the class `name`."""
    x0, y0, x1, y1 = map(_number, box)
    return Markup('<path class="{}" d="M{} {}H{}V{}H{}Z"/>').format(name, x0, y0, x1, y1, x0)


def line_layer(ends: Iterable[Sequence[float]], name: str) -> Markup:
    """A line through points as a path of the class `name`."""
    return Markup('<path class="{}" d="M{}"/>').format(name, "L".join(f"{_number(x)} {_number(y)}" for x, y in ends))


def points_layer(points: Iterable[Sequence[float]], name: str) -> Markup:
    """Points as lines without length, which round caps turn into dots whose size does not grow with the picture."""
    return Markup('<path class="{}" d="{}"/>').format(name, "".join(f"M{_number(x)} {_number(y)}h0" for x, y in points))


def prompt_layer(prompt: Prompt) -> Markup:
    """A prompt, as points, a line, a box or a dashed outline."""
    places = prompt.coordinates.tolist()
    if prompt.mask is not None:
        return mask_layer(prompt.mask, "prompt mask-prompt")
    if prompt.kind == "region":
        (x0, y0), (x1, y1) = places
        return box_layer((x0, y0, x1, y1), "prompt")
    return points_layer(places, "prompt point") if prompt.kind == "point" else line_layer(places, "prompt")


def render(template: Path, values: dict[str, Any]) -> str:
    """Render a jinja2 template, which may extend page.html, with HTML escaping on.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@lru_cache(maxsize=4)
def _environment(folder: Path) -> Any:
    """Keeps compiled templates: compiling takes longer than everything else about a sample."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _number(value: float) -> str:
    """Short and the same on every machine: a hundredth of a pixel is finer than any screen shows."""
    return f"{value:.2f}".rstrip("0").rstrip(".")

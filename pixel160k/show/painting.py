"""Masks and prompts painted into the pixels of an image: for files and videos, where SVG (drawing.py) cannot go."""

from collections.abc import Iterable

import cv2
import numpy as np

from pixel160k.format.prompts import Prompt

_COLOURS = {  # RGB
    "mask": (224, 64, 208),
    "gripper": (64, 156, 255),
    "point": (255, 210, 0),
    "line": (0, 200, 255),
    "region": (60, 220, 90),
}
_WIDTH = 512  # pixels: a narrower image is enlarged, so that marks do not hide what they mark


def paint(
    image: np.ndarray,
    masks: Iterable[np.ndarray] = (),
    prompts: Iterable[Prompt] = (),
    gripper: np.ndarray | None = None,
) -> np.ndarray:
    """Paint masks (tinted and outlined) and prompts over them onto a copy of an image.

    Args:
        image: RGB, uint8 (height, width, 3).
        masks: bool (height, width) each.
        prompts: in pixels of the image; the mask of one that has it is painted as the others.
        gripper: its mask, bool (height, width), in a colour of its own.

    Returns:
        RGB, uint8 (n * height, n * width, 3), with the smallest whole number n that makes it 512 pixels wide or more.
    """
    prompts = list(prompts)
    scale = max(1, -(-_WIDTH // image.shape[1]))
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    tinted = [("mask", mask) for mask in [*masks, *(prompt.mask for prompt in prompts)]] + [("gripper", gripper)]
    for kind, mask in tinted:
        if mask is None:
            continue
        large = np.repeat(np.repeat(mask, scale, 0), scale, 1).astype(np.uint8)
        tint = np.full_like(picture, _COLOURS[kind])
        picture = np.where(large[..., None].astype(bool), cv2.addWeighted(picture, 0.6, tint, 0.4, 0), picture)
        outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _COLOURS[kind], 2)
    for prompt in prompts:
        points = np.round(prompt.coordinates * scale).astype(int).tolist()
        if prompt.kind == "point":
            cv2.circle(picture, points[0], 5, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(picture, points[0], 4, _COLOURS["point"], -1, cv2.LINE_AA)
        elif prompt.kind == "line":
            cv2.polylines(picture, [np.array(points)], False, _COLOURS["line"], 2, cv2.LINE_AA)
        elif prompt.kind == "region":
            cv2.rectangle(picture, points[0], points[1], _COLOURS["region"], 2)
    return picture

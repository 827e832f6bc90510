"""Where on a frame the models look: the region proposal around the gripper, and the windows that are cut out for them.

Boxes are xyxy in pixels of the frame, origin top left.
"""

import numpy as np

from pixel160k.format.table import Box

Window = tuple[int, int, int, int]
"""A box of whole pixels."""


def propose_region(gripper: Box, factor: float, height: int, width: int) -> Box:
    """The square around the gripper's box, its side the box's longer one times a factor, clipped to the image.

    A square, since a hand seen from the side makes a flat box, and what it holds reaches down below it.
    """
    half = max(gripper[2] - gripper[0], gripper[3] - gripper[1]) / 2 * factor
    x, y = centre_of(gripper)
    return max(0.0, x - half), max(0.0, y - half), min(float(width), x + half), min(float(height), y + half)


def crop_window(region: Box, context: float, height: int, width: int) -> Window:
    """The square of whole pixels around a region, moved into the image and clipped to it: x0, y0, x1, y1.

    Its side is the region's longer one times `context`, so that things at the region's edge are seen whole. Square, so that a
    detector's fixed input size does not distort what lies in it.
    """
    side = int(np.ceil(max(region[2] - region[0], region[3] - region[1]) * context))
    x0 = int(np.clip(round((region[0] + region[2] - side) / 2), 0, max(0, width - side)))
    y0 = int(np.clip(round((region[1] + region[3] - side) / 2), 0, max(0, height - side)))
    return x0, y0, min(width, x0 + side), min(height, y0 + side)


def shift_box(box: Box, dx: float, dy: float) -> Box:
    """A box moved by dx, dy: from a crop's pixels to the image's by the crop's corner, and back by its negative."""
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def centre_of(box: Box) -> tuple[float, float]:
    """The centre of a box: x, y."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def centre_inside(box: Box, region: Box) -> bool:
    """Whether the centre of a box lies in a half-open region."""
    x, y = centre_of(box)
    return region[0] <= x < region[2] and region[1] <= y < region[3]


def touches_edge(box: Box, window: Window, height: int, width: int) -> bool:
    """Whether a box ends at an edge of a window, within a pixel, that is no edge of the image: what it shows may go on there."""
    return (
        (0 < window[0] >= box[0] - 1)
        or (0 < window[1] >= box[1] - 1)
        or (width > window[2] <= box[2] + 1)
        or (height > window[3] <= box[3] + 1)
    )


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes; 0.0 where they do not overlap."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)

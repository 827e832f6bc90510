"""Masks of models have specks, pinholes and stray pieces; here they go."""

import cv2
import numpy as np

from pixel160k.format import masks
from pixel160k.format.table import Box


def tidy(mask: np.ndarray) -> np.ndarray:
    """Fill small holes and drop specks: all below a twentieth of the largest part (transformers' switches do nothing)."""
    x0, y0, x1, y1 = map(int, masks.box_of(mask))
    if x1 < 0:
        return mask
    inner = np.pad(mask[y0:y1, x0:x1], 1)  # what lies outside is one part then, and not searched
    labels, areas = _parts(inner)
    smallest = 0.05 * areas[1:].max()
    hole_labels, hole_areas = _parts(~inner)
    hole_areas[hole_labels[0, 0]] = hole_areas[0]  # the outside is no hole, however narrow
    filled = inner | (hole_areas < smallest)[hole_labels]
    if (filled != inner).any():
        labels, areas = _parts(filled)  # a speck inside a hole is part of what was filled
    clean = np.zeros_like(mask)
    clean[y0:y1, x0:x1] = (filled & (areas >= smallest)[labels])[1:-1, 1:-1]
    return clean


def parts_in(mask: np.ndarray, box: Box) -> np.ndarray:
    """The connected parts of a mask, bool (height, width), that lie at least in part in a box; the others are stray pieces."""
    labels, _ = _parts(mask)
    inside = np.unique(labels[masks.inside_box(box, *mask.shape) & mask])
    return np.isin(labels, inside)


def _parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label of every pixel's connected part, 0 where the mask is False, and the pixels of each label."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = statistics[:, cv2.CC_STAT_AREA]
    areas[0] = mask.size  # never small
    return labels, areas

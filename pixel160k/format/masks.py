"""Binary masks: COCO run-length encoding, boxes, overlap and the indexed mask image of a shard.

A mask is bool, shape (height, width), origin top left. RLE is COCO's compressed form (column-major), held as
`{"size": [height, width], "counts": str}`; pycocotools does the work. Boxes are float32 xyxy in pixels, half-open.
"""

import io
from typing import Annotated

import numpy as np
from annotated_types import Ge, Len
from PIL import Image
from pycocotools import mask as coco
from typing_extensions import TypedDict  # typing's own cannot be checked by pydantic before Python 3.12

BACKGROUND, GRIPPER, TARGET, NOT_ANNOTATED = 0, 1, 2, 255
NO_BOX = (-1.0, -1.0, -1.0, -1.0)  # stands for "no box" in files that may hold no nulls

_PALETTE = [0, 0, 0, 64, 156, 255, 224, 64, 208] + [0] * (3 * 252) + [128, 128, 128]


class RLE(TypedDict):
    """A run-length encoded mask: `size` is [height, width], `counts` COCO's compressed string."""

    size: Annotated[list[Annotated[int, Ge(0)]], Len(2, 2)]
    counts: str


def encode(mask: np.ndarray) -> RLE:
    """Encode a mask, bool (height, width)."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode(rle: RLE) -> np.ndarray:
    """Decode an RLE to bool (height, width)."""
    return coco.decode({"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")}).astype(bool)


def area(rle: RLE) -> int:
    """Number of pixels of an RLE, without decoding it."""
    return int(coco.area({"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")}))


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tight half-open xyxy box of a mask in pixels (one pixel gives x1 = x0 + 1); four −1 where it is empty."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return NO_BOX
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def inside_box(box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """The mask, bool (height, width), of the pixels whose centres lie in a half-open xyxy box."""
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    return ((ys >= box[1]) & (ys < box[3]))[:, None] & ((xs >= box[0]) & (xs < box[2]))[None]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 1.0 where both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def encode_indexed_png(labels: np.ndarray) -> bytes:
    """Encode a label image, uint8 (height, width), as an indexed PNG whose palette makes the labels visible."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8), mode="L")
    image = image.convert("P")
    image.putpalette(_PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def decode_indexed_png(data: bytes) -> np.ndarray:
    """Decode an indexed PNG to its label image, uint8 (height, width)."""
    return np.asarray(Image.open(io.BytesIO(data)))

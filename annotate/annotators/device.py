"""What the models do otherwise on a GPU than on a CPU: dtypes, how images are resized, and memory that may not suffice."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F

from annotate.annotators.pretrained import torch_dtype

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches:
    """How many items a model takes at once: halved, for good, whenever the device's memory does not hold them.

    With one item there is nothing left to halve, and torch.cuda.OutOfMemoryError is raised.
    """

    def __init__(self, size: int) -> None:
        """Begin with this many."""
        self.size = size

    def __call__(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
        """Work off items, `size` at once; `work` returns one result per item."""
        done: list[Result] = []

        def next_batch() -> Sequence[Result]:
            return work(items[len(done) : len(done) + self.size])

        while len(done) < len(items):
            done += self.retry(next_batch)
        return done

    def retry(self, work: Callable[[], Result]) -> Result:
        """Do work that reads `size`, and do it again with half of it where the memory does not suffice."""
        while True:
            try:
                return work()
            except torch.cuda.OutOfMemoryError:
                if self.size == 1:
                    raise
            # Only here is what the exception held let go.
            self.size //= 2
            torch.cuda.empty_cache()


def mixed_precision(device: str, dtype: str) -> torch.autocast:
    """The context in which float32 weights compute in the dtype of a setting's name; for float32 it changes nothing."""
    return torch.autocast(torch.device(device).type, torch_dtype(dtype), enabled=dtype != "float32")


def full_precision(device: str) -> torch.autocast:
    """The context, or decorator, in which nothing is computed in another dtype than it has."""
    return torch.autocast(torch.device(device).type, enabled=False)


def resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images, uint8 (images, 3, h, w), at another size as image libraries resize: bilinear, antialiased, in grey levels.

    CUDA resizes floating-point numbers alone; there the result is float32.
    """
    if pixels.device.type != "cpu":
        return resized_as_floats(pixels, height, width)
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)


def resized_as_floats(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As `resized`, in float32. Libraries round after the rows and after the columns, halves up, and so does this.

    Rounded once at the end, a sixth of all pixels would be off by one, enough to move the edge of a small mask.
    """
    for shape in ((pixels.shape[2], width), (height, width)):
        pixels = F.interpolate(pixels.float(), shape, mode="bilinear", antialias=True).add(0.5).floor()
    return pixels

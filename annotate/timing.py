"""A stopwatch: wall seconds per stage, for the summary and stats.json.

What a thread does ahead of the models is not measured: the stages "read" and "tracks" have the time for which it was
waited for. Where nothing is read ahead (on a CPU), "read" is reading, parsing and decoding.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch(threading.local):
    """Adds up wall seconds per stage in `seconds`. Stages may nest; time counts for the innermost stage only.

    Each thread measures its own; waiting for a model that another thread uses counts for the stage that wants it.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Start with nothing measured; on CUDA a stage ends when the device has done its work, not when Python has asked."""
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the enclosed block as the stage of this name: `with stopwatch("object"): ...`."""
        self._account()
        self._open.append(name)
        try:
            yield
        finally:
            self._account()
            self._open.pop()

    def _account(self) -> None:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

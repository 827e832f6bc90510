"""Videos and what is followed in them: frames that are encoded for all of it, and lanes, each with its memories.

A lane is one object on its way through a video, from the frame on which it is prompted to the first frame or to the last.
Lanes that are equally far from their prompted frames have equally many memories, and go through the model together.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from annotate.annotators.memory_attention import Memory, joined

Prompt = Sequence[float] | np.ndarray
"""A box x0, y0, x1, y1, a point x, y, in pixels of its frame, or a mask, bool (height, width)."""


_KEPT = 64  # frames of a video whose features are held: 17 MB each in float32 at SAM 2's size, half of it in bfloat16


@dataclass(frozen=True)
class Video:
    """Frames, RGB uint8 (height, width, 3), all of one size, and the prompts of what to follow, each with its frame."""

    frames: Sequence[np.ndarray]
    prompts: Sequence[tuple[int, Prompt]]


class EncodedVideo:
    """The features of a video's frames. Each frame is encoded once, and forgotten after it was taken for the last time.

    Where lanes are far from each other in a long video, those encoded first are forgotten before, and encoded anew when they
    are wanted: a video of 1,000 steps fills no more memory than a short one.
    """

    def __init__(
        self, frames: Sequence[np.ndarray], encode: Callable[..., list[list[torch.Tensor]]], batch: int
    ) -> None:
        """Nothing is encoded yet.

        Args:
            frames: RGB, uint8 (height, width, 3).
            encode: frames -> the features of each, a tensor per level.
            batch: how many frames are encoded at once, at most as many as are kept.
        """
        self.frames, self._encode, self._batch = frames, encode, batch
        self.uses: Counter[int] = Counter()  # how often each frame will still be taken
        self._kept: dict[int, list[torch.Tensor]] = {}

    def take(self, order: range) -> list[torch.Tensor]:
        """The features of frame `order[0]`. Where they are not there yet, those of the next frames are made with them."""
        if order[0] not in self._kept:
            steps = [step for step in order[: self._batch] if step not in self._kept and self.uses[step]]
            self._kept |= zip(steps, self._encode([self.frames[step] for step in steps]), strict=True)
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        self.uses[order[0]] -= 1
        return self._kept[order[0]] if self.uses[order[0]] else self._kept.pop(order[0])


@dataclass
class Lane:
    """One object on its way from its prompted frame to the first frame or to the last.

    Attributes:
        video: whose frames it goes through.
        order: the indices of these frames, the prompted one first.
        prompted: the memory of the prompted frame.
        span: how old, in frames, the oldest object pointer of the video can be, at most the model's own limit; float32 (1,).
        logits, presence: for each frame so far, mask logits (1, h, w) and the logit of the object's presence (1, 1).
    """

    video: EncodedVideo
    order: range
    prompted: Memory
    span: torch.Tensor
    logits: list[torch.Tensor] = field(default_factory=list)
    presence: list[torch.Tensor] = field(default_factory=list)


class Bundle:
    """Lanes that go through the model together, with their memories. The longest lane is the first."""

    def __init__(self, lanes: Sequence[Lane], frames: int, pointers: int) -> None:
        """`frames`, `pointers`: how many memories and object pointers are kept, besides those of the prompted frame."""
        self.lanes = lanes
        self.prompted = joined([lane.prompted for lane in lanes])
        self.spans = torch.cat([lane.span for lane in lanes])
        self._recent: deque[Memory] = deque(maxlen=frames)  # the last frame first
        self._pointers: deque[torch.Tensor] = deque(maxlen=pointers)

    def remember(self, memory: Memory) -> None:
        """Add the memory of the frame just seen."""
        self._recent.appendleft(memory)
        self._pointers.appendleft(memory.pointer)

    def memories(self, lanes: int) -> list[tuple[int, Memory]]:
        """The memories of the first lanes, each with its age in frames: the prompted frame's with 0, then oldest to newest."""
        recent = [(age + 1, memory.of(lanes)) for age, memory in enumerate(self._recent)]
        return [(0, self.prompted.of(lanes)), *reversed(recent)]

    def pointers(self, lanes: int) -> torch.Tensor:
        """Object pointers of the first lanes, (frames, lanes, channels): the prompted frame's, then newest to oldest."""
        return torch.stack([pointer[:lanes] for pointer in (self.prompted.pointer, *self._pointers)])

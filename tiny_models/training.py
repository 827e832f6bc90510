"""What the training scripts share: the learning-rate schedule, and boxes as tensors."""

import math
import time
from dataclasses import dataclass, field

import torch


@dataclass
class Schedule:
    """A learning rate that rises linearly for `warm_up` steps and falls as a cosine over the run.

    The run lasts a number of steps or, if `minutes` is given, a number of minutes. A run in minutes depends on the machine
    and cannot be repeated exactly.
    """

    learning_rate: float
    steps: int
    minutes: float | None = None
    warm_up: int = 100
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_minutes(self) -> float:
        """Minutes since the schedule was created."""
        return (time.monotonic() - self.started) / 60

    @property
    def progress(self) -> float:
        """The share of the run that is done, from 0 to 1 or a little more."""
        return self.elapsed_minutes / self.minutes if self.minutes else self.step / self.steps

    @property
    def running(self) -> bool:
        """Whether the run is not over yet."""
        return self.progress < 1

    def advance(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate of the next step; a parameter group may scale it by its own `factor`."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.progress, 1)))
        rate = self.learning_rate * min(1, (self.step + 1) / self.warm_up) * (0.02 + 0.98 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.step += 1


def box_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) given as centre x, centre y, width, height; returned as left, top, right, bottom."""
    centre, sides = boxes.split(2, -1)
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)


def box_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The IoU (...) of every pair of boxes (..., 4) given as left, top, right, bottom."""
    corner = torch.maximum(first[..., :2], second[..., :2])
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - corner).clamp(min=0)
    shared = sides.prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def parameter_count(model: torch.nn.Module) -> int:
    """How many numbers the parameters of a model hold."""
    return sum(parameter.numel() for parameter in model.parameters())

"""What both trainers share: the learning-rate schedule, saving without half-written files, and boxes as tensors."""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Schedule:
    """Cosine learning rate over a number of steps, or over a number of minutes if one is given.

    Minutes bound a run by the clock; its result then depends on the machine. Steps alone can be repeated.
    """

    learning_rate: float
    steps: int
    minutes: float | None = None
    warm_up: int = 100
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_minutes(self) -> float:
        """Minutes since the schedule was made."""
        return (time.monotonic() - self.started) / 60

    @property
    def progress(self) -> float:
        """0 at the start, 1 when training is over."""
        return self.elapsed_minutes / self.minutes if self.minutes else self.step / self.steps

    @property
    def running(self) -> bool:
        """Whether there is a step left to take."""
        return self.progress < 1

    def advance(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate of the next step; a parameter group may scale it by its own `factor`."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.progress, 1)))
        rate = self.learning_rate * min(1, (self.step + 1) / self.warm_up) * (0.02 + 0.98 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.step += 1


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, which then takes the place of `folder`: readers never see half a checkpoint."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(unfinished, folder)
    shutil.rmtree(old, ignore_errors=True)


def box_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of boxes (..., 4), left, top, right, bottom, pair by pair."""
    corner = torch.maximum(first[..., :2], second[..., :2])
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - corner).clamp(min=0)
    shared = sides.prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def parameter_count(model: torch.nn.Module) -> int:
    """How many numbers a model learned."""
    return sum(parameter.numel() for parameter in model.parameters())

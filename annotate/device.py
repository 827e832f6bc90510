"""What the models do otherwise on a GPU than on a CPU: the dtype they compute in, and how images are resized."""

import torch
import torch.nn.functional as F

from annotate.pretrained import torch_dtype


def mixed_precision(device: str, dtype: str) -> torch.autocast:
    """The context in which float32 weights compute in the dtype of a setting's name; for float32 it changes nothing."""
    return torch.autocast(torch.device(device).type, torch_dtype(dtype), enabled=dtype != "float32")


def full_precision(device: str) -> torch.autocast:
    """The context, or decorator, in which nothing is computed in another dtype than it has."""
    return torch.autocast(torch.device(device).type, enabled=False)


def resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images, uint8 (images, 3, h, w), at another size as image libraries resize: bilinear, antialiased, in grey levels.

    CUDA resizes floating-point numbers alone; there the result is float32, and a grey level may differ by one.
    """
    if pixels.device.type != "cpu":
        return F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True).round()
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)

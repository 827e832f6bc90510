"""Grounding DINO: boxes of what a phrase names, on whole frames or on crops of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
)

from annotate.annotators.pretrained import load, resolve, torch_dtype
from annotate.settings import FoundationSettings
from annotate.timing import Stopwatch
from pixel160k.format.table import Box, Detection


class Detector:
    """A Grounding DINO of transformers with its own preprocessing."""

    def __init__(self, settings: FoundationSettings, device: str, stages: Stopwatch) -> None:
        """Load the model that the settings name.

        Raises:
            InputError: it cannot be loaded; names it and the setting that takes a folder.
        """
        name = resolve(settings.detector, "detector")
        self._settings, self._device, self._stages = settings, device, stages
        self._dtype = torch_dtype(settings.dtype)

        def from_pretrained(path: str) -> tuple[GroundingDinoProcessor, Any]:
            images = GroundingDinoImageProcessorPil.from_pretrained(path)
            model: Any = GroundingDinoForObjectDetection.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True
            )
            return GroundingDinoProcessor(images, AutoTokenizer.from_pretrained(path)), model

        self._processor, model = load("foundation.detector", name, from_pretrained)
        self._model = model.to(device).eval()

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> list[list[Detection]]:
        """Detect a phrase on each image.

        Args:
            images: RGB, uint8 (height, width, 3), of one size or several.
            phrases: one an image; lower-cased and ended by a period, as the model was trained.

        Returns:
            Per image the boxes above the floors, best first, xyxy in pixels of that image, clipped to it.
        """
        if not images:
            return []
        texts = [f"{phrase.lower().strip(' .')}." for phrase in phrases]
        inputs = self._processor(images=list(images), text=texts, padding=True, return_tensors="pt").to(self._device)
        # Weights stay float32 under autocast: Grounding DINO's masks overflow to NaN with bfloat16 weights.
        mixed = torch.autocast(torch.device(self._device).type, self._dtype, enabled=self._dtype != torch.float32)
        with self._stages("detector forward"), mixed:
            outputs = self._model(**inputs)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self._settings.box_threshold,
            text_threshold=self._settings.text_threshold,
            target_sizes=[image.shape[:2] for image in images],
        )
        return [
            _sorted(result["boxes"].cpu().numpy(), result["scores"].cpu().numpy(), *image.shape[:2])
            for result, image in zip(results, images, strict=True)
        ]


def crop_window(region: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The square of whole pixels around a region, moved into the image and clipped to it: x0, y0, x1, y1.

    Square, so that a detector's fixed input size does not distort what lies in it.
    """
    side = int(np.ceil(max(region[2] - region[0], region[3] - region[1])))
    x0 = int(np.clip(round((region[0] + region[2] - side) / 2), 0, max(0, width - side)))
    y0 = int(np.clip(round((region[1] + region[3] - side) / 2), 0, max(0, height - side)))
    return x0, y0, min(width, x0 + side), min(height, y0 + side)


def shift_box(box: Box, dx: float, dy: float) -> Box:
    """A box moved by dx, dy: from a crop's pixels to the image's by the crop's corner, and back by its negative."""
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def _sorted(boxes: np.ndarray, scores: np.ndarray, height: int, width: int) -> list[Detection]:
    boxes = np.clip(boxes, 0, [width, height, width, height])
    order = np.argsort(-scores, kind="stable")
    found = [Detection(tuple(boxes[place].tolist()), float(scores[place])) for place in order]
    return [item for item in found if item.box[2] > item.box[0] and item.box[3] > item.box[1]]

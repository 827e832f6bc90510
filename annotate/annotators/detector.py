"""Grounding DINO: boxes of what a phrase names, on whole frames or on crops of them."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    BatchFeature,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
)
from transformers.image_transforms import get_size_with_aspect_ratio

from annotate.annotators.device import Batches, mixed_precision, resized
from annotate.annotators.pretrained import load, resolve
from annotate.settings import FoundationSettings
from annotate.timing import Stopwatch
from pixel160k.format.table import Detection

_BATCH = 64  # images in one forward pass


class Detector:
    """A Grounding DINO of transformers with its own preprocessing."""

    def __init__(
        self,
        settings: FoundationSettings,
        device: str,
        stages: Stopwatch,
        loaded: tuple[GroundingDinoProcessor, Any] | None = None,
    ) -> None:
        """Load the processor and the model that the settings name, or take the given ones.

        Raises:
            InputError: it cannot be loaded; names it and the setting that takes a folder.
        """
        self._settings, self._device, self._stages = settings, device, stages

        def from_pretrained(path: str, revision: str = "main") -> tuple[GroundingDinoProcessor, Any]:
            images = GroundingDinoImageProcessorPil.from_pretrained(path, revision=revision)
            model: Any = GroundingDinoForObjectDetection.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, revision=revision
            )
            return GroundingDinoProcessor(images, AutoTokenizer.from_pretrained(path, revision=revision)), model

        if loaded is None:
            loaded = load("foundation.detector", resolve(settings.detector, "detector"), from_pretrained)
        self._processor, model = loaded
        self._model = model.to(device).eval()
        self._longest = min(model.config.max_text_len, model.config.text_config.max_position_embeddings)  # in tokens
        self._batches = Batches(_BATCH)
        images = self._processor.image_processor
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (images.image_mean, images.image_std)
        )

    def readable(self, phrase: str) -> str:
        """As much of a phrase as the model reads, cut between words, or within the first where that alone is too long."""
        for words, space in ((phrase.split(), " "), (list(phrase), "")):
            if self._tokens(phrase) <= self._longest:
                break
            fitting = bisect_right(range(len(words)), self._longest, key=lambda n: self._tokens(space.join(words[:n])))
            if shorter := space.join(words[: fitting - 1]):
                return shorter
        return phrase

    def _tokens(self, phrase: str) -> int:
        """How many tokens the model reads of a phrase."""
        return len(self._processor.tokenizer(_as_trained(phrase), verbose=False)["input_ids"])

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> list[list[Detection]]:
        """Detect a phrase on each image.

        Args:
            images: RGB, uint8 (height, width, 3), of one size or several.
            phrases: one per image; lower-cased and ended by a period, as the model was trained; cut where too long.

        Returns:
            Per image the boxes whose scores reach the settings' thresholds, best first; x0, y0, x1, y1 in pixels of that image,
            clipped to it.
        """
        texts = [_as_trained(self.readable(phrase)) for phrase in phrases]
        return self._batches(list(zip(images, texts, strict=True)), self._detect)

    def _detect(self, batch: Sequence[tuple[np.ndarray, str]]) -> list[list[Detection]]:
        """`detect` for as many as the device takes at once."""
        images, texts = zip(*batch, strict=True)
        with self._stages("detector inputs"):
            inputs = self._inputs(images, texts)
        # Weights stay float32 under autocast: Grounding DINO's masks overflow to NaN with bfloat16 weights.
        with self._stages("detector forward"), mixed_precision(self._device, self._settings.dtype):
            outputs = self._model(**inputs)
            outputs.logits, outputs.pred_boxes = outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"].cpu(),
            threshold=self._settings.box_threshold,
            text_threshold=self._settings.text_threshold,
            target_sizes=[image.shape[:2] for image in images],
        )
        return [
            _sorted(result["boxes"].numpy(), result["scores"].numpy(), *image.shape[:2])
            for result, image in zip(results, images, strict=True)
        ]

    def _inputs(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> BatchFeature:
        """What the model reads of images and their texts: `pixel_values`, float32 (images, 3, h, w), masks and tokens.

        On a CPU the processor resizes with Pillow, 30 ms per image; a GPU does it in 0.3 ms.
        """
        if self._device == "cpu":
            return self._processor(
                images=list(images),
                text=list(texts),
                padding=True,
                return_tensors="pt",
                input_data_format="channels_last",
            )
        inputs = self._processor.tokenizer(list(texts), padding=True, return_tensors="pt")
        prepared = [self._prepared(image) for image in images]
        height, width = (max(pixels.shape[axis] for pixels in prepared) for axis in (1, 2))
        padding = [(0, width - pixels.shape[2], 0, height - pixels.shape[1]) for pixels in prepared]
        pixels = [F.pad(one, widths) for one, widths in zip(prepared, padding, strict=True)]
        seen = [F.pad(torch.ones_like(one[0]), widths) for one, widths in zip(prepared, padding, strict=True)]
        features = {"pixel_values": torch.stack(pixels), "pixel_mask": torch.stack(seen).long(), **inputs}
        return BatchFeature(features).to(self._device)

    def _prepared(self, image: np.ndarray) -> torch.Tensor:
        """An image resized and normalised on the device, float32 (3, height, width), as its processor says."""
        processor = self._processor.image_processor
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self._device)
        size = processor.size
        if size.shortest_edge:
            height, width = get_size_with_aspect_ratio(image.shape[:2], size.shortest_edge, size.longest_edge)
        else:
            height, width = size.height, size.width
        return (resized(pixels, height, width)[0].float() * processor.rescale_factor - self._mean) / self._std


def _as_trained(phrase: str) -> str:
    return f"{phrase.lower().strip(' .')}."


def _sorted(boxes: np.ndarray, scores: np.ndarray, height: int, width: int) -> list[Detection]:
    """Boxes clipped to the image, best first, without those that are empty then."""
    boxes = np.clip(boxes, 0, [width, height, width, height])
    order = np.argsort(-scores, kind="stable")
    found = [Detection(tuple(boxes[index].tolist()), float(scores[index])) for index in order]
    return [item for item in found if item.box[2] > item.box[0] and item.box[3] > item.box[1]]

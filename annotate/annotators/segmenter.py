"""SAM 2: masks from box prompts, and masks tracked through a video by its memory.

transformers' own SAM 2 processors need torchvision; what they do to images and prompts is done here in torch (the same
numbers to 2e-7). Masks come out at a quarter of the input's resolution and are scaled up before they are cut at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

from annotate.annotators.pretrained import load, resolve, torch_dtype
from annotate.settings import FoundationSettings
from annotate.timing import Stopwatch
from pixel160k.format import masks
from pixel160k.format.table import Box

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as SAM 2 was trained
_BOX_CORNERS = [2, 3]  # the labels by which SAM's prompt encoder knows the two corners of a box
_POINT = [1]
_REMEMBERED = 16  # SAM 2 looks back at 7 memories and at most 16 object pointers; older frames leave the session


@dataclass(frozen=True)
class Segment:
    """A mask, bool (height, width), with SAM's own estimate of its IoU (or of the object's presence) in [0, 1]."""

    mask: np.ndarray
    score: float


class Segmenter:
    """A SAM 2 of transformers: one model for images and for videos."""

    def __init__(self, settings: FoundationSettings, device: str, stages: Stopwatch) -> None:
        """Load the model that the settings name.

        Raises:
            InputError: it cannot be loaded; names it and the setting that takes a folder.
        """
        name = resolve(settings.segmenter, "segmenter")
        self._device, self._stages, self._dtype = device, stages, torch_dtype(settings.dtype)
        model: Any = load(
            "foundation.segmenter",
            name,
            lambda path: Sam2VideoModel.from_pretrained(path, dtype=self._dtype, use_safetensors=True),
        )
        self._model = model.to(device).eval()
        self._size = int(model.config.image_size)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> list[Segment]:
        """Cut out what a box encloses, one box an image.

        Args:
            images: RGB, uint8 (height, width, 3).
            boxes: xyxy in pixels of their image.
        """
        segments = []
        for image, box in zip(images, boxes, strict=True):
            height, width = image.shape[:2]
            corners = self._coordinates(box, height, width)
            with self._stages("segmenter forward"):
                pixels = self._pixels(image)
                embeddings = self._model.get_image_embeddings(pixels)
                outputs = self._model._single_frame_forward(
                    image_embeddings=embeddings,
                    input_points=corners,
                    input_labels=torch.tensor([[_BOX_CORNERS]], device=self._device, dtype=torch.int32),
                    multimask_output=False,
                )
            mask = self._mask(outputs.pred_masks[0], height, width)
            segments.append(Segment(mask, float(outputs.iou_scores.float().flatten()[0].clamp(0, 1))))
        return segments

    @torch.inference_mode()
    def track(self, frames: Sequence[np.ndarray], start: int, prompt: Sequence[float] | np.ndarray) -> list[Segment]:
        """Track one object through frames, both ways from the frame `start` on which it is prompted.

        Args:
            frames: RGB, uint8 (height, width, 3), all of one size; each is asked for once a direction.
            start: the prompted frame.
            prompt: a box x0, y0, x1, y1, a point x, y, in pixels of that frame, or a mask, bool (height, width).

        Returns:
            One segment a frame; the score is the presence of the object, which falls where it is lost.
        """
        segments: dict[int, Segment] = {}
        for reverse in (False, True):
            order = range(start, -1, -1) if reverse else range(start, len(frames))
            segments |= self._propagate(frames, order, prompt, reverse)
        return [segments[place] for place in range(len(frames))]

    def _propagate(
        self, frames: Sequence[np.ndarray], order: range, prompt: Sequence[float] | np.ndarray, reverse: bool
    ) -> dict[int, Segment]:
        height, width = frames[order[0]].shape[:2]
        session = Sam2VideoInferenceSession(
            video_height=height, video_width=width, inference_device=self._device, dtype=self._dtype
        )
        object_index = session.obj_id_to_idx(1)
        if isinstance(prompt, np.ndarray):
            mask = torch.from_numpy(prompt)[None, None].float()
            mask = F.interpolate(mask, (self._size, self._size), mode="bilinear", antialias=True) >= 0.5
            session.add_mask_inputs(object_index, order[0], mask)
        else:
            labels = _BOX_CORNERS if len(prompt) == 4 else _POINT
            inputs = {
                "point_coords": self._coordinates(prompt, height, width),
                "point_labels": torch.tensor([[labels]], dtype=torch.int32),
            }
            session.add_point_inputs(object_index, order[0], inputs)
        session.obj_with_new_inputs = [1]
        segments = {}
        for place in order:
            pixels = self._pixels(frames[place])
            with self._stages("segmenter forward"):
                output = self._model(session, frame=pixels, frame_idx=place, reverse=reverse)
            presence = float(torch.sigmoid(output.object_score_logits.float().flatten()[0]))
            segments[place] = Segment(self._mask(output.pred_masks[0], height, width), presence)
            self._forget(session, object_index, place, reverse)
        return segments

    def _forget(self, session: Sam2VideoInferenceSession, object_index: int, place: int, reverse: bool) -> None:
        """Let go of the frame just seen and of memories that are too old to be asked for, so that memory stays flat."""
        session.processed_frames = {}
        memories = session.output_dict_per_obj[object_index]["non_cond_frame_outputs"]
        memories.pop(place + _REMEMBERED if reverse else place - _REMEMBERED, None)

    def _pixels(self, image: np.ndarray) -> torch.Tensor:
        """One image as the model wants it: (1, 3, size, size); resized as uint8, as SAM 2 was trained, then normalised."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self._device)
        if pixels.shape[-2:] != (self._size, self._size):
            pixels = F.interpolate(pixels, (self._size, self._size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values, device=self._device)[:, None, None] for values in (_MEAN, _STD))
        return ((pixels.float() / 255 - mean) / std).to(self._dtype)

    def _coordinates(self, prompt: Sequence[float], height: int, width: int) -> torch.Tensor:
        """Points x, y in pixels of an image of this size as the model wants them: (1, 1, points, 2) in its input's pixels."""
        points = torch.tensor(prompt, dtype=self._dtype, device=self._device).view(1, 1, -1, 2)
        return points * torch.tensor([self._size / width, self._size / height], dtype=self._dtype, device=self._device)

    def _mask(self, logits: torch.Tensor, height: int, width: int) -> np.ndarray:
        """Scale mask logits (1, h, w) to the image's size and cut them at zero."""
        full = F.interpolate(logits[None].float(), (height, width), mode="bilinear", align_corners=False)
        return (full[0, 0] > 0).cpu().numpy()


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


def _parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label of every pixel's connected part, 0 where the mask is False, and the pixels of each label."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = statistics[:, cv2.CC_STAT_AREA]
    areas[0] = mask.size  # never small
    return labels, areas

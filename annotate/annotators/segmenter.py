"""SAM 2: masks from box prompts, and masks tracked through videos by its memory.

transformers' own SAM 2 processors need torchvision; what they do to images and prompts is done here in torch (the same
numbers to 2e-7). Masks come out at a quarter of the input's resolution and are scaled up before they are cut at zero.

transformers follows one object at a time and encodes every frame again for each object. Here a frame is encoded once for
all objects of its video, and a GPU follows many objects of many videos in one forward pass, in both directions (lanes.py).
On a CPU one lane is taken after the other, and mask logits are those of transformers but for their last bits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

from annotate.annotators.device import Batches, mixed_precision, resized
from annotate.annotators.lanes import Bundle, EncodedVideo, Lane, Prompt, Video
from annotate.annotators.memory_attention import MemoryAttention, PlainMemoryAttention
from annotate.annotators.pretrained import load, resolve, torch_dtype
from annotate.annotators.sam2 import adapt
from annotate.settings import FoundationSettings
from annotate.timing import Stopwatch
from pixel160k.format.table import Box

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as SAM 2 was trained
_BOX_CORNERS = [2, 3]  # the labels by which SAM's prompt encoder knows the two corners of a box
_POINT = [1]
_ABSENT = -1024.0  # SAM 2's mask logits of an object that is not there
_PRESENT = 0.5  # SAM 2 itself counts an object as present from here on
_BATCH = 16  # images, or objects of videos, in one forward pass on a GPU
_CPU_FRAMES = 4  # encoded at once on a CPU, to the same bits as one by one
_SCALED = 64  # masks at once that are brought to the image's size: as float32, 1 MB each at 480 x 640
_VIDEOS = 8  # of which objects are followed together there: the features of a frame take 8 MB in bfloat16


@dataclass(frozen=True)
class Segment:
    """A mask, bool (height, width), with SAM's own estimate of its IoU (or of the object's presence) in [0, 1]."""

    mask: np.ndarray
    score: float

    @property
    def seen(self) -> np.ndarray:
        """The mask of an object that was followed; empty where it is not to be seen, by the bound that SAM 2 itself has."""
        return self.mask if self.score >= _PRESENT else np.zeros_like(self.mask)


class Segmenter:
    """A SAM 2 of transformers: one model for images and for videos."""

    def __init__(self, settings: FoundationSettings, device: str, stages: Stopwatch, model: Any = None) -> None:
        """Load the model that the settings name, or take the given `Sam2VideoModel`, which is changed (sam2.py).

        Raises:
            InputError: it cannot be loaded; names it and the setting that takes a folder.
        """
        self._device, self._stages, self._dtype = device, stages, settings.dtype
        if model is None:
            model = load(
                "foundation.segmenter",
                resolve(settings.segmenter, "segmenter"),
                partial(Sam2VideoModel.from_pretrained, dtype=torch.float32, use_safetensors=True),
            )
        self._model = model.to(device).eval()
        self._size = int(model.config.image_size)
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD))
        self._batches, self._videos = (Batches(1 if device == "cpu" else size) for size in (_BATCH, _VIDEOS))
        attention = PlainMemoryAttention if device == "cpu" else MemoryAttention
        self._attention = attention(self._model, torch_dtype(settings.dtype))
        adapt(model, device)

    def segment(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> list[Segment]:
        """Cut out what a box encloses, one box per image; see `segment_each`. Returns one segment per image."""
        return [segment for (segment,) in self.segment_each(images, [[box] for box in boxes])]

    @torch.no_grad()  # in inference mode autocast would cast every weight anew at every use
    def segment_each(self, images: Sequence[np.ndarray], boxes: Sequence[Sequence[Box]]) -> list[list[Segment]]:
        """Cut out what each of several boxes encloses. An image is encoded once, however many its boxes are.

        Args:
            images: RGB, uint8 (height, width, 3), of one size or several.
            boxes: per image at least one x0, y0, x1, y1 in pixels of it.

        Returns:
            Per image one segment per box, of its size; the score is SAM's own estimate of the mask's IoU.
        """
        with self._stages("segmenter forward"), mixed_precision(self._device, self._dtype):
            return self._batches(list(zip(images, boxes, strict=True)), self._cut_out)

    def _cut_out(self, batch: Sequence[tuple[np.ndarray, Sequence[Box]]]) -> list[list[Segment]]:
        """`segment_each` for as many images as the device takes at once."""
        images = [image for image, _ in batch]
        owners = [index for index, (_, boxes) in enumerate(batch) for _ in boxes]
        shapes = [images[index].shape[:2] for index in owners]
        boxes = [box for _, several in batch for box in several]
        corners = [self._coordinates(box, *shape) for box, shape in zip(boxes, shapes, strict=True)]
        embeddings = self._model.get_image_embeddings(self._pixels(images))
        if len(owners) > len(images):
            embeddings = [level[owners] for level in embeddings]
        outputs = self._model._single_frame_forward(
            image_embeddings=embeddings,
            input_points=torch.cat(corners).to(self._device),
            input_labels=torch.tensor([[_BOX_CORNERS]] * len(boxes), device=self._device, dtype=torch.int32),
            multimask_output=False,
        )
        scores = outputs.iou_scores.float().flatten(1)[:, 0].clamp(0, 1).tolist()
        found = [self._masks(logits[None], *shape)[0] for logits, shape in zip(outputs.pred_masks, shapes, strict=True)]
        flat = torch.cat([mask.flatten() for mask in found]).cpu().numpy()
        parts = np.split(flat, np.cumsum([mask.numel() for mask in found])[:-1])
        segments: list[list[Segment]] = [[] for _ in images]
        for index, part, shape, score in zip(owners, parts, shapes, scores, strict=True):
            segments[index].append(Segment(part.reshape(shape), score))
        return segments

    @property
    def videos_ahead(self) -> int:
        """How many videos should be ready when `follow` asks for more; none on a CPU, which has better things to do."""
        return 0 if self._device == "cpu" else self._videos.size

    def track(self, frames: Sequence[np.ndarray], start: int, prompt: Prompt) -> list[Segment]:
        """Follow one object through frames, both ways from the frame on which it is prompted.

        Args:
            frames: RGB, uint8 (height, width, 3), all of one size.
            start: the index of the prompted frame.
            prompt: a box x0, y0, x1, y1, a point x, y, in pixels of that frame, or a mask, bool (height, width).

        Returns:
            One segment per frame; the score is the presence of the object, which falls where it is lost.
        """
        ((segments,),) = self.follow([Video(frames, [(start, prompt)])])
        return segments

    @torch.no_grad()  # in inference mode autocast would cast every weight anew at every use
    def follow(self, videos: Iterable[Video]) -> Iterator[list[list[Segment]]]:
        """Follow what is prompted in videos, both ways; as many videos are asked for as are followed together.

        Returns:
            In the order of the videos, for each of its prompts what `track` returns.
        """
        videos = iter(videos)
        while few := list(islice(videos, self._videos.size)):
            with self._stages("segmenter forward"), mixed_precision(self._device, self._dtype):
                # Where memory does not suffice, first fewer videos at once, then fewer objects and frames.
                found = self._batches.retry(partial(self._videos, few, self._follow))
            yield from found

    def _follow(self, videos: Sequence[Video]) -> list[list[list[Segment]]]:
        """`follow` for as many as the device takes at once."""
        lanes = [self._lanes(video) for video in videos]
        self._run([lane for both in lanes for pair in both for lane in pair])
        return [
            [self._segments(pair, *video.frames[0].shape[:2]) for pair in both]
            for video, both in zip(videos, lanes, strict=True)
        ]

    def _lanes(self, video: Video) -> list[tuple[Lane, ...]]:
        """The two lanes of each prompt, with their first frame done."""
        at_once = _CPU_FRAMES if self._device == "cpu" else self._batches.size
        encoded = EncodedVideo(video.frames, self._encode, at_once)
        count = len(video.frames)
        orders = [(range(start, count), range(start, -1, -1)) for start, _ in video.prompts]  # forth and back
        for forth, back in orders:
            encoded.uses.update([forth[0], *forth[1:], *back[1:]])
        # Filled on the device: a copy from the host would wait for it.
        longest = min(count, self._model.config.max_object_pointers_in_encoder) - 1
        span = torch.full((1,), float(longest), device=self._device)
        lanes = []
        for (forth, back), (_, prompt) in zip(orders, video.prompts, strict=True):
            first = self._prompted(encoded, forth, prompt)
            memory = self._attention.remember(
                first["maskmem_features"], first["maskmem_pos_enc"], first["object_pointer"].flatten(0, -2)
            )
            logits, presence = first["pred_masks"][0], first["object_score_logits"].view(1, 1)
            lanes.append(tuple(Lane(encoded, order, memory, span, [logits], [presence]) for order in (forth, back)))
        return lanes

    def _prompted(self, encoded: EncodedVideo, order: range, prompt: Prompt) -> dict[str, torch.Tensor]:
        """What transformers makes of a prompt on the first frame of an order."""
        session, object_index = self._session(order[0], encoded.frames[order[0]].shape, prompt)
        *features, positions = encoded.take(order)
        session.cache.cache_vision_features(order[0], {"vision_feats": features, "vision_pos_embeds": [positions]})
        self._model(session, frame_idx=order[0])
        return session.output_dict_per_obj[object_index]["cond_frame_outputs"][order[0]]

    def _session(self, step: int, shape: Sequence[int], prompt: Prompt) -> tuple[Sam2VideoInferenceSession, int]:
        """A session of transformers in which one object is prompted on a frame, with the object's index; and nothing computed."""
        height, width = shape[:2]
        session = Sam2VideoInferenceSession(
            video_height=height,
            video_width=width,
            inference_device=self._device,
            inference_state_device=self._device,
            video_storage_device=self._device,
            dtype=torch.float32,
        )
        object_index = session.obj_id_to_idx(1)
        if isinstance(prompt, np.ndarray):
            mask = torch.from_numpy(prompt)[None, None].float()
            mask = F.interpolate(mask, (self._size, self._size), mode="bilinear", antialias=True) >= 0.5
            session.add_mask_inputs(object_index, step, mask)
        else:
            labels = torch.tensor([[_BOX_CORNERS if len(prompt) == 4 else _POINT]], dtype=torch.int32)
            inputs = {"point_coords": self._coordinates(prompt, height, width), "point_labels": labels}
            session.add_point_inputs(object_index, step, inputs)
        session.obj_with_new_inputs = [1]
        return session, object_index

    def follow_live(self, prompt: Prompt) -> Callable[[np.ndarray], Segment]:
        """Follow one object through frames as they come, as the camera of a robot that acts gives them.

        Args:
            prompt: as for `track`, on the first frame.

        Returns:
            What takes each frame, RGB uint8 (height, width, 3), all of one size, and returns the object's segment on it. It
            keeps what it looks back at of the frames before, and no more: a camera may run for hours.
        """
        session: Sam2VideoInferenceSession | None = None
        index = 0
        kept = max(self._model.num_maskmem, self._model.config.max_object_pointers_in_encoder)

        @torch.no_grad()
        def take(image: np.ndarray) -> Segment:
            nonlocal session, index
            if session is None:
                session, index = self._session(0, image.shape, prompt)
            with mixed_precision(self._device, self._dtype):
                output = self._model(session, frame=self._pixels([image]))
            done = session.processed_frames
            assert done is not None
            done[len(done) - 1] = torch.empty(0)  # what is looked back at is its features, not itself
            session.output_dict_per_obj[index]["non_cond_frame_outputs"].pop(len(done) - kept, None)
            mask = self._masks(output.pred_masks, *image.shape[:2])[0].cpu().numpy()
            return Segment(mask, torch.sigmoid(output.object_score_logits.float()).item())

        return take

    def _run(self, lanes: Sequence[Lane]) -> None:
        """Take all lanes to their ends, frame by frame."""
        lanes = sorted(lanes, key=lambda lane: -len(lane.order))
        kept = self._model.num_maskmem - 1, self._model.config.max_object_pointers_in_encoder - 1
        size = self._batches.size
        bundles = [Bundle(lanes[start : start + size], *kept) for start in range(0, len(lanes), size)]
        for step in range(1, len(lanes[0].order) if lanes else 0):
            for bundle in bundles:
                if going := [lane for lane in bundle.lanes if len(lane.order) > step]:
                    self._advance(bundle, going, step)

    def _advance(self, bundle: Bundle, lanes: Sequence[Lane], step: int) -> None:
        """Take those lanes of a bundle that go so far to their frame number `step`: `Sam2VideoModel.forward` for many lanes."""
        model, count = self._model, len(lanes)
        taken = [lane.video.take(lane.order[step:]) for lane in lanes]
        # (lanes, channels, cells) for each level, whose cells are h x w; transformers' layout is (cells, lanes, channels).
        *levels, positions = (
            _joined([features.permute(1, 2, 0) for features in level], 0) for level in zip(*taken, strict=True)
        )
        current = levels[-1].permute(2, 0, 1)
        sizes = model.backbone_feature_sizes
        maps = [level.view(*level.shape[:2], *size) for level, size in zip(levels, sizes, strict=True)]

        pointers = self._pointers(bundle.pointers(count), bundle.spans[:count], step)
        fused = self._attention(current, positions.permute(2, 0, 1), bundle.memories(count), *pointers)
        maps[-1] = fused.transpose(1, 2).view_as(maps[-1])
        logits, presence, pointer = self._decode(maps)
        for number, lane in enumerate(lanes):
            lane.logits.append(logits[number])
            lane.presence.append(presence[number])
        if len(lanes[0].order) == step + 1:  # nobody looks back at the last frame
            return
        features, encodings = model._encode_new_memory(
            current_vision_feats=current,
            pred_masks_high_res=_scaled(logits, self._size, self._size).to(logits.dtype),
            object_score_logits=presence,
            is_mask_from_pts=False,
        )
        bundle.remember(self._attention.remember(features, encodings, pointer))

    def _pointers(self, pointers: torch.Tensor, spans: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Object pointers (frames, lanes, channels) as memory tokens, (tokens, lanes, 64), with their encoding in time.

        Their ages are encoded as shares of `spans`, (lanes,), which is shorter where the lane's video is.
        """
        model, config = self._model, self._model.config
        frames, lanes, _ = pointers.shape
        splits = pointers.shape[-1] // model.mem_dim
        if config.enable_temporal_pos_encoding_for_object_pointers:
            # Made on the device: a copy from the host would wait for it.
            ages = torch.arange(frames, dtype=torch.float32, device=pointers.device)
            ages[:1] += step  # of the prompted frame
            half = pointers.shape[-1] // 2
            frequencies = torch.arange(half, dtype=torch.float32, device=pointers.device)
            wavelengths = 10000 ** (2 * (frequencies // 2) / half)
            angles = (ages[:, None] / spans)[..., None] / wavelengths
            sines = torch.cat([angles.sin(), angles.cos()], dim=-1).to(pointers.dtype)
            encoding = model.temporal_positional_encoding_projection_layer(sines)
        else:
            encoding = pointers.new_zeros(frames, lanes, model.mem_dim)
        tokens = pointers.view(frames, lanes, splits, model.mem_dim).permute(0, 2, 1, 3).flatten(0, 1)
        return tokens, encoding.repeat_interleave(splits, dim=0)

    @cached_property
    def _unprompted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the mask decoder reads where nothing is prompted, of one lane: sparse and dense embedding, position encoding."""
        sparse, dense = self._model.prompt_encoder(
            input_points=torch.zeros(1, 1, 1, 2, device=self._device),
            input_labels=-torch.ones(1, 1, 1, dtype=torch.int32, device=self._device),
            input_boxes=None,
            input_masks=None,
        )
        return sparse, dense, self._model.get_image_wide_positional_embeddings().contiguous()

    def _decode(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`Sam2VideoModel._single_frame_forward` without a prompt, which takes the best of several masks for one alone.

        Args:
            maps: features of each level, (lanes, channels, height, width), of the last with the memory in them.

        Returns:
            Mask logits (lanes, 1, h, w), logits of the object's presence (lanes, 1, 1), object pointer (lanes, channels).
        """
        model, count = self._model, len(maps[-1])
        sparse, dense, positions = (tensor.expand(count, -1, -1, -1) for tensor in self._unprompted)
        logits, overlaps, tokens, presence = model.mask_decoder(
            image_embeddings=maps[-1],
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=model._use_multimask(False, None),
            high_resolution_features=list(maps[:-1]),
        )
        lanes, best = torch.arange(count, device=logits.device), overlaps[:, 0].argmax(-1)
        visible = presence > 0
        logits = torch.where(visible[..., None], logits[lanes, :, best], _ABSENT)
        token = tokens[lanes, 0, best if tokens.shape[2] > 1 else 0]
        appearing = visible[:, 0].to(token.dtype)
        pointer = appearing * model.object_pointer_proj(token) + (1 - appearing) * model.no_object_pointer
        return logits, presence, pointer

    def _segments(self, lanes: Sequence[Lane], height: int, width: int) -> list[Segment]:
        """What both lanes of an object found, in the order of the frames; copied from the device all at once."""
        segments: dict[int, Segment] = {}
        for lane in lanes:
            parts = (torch.stack(lane.logits[start : start + _SCALED]) for start in range(0, len(lane.logits), _SCALED))
            found = torch.cat([self._masks(logits, height, width) for logits in parts]).cpu().numpy()
            scores = torch.sigmoid(torch.cat(lane.presence).float()).flatten().tolist()
            segments |= zip(lane.order, map(Segment, found, scores), strict=True)
        return [segments[step] for step in sorted(segments)]

    def _encode(self, images: Sequence[np.ndarray]) -> list[list[torch.Tensor]]:
        """For each image the features of every level, and the last level's position encoding: (cells, 1, channels)."""
        encoded = self._model.get_image_features(self._pixels(images), return_dict=True)
        tensors = [*encoded.fpn_hidden_states, encoded.fpn_position_encoding[-1]]
        return [[tensor[:, image : image + 1] for tensor in tensors] for image in range(len(images))]

    def _pixels(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images as the model wants them: (images, 3, size, size); resized as bytes, as SAM 2 was trained, then normalised."""
        if len({image.shape for image in images}) > 1:
            return torch.cat([self._pixels([image]) for image in images])
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self._device)
        if pixels.shape[-2:] != (self._size, self._size):
            pixels = resized(pixels, self._size, self._size)
        return (pixels.float() / 255 - self._mean) / self._std

    def _coordinates(self, prompt: Sequence[float], height: int, width: int) -> torch.Tensor:
        """Points x, y in pixels of an image of this size as the model wants them: (1, 1, points, 2) in its input's pixels."""
        points = torch.tensor(prompt, dtype=torch.float32).view(1, 1, -1, 2)
        return points * torch.tensor([self._size / width, self._size / height], dtype=torch.float32)

    def _masks(self, logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Scale mask logits (masks, 1, h, w) to the image's size and cut them at zero: (masks, height, width)."""
        return _scaled(logits, height, width)[:, 0] > 0


def _scaled(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Mask logits (masks, 1, h, w) at another size, as float32."""
    return F.interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)


def _joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Tensors joined along a dimension. A single one keeps its layout in memory, which decides the last bits of a product."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)

"""The models of benchmarks/gpu.py: random weights in the published sizes, made on the device, and what they look at.

Times do not depend on weights. Drawn episodes have 40 frames of 256 x 320, in which a disc moves over soft noise.
"""

from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import transformers

from annotate.annotators.detector import Detector
from annotate.annotators.lanes import Video
from annotate.annotators.pretrained import resolve
from annotate.annotators.segmenter import Segmenter
from annotate.settings import FoundationSettings
from annotate.timing import Stopwatch
from model.policy import PixelVLA
from model.settings import PRESETS
from model.tokenizer import byte_tokenizer
from pixel160k.format.statistics import dataset_statistics

Dtype = Literal["float32", "bfloat16"]
HEIGHT, WIDTH, FRAMES, GROUP = 256, 320, 40, 8  # of the drawn episodes; 8 make a group, as `foundation.video_length`
HIERA: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 96, "num_attention_heads": 1, "blocks_per_stage": [1, 2, 11, 2],
        "embed_dim_per_stage": [96, 192, 384, 768], "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 14, 7], "global_attention_blocks": [7, 10, 13],
    },
    "large": {
        "hidden_size": 144, "num_attention_heads": 2, "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152], "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8], "global_attention_blocks": [23, 33, 43],
    },
}  # fmt: skip
"""facebook/sam2.1-hiera-small and -large."""


def drawn_frames(count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of soft noise in which a disc moves."""
    generator = np.random.default_rng(seed)
    back = cv2.resize(generator.integers(0, 255, (16, 20, 3)).astype(np.uint8), (WIDTH, HEIGHT))
    return [cv2.circle(back.copy(), (60 + 4 * step, 120), 20, (250, 20, 20), -1) for step in range(count)]


def disc(x: int, y: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A disc of radius 20 around a pixel, as a mask, bool (height, width)."""
    ys, xs = np.mgrid[:height, :width]
    return (xs - x) ** 2 + (ys - y) ** 2 <= 20**2


def videos(count: int, frames: int = FRAMES) -> list[Video]:
    """Episodes to track: the object from its first frame, the gripper from the close frame on."""
    close = frames * 3 // 8
    return [Video(drawn_frames(frames, seed), [(0, disc(60, 120)), (close, disc(200, 60))]) for seed in range(count)]


def random_segmenter(size: str, device: str, dtype: Dtype) -> Segmenter:
    """The segmenter of the project over `random_sam2`."""
    return Segmenter(FoundationSettings(dtype=dtype), device, Stopwatch(device), random_sam2(size, device))


def random_sam2(size: str, device: str) -> Any:
    """SAM 2.1 of transformers with random weights, always the same, made on the device; it never loses what it follows."""
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        model = transformers.Sam2VideoModel(sam2_config(size)).eval()
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(99)  # else all masks may be empty, and so alike
    return model


def sam2_config(size: str) -> Any:
    """transformers' configuration of SAM 2.1 hiera-small or -large."""
    wide = HIERA[size]["embed_dim_per_stage"]
    backbone = transformers.Sam2HieraDetConfig(window_positional_embedding_background_size=[7, 7], **HIERA[size])
    vision = transformers.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=wide[::-1])
    return transformers.Sam2VideoConfig(vision_config=vision)


def random_detector(device: str, dtype: Dtype) -> Detector:
    """Grounding DINO tiny with random weights, made on the device; the shipped tokenizer, whose ids BERT's hold."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "out_indices": [2, 3, 4]}
    swin = transformers.SwinConfig(image_size=224, window_size=7, embed_dim=96, **sizes)
    with torch.device(device):
        model = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(backbone_config=swin))
    images = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve("tiny", "detector"))
    processor = transformers.GroundingDinoProcessor(images, tokenizer)
    chosen = FoundationSettings(dtype=dtype, box_threshold=1)  # random scores are high, and each box costs time
    return Detector(chosen, device, Stopwatch(device), (processor, model))


@torch.inference_mode()
def one_by_one(model: Any, segmenter: Segmenter, video: Video) -> list[list[np.ndarray]]:
    """Track one object after the other, as transformers does, with all state on the device.

    Every frame is encoded again for each object and direction, and every mask is fetched as it comes.

    Returns:
        For each prompt of the video a mask per frame, bool (height, width).
    """
    device, size = str(model.device), model.config.image_size
    found = []
    for start, prompt in video.prompts:
        masked: dict[int, np.ndarray] = {}
        for order in (range(start, len(video.frames)), range(start, -1, -1)):
            session = transformers.Sam2VideoInferenceSession(
                video_height=HEIGHT, video_width=WIDTH, inference_device=device, inference_state_device=device,
                video_storage_device=device, dtype=torch.float32,
            )  # fmt: skip
            index = session.obj_id_to_idx(1)
            mask = F.interpolate(
                torch.from_numpy(np.asarray(prompt))[None, None].float(), (size, size), mode="bilinear", antialias=True
            )
            session.add_mask_inputs(index, start, mask >= 0.5)
            session.obj_with_new_inputs = [1]
            for step in order:
                pixels = segmenter._pixels([video.frames[step]])
                output = model(session, frame=pixels, frame_idx=step, reverse=order.step < 0)
                masked[step] = segmenter._masks(output.pred_masks, HEIGHT, WIDTH)[0].cpu().numpy()
                session.processed_frames = {}
        found.append([masked[step] for step in sorted(masked)])
    return found


def random_policy(preset: str, device: str) -> PixelVLA:
    """A policy in a published size with random weights, bfloat16, made on the device."""
    torch.manual_seed(0)
    known = {
        "drawn": dataset_statistics(np.random.rand(9, 7).astype(np.float32), np.random.rand(9, 8).astype(np.float32), 1)
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return PixelVLA(PRESETS[preset], byte_tokenizer(), known)
    finally:
        torch.set_default_dtype(before)

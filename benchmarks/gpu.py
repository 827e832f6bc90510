"""What a GPU makes of this project: the same numbers as a CPU, and how fast; one script for any machine with torch.

    python benchmarks/gpu.py --out DIR [--device cuda] [--seconds 230] [--only NAME,NAME]

Needs torch 2.11 or later and this project's files; neither Beam nor TFDS. What else is missing is named in one line. The
sections run one after the other, each writes what it found at once to DIR/gpu.json, and one that would begin too late is
left out, so that four minutes on a GPU are enough. Where a section fails, that is its result and the next one goes on.

- tiny half, everywhere: the shipped tiny checkpoints annotate some of the sample's episodes on the CPU and on the device;
  masks, statuses and actions must agree. Without a GPU the "device" is the CPU on a GPU's way through the code: batches,
  and inputs made by torch.
- full half, on a GPU: models in their published sizes with random weights, made on the device. Times do not depend on the
  weights; quality does, and nothing here speaks of it. "limit" is the image encoder alone, in the same run.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
WHEELS = {
    "transformers": "transformers", "pydantic": "pydantic", "pydantic_core": "pydantic-core", "peft": "peft",
    "annotated_types": "annotated-types", "typing_inspection": "typing-inspection", "pycocotools": "pycocotools",
    "braceexpand": "braceexpand", "google_crc32c": "google-crc32c",
    "torchdata": "torchdata", "cv2": "opencv-python-headless", "PIL": "pillow", "accelerate": "accelerate", "pyarrow": "pyarrow",
}  # fmt: skip
if missing := [wheel for module, wheel in WHEELS.items() if find_spec(module) is None]:
    sys.exit(f"missing here: pip install {' '.join(missing)} (versions: constraints.txt)")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):  # earlier ones name the towers' layers otherwise
    sys.exit(f"transformers {transformers.__version__} is too old: pip install transformers==5.23.0")

from gpu_models import (  # noqa: E402
    FRAMES,
    GROUP,
    Dtype,
    disc,
    drawn_frames,
    one_by_one,
    random_detector,
    random_policy,
    random_sam2,
    random_segmenter,
    videos,
)
from model_overhead import make_batch  # noqa: E402

from annotate.annotator import annotate_episodes  # noqa: E402
from annotate.annotators.choose import choose_annotators  # noqa: E402
from annotate.annotators.detector import Detector  # noqa: E402
from annotate.annotators.device import mixed_precision  # noqa: E402
from annotate.annotators.foundation import DetectedObjectFinder, TrackedGripperFinder  # noqa: E402
from annotate.annotators.lanes import Video  # noqa: E402
from annotate.annotators.mask_cleaning import tidy  # noqa: E402
from annotate.annotators.segmenter import Segmenter  # noqa: E402
from annotate.settings import AnnotateSettings  # noqa: E402
from annotate.sources import SOURCES, sample  # noqa: E402
from annotate.sources.episode import Episode  # noqa: E402
from annotate.sources.rlds import list_files, read_episodes  # noqa: E402
from model.policy import PixelVLA  # noqa: E402
from model.processor import Observation  # noqa: E402
from model.settings import PRESETS  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from pixel160k.files import sha256_of  # noqa: E402
from pixel160k.format import masks, shards  # noqa: E402
from pixel160k.format.actions import action_chunk  # noqa: E402
from pixel160k.format.prompts import point, sample_prompts  # noqa: E402
from pixel160k.format.statistics import dataset_statistics  # noqa: E402
from pixel160k.format.table import Detection, EpisodeAnnotation  # noqa: E402
from train import stages as training_stages  # noqa: E402
from train.cost import FlopCount  # noqa: E402
from train.settings import TrainSettings  # noqa: E402
from train.stream import open_stream, statistics_of  # noqa: E402


class Results:
    """Keeps what was found, writes it at once, and knows how much time is left."""

    def __init__(self, out: Path, seconds: float) -> None:
        """Write to `out`/gpu.json; sections begin within `seconds`."""
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.ends, self.found = out / "gpu.json", time.monotonic() + seconds, dict[str, dict[str, Any]]()

    def run(self, name: str, needs: float, section: Callable[[], dict[str, Any]]) -> None:
        """Do a section that takes about so many seconds, if there is time for it."""
        began = time.monotonic()
        if began + needs > self.ends:
            self.add(name, {"not run": f"{needs:.0f} s wanted, {self.ends - began:.0f} left"})
            return
        try:
            found = section()
        except Exception as error:  # a section that fails must not take the results of the others with it
            found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.add(name, found | {"seconds": time.monotonic() - began})

    def add(self, name: str, found: dict[str, Any]) -> None:
        """Keep, write and print numbers."""
        self.found[name] = found
        self.file.write_text(json.dumps(self.found, indent=1, default=float))
        print(f"\n{name}", flush=True)
        for key, value in found.items():
            print(f"  {key:58s} {value:10.4g}" if isinstance(value, float) else f"  {key:58s} {value}", flush=True)


def timed(device: str, function: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of one call, the median of some after a first that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def use_tf32(allowed: bool) -> None:
    """Whether float32 products may be rounded as TF32; without it, what differs between devices is the order of sums."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def wait(device: str) -> None:
    """Let a GPU finish its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def machine(device: str) -> dict[str, Any]:
    """What runs this, and the two rates that nothing exceeds: matrix products and copies."""
    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "cores": len(os.sched_getaffinity(0)), "device": device,
    }  # fmt: skip
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "memory GiB": properties.total_memory / 2**30}
        one, other = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
        found["bf16 products, TFLOP/s"] = 2 * 8192**3 / timed(device, lambda: one @ other, 10) / 1e12
        source = torch.empty(2**30, device=device)
        target = torch.empty_like(source)
        found["copies, TB/s read and written"] = 8 * 2**30 / timed(device, lambda: target.copy_(source)) / 1e12
    return found


# ---- the tiny half ----


TINY = ("foundation.detector=tiny", "foundation.segmenter=tiny", "target.method=grammar")


def sample_episodes(count: int) -> list[Episode]:
    """The first episodes of the shipped sample."""
    files = list_files(SOURCES["sample"], sample.default_directory())
    found = [episode for file in files for episode in read_episodes(SOURCES["sample"], file)]
    return [episode for episode in found if isinstance(episode, Episode)][:count]


def annotated(device: str, dtype: Dtype, episodes: list[Episode]) -> tuple[list[Any], list[Any], float]:
    """Rows and tracks of episodes by the tiny checkpoints, and the seconds that they take."""
    settings = AnnotateSettings.load(None, (*TINY, "tracks=all", f"foundation.dtype={dtype}"))
    annotators = choose_annotators(settings, device)
    use_tf32(False)
    began = time.perf_counter()
    rows, tracks = annotate_episodes(episodes, annotators, settings)
    return rows, tracks, time.perf_counter() - began


class SureDetector:
    """Takes the time of a detector, and finds the same box on every image: what random weights find takes no such way on."""

    def __init__(self, detector: Detector) -> None:
        """Ask this one."""
        self._detector, self.readable = detector, detector.readable

    def detect(self, images: list[np.ndarray], phrases: list[str]) -> list[list[Detection]]:
        """The middle of each image."""
        self._detector.detect(images, phrases)
        return [
            [Detection((0.3 * w, 0.3 * h, 0.7 * w, 0.7 * h), 0.9)] for h, w in (image.shape[:2] for image in images)
        ]


def sharing(device: str, models: tuple[Any, Segmenter] | None = None) -> dict[str, Any]:
    """Lone viewpoints, as nearly all of Bridge's, without tracks: one after the other, many together, and read ahead.

    By the tiny checkpoints, whose masks must not change, or by these models in a published size.
    """
    any_gripper = ("foundation.min_gripper_score=0", "foundation.max_gripper_area=1") if models else ()
    settings = AnnotateSettings.load(None, (*TINY, *any_gripper))
    annotators = choose_annotators(settings, device)
    if models is not None:
        gripper = TrackedGripperFinder(*models, settings.foundation)
        cutter = DetectedObjectFinder(*models, settings.detections, settings.choice)
        annotators = replace(annotators, gripper=gripper, object=cutter)
    episodes = [
        replace(episode, viewpoint=str(place))
        for place, episode in enumerate(sample_episodes(8) * 8 if models else sample_episodes(3))
    ]
    annotate_episodes(episodes[:8], annotators, settings)
    found: dict[str, Any] = {"episodes": len(episodes)}
    alone: list[EpisodeAnnotation] = []
    for name, together, ahead in (("one by one", 1, 0), ("32 together", 32, 0), ("and read ahead", 32, 32)):
        chosen = replace(annotators, together=together, ahead=ahead)
        wait(device)
        began = time.perf_counter()
        rows, _ = annotate_episodes(episodes, chosen, settings)
        wait(device)
        found[f"{name}: s per episode"] = (time.perf_counter() - began) / len(episodes)
        alone = alone or rows
    pairs = list(zip(alone, rows, strict=True))
    return found | {
        "same status": sum(one.status == other.status for one, other in pairs),
        "object masks, least IoU": min(overlap(one.object_mask, other.object_mask) for one, other in pairs),
        "gripper masks, least IoU": min(overlap(one.gripper_mask, other.gripper_mask) for one, other in pairs),
    }


def overlap(first: Any, second: Any) -> float:
    """IoU of two masks as RLE; 1 where both are empty or missing."""
    if first is None or second is None:
        return float(first is second)
    one, other = masks.decode(first), masks.decode(second)
    return float((one & other).sum() / max(1, (one | other).sum())) if (one | other).any() else 1.0


def agreement(device: str) -> dict[str, Any]:
    """The tiny checkpoints on the CPU and on the device: rows, tracks, actions."""
    episodes = sample_episodes(3 if device.startswith("cuda") else 1)
    rows, tracks, seconds = annotated("cpu", "float32", episodes)
    found: dict[str, Any] = {"episodes": len(rows), "CPU, one core: s per episode with tracks": seconds / len(rows)}
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16") if device.startswith("cuda") else ("float32",)
    for dtype in dtypes:
        there, tracks_there, _ = annotated(device, dtype, episodes)
        pairs = list(zip(tracks, tracks_there, strict=True))
        every = [overlap(one.object_mask, other.object_mask) for one, other in pairs]
        every += [overlap(one.gripper_mask, other.gripper_mask) for one, other in pairs]
        first = [overlap(one.object_mask, other.object_mask) for one, other in zip(rows, there, strict=True)]
        found |= {
            f"{dtype}: same status": sum(one.status == other.status for one, other in zip(rows, there, strict=True)),
            f"{dtype}: object masks, least IoU": min(first),
            f"{dtype}: tracked masks, least IoU": min(every),
            f"{dtype}: tracked masks, mean IoU": statistics.mean(every),
        }
    frame = episodes[0].frame(0)
    policy = PixelVLA.start("tiny", known_of(episodes), seed=0).eval()
    acting: dict[str, Any] = {"masks": [frame[..., 0] > 128], "prompts": [point(40, 50)], "dataset": "sample"}
    here = policy.predict_action(frame, "pick up the bowl", **acting)
    elsewhere = policy.to(device).predict_action(frame, "pick up the bowl", **acting)
    return found | {"actions: largest difference": float(np.abs(here - elsewhere).max())}


def known_of(episodes: list[Episode]) -> dict[str, Any]:
    """The statistics of some episodes, as shards have them."""
    actions, states = (
        np.concatenate([getattr(episode, name) for episode in episodes]) for name in ("actions", "state")
    )
    return {"sample": dataset_statistics(actions, states, len(episodes))}


def loading(device: str) -> dict[str, Any]:
    """samples per second into batches for the preset small, by loader processes; nothing of it runs on the device."""
    cores = len(os.sched_getaffinity(0))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "shards", sample_episodes(3), 16 if cores > 4 else 2)
        name = str(Path(folder) / "shards")
        policy = PixelVLA(PRESETS["tiny"], byte_tokenizer(), statistics_of([name]))
        for workers in [count for count in (1, 8, 15) if count < cores]:
            chosen = TrainSettings(stage="pue", init="tiny", max_steps=1, workers=workers, held_out_share=0)
            batches = iter(open_stream(policy.processor, chosen, [name]))
            for _ in range(2 * workers):  # until all workers have begun
                next(batches)
            began, rounds = time.perf_counter(), 8 * workers
            for _ in range(rounds):
                next(batches)
            found[f"{workers} workers: samples/s"] = 16 * rounds / (time.perf_counter() - began)
            del batches
    return found


def write_shards(out: Path, episodes: list[Episode], count: int) -> None:
    """So many shards, each with the same episodes under a number of its own; every step has a mask and prompts."""
    out.mkdir()
    index, entries = [], []
    target = disc(100, 120, height=256, width=256)
    for number in range(count):
        name = f"sample-train-{number:05d}"
        with shards.ShardWriter(out / f"{name}.tar") as writer:
            for record, episode in enumerate(episodes):
                row = EpisodeAnnotation(
                    f"{name}-{record:05d}", "sample", "train", number, record, 0, instruction=episode.instruction,
                    num_steps=episode.num_steps, first_step=episode.first_step, last_step=episode.last_step,
                    close_step=episode.close_steps[0], image_height=256, image_width=256, status="accepted",
                    target_object="bowl", object_mask=masks.encode(target), gripper_mask=masks.encode(target.T),
                    prompts=sample_prompts(target, 3, np.random.default_rng(record)),
                )  # fmt: skip
                for step in range(episode.first_step, episode.last_step + 1):
                    chunk = action_chunk(episode.actions, step, episode.last_step, 8)
                    writer.write(row, shards.step_masks(row, step), episode.images[step], chunk, episode.state[step])
        path = out / f"{name}.tar"
        index += writer.index
        entries.append(
            {
                "name": path.name,
                "samples": len(writer.index),
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        )
    shards.write_index(out / "index.parquet", index)
    known = known_of(episodes)
    (out / "dataset_statistics.json").write_text(json.dumps(known))
    manifest = {
        "format_version": shards.FORMAT_VERSION, "dataset": "sample", "include": "all", "horizon": 8,
        "samples": len(index), "episodes": count * len(episodes), "shards": entries, "left_out": {},
        "annotated": {"status": {"accepted": count * len(episodes)}, "reasons": {}}, "annotations": {}, "software": "0",
        "files": {},
    }  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest))


# ---- the full half ----


def followed(segmenter: Segmenter, several: list[Video]) -> list[Any]:
    """All tracks of some videos."""
    return list(segmenter.follow(several))


@torch.no_grad()  # in inference mode autocast would cast every weight anew at every use
def segmenting(size: str, device: str) -> dict[str, Any]:
    """SAM 2 in a published size, bfloat16: the encoder alone, masks from boxes, tracks before and now."""
    plain, segmenter = random_sam2(size, device), random_segmenter(size, device, "bfloat16")
    frames, video = drawn_frames(16), videos(1)[0]
    found: dict[str, Any] = {}
    with mixed_precision(device, "bfloat16"):
        for batch in (1, 8, 16):
            pixels = segmenter._pixels(frames[:batch])
            seconds = timed(device, partial(segmenter._model.get_image_features, pixels))
            found[f"encoder alone, batch {batch}: ms per frame"] = 1000 * seconds / batch
        seconds = timed(device, lambda: plain.get_image_features(pixels))
        found["the same by transformers, batch 16: ms per frame"] = 1000 * seconds / 16
        seconds = timed(device, lambda: segmenter._pixels(frames))
        found["frames to the model's input, 16 at once: ms per frame"] = 1000 * seconds / 16
        seconds = timed(device, lambda: one_by_one(plain, segmenter, video), 1)
        found["tracks by transformers, one by one, state on the device: s per episode"] = seconds
    plain = None  # its memory is needed
    torch.cuda.reset_peak_memory_stats()
    boxes = [(100.0, 60.0, 220.0, 180.0)] * 16
    found["masks from boxes, 8 frames: s"] = timed(device, lambda: segmenter.segment(frames[:8], boxes[:8]))
    for count in (1, GROUP):
        several = videos(count)
        seconds = timed(device, partial(followed, segmenter, several), 1) / count
        found[f"tracks, {count} episodes at once: s per episode"] = seconds
    found |= {
        "of that encoding, at the encoder's limit: s": FRAMES * found["encoder alone, batch 16: ms per frame"] / 1000,
        "peak memory GiB": torch.cuda.max_memory_allocated() / 2**30,
    }
    close, box = drawn_frames(GROUP), (100.0, 60.0, 220.0, 180.0)
    found["gripper track over 8 close frames: s"] = timed(device, lambda: segmenter.track(close, 4, box))
    return found


def exactness(device: str) -> dict[str, Any]:
    """hiera-small, float32 without TF32: many objects at once against transformers one by one, on the device."""
    use_tf32(False)
    plain, segmenter, several = (
        random_sam2("small", device),
        random_segmenter("small", device, "float32"),
        videos(2, 16),  # transformers encodes frames that come one by one as those of a video that is no shorter
    )
    expected = [one_by_one(plain, segmenter, video) for video in several]
    found = list(segmenter.follow(several))
    differing = [
        float((mask != segment.mask).mean())
        for video, both in zip(expected, found, strict=True)
        for track, segments in zip(video, both, strict=True)
        for mask, segment in zip(track, segments, strict=True)
    ]
    return {
        "masks": len(differing),
        "share of pixels that differ, most": max(differing),
        "mean": statistics.mean(differing),
    }


@torch.inference_mode()
def detecting(device: str) -> dict[str, Any]:
    """Grounding DINO tiny on 8 frames: inputs by Pillow and on the device, the forward pass, everything."""
    use_tf32(True)
    detector, frames = random_detector(device, "bfloat16"), drawn_frames(GROUP)
    texts = ["red disc."] * GROUP
    inputs = detector._inputs(frames, texts)
    found = {
        "inputs by Pillow: ms per frame": 1000 * timed(
            device, lambda: detector._processor(images=frames, text=texts, padding=True, return_tensors="pt"), 1
        ) / GROUP,
        "inputs on the device: ms per frame": 1000 * timed(device, lambda: detector._inputs(frames, texts)) / GROUP,
    }  # fmt: skip
    for dtype in ("bfloat16", "float32"):
        with mixed_precision(device, dtype):
            found[f"forward pass of 8, {dtype}: s"] = timed(device, lambda: detector._model(**inputs))
    found["detect, 8 frames: s"] = timed(device, lambda: detector.detect(frames, texts))
    return found


def random_models(size: str, device: str) -> tuple[Detector, Segmenter]:
    """Both models in published sizes, bfloat16."""
    return random_detector(device, "bfloat16"), random_segmenter(size, device, "bfloat16")


def sure(models: tuple[Detector, Segmenter]) -> tuple[SureDetector, Segmenter]:
    """The same with a detector that finds something."""
    return SureDetector(models[0]), models[1]


def whole(size: str, device: str) -> dict[str, Any]:
    """seconds per episode in groups of 8, as `pixelcli annotate` asks the models, without reading and decoding."""
    detector, segmenter = random_models(size, device)
    frames, several = drawn_frames(GROUP), videos(GROUP)
    crops, box = [frame[20:180, 40:200] for frame in frames], (40.0, 40.0, 120.0, 120.0)

    def without_tracks() -> None:
        detector.detect(frames, ["robot gripper"] * GROUP)
        segmenter.track(frames, 4, box)
        detector.detect(crops, ["red disc"] * GROUP)
        segmenter.segment(crops, [box] * GROUP)

    without = timed(device, without_tracks) / GROUP
    tracks = timed(device, lambda: list(segmenter.follow(several)), 1) / GROUP
    mask = disc(100, 120)
    host = timed("cpu", lambda: [masks.encode(tidy(mask)) for _ in range(2 * FRAMES)])
    return {
        "without tracks: s per episode": without,
        "with tracks: s per episode": without + tracks,
        "tidying and encoding 80 masks on one core: s": host,
    }


_ROUNDS = 2  # of each process


def _track_in_process(size: str, device: str, ready: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    segmenter, several = random_segmenter(size, device, "bfloat16"), videos(GROUP)
    list(segmenter.follow(several))
    ready.wait()
    began = time.time()
    for _ in range(_ROUNDS):
        list(segmenter.follow(several))
    queue.put((began, time.time()))


def processes(size: str, device: str, count: int) -> dict[str, Any]:
    """Tracks by several processes that share the device."""
    context = multiprocessing.get_context("spawn")
    ready, queue = context.Barrier(count), context.Queue()
    arguments = (size, device, ready, queue)
    workers = [context.Process(target=_track_in_process, args=arguments, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    spans = [queue.get(timeout=90) for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {f"tracks, {count} processes of 8 episodes: s per episode": seconds / (_ROUNDS * GROUP * count)}


def training(preset: str, device: str, batch_size: int, checkpointing: bool) -> dict[str, Any]:
    """A step of stage 2, LoRA of rank 32 on all linear layers: forward, backward, AdamW; bfloat16 over a bfloat16 backbone."""
    policy = random_policy(preset, device).train()
    chosen = TrainSettings(stage="pue", init="x", max_steps=1, gradient_checkpointing=checkpointing)
    training_stages.prepare(policy, chosen)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=device.startswith("cuda"))
    batch = make_batch(policy.settings, batch_size, 1, 4)
    if preset == "pi0":
        batch = batch._replace(state=torch.randn(batch_size, 32))
    flops, batch = FlopCount(policy)(batch), batch.to(device)

    def step() -> None:
        with mixed_precision(device, "bfloat16"):
            loss = policy(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    seconds = timed(device, step, 4)
    name = f"{preset}, batch {batch_size}, {'checkpointing' if checkpointing else 'no checkpointing'}"
    return {
        f"{name}: s per step": seconds,
        f"{name}: samples/s": batch_size / seconds,
        f"{name}: model TFLOP/s": flops / seconds / 1e12,
        f"{name}: peak GiB": torch.cuda.max_memory_allocated() / 2**30,
    }


def acting(preset: str, device: str) -> dict[str, Any]:
    """Milliseconds to a chunk of actions, and its parts; as it is, then compiled for acting."""
    policy, frame = random_policy(preset, device).eval(), drawn_frames(1)[0]
    more: dict[str, Any] = {"dataset": "drawn"} | ({"state": np.zeros(8, np.float32)} if preset == "pi0" else {})
    pointed: dict[str, Any] = {"masks": [disc(60, 120)], "prompts": [point(60, 120)]}
    observe = policy.processor
    seen = Observation(frame, "pick up the red disc", **pointed, state=more.get("state"), dataset="drawn")
    batch = observe([seen]).to(device)
    with torch.inference_mode():
        forward = timed(device, lambda: policy(batch), 8)
    text = "pick up the red disc"
    found = {
        f"{preset}: text, ms": 1000 * timed(device, lambda: policy.predict_action(frame, text, **more), 8),
        f"{preset}: mask and point, ms": 1000
        * timed(device, lambda: policy.predict_action(frame, text, **pointed, **more), 8),
        f"{preset}: 8 observations, ms": 1000 * timed(device, lambda: policy.act([seen] * 8), 4),
        f"{preset}: forward pass alone, ms": 1000 * forward,
        f"{preset}: processor on the CPU, ms": 1000 * timed("cpu", lambda: observe([seen]), 8),
    }
    eager = [policy.act([seen] * count) for count in (1, 8)]
    began = time.perf_counter()
    policy.compile_acting([[seen], [seen] * 8])
    found[f"{preset}: making two graphs, s"] = time.perf_counter() - began
    compiled = [policy.act([seen] * count) for count in (1, 8)]
    differ = max(float(np.abs(one - other).max()) for one, other in zip(eager, compiled, strict=True))
    return found | {
        f"{preset}: compiled, mask and point, ms": 1000 * timed(device, lambda: policy.act([seen]), 8),
        f"{preset}: compiled, 8 observations, ms": 1000 * timed(device, lambda: policy.act([seen] * 8), 4),
        f"{preset}: compiled against eager, largest difference in robot units": differ,
    }


def main() -> None:
    """Run the sections that fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu:0")
    parser.add_argument("--seconds", type=float, default=230)
    parser.add_argument("--only", default="", help="names of sections")
    arguments = parser.parse_args()
    device, only = arguments.device, arguments.only.split(",") if arguments.only else []
    results = Results(arguments.out, arguments.seconds)
    tiny: list[tuple[str, float, Callable[[], dict[str, Any]]]] = [
        ("machine", 0, lambda: machine(device)),
        ("agreement", 0, lambda: agreement(device)),
        ("sharing", 5, lambda: sharing(device)),
        ("loading", 20, lambda: loading(device)),
    ]
    full: list[tuple[str, float, Callable[[], dict[str, Any]]]] = [
        ("exactness", 10, lambda: exactness(device)),
        ("small", 35, lambda: segmenting("small", device)),
        ("detector", 15, lambda: detecting(device)),
        ("whole-small", 15, lambda: whole("small", device)),
        ("sharing-small", 25, lambda: sharing(device, sure(random_models("small", device)))),
        ("train-16", 15, lambda: training("openvla-7b", device, 16, False)),
        ("act", 60, lambda: acting("openvla-7b", device)),
        ("train-16-checkpointing", 15, lambda: training("openvla-7b", device, 16, True)),
        ("train-pi0", 15, lambda: training("pi0", device, 16, False)),
        ("act-pi0", 60, lambda: acting("pi0", device)),
        ("large", 45, lambda: segmenting("large", device)),
        ("whole-large", 20, lambda: whole("large", device)),
        ("processes-small", 45, lambda: processes("small", device, 3)),
    ]
    for name, needs, section in tiny + (full if device.startswith("cuda") else []):
        if not only or name in only:
            results.run(name, needs, section)


if __name__ == "__main__":
    main()

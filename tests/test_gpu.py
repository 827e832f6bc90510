"""What a CPU can show of the GPU's way through the annotation: same masks, nothing fetched or made anew in a loop, dtypes.

The device "cpu:0" is the CPU on that way, with batches and inputs made by torch; the device "meta" has no numbers at all,
so that whatever looks at one, or mixes devices, fails, in the published sizes and within seconds.
"""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
transformers = pytest.importorskip("transformers", reason="needs the extra [foundation]")
pytest.importorskip("peft", reason="needs the extra [train]")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from annotate.annotator import annotate_episodes  # noqa: E402
from annotate.annotators import sam2 as sam2_module  # noqa: E402
from annotate.annotators import segmenter as segmenter_module  # noqa: E402
from annotate.annotators.choose import choose_annotators  # noqa: E402
from annotate.annotators.detector import Detector  # noqa: E402
from annotate.annotators.device import mixed_precision, resized, resized_as_floats  # noqa: E402
from annotate.annotators.lanes import EncodedVideo, Video  # noqa: E402
from annotate.annotators.segmenter import Segmenter  # noqa: E402
from annotate.jobs.annotate import describe_run, load_settings  # noqa: E402
from annotate.settings import AnnotateSettings, FoundationSettings  # noqa: E402
from annotate.timing import Stopwatch  # noqa: E402

ROOT = Path(__file__).parents[1]
# aten/src/ATen/native/cuda/UpSampleBilinear2d.cu dispatches the antialiased kernel over these alone
CUDA_RESIZES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/gpu.py as a module; the scripts are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import gpu

        yield gpu


@pytest.fixture
def on_meta(benchmark, monkeypatch):
    """hiera-small without numbers."""
    monkeypatch.setattr(segmenter_module, "mixed_precision", lambda *_: nullcontext())  # there is no autocast for meta
    monkeypatch.setattr(sam2_module, "full_precision", lambda _: lambda forward: forward)
    return benchmark.random_segmenter("small", "meta", "float32")


class Watch(TorchDispatchMode):
    """Counts operators, those whose result is not on the meta device, and copies into another dtype or device.

    Notes the dtypes that are resized on the meta device.
    """

    def __init__(self):
        super().__init__()
        self.operators, self.elsewhere, self.resized = Counter(), Counter(), set()
        self.copies, self.cast_weights = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket._qualified_op_name
        self.operators[name] += 1
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.elsewhere[name] += 1
        if name in ("aten::to", "aten::_to_copy"):  # the first is the second, or nothing
            before, after = ((tensor.device.type, tensor.dtype) for tensor in (args[0], result))
            if isinstance(args[0], torch.nn.Parameter):
                self.cast_weights[id(args[0])] += before != after
            elif before != after:
                self.copies[before[1], after[1]] += 1
        if name.endswith("_aa") and args[0].device.type == "meta":
            self.resized.add(args[0].dtype)
        return result


def videos(benchmark, count, frames=6):
    discs = benchmark.disc(60, 120), benchmark.disc(90, 60)
    return [Video(benchmark.drawn_frames(frames), [(0, discs[0]), (2, discs[1])]) for _ in range(count)]


def run(model, some):
    """Follow videos to their ends, and what was seen before the steps and during them."""
    before, during = Watch(), Watch()
    with torch.no_grad():
        with before:
            lanes = [lane for video in some for pair in model._lanes(video) for lane in pair]
        with during:
            model._run(lanes)
    assert all(len(lane.logits) == len(lane.presence) == len(lane.order) for lane in lanes)
    return before, during


def test_tracking_in_full_size_stays_on_the_device(benchmark, on_meta):
    before, during = run(on_meta, videos(benchmark, 1))
    assert not during.elsewhere  # nothing comes from the host, nothing goes there
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh"} & set(during.operators)
    assert before.resized and before.resized <= CUDA_RESIZES


def copies(dtype, videos):
    """Copies into other dtypes within the loop over the frames of videos, of weights and of all else."""
    model = Segmenter(FoundationSettings(segmenter="tiny", dtype=dtype), "cpu:0", Stopwatch())
    with mixed_precision("cpu:0", dtype):
        watch = run(model, videos)[1]
    return watch.cast_weights, watch.copies


@pytest.mark.parametrize(
    ("dtype", "most"),
    [
        # Of these, transformers makes two: SAM 2's memory is bfloat16, and whether the object is there a number.
        ("float32", {(torch.bool, torch.float32): 2, (torch.float32, torch.bfloat16): 1, (torch.bfloat16, torch.float32): 1}),
        # Rotations are computed in float32, and so are norms and sums, whose results autocast gives to the next product.
        ("bfloat16", {(torch.bfloat16, torch.float32): 16, (torch.float32, torch.bfloat16): 40, (torch.bool, torch.bfloat16): 1, (torch.bool, torch.float32): 1}),
    ],
)  # fmt: skip
def test_in_a_loop_over_frames_little_is_copied_and_no_weight(benchmark, dtype, most):
    """Autocast keeps a weight that it has cast, but not in inference mode, where it did so 180 times a frame."""
    seen = [copies(dtype, videos(benchmark, count, frames)) for count, frames in ((1, 4), (1, 6), (2, 4))]
    (weights, few), (longer_weights, long), (_, many) = seen
    assert len(weights) == sum(weights.values()) == sum(longer_weights.values()) and bool(weights) == (
        dtype != "float32"
    )
    assert few == many  # objects that are followed together
    step = {kinds: (long[kinds] - few[kinds]) / 2 for kinds in long if long[kinds] != few[kinds]}
    assert step.keys() <= most.keys() and all(step[kinds] <= most[kinds] for kinds in step), step


def test_many_objects_take_the_kernels_of_one(benchmark, on_meta):
    products = ("aten::linear", "aten::scaled_dot_product_attention", "aten::conv2d")
    seen = [run(on_meta, videos(benchmark, count))[1].operators for count in (1, 4)]
    assert [seen[0][name] for name in products] == [seen[1][name] for name in products]


def test_every_frame_is_encoded_once_and_let_go(benchmark, on_meta, monkeypatch):
    encoded, encode = [], on_meta._encode
    monkeypatch.setattr(on_meta, "_encode", lambda images: encoded.extend(map(id, images)) or encode(images))
    (video,) = videos(benchmark, 1, frames=20)
    with torch.no_grad():
        pairs = on_meta._lanes(video)
        on_meta._run([lane for pair in pairs for lane in pair])
    assert sorted(encoded) == sorted(map(id, video.frames))
    assert not pairs[0][0].video._kept


def test_frames_are_encoded_once_on_a_cpu_too(monkeypatch):
    model, encoded = Segmenter(FoundationSettings(segmenter="tiny"), "cpu", Stopwatch()), []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda images: encoded.extend(map(id, images)) or encode(images))
    frames = [np.full((64, 64, 3), 20 * place, np.uint8) for place in range(5)]
    list(model.follow([Video(frames, [(0, (10.0, 10.0, 40.0, 40.0)), (2, (30.0, 30.0))])]))
    assert sorted(encoded) == sorted(map(id, frames))


def test_a_long_video_fills_no_memory_with_the_features_of_its_frames():
    """The object is followed from the first frame, the gripper from far away, forth and back."""
    asked, orders = Counter(), [range(600), range(300, 600), range(300, -1, -1)]
    video = EncodedVideo(range(600), lambda steps: asked.update(steps) or [[step] for step in steps], 16)
    for order in orders:
        video.uses.update(order)
    for start in range(600):
        for order in orders:
            assert not order[start:] or video.take(order[start:]) == [order[start]]
        assert len(video._kept) <= 64
    assert not video._kept and max(asked.values()) == 2


@pytest.fixture(scope="module")
def on_its_way():
    """The annotators of the sample with tracks, on a GPU's way."""
    overrides = ("foundation.detector=tiny", "foundation.segmenter=tiny", "target.method=grammar", "tracks=accepted")
    chosen = AnnotateSettings.load(None, overrides)
    return choose_annotators(chosen, "cpu:0"), chosen


def test_viewpoints_share_forward_passes_and_frames_are_encoded_once(benchmark, on_its_way, monkeypatch):
    """Lone viewpoints, as nearly all of Bridge's: each model is called once for all. Beside the frames of tracks, SAM 2 encodes
    only an image for each mask from a box: the gripper's close frame, the object's crop.
    """
    annotators, chosen = on_its_way
    detector, segmenter = annotators.object._detector, annotators.object._segmenter
    calls = []
    for model, name in ((detector, "_detect"), (segmenter, "_cut_out"), (segmenter, "_encode")):
        whole = getattr(model, name)
        counted = partial(lambda whole, name, batch: calls.append((name, len(batch))) or whole(batch), whole, name)
        monkeypatch.setattr(model, name, counted)
    episodes = [dataclasses.replace(one, viewpoint=one.native_id) for one in benchmark.sample_episodes(3)]
    episodes[1] = dataclasses.replace(episodes[1], instruction="pick up the wine rack")  # which is not there
    assert len({one.viewpoint for one in episodes}) == 3
    chosen = chosen.model_copy(update={"filter": chosen.filter.model_copy(update={"min_supported_score": 0.3})})
    rows, tracks = annotate_episodes(episodes, annotators, chosen)
    accepted = {row.episode_id for row in rows if row.status == "accepted"}
    assert len(accepted) == 2 and accepted == {masked.episode_id for masked in tracks}
    *gripper_and_detection, (last, cut) = [call for call in calls if call[0] != "_encode"]
    assert gripper_and_detection == [("_detect", 3), ("_cut_out", 3), ("_detect", 3)]
    assert last == "_cut_out" and cut >= len(accepted)
    frames = sum(one.num_steps for one in episodes if one.identity.episode_id in accepted)
    assert sum(size for name, size in calls if name == "_encode") == frames


def test_the_gpus_way_finds_the_same_masks(benchmark):
    """Batches, keys made once and norms where the pixels lie change the order of sums alone; bfloat16 changes little."""
    episodes = benchmark.sample_episodes(2)
    several = []
    for more, episode in enumerate(episodes):
        frames = [episode.frame(step) for step in range(9 + 3 * more)]
        square = np.zeros(frames[0].shape[:2], bool)
        square[60:120, 80:150] = True
        several.append(Video(frames, [(0, square), (4, (100.0, 100.0, 160.0, 170.0)), (7, (50.0, 60.0))]))
    found = {}
    for device, dtype in (("cpu", "float32"), ("cpu:0", "float32"), ("cpu:0", "bfloat16")):
        model = Segmenter(FoundationSettings(segmenter="tiny", dtype=dtype), device, Stopwatch())
        tracks = [track for video in model.follow(several) for track in video]
        boxed = model.segment([video.frames[0] for video in several], [(100.0, 100.0, 160.0, 170.0)] * 2)
        found[device, dtype] = [segment for track in [*tracks, boxed] for segment in track]
    expected = found["cpu", "float32"]
    assert sum(segment.mask.any() for segment in expected) > len(expected) / 2
    for (device, dtype), segments in found.items():
        loose = dtype == "bfloat16"
        for one, other in zip(expected, segments, strict=True):
            assert np.mean(one.mask != other.mask) <= (5e-3 if loose else 1e-4), (device, dtype)
            assert one.score == pytest.approx(other.score, abs=0.05 if loose else 1e-3)


def test_coordinates_lose_no_digits_in_bfloat16():
    model = Segmenter(FoundationSettings(segmenter="tiny", dtype="bfloat16"), "cpu", Stopwatch())
    point = model._coordinates((200.3, 101.7), 256, 256)
    embedding = model._model.prompt_encoder.shared_embedding
    with torch.inference_mode():
        expected = embedding(point, (256, 256))
        with torch.autocast("cpu", torch.bfloat16):
            found = embedding(point, (256, 256))
    assert point.dtype == found.dtype == torch.float32 and torch.equal(expected, found)


@pytest.mark.parametrize("size", [{"shortest_edge": 400, "longest_edge": 450}, {"height": 128, "width": 160}])
def test_detector_inputs_made_by_torch_are_the_processors_own(size):
    """Within one grey level, whatever the sizes of the images and of the model's input."""
    models = [Detector(FoundationSettings(detector="tiny"), device, Stopwatch()) for device in ("cpu", "cpu:0")]
    for model in models:
        images = transformers.GroundingDinoImageProcessorPil(size=size)
        model._processor.image_processor = images
    noise = np.random.default_rng(0).integers(0, 255, (32, 40, 3)).astype(np.uint8)
    images = [
        cv2.resize(noise, shape) for shape in ((320, 256), (100, 100), (90, 64), (3, 3))
    ]  # 3 rows are no channels
    texts = ["red disc.", "robot gripper.", "bowl.", "cup."]
    expected, found = (model._inputs(images, texts) for model in models)
    level = 1 / 255 / 0.224
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=1.01 * level if name == "pixel_values" else 0)


@pytest.mark.parametrize(
    ("shape", "size", "differing"),
    [
        ((64, 64), (256, 256), 0),
        ((120, 130), (256, 256), 0.001),
        ((480, 640), (256, 256), 0.01),
        ((64, 80), (200, 250), 0.05),
    ],
)
def test_bytes_are_resized_as_numbers_that_cuda_has(shape, size, differing):
    """Nearly every grey level is that of the libraries; their weights are whole numbers, so that some halves go astray."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 20, 3)).astype(np.uint8)
    image = torch.from_numpy(cv2.resize(noise, shape[::-1])).permute(2, 0, 1)[None]
    expected, found = resized(image, *size), resized_as_floats(image, *size)
    assert expected.dtype == torch.uint8 and found.dtype in CUDA_RESIZES
    assert resized(image.to("meta"), *size).dtype == found.dtype
    assert (expected != found).float().mean() <= differing and (expected - found).abs().max() <= 2


def test_a_gpu_computes_in_bfloat16_and_its_parts_say_so(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("foundation: {detector: tiny, dtype: float32}")
    assert load_settings("sample", None, ()).foundation.dtype == "float32"
    chosen = load_settings("sample", None, (), device="cuda:1")
    assert chosen.foundation.dtype == "bfloat16" and chosen.foundation.detector == "tiny"
    assert load_settings("sample", None, ("foundation.dtype=float32",), device="cuda").foundation.dtype == "float32"
    assert load_settings("libero", config, (), device="cuda").foundation.dtype == "float32"
    assert "device" not in describe_run("sample", "drawn", chosen)
    assert describe_run("sample", "drawn", chosen, "cuda:1")["device"] == "cuda"


@pytest.mark.slow
def test_the_benchmark_runs_its_tiny_half_without_beam_and_tfds(tmp_path):
    script = ROOT / "benchmarks" / "gpu.py"
    code = (
        "import runpy, sys\n"
        "for name in ('apache_beam', 'tensorflow_datasets', 'tensorflow'): sys.modules[name] = None\n"
        f"sys.argv = ['gpu.py', '--out', {str(tmp_path)!r}, '--device', 'cpu:0']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found) == {"machine", "agreement", "sharing", "loading"}
    assert not any({"failed", "not run"} & set(section) for section in found.values()), found
    agreement = found["agreement"]
    assert agreement["float32: same status"] == agreement["episodes"] >= 1
    assert agreement["float32: tracked masks, least IoU"] > 0.99 and agreement["actions: largest difference"] < 1e-5
    assert found["sharing"]["same status"] == found["sharing"]["episodes"]
    assert found["sharing"]["object masks, least IoU"] > 0.99
    assert next(iter(found["loading"].values())) > 0

"""The foundation annotators: exact coordinates through crop, detector, box and mask; tracking; failures that say so."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import episode, object_mask, write_scenes

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from random_models import write_detector, write_segmenter  # noqa: E402

from annotate.annotators.detector import Detector  # noqa: E402
from annotate.annotators.foundation import DetectedObjectFinder, TrackedGripperFinder  # noqa: E402
from annotate.annotators.grasps import holding_grasp  # noqa: E402
from annotate.annotators.lanes import Video  # noqa: E402
from annotate.annotators.mask_cleaning import tidy  # noqa: E402
from annotate.annotators.regions import crop_window, shift_box  # noqa: E402
from annotate.annotators.roles import Gripper  # noqa: E402
from annotate.annotators.segmenter import Segment, Segmenter  # noqa: E402
from annotate.settings import AnnotateSettings, ChoiceSettings, FoundationSettings  # noqa: E402
from annotate.timing import Stopwatch  # noqa: E402
from cli import main  # noqa: E402
from pixel160k.format import masks  # noqa: E402
from pixel160k.format.table import read_annotations  # noqa: E402
from pixel160k.format.tracks import read_tracks  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random checkpoints of both models."""
    folder = tmp_path_factory.mktemp("random")
    return write_detector(folder / "detector"), write_segmenter(folder / "segmenter")


@pytest.fixture(scope="module")
def models(folders):
    """The real classes over random checkpoints."""
    chosen = FoundationSettings(detector=str(folders[0]), segmenter=str(folders[1]))
    return Detector(chosen, "cpu", Stopwatch()), Segmenter(chosen, "cpu", Stopwatch()), chosen


class RedFinder(torch.nn.Module):
    """Stands for Grounding DINO: its one sure box is that of the red pixels in the input it is given."""

    dtype = torch.float32

    def forward(self, pixel_values, pixel_mask, input_ids, **_):
        logits = torch.full((len(pixel_values), 2, input_ids.shape[1]), -9.0)
        boxes = torch.zeros(len(pixel_values), 2, 4)
        for index, pixels in enumerate(pixel_values):
            red = (pixels[0] - pixels[1]) > 1.5
            ys, xs = red.any(1).nonzero().flatten(), red.any(0).nonzero().flatten()
            height, width = red.shape
            x0, x1, y0, y1 = xs[0] / width, (xs[-1] + 1) / width, ys[0] / height, (ys[-1] + 1) / height
            boxes[index, 0] = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            logits[index, 0, 1] = 3.0
        return SimpleNamespace(logits=logits, pred_boxes=boxes, input_ids=input_ids)


class BoxFiller:
    """Stands for SAM 2: the mask is the box prompt itself, at the model's own quarter resolution."""

    def get_image_embeddings(self, pixels):
        return pixels.shape[-2:]

    def _single_frame_forward(self, image_embeddings, input_points, input_labels, multimask_output):
        (x0, y0), (x1, y1) = (input_points[0, 0] / 4).tolist()
        ys, xs = (torch.arange(side // 4) + 0.5 for side in image_embeddings)
        inside_x, inside_y = torch.minimum(xs - x0, x1 - xs), torch.minimum(ys - y0, y1 - ys)
        logits = torch.minimum(inside_x[None], inside_y[:, None])
        return SimpleNamespace(pred_masks=logits[None, None], iou_scores=torch.tensor([[[0.9]]]))


@pytest.fixture(scope="module")
def exact(models):
    """The real classes around models that make no mistakes."""
    detector, segmenter = (object.__new__(type(model)) for model in models[:2])
    detector.__dict__.update(models[0].__dict__, _model=RedFinder())
    segmenter.__dict__.update(models[1].__dict__, _model=BoxFiller())
    return detector, segmenter


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(256, 256), (256, 320), (480, 640)]),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(st.integers(16, 40), st.integers(16, 40)),
    offset=st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)),
)
def test_coordinates_come_back_within_a_pixel(exact, shape, corner, size, offset):
    """Crop -> detector -> box -> mask: fails if x and y, or the crop's corner, were mixed up anywhere."""
    height, width = shape
    box_height, box_width = size
    x0, y0 = round(corner[0] * (width - box_width)), round(corner[1] * (height - box_height))
    truth = (x0, y0, x0 + box_width, y0 + box_height)
    image = np.full((height, width, 3), 60, np.uint8)
    image[y0 : y0 + box_height, x0 : x0 + box_width] = (250, 20, 20)
    half = 60  # a region around the object, not centred on it, clipped to the image
    centre_x, centre_y = x0 + box_width / 2 + offset[0] * half, y0 + box_height / 2 + offset[1] * half
    region = (
        max(0.0, centre_x - half), max(0.0, centre_y - half),
        min(float(width), centre_x + half), min(float(height), centre_y + half),
    )  # fmt: skip
    keyframed = SimpleNamespace(
        keyframes=SimpleNamespace(initial=image),
        episode=SimpleNamespace(base_moves=True, instruction="pick it up"),  # so nothing asks for motion
    )
    gripper = Gripper(region, np.zeros(shape, bool))
    finder = DetectedObjectFinder(*exact, 3, ChoiceSettings())
    (found,) = finder.find_objects([keyframed], [gripper], [region], ["red disc"])
    np.testing.assert_allclose(found.detections[0].box, truth, atol=1)
    np.testing.assert_allclose(masks.box_of(found.mask), truth, atol=1)
    assert found.mask.shape == shape


@given(
    region=st.tuples(st.floats(0, 300), st.floats(0, 200), st.floats(1, 400), st.floats(1, 300)),
    shape=st.tuples(st.integers(32, 480), st.integers(32, 640)),
    context=st.sampled_from([1.0, 1.25, 2.0]),
)
def test_crop_windows_lie_in_the_image_and_are_square_where_they_can_be(region, shape, context):
    height, width = shape
    x0, y0 = min(region[0], width - 1), min(region[1], height - 1)
    box = (x0, y0, min(width, x0 + region[2]), min(height, y0 + region[3]))
    left, top, right, bottom = crop_window(box, context, height, width)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    side = int(np.ceil(max(box[2] - box[0], box[3] - box[1]) * context))
    assert right - left == min(side, width) and bottom - top == min(side, height)
    assert shift_box(shift_box(box, -left, -top), left, top) == pytest.approx(box)


def test_tidy_fills_holes_and_drops_specks():
    mask = np.zeros((64, 64), bool)
    mask[10:50, 10:50] = True
    mask[20:23, 20:23] = False  # a hole
    mask[60:62, 60:62] = True  # a speck
    expected = np.zeros_like(mask)
    expected[10:50, 10:50] = True
    np.testing.assert_array_equal(tidy(mask), expected)
    assert not tidy(np.zeros((8, 8), bool)).any()


def test_tracking_answers_for_every_frame_both_ways(models):
    frames = [np.random.default_rng(seed).integers(0, 255, (96, 128, 3)).astype(np.uint8) for seed in range(5)]
    segments = models[1].track(frames, 2, (20.0, 20.0, 60.0, 60.0))
    assert len(segments) == 5
    assert all(segment.mask.shape == (96, 128) and 0 <= segment.score <= 1 for segment in segments)
    again = models[1].track(frames, 2, (20.0, 20.0, 60.0, 60.0))
    assert all((first.mask == second.mask).all() for first, second in zip(segments, again, strict=True))
    assert len(models[1].track(frames, 0, (30.0, 30.0))) == 5  # a point prompt


def test_tracking_equals_transformers_own_propagation(models):
    """Streaming with forgetting gives what an untouched model gives that keeps everything, whose ages are shares of a short video.

    Alone, and on a GPU's way, where videos of several lengths are followed together.
    """
    from transformers import Sam2VideoInferenceSession, Sam2VideoModel

    segmenter, plain = models[1], Sam2VideoModel.from_pretrained(models[2].segmenter, dtype=torch.float32).eval()
    frames = [np.random.default_rng(seed).integers(0, 255, (256, 256, 3)).astype(np.uint8) for seed in range(18)]
    box, counts = (40.0, 60.0, 140.0, 160.0), (6, 18)
    prompt = {"point_coords": torch.tensor(box).view(1, 1, 2, 2), "point_labels": torch.tensor([[[2, 3]]])}
    expected = []
    for count in counts:
        video = torch.cat([segmenter._pixels([frame]) for frame in frames[:count]])
        session = Sam2VideoInferenceSession(video=video, video_height=256, video_width=256, dtype=torch.float32)
        session.add_point_inputs(session.obj_id_to_idx(1), 0, prompt)
        session.obj_with_new_inputs = [1]
        with torch.inference_mode():
            found = plain.propagate_in_video_iterator(session, start_frame_idx=0)
            expected.append([output.pred_masks[0] for output in found])
    assert min(logits.std() for logits in expected[0]) > 0.01  # nothing is lost on the way
    videos = [Video(frames[:count], [(0, box)]) for count in counts]
    for model, most in ((segmenter, 1e-6), (Segmenter(models[2], "cpu:0", Stopwatch()), 1e-5)):
        with torch.no_grad():
            lanes = [model._lanes(video)[0][0] for video in videos]
            for together in [[lane] for lane in lanes] if model is segmenter else [lanes]:
                model._run(together)
        for lane, wanted in zip(lanes, expected, strict=True):
            assert max((one - other).abs().max() for one, other in zip(lane.logits, wanted, strict=True)) < most
    masks_of = [segmenter._masks(logits[None], 256, 256)[0].numpy() for logits in expected[0]]
    tracked = segmenter.track(frames[: counts[0]], 0, box)
    assert max((segment.mask != mask).mean() for segment, mask in zip(tracked, masks_of, strict=True)) < 1e-4


@pytest.mark.parametrize("prompt", [(40.0, 60.0, 140.0, 160.0), (90.0, 110.0), "mask"])
def test_frames_that_come_one_by_one_are_followed_as_a_video_is(models, prompt):
    frames = [np.random.default_rng(seed).integers(0, 255, (96, 128, 3)).astype(np.uint8) for seed in range(24)]
    if prompt == "mask":
        prompt = np.zeros((96, 128), bool)
        prompt[20:50, 30:70] = True
    follow = models[1].follow_live(prompt)
    for expected in models[1].track(frames, 0, prompt):
        found = follow(frames.pop(0))
        assert np.array_equal(found.mask, expected.mask) and found.score == pytest.approx(expected.score, abs=1e-6)


def test_a_camera_that_runs_for_hours_fills_no_memory(models):
    follow, frame = models[1].follow_live((90.0, 110.0)), np.zeros((96, 128, 3), np.uint8)

    def held_after(frames):
        for _ in range(frames):
            follow(frame)
        gc.collect()
        return sum(thing.numel() for thing in gc.get_objects() if type(thing) is torch.Tensor)

    assert held_after(20) == held_after(5)


class Script:
    """A detector and segmenter that answer from a list, and remember what they were asked."""

    def __init__(self, boxes, track):
        self.boxes, self.tracked, self.asked, self.detected, self.cut = boxes, track, [], [], []

    def detect(self, images, phrases):
        self.detected.append(len(images))
        return [self.boxes[index] for index in range(len(images))]

    def follow(self, videos):
        for video in videos:
            ((start, prompt),) = video.prompts
            self.asked.append(("track", start, tuple(prompt)))
            yield [self.tracked[: len(video.frames)]]

    def segment(self, images, boxes):
        self.cut.append(len(images))
        self.asked += [("segment", box) for box in boxes]
        return [Segment(masks.inside_box(box, 64, 64), 0.9) for box in boxes]


def detection(score, box=(10.0, 10.0, 20.0, 20.0)):
    from pixel160k.format.table import Detection

    return [Detection(box, score)]


def keyframed_episodes(count):
    frame = np.zeros((64, 64, 3), np.uint8)
    return [SimpleNamespace(keyframes=SimpleNamespace(close=frame)) for _ in range(count)]


def square(score):
    return Segment(masks.inside_box((5, 5, 25, 25), 64, 64), score)


def test_the_most_confident_frame_is_prompted_and_lost_frames_are_prompted_anew():
    track = [square(0.9), square(0.1), square(0.9), square(0.2)]
    script = Script([detection(0.3), detection(0.4), detection(0.8, (1.0, 2.0, 3.0, 4.0)), []], track)
    (grippers,) = TrackedGripperFinder(script, script, FoundationSettings()).find_grippers([keyframed_episodes(4)])
    assert script.asked == [("track", 2, (1.0, 2.0, 3.0, 4.0)), ("segment", (10.0, 10.0, 20.0, 20.0))]
    assert [gripper and gripper.box for gripper in grippers] == [
        (5, 5, 25, 25), (10, 10, 20, 20), (5, 5, 25, 25), None,  # lost, and no box to prompt it with
    ]  # fmt: skip


def test_short_groups_go_frame_by_frame():
    script = Script([detection(0.3), [], detection(0.8)], [])
    (grippers,) = TrackedGripperFinder(script, script, FoundationSettings()).find_grippers([keyframed_episodes(3)])
    assert [kind for kind, *_ in script.asked] == ["segment", "segment"]
    assert [gripper is not None for gripper in grippers] == [True, False, True]


def test_a_users_prompt_goes_to_the_first_frame():
    script = Script([[], []], [square(0.9), square(0.9)])
    chosen = FoundationSettings(gripper_prompt=(7.0, 8.0))
    (grippers,) = TrackedGripperFinder(script, script, chosen).find_grippers([keyframed_episodes(2)])
    assert script.asked == [("track", 0, (7.0, 8.0))]
    assert all(grippers)


def test_groups_of_several_viewpoints_share_calls_and_keep_their_own_videos():
    """One call of the detector and one for all masks from boxes; each group answers as it does alone."""
    sizes = [4, 1, 5, 1, 1]
    boxes = [detection(0.1 + 0.05 * place, (float(place), 2.0, 9.0, 9.0)) for place in range(sum(sizes))]
    boxes[4] = []  # the first lone one
    track = [square(0.9), square(0.1), square(0.9), square(0.9), square(0.2)]
    together = Script(boxes, track)
    groups = [keyframed_episodes(size) for size in sizes]
    found = TrackedGripperFinder(together, together, FoundationSettings()).find_grippers(groups)
    assert together.detected == [12] and together.cut == [5]
    alone, asked = [], []
    for place, group in enumerate(groups):
        script = Script(boxes[sum(sizes[:place]) :], track)
        alone += TrackedGripperFinder(script, script, FoundationSettings()).find_grippers([group])
        asked += script.asked
    boxes_of = [[[gripper and gripper.box for gripper in group] for group in groups] for groups in (found, alone)]
    assert boxes_of[0] == boxes_of[1] and boxes_of[0][1] == [None]
    assert sorted(together.asked, key=str) == sorted(asked, key=str)


class TwoThings:
    """A detector that sees two things in every crop, the wrong one best, and a segmenter that fills their boxes."""

    def __init__(self, *boxes, worse=0.3):
        self.boxes, self.worse, self.given = boxes, worse, []

    def readable(self, phrase):
        return phrase

    def detect(self, images, phrases):
        self.sizes = [image.shape[:2] for image in images]
        corner = crop_window(self.region, 1.0, 256, 256)[:2]
        return [
            [
                detection(0.9 - self.worse * number, shift_box(box, -corner[0], -corner[1]))[0]
                for number, box in enumerate(self.boxes)
            ]
            for _ in images
        ]

    def segment_each(self, images, boxes):
        self.given += [(image.shape[:2], several) for image, several in zip(images, boxes, strict=True)]
        return [
            [Segment(masks.inside_box(box, *image.shape[:2]), 0.8) for box in several]
            for image, several in zip(images, boxes, strict=True)
        ]

    def find(self, read, region, gripper):
        self.region = region
        (found,) = DetectedObjectFinder(self, self, 5, ChoiceSettings(context=1)).find_objects(
            [holding_grasp(read, AnnotateSettings())],
            [Gripper(gripper, masks.inside_box(gripper, 256, 256))],
            [region],
            ["red disc"],
        )
        return found


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """Episodes whose disc at (90, 150) is carried away, and is left standing."""
    left = episode(centre=(90, 150), carry=False, instruction="touch the red disc")
    files = [episode(centre=(90, 150))], [left]
    return read_all("libero", write_scenes(tmp_path_factory.mktemp("carried"), *files))


RIGHT, WRONG, REGION = (76.0, 136.0, 105.0, 165.0), (116.0, 136.0, 145.0, 165.0), (50.0, 90.0, 170.0, 210.0)


def test_the_chosen_one_is_first_and_the_others_stay_with_their_scores(carried):
    """By what was carried away, whatever the gripper's place; and by that, where nothing was."""
    models = TwoThings(WRONG, RIGHT)
    found = models.find(carried[0], REGION, (120.0, 120.0, 141.0, 140.0))
    assert [(item.box, item.score) for item in found.detections] == [(RIGHT, pytest.approx(0.6)), (WRONG, 0.9)]
    assert masks.iou(found.mask, object_mask((90, 150))) > 0.7 and found.mask_score == 0.8
    for gripper, first in (((78.0, 120.0, 100.0, 140.0), RIGHT), ((120.0, 120.0, 141.0, 140.0), WRONG)):
        found = models.find(carried[1], REGION, gripper)
        assert found.detections[0].box == first and len(found.detections) == 2


def test_the_hand_is_near_what_it_is_near_on_the_first_frame(tmp_path):
    """A shaken camera sees the hand elsewhere on the close frame."""
    still, shaken = (
        read_all(
            "libero",
            write_scenes(
                tmp_path / str(shake), [episode(centre=(90, 150), carry=False, shake=shake, instruction="touch it")]
            ),
        )[0]
        for shake in (0, 9)
    )
    offset = holding_grasp(shaken, AnnotateSettings()).motion.close_offset
    assert np.hypot(*offset) > 3
    above, below = (76.0, 96.0, 105.0, 125.0), (76.0, 176.0, 105.0, 205.0)
    models = TwoThings(above, below, worse=0.001)
    chosen = []
    for top in range(100, 181, 2):
        hand = (80.0, float(top), 100.0, top + 20.0)
        firsts = [
            models.find(read, REGION, shift_box(hand, *back)).detections[0].box
            for read, back in ((still, (0, 0)), (shaken, (-offset[0], -offset[1])))
        ]
        assert firsts[0] == firsts[1]
        chosen.append(firsts[0])
    assert {*chosen} == {above, below}


def test_a_box_at_the_crops_edge_is_cut_out_of_the_whole_frame(carried):
    models = TwoThings(WRONG, (50.0, 136.0, 105.0, 165.0))
    found = models.find(carried[0], REGION, RIGHT)
    assert models.sizes == [(120, 120)] and [shape for shape, _ in models.given] == [(256, 256)]
    assert models.given[0][1][1] == (50.0, 136.0, 105.0, 165.0)
    assert masks.box_of(found.mask) == (50, 136, 105, 165)
    inside = TwoThings(WRONG, RIGHT)
    inside.find(carried[0], REGION, RIGHT)
    assert [shape for shape, _ in inside.given] == [(120, 120)]


def test_an_image_is_encoded_once_however_many_its_boxes(models, monkeypatch):
    segmenter, encoded = models[1], []
    original = segmenter._model.get_image_embeddings
    monkeypatch.setattr(
        segmenter._model, "get_image_embeddings", lambda pixels: encoded.append(len(pixels)) or original(pixels)
    )
    images = [np.random.default_rng(seed).integers(0, 255, (96, 128, 3)).astype(np.uint8) for seed in range(2)]
    boxes = [[(10.0, 10.0, 60.0, 60.0), (30.0, 5.0, 90.0, 80.0), (0.0, 0.0, 128.0, 96.0)], [(5.0, 6.0, 70.0, 80.0)]]
    several = segmenter.segment_each(images, boxes)
    assert sum(encoded) == 2 and [len(found) for found in several] == [3, 1]
    for image, wanted, found in zip(images, boxes, several, strict=True):
        for box, segment in zip(wanted, found, strict=True):
            (alone,) = segmenter.segment([image], [box])
            assert segment.mask.shape == (96, 128) and segment.score == pytest.approx(alone.score, abs=1e-4)
            assert np.mean(segment.mask != alone.mask) < 1e-3


def run_annotate(folders, data, out, *more):
    chosen = ["annotators=foundation", f"foundation.detector={folders[0]}", f"foundation.segmenter={folders[1]}"]
    arguments = ["annotate", "--src", "libero", "--data-dir", str(data), "--out", str(out), *more]
    for override in [*chosen, "target.method=grammar"]:
        arguments += ["--set", override]
    return CliRunner().invoke(main, arguments)


def test_the_command_runs_through_the_models_and_repeats_byte_by_byte(folders, tmp_path):
    data = write_scenes(tmp_path / "data", [episode(seed=seed) for seed in range(5)])
    for name in ("first", "second"):
        result = run_annotate(folders, data, tmp_path / name)
        assert result.exit_code == 0, result.output
    rows = list(read_annotations(tmp_path / "first"))
    assert len(rows) == 5 and all(row.target_object == "red disc" for row in rows)
    first, second = (next((tmp_path / name).glob("*.parquet")).read_bytes() for name in ("first", "second"))
    assert first == second


def test_a_missing_model_is_one_line(folders, tmp_path):
    data = write_scenes(tmp_path / "data", [episode()])
    result = run_annotate(("absent/detector", folders[1]), data, tmp_path / "out")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert "'absent/detector'" in line and "--set foundation.detector=FOLDER" in line


def test_a_broken_model_and_a_device_that_is_not_there_are_one_line(folders, tmp_path):
    import shutil

    data = write_scenes(tmp_path / "data", [episode()], [episode()])
    broken = tmp_path / "broken"
    shutil.copytree(folders[0], broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    for name, models, more, fault in (
        ("a", (broken, folders[1]), (), f"cannot load '{broken}'"),
        ("b", folders, ("--device", "cuda:77"), "--device cuda:77 cannot be used: "),
        ("c", folders, ("--device", "gpu"), "--device gpu cannot be used: "),
    ):
        result = run_annotate(models, data, tmp_path / name, *more)
        assert result.exit_code == 1
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
        assert fault in line and "Traceback" not in result.output
        assert not list(tmp_path.glob(f"{name}/.done/*.failed"))  # no file is at fault, and the second was not tried
    shutil.rmtree(broken)
    shutil.copytree(folders[0], broken)
    assert run_annotate((broken, folders[1]), data, tmp_path / "d").exit_code == 0


def test_a_gpu_without_room_for_the_models_fails_no_file(folders, tmp_path, monkeypatch):
    """As where more workers share it than it holds."""

    def load(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Segmenter, "__init__", load)
    data = write_scenes(tmp_path / "data", [episode()], [episode()])
    result = run_annotate(folders, data, tmp_path / "out", "--set", "detections=3")
    line = result.output.splitlines()[-1]
    assert result.exit_code == 1 and "has no room for the models (CUDA out of memory); try fewer --workers" in line
    assert not list(tmp_path.glob("out/.done/*.bug"))


def test_tracks_reach_every_step_of_the_shards(folders, tmp_path):
    import io
    import json
    import tarfile

    data = write_scenes(tmp_path / "data", [episode(), episode(carry=False, seed=2)])
    arguments = [
        "annotate",
        "--src",
        "libero",
        "--data-dir",
        str(data),
        "--out",
        str(tmp_path / "annotations"),
        "--tracks",
    ]
    for override in ("annotators=motion", f"foundation.segmenter={folders[1]}"):
        arguments += ["--set", override]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    row, rejected = read_annotations(tmp_path / "annotations")
    read = read_tracks(tmp_path / "annotations" / "tracks" / "part-train-00000.parquet")
    assert rejected.status == "rejected" and read.keys() == {row.episode_id}
    tracks = read[row.episode_id]
    assert sorted(tracks) == list(range(row.num_steps))
    assert tracks[row.first_step].object_mask == row.object_mask
    assert tracks[row.close_step].gripper_mask == row.gripper_mask
    arguments = ["build-shards", "--annotations", str(tmp_path / "annotations"), "--out", str(tmp_path / "shards")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}
    for step, masked in tracks.items():
        about = json.loads(content[f"{row.episode_id}-{step:04d}.json"])
        labels = masks.decode_indexed_png(content[f"{row.episode_id}-{step:04d}.mask.png"])
        assert about["object_mask_valid"] and about["gripper_mask_valid"]
        gripper = masks.decode(masked.gripper_mask)
        np.testing.assert_array_equal(labels == masks.GRIPPER, gripper)
        np.testing.assert_array_equal(labels == masks.TARGET, masks.decode(masked.object_mask) & ~gripper)
        assert np.load(io.BytesIO(content[f"{row.episode_id}-{step:04d}.state.npy"])).shape == (8,)
    assert CliRunner().invoke(main, ["verify", "--shards", str(tmp_path / "shards")]).exit_code == 0

    (part,) = (tmp_path / "annotations" / "tracks").iterdir()
    part.write_bytes(part.read_bytes()[:-40])
    arguments[-1] = str(tmp_path / "damaged")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "part-train-00000.parquet is not a part of the tracks" in result.output

    part.unlink()  # lost tracks must not pass for "not annotated"
    arguments[-1] = str(tmp_path / "again")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "tracks/part-train-00000.parquet" in result.output


def test_an_episode_without_tracks_among_others_is_counted(folders, tmp_path):
    """Rejected ones are not followed unless asked for, so what is accepted later, or goes into shards anyway, has no tracks."""
    import json

    data = write_scenes(tmp_path / "data", [episode(), episode(seed=3)])
    first, later = tmp_path / "first", tmp_path / "later"
    arguments = ["annotate", "--src", "libero", "--data-dir", str(data), "--out", str(first), "--tracks"]
    for override in ("annotators=motion", f"foundation.segmenter={folders[1]}", "filter.min_mask_score=1"):
        arguments += ["--set", override]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and not read_tracks(first / "tracks" / "part-train-00000.parquet")

    def build(annotations, out, *more):
        arguments = ["build-shards", "--annotations", str(annotations), "--out", str(tmp_path / out), *more]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        assert CliRunner().invoke(main, ["verify", "--shards", str(tmp_path / out)]).exit_code == 0
        said = "2 without masks at every step" in result.output
        assert said == ("So it is for 2 episodes here" in (tmp_path / out / "README.md").read_text())
        return manifest["episodes"], manifest["untracked"], said

    assert build(first, "all", "--include", "all") == (2, 2, True)
    arguments = ["annotate", "--refilter", str(first), "--set", "filter.min_mask_score=0.2", "--out", str(later)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and "2 of the accepted have no masks at every step" in " ".join(result.output.split())
    assert build(later, "accepted") == (2, 2, True)

    run = json.loads((later / "run.json").read_text())
    for tracks, untracked in ((True, 2), (False, 0)):  # as earlier versions wrote it
        run["settings"]["tracks"] = tracks
        (later / "run.json").write_text(json.dumps(run))
        assert build(later, f"old-{tracks}") == (2, untracked, bool(untracked))
        arguments = ["annotate", "--refilter", str(later), "--out", str(tmp_path / f"anew-{tracks}")]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        anew = json.loads((tmp_path / f"anew-{tracks}" / "run.json").read_text())
        assert anew["settings"]["tracks"] == ("all" if tracks else "none")

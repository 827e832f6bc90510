"""Faults stay where they happen: each costs its episode a row with a reason, and every sound episode beside it is done."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SHARED, read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import episode, write_scenes

from annotate import annotator as annotator_module
from annotate.annotator import annotate_episodes
from annotate.annotators.choose import choose_annotators
from annotate.jobs import shards as shards_job
from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES
from annotate.sources.rlds import list_files, read_episodes
from annotate.sources.tf_example import Example
from cli import main
from pixel160k.format import masks
from pixel160k.format.table import EpisodeAnnotation, read_annotations
from pixel160k.format.tracks import StepMasks
from pixel160k.read.folder import read_manifest
from pixel160k.read.verify import verify
from pixel160k.tfrecord import read_records, write_records

ROOT = Path(__file__).parents[1]
MOTION = AnnotateSettings(annotators="motion")
TRACKED = AnnotateSettings(annotators="motion", tracks="all")
TINY = ("foundation.detector=tiny", "foundation.segmenter=tiny", "target.method=grammar")
OK, FAILED = ("accepted", ""), "failed"


def run(*arguments):
    """Run pixelcli; returns its exit code and output, and checks that there is no traceback in it."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def run_annotate(source, data_dir, out, *overrides):
    chosen = [part for override in overrides or ("annotators=motion",) for part in ("--set", override)]
    return run("annotate", "--src", source, "--data-dir", data_dir, "--out", out, *chosen)


def outcome(out):
    return [(row.status, row.reason) for row in read_annotations(out)]


# What users really have: the generators of shared/faults


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Give a generator's name and get the folder that it fills."""
    if not (SHARED / "faults" / "gen.py").exists():
        pytest.skip(f"no generators at {SHARED / 'faults'}; PIXELVLA_SHARED names the folder that holds faults/")
    folders = {}

    def generate(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            command = [sys.executable, SHARED / "faults" / f"{name}.py", folders[name]]
            subprocess.run(command, check=True, cwd=ROOT)
        return folders[name]

    return generate


SIZE = (FAILED, "bad_image")
BROKEN, CUT = (FAILED, "malformed_record"), (FAILED, "truncated_file")
SHORT, NEVER = ("rejected", "too_short"), ("rejected", "no_gripper_close")
KINDS = [
    ("twosizes", "twosizes", [OK] * 4 + [SIZE] + [OK] * 4),
    ("longnoun", "longnoun", [OK] * 3),
    ("longtext", "longtext", [OK] * 4),
    ("texts", "texts", [OK, OK, ("rejected", "no_target_object"), *[OK] * 10]),
    ("images", "gray", [OK] * 2),
    ("images", "png", [OK] * 2),
    ("images", "s64", [OK] * 2),
    ("images", "s180", [OK] * 2),
    ("images", "s480", [OK] * 2),
    ("images", "mixed", [OK] * 2),
    ("images", "inside", [SIZE, OK]),
    ("images", "blank", [OK] * 2),
    ("images", "long", [OK]),
    ("images", "short", [SHORT, NEVER, None, None, None]),
    ("images", "bshort", [SHORT, SHORT, SHORT, None, None]),
    ("images", "never", [NEVER]),
    ("images", "nan", [BROKEN, BROKEN, OK, OK]),
    ("images", "dup", [OK] * 2),
    ("layout", "valonly", [OK] * 3),
    ("layout", "home", [OK]),
    ("layout", "lacks", [BROKEN] * 3),
    ("layout", "fewer", [OK] * 3),
    ("layout", "more", [OK] * 3 + [CUT] * 2),
    ("layout", "shardcount", [OK] * 3),
    ("layout", "empty0", [OK]),
    ("layout", "empty2", [OK, CUT, CUT]),
    ("layout", "zerorec", [OK, BROKEN, OK]),
    ("layout", "lfs", [BROKEN, CUT, CUT] * 2),
    ("layout", "partial", [OK] * 2),
    ("layout", "nosplits", [OK]),
    ("layout", "a b (1) [x] {y} ü#%20", [OK] * 3),
    ("layout", "oxe", [OK]),
    ("layout", "splitsdict", [OK]),
    ("openx_bridge", "nowrist", [OK]),
    ("many", "many", [OK] * 40),
    ("many", "bmix", [OK] * 4),
]


@pytest.mark.parametrize(("generator", "name", "expected"), KINDS, ids=[name for _, name, _ in KINDS])
def test_each_bad_episode_is_a_counted_row_and_the_others_are_done(generated, tmp_path, generator, name, expected):
    """None stands for an episode of which only this is said: it is no failure."""
    data, out = generated(generator) / name, tmp_path / "annotations"
    code, output = run_annotate("bridge_orig" if name in ("bshort", "oxe", "bmix") else "libero", data, out)
    found = outcome(out)
    lost = all(status == FAILED for status, _ in found)
    assert code == (1 if lost else 0)
    assert not lost or f"nothing was annotated: all {len(found)} episodes failed, the first, toy-train-" in output
    assert name != "lfs" or "the file is a Git LFS pointer and not the data, which `git lfs pull` fetches" in output
    assert {row.dataset for row in read_annotations(out)} <= {"toy", "libero_spatial", "bridge_orig"}
    assert [wanted or row for wanted, row in zip(expected, found, strict=True)] == found
    for reason, count in Counter(reason for _, reason in found if reason).items():
        assert re.search(rf"│ +{count} │ {reason} ", output)
    assert FAILED not in {row[0] for wanted, row in zip(expected, found, strict=True) if wanted is None}
    code, output = run("build-shards", "--annotations", out, "--out", tmp_path / "shards", "--include", "all")
    if lost:
        assert code == 1 and "holds no valid step at all" in output
        return
    assert code == 0
    assert verify(tmp_path / "shards") == []
    manifest = read_manifest(tmp_path / "shards")
    failed = {row.episode_id: row.reason for row in read_annotations(out) if row.status == FAILED}
    assert failed.items() <= manifest["left_out"].items() | {
        (row, reason) for row, reason in failed.items() if reason == "truncated_file"
    }


@pytest.mark.parametrize(
    ("generator", "name", "source", "fault"),
    [
        ("layout", "versions", "libero", "holds 2 versions of toy; name one: "),
        ("layout", "noimg", "libero", "features.json lacks steps/observation/image"),
        ("layout", "featlist", "libero", "features.json is not as tensorflow_datasets writes it"),
        ("layout", "nofeat", "libero", "features.json: No such file"),
        ("layout", "hyphen", "libero", "'my-robot_data' may hold only letters, digits and _"),
        ("openx_bridge", "openx", "bridge_orig", "is not a bridge_orig data set: its features.json lacks"),
    ],
)
def test_a_layout_that_cannot_be_read_is_one_line(generated, tmp_path, generator, name, source, fault):
    code, output = run_annotate(source, generated(generator) / name, tmp_path / "out")
    assert code == 1
    (line,) = output.splitlines()
    assert fault in line


def conventions(gen):
    """Records of each schema by what a value of their gripper action means, and whether it is read as what it is."""
    is_open, relative = gen.scene()[2], "steps/action/gripper_closedness_action"
    for name, column, told, as_it_is in [
        ("bridge_orig", "steps/action", is_open, True),
        ("bridge_orig", "steps/action", np.where(is_open, 1, -1), True),
        ("bridge_orig", "steps/action", ~is_open, False),
        ("bridge_orig", "steps/action", np.where(is_open, -1, 1), False),
        ("libero", "steps/action", np.where(is_open, -1, 1), True),
        ("libero", "steps/action", ~is_open, True),
        ("libero", "steps/action", is_open, False),
        ("fractal", relative, np.diff(~is_open, prepend=False) * np.where(is_open, -1, 1), True),
        ("fractal", relative, np.diff(~is_open, prepend=False) * np.where(is_open, 1, -1), False),
    ]:
        columns = {"bridge_orig": gen.bridge, "libero": gen.libero, "fractal": gen.fractal}[name]()
        columns[column].reshape(len(told), -1)[:, -1] = told
        state = columns.get("steps/observation/state")
        if state is not None:
            state[:, 6:] = np.where(is_open, 0.04, 0.01)[:, None]
        yield name, columns, is_open, as_it_is


def test_actions_of_another_convention_are_read_rightly_or_refused(tmp_path, monkeypatch):
    """As the catalogue's `bridge` 0.1.0 nearly has bridge_orig's schema: what the actions mean is not taken on trust."""
    monkeypatch.syspath_prepend(SHARED / "faults")
    gen = pytest.importorskip("gen", reason="needs the generators of PIXELVLA_SHARED/faults")
    for number, (name, columns, is_open, as_it_is) in enumerate(conventions(gen)):
        gen.write(tmp_path / str(number), "bridge", {"train": [[columns]]}, version="0.1.0")
        (found,) = read_episodes(SOURCES[name], list_files(SOURCES[name], tmp_path / str(number))[0])
        if as_it_is:
            assert np.array_equal(found.gripper_open, is_open)
        else:
            assert found.reason == "malformed_record"
            assert found.detail.endswith(f"its actions are of another convention than those of {name}")


@pytest.mark.parametrize(
    ("generator", "name", "failed"),
    [("longnoun", "longnoun", {}), ("texts", "texts", {}), ("images", "inside", {0: SIZE})],
)
def test_the_models_meet_no_text_or_frame_that_stops_them(generated, tmp_path, generator, name, failed):
    """With the paper's annotators, whose detector reads only so many words."""
    pytest.importorskip("transformers", reason="needs the extra [foundation]")
    data, out = generated(generator) / name, tmp_path / "out"
    code, _ = run_annotate("libero", data, out, *TINY, *(["tracks=all"] if failed else []))
    assert code == 0
    rows = list(read_annotations(out))
    assert {place: (row.status, row.reason) for place, row in enumerate(rows) if row.status == FAILED} == failed
    cut = [row for row in rows if row.detail.startswith("the detector was asked for the target's first")]
    assert len(cut) == {"longnoun": 1, "texts": 1}.get(name, 0)
    assert all(row.target_object.startswith("very very") for row in cut)


# Broken records of every kind


def sound_example():
    from simulation.rlds import find_dataset

    directory = find_dataset(SOURCE_SAMPLE)
    record = next(iter(read_records(sorted(directory.glob("*.tfrecord-*"))[0])))
    return Example.FromString(record.payload)


SOURCE_SAMPLE = ROOT / "simulation" / "sample"
_SOUND = sound_example()
NAMES = sorted(_SOUND.features.feature)
FRAMES = "steps/observation/image"


@st.composite
def broken_examples(draw):
    """A sound record in which some columns are gone, empty, of another kind or length, or hold other values."""
    example = Example()
    example.CopyFrom(_SOUND)
    features = example.features.feature
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        kind = features[name].WhichOneof("kind")
        values = getattr(features[name], kind).value
        action = draw(st.sampled_from(["drop", "clear", "kind", "shorter", "longer", "value", "all"]))
        if action == "drop":
            del features[name]
        elif action == "clear":
            features[name].Clear()
        elif action == "kind":
            other = draw(st.sampled_from(["float_list", "int64_list", "bytes_list"]))
            features[name].Clear()
            getattr(features[name], other).value.extend([b"x"] if other == "bytes_list" else [1])
        elif action == "shorter":
            del values[draw(st.integers(0, len(values) - 1)) :]
        elif action == "longer":
            values.extend(values[: draw(st.integers(1, len(values)))])
        else:
            odd = {
                "float_list": st.sampled_from([float("nan"), float("inf"), 3e38, -3e38, 1e-40]),
                "int64_list": st.sampled_from([-(2**63), 2**63 - 1, -1, 0]),
                "bytes_list": st.binary(max_size=8)
                | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass"))
                | st.integers(0, 4000).map(lambda end: _SOUND.features.feature[FRAMES].bytes_list.value[0][:end]),
            }[kind]
            places = range(len(values)) if action == "all" else [draw(st.integers(0, len(values) - 1))]
            value = draw(odd)
            for place in places:
                values[place] = value
    return example.SerializeToString()


def mangled(payload, cuts, flips):
    """The bytes with some changed and the end cut off."""
    content = bytearray(payload[: len(payload) - cuts])
    for at, bit in flips:
        content[at % len(content)] ^= 1 << bit
    return bytes(content)


def mangled_records():
    whole = _SOUND.SerializeToString()
    flips = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 7)), max_size=20)
    return st.builds(mangled, st.just(whole), st.integers(0, len(whole) - 1), flips) | st.builds(
        mangled, st.just(whole), st.just(0), flips
    )


@settings(max_examples=60, deadline=None)
@given(payload=broken_examples() | mangled_records())
def test_no_record_is_so_broken_that_it_is_taken_for_a_bug(tmp_path_factory, payload):
    """Whatever a record holds, it is annotated, or rejected or failed for what is wrong with the data."""
    path = tmp_path_factory.mktemp("broken") / "drawn-train.tfrecord-00000-of-00001"
    write_records(path, [payload])
    for name in ("sample", "bridge_orig"):
        (file,) = [
            dataclasses.replace(file, path=path, records=1) for file in list_files(SOURCES["sample"], SOURCE_SAMPLE)[:1]
        ]
        items = list(read_episodes(SOURCES[name], file))
        assert [item.reason for item in items if isinstance(item, EpisodeAnnotation)] in ([], ["malformed_record"])
        (row,), _ = annotate_episodes(items, choose_annotators(MOTION, "cpu"), MOTION)
        assert row.reason != "internal_error", row.detail
        row.detail.encode(), row.instruction.encode()


# Bugs of ours


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two files of three drawn scenes."""
    scenes = [
        [episode(centre=(70 + 30 * record, 150), seed=3 * shard + record) for record in range(3)] for shard in (0, 1)
    ]
    return write_scenes(tmp_path_factory.mktemp("drawn"), *scenes)


class Faulty:
    """Annotators in groups of three, of which one stage meets a bug at the episode of one record."""

    def __init__(self, stage, error=None, record=1, together=1):
        self.stage, self.error, self.record, self.groups = stage, error or TypeError("no such\noperand"), record, []
        self.together = together

    def meet(self, stage, episodes):
        self.groups.append((stage, len(episodes)))
        if stage == self.stage and any(episode.identity.record == self.record for episode in episodes):
            raise self.error

    def annotators(self):
        motion = choose_annotators(MOTION, "cpu")

        def find_grippers(groups):
            self.meet("gripper", [keyframed.episode for group in groups for keyframed in group])
            return motion.gripper.find_grippers(groups)

        def find_objects(episodes, *more):
            self.meet("object", [keyframed.episode for keyframed in episodes])
            return motion.object.find_objects(episodes, *more)

        def track(episodes, rows):
            self.meet("tracks", episodes)
            return [[StepMasks(row.episode_id, 0, None, False, None, False)] for row in rows]

        gripper, target = type("", (), {}), type("", (), {})
        gripper.find_grippers, target.find_objects = staticmethod(find_grippers), staticmethod(find_objects)
        more = {"together": self.together, "ahead": 2}
        return dataclasses.replace(motion, gripper=gripper, object=target, group_size=3, track=track, **more)


@pytest.mark.parametrize("stage", ["gripper", "object", "tracks"])
def test_a_group_that_fails_together_is_done_one_by_one(drawn, caplog, stage):
    faulty = Faulty(stage)
    rows, tracks = annotate_episodes(read_all("libero", drawn)[:3], faulty.annotators(), TRACKED)
    assert [(row.status, row.reason) for row in rows] == [OK, (FAILED, "internal_error"), OK]
    assert [size for met, size in faulty.groups if met == stage] == [3, 1, 1, 1]
    assert [masked.episode_id for masked in tracks] == [rows[0].episode_id, rows[2].episode_id]
    assert rows[1].detail.startswith("TypeError: no such operand (annotate/annotator.py:") and rows[1].target_object
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert all("in meet" in record.exc_text for record in caplog.records if record.exc_text)


def test_of_groups_that_fail_together_only_the_guilty_one_is_taken_apart(drawn, caplog):
    """A bug at one episode must not change how the other groups are annotated: each keeps its discrete video."""
    faulty, episodes = Faulty("object", together=6, record=4), []
    for record, one in enumerate(read_all("libero", drawn)):
        identity = dataclasses.replace(one.identity, record=record, episode_id=f"drawn-{record}")
        episodes.append(dataclasses.replace(one, identity=identity, viewpoint="AB"[record % 2]))
    rows, tracks = annotate_episodes(episodes, faulty.annotators(), TRACKED)
    assert [size for met, size in faulty.groups if met == "object"] == [6, 3, 1, 1, 1, 3]
    assert [(row.status, row.reason) for row in rows] == [OK] * 4 + [(FAILED, "internal_error"), OK]
    assert [masked.episode_id for masked in tracks] == [row.episode_id for row in rows if row.reason == ""]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "ERROR"]


@pytest.mark.parametrize("stage", ["name_targets", "holding_grasp", "accept", "sample_prompts"])
def test_a_bug_at_any_stage_costs_one_episode(drawn, monkeypatch, stage):
    items, annotators = read_all("libero", drawn)[:3], choose_annotators(MOTION, "cpu")
    calls = iter([None, KeyError("x"), None, None])

    def stage_with_a_bug(*arguments):
        if error := next(calls):
            raise error
        return whole(*arguments)

    if stage == "name_targets":
        whole = annotators.target.name_targets
        annotators = dataclasses.replace(annotators, target=type("", (), {stage: staticmethod(stage_with_a_bug)}))
    else:
        whole = getattr(annotator_module, stage)
        monkeypatch.setattr(annotator_module, stage, stage_with_a_bug)
    rows, _ = annotate_episodes(items, annotators, MOTION)
    assert [(row.status, row.reason) for row in rows] == [OK, (FAILED, "internal_error"), OK]
    assert rows[1].detail.startswith("KeyError: 'x' (annotate/annotator.py:")
    assert rows[1].record_crc32c == items[1].identity.record_crc32c


def test_what_stops_the_device_is_no_episodes_fault(drawn):
    """After such an error CUDA does nothing more in this process, so every later row would be wrong."""
    lost = type("AcceleratorError", (RuntimeError,), {})("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        annotate_episodes(read_all("libero", drawn)[:3], Faulty("object", lost).annotators(), MOTION)


def test_a_bug_ends_the_command_with_a_line_and_a_code_and_loses_nothing(drawn, tmp_path, monkeypatch):
    source, out = SOURCES["libero"], tmp_path / "annotations"

    def to_episode(columns, identity, camera):
        if identity.record == 1:
            raise ValueError("operands could not\nbe broadcast")
        return source.to_episode(columns, identity, camera)

    monkeypatch.setitem(SOURCES, "libero", dataclasses.replace(source, to_episode=to_episode))
    for _ in range(2):  # tried again, and told again
        code, output = run_annotate("libero", drawn, out)
        assert code == 3
        assert "internal_error" in output and "the software met a bug" in output.replace("\n", " ")
        line = output.rstrip().splitlines()[-1]
        assert line.startswith(
            "Error: this is a bug, met at drawn-train-00000-00001: ValueError: operands could not be "
        )
        assert "(and 1 more episodes); the traceback is in " in line and str(out / ".done" / "workers.log") in line
    assert outcome(out) == [OK, (FAILED, "internal_error"), OK] * 2
    log = (out / ".done" / "workers.log").read_text()
    assert log.count("Traceback") == 4 and "in to_episode" in log and "drawn-train-00001-00001:" in log
    monkeypatch.undo()
    code, output = run("build-shards", "--annotations", out, "--out", tmp_path / "shards", "--include", "all")
    assert code == 0 and "2 unusable episodes left out" in output
    assert set(read_manifest(tmp_path / "shards")["left_out"].values()) == {"internal_error"}
    assert verify(tmp_path / "shards") == []


def test_a_bug_at_building_leaves_one_episode_out_and_says_so(drawn, tmp_path, monkeypatch):
    annotate("libero", drawn, tmp_path / "annotations", MOTION, Execution())
    build_shards(tmp_path / "annotations", tmp_path / "whole", Execution())
    real, bad = shards_job.action_chunk, []

    def action_chunk(actions, step, last_step, horizon):
        if step == 0:
            bad.append(len(bad) == 1)
        if bad[-1] and step == 7:  # in the middle of the second episode
            raise IndexError("index 7 is out of bounds")
        return real(actions, step, last_step, horizon)

    monkeypatch.setattr(shards_job, "action_chunk", action_chunk)
    code, output = run("build-shards", "--annotations", tmp_path / "annotations", "--out", tmp_path / "shards")
    assert code == 3
    assert "this is a bug, met at drawn-train-00000-00001: IndexError: index 7 is out of bounds (annotate/" in output
    assert (tmp_path / "shards" / ".done" / "workers.log").read_text().count("Traceback") == 1
    manifest, whole = (read_manifest(tmp_path / name) for name in ("shards", "whole"))
    assert manifest["left_out"] == {"drawn-train-00000-00001": "internal_error"} and manifest["episodes"] == 5
    assert manifest["shards"][1] == whole["shards"][1]
    assert verify(tmp_path / "shards") == []


# Frames


def jpeg_of(height, width, **more):
    import cv2

    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", noise, [part for pair in more.values() for part in pair])[1].tobytes()


def with_images(one, images):
    """An episode with other frames at some steps."""
    return dataclasses.replace(one, images=[images.get(step, image) for step, image in enumerate(one.images)])


def test_a_frame_of_another_size_is_noticed_at_any_step_and_nothing_else_is(drawn, monkeypatch):
    import cv2

    (one,) = read_all("libero", drawn)[:1]
    progressive = jpeg_of(256, 256, kind=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    annotators = choose_annotators(MOTION, "cpu")
    for step in (0, 1, 6, 23):
        for frame, reason in (
            (jpeg_of(256, 255), "bad_image"),
            (jpeg_of(180, 256), "bad_image"),
            (progressive, ""),
            (b"\xff\xd8\xff\xe1\0\x08Exif\0\0" + jpeg_of(256, 256)[2:], ""),
        ):
            ((row,), _) = annotate_episodes([with_images(one, {step: frame})], annotators, MOTION)
            assert (row.reason == "bad_image") == bool(reason)
            assert not reason or ", that of step 0 " in row.detail
    ((row,), _) = annotate_episodes([with_images(one, {6: b"", 7: b"\xff\xd8\xff\xd9"})], annotators, MOTION)
    assert (row.status, row.reason) == OK  # of no use to this row; build-shards leaves such an episode out


@pytest.fixture(scope="module")
def segmenter():
    pytest.importorskip("transformers", reason="needs the extra [foundation]")
    from annotate.annotators.segmenter import Segmenter
    from annotate.settings import FoundationSettings
    from annotate.timing import Stopwatch

    return Segmenter(FoundationSettings(segmenter="tiny"), "cpu", Stopwatch())


def test_tracks_go_on_over_a_frame_that_does_not_decode(drawn, segmenter):
    from annotate.annotators.tracking import track_episodes

    mask = masks.encode(np.indices((256, 256)).sum(0) < 100)
    episodes = [dataclasses.replace(one, images=one.images[:5]) for one in read_all("libero", drawn)[:2]]
    rows = [
        EpisodeAnnotation(
            **dataclasses.asdict(one.identity), first_step=0, close_step=2, object_mask=mask, gripper_mask=mask
        )
        for one in episodes
    ]
    episodes[0] = with_images(episodes[0], {1: b"\xff\xd8\xff junk \xff\xd9", 4: jpeg_of(64, 64)})
    broken, sound = track_episodes(episodes, rows, segmenter)
    for tracks, nothing in ((broken, {1, 4}), (sound, set())):
        assert [masked.step for masked in tracks] == list(range(5))
        assert {masked.step for masked in tracks if masked.object_mask is None} == nothing
        assert {masked.step for masked in tracks if masked.gripper_mask is None} == nothing
        assert tracks[0].object_mask == tracks[2].gripper_mask == mask


# Memory


def test_batches_are_halved_until_they_fit(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
    from annotate.annotators.device import Batches

    sizes, batches = [], Batches(8)

    def work(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in items]

    assert batches(range(7), work) == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert batches(range(2), work) == [0, 2] and batches.size == 2  # it is not tried again
    assert batches([], work) == []

    def too_much(items):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        Batches(8)(range(7), too_much)


def test_models_give_the_same_however_little_memory_there_is(segmenter, monkeypatch):
    """ "cpu:0" is the CPU with a GPU's batches."""
    torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
    from annotate.annotators.detector import Detector
    from annotate.annotators.lanes import Video
    from annotate.annotators.segmenter import Segmenter
    from annotate.settings import FoundationSettings
    from annotate.timing import Stopwatch

    chosen = FoundationSettings(detector="tiny", segmenter="tiny")
    detector, roomy = (model(chosen, "cpu:0", Stopwatch()) for model in (Detector, Segmenter))
    scarce_detector, scarce = (model(chosen, "cpu:0", Stopwatch()) for model in (Detector, Segmenter))

    def limit(model, name, most, size=len):
        whole = getattr(model, name)

        def limited(items, *more):
            if size(items) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return whole(items, *more)

        monkeypatch.setattr(model, name, limited)

    limit(scarce_detector, "_detect", 1)
    limit(scarce, "_cut_out", 1)
    limit(scarce, "_follow", 1)
    limit(scarce, "_encode", 2)
    frames = [np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8) for seed in range(3)]
    boxes = [(10.0, 10.0, 40.0, 40.0)] * 3
    phrases = ["red disc", "robot gripper", "black bowl"]
    for many, one_by_one in zip(detector.detect(frames, phrases), scarce_detector.detect(frames, phrases), strict=True):
        np.testing.assert_allclose([found.score for found in many], [found.score for found in one_by_one], atol=1e-4)
    videos = [Video(frames, [(0, boxes[0]), (2, (20.0, 20.0))])] * 2
    for work in (
        lambda model: model.segment(frames, boxes),
        lambda model: [segment for both in model.follow(videos) for one in both for segment in one],
    ):
        for expected, found in zip(work(roomy), work(scarce), strict=True):
            assert (expected.mask != found.mask).mean() < 0.01
            assert found.score == pytest.approx(expected.score, abs=1e-3)


@given(st.lists(st.sampled_from(["red", "disc", "very", "把红色的圆盘", "é" * 40, "x" * 700, "."]), max_size=200))
@settings(max_examples=40, deadline=None)
def test_any_phrase_is_cut_to_what_the_detector_reads(tiny_detector, words):
    phrase = " ".join(words)
    read = tiny_detector.readable(phrase)
    assert tiny_detector._tokens(read) <= tiny_detector._longest
    if read != phrase:
        assert phrase.startswith(read)
        assert phrase[len(read)] == " " or " " not in read  # between words, or within the first
        longer = phrase[: len(read)] + phrase[len(read) :].split(" ")[0 if phrase[len(read)] != " " else 1]
        assert len(longer) >= len(read)


@pytest.fixture(scope="module")
def tiny_detector():
    pytest.importorskip("transformers", reason="needs the extra [foundation]")
    from annotate.annotators.detector import Detector
    from annotate.settings import FoundationSettings
    from annotate.timing import Stopwatch

    return Detector(FoundationSettings(detector="tiny"), "cpu", Stopwatch())


def test_detecting_an_endless_phrase_stops_nothing(tiny_detector):
    frame = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    assert len(tiny_detector.detect([frame, frame], ["very " * 3000 + "red disc", "disc"])) == 2


# Threads

THREADS = """
import dataclasses, json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from annotate.annotator import annotate_episodes
from annotate.annotators import pretrained
from annotate.annotators.choose import choose_annotators
from annotate.jobs.annotate import load_settings
from annotate.sources import SOURCES, sample
from annotate.sources.rlds import list_files, read_episodes

loaded, real, together = [], pretrained.load, threading.Barrier(4)
pretrained.load = lambda setting, model, loader: (loaded.append(setting), real(setting, model, loader))[1]
settings = load_settings("sample", None, ("approach_frames=3",))
files = list_files(SOURCES["sample"], sample.default_directory())[:4]

def one(file):
    together.wait()
    annotators = choose_annotators(settings, "cpu")
    annotators.stopwatch.seconds.clear()
    rows, _ = annotate_episodes(read_episodes(SOURCES["sample"], file), annotators, settings)
    return [dataclasses.asdict(row) for row in rows], sorted(annotators.stopwatch.seconds)

with ThreadPoolExecutor(4) as pool:
    done = list(pool.map(one, files))
json.dump({"rows": [row for rows, _ in done for row in rows], "stages": [stages for _, stages in done], "loaded": loaded}, sys.stdout)
"""


def test_four_threads_load_each_model_once_and_write_the_right_rows(tmp_path):
    """In a process of its own, where nothing of transformers has been imported: its lazy modules do not bear threads."""
    pytest.importorskip("transformers", reason="needs the extra [foundation]")
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert sorted(answer["loaded"]) == ["foundation.detector", "foundation.segmenter"]
    assert all({"gripper", "object", "segmenter forward"} <= set(stages) for stages in answer["stages"])
    from annotate.jobs.annotate import load_settings
    from annotate.sources import sample

    chosen = load_settings("sample", None, ("approach_frames=3",))
    alone = []
    for file in list_files(SOURCES["sample"], sample.default_directory())[:4]:
        episodes = read_episodes(SOURCES["sample"], file)
        alone += annotate_episodes(episodes, choose_annotators(chosen, "cpu"), chosen)[0]
    assert len(alone) >= 4
    assert answer["rows"] == json.loads(json.dumps([dataclasses.asdict(row) for row in alone]))


@pytest.mark.slow
def test_dask_workers_of_four_threads_annotate_with_the_models(tmp_path):
    """As many as Dask gives a process: all ask for the models at once."""
    distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")
    pytest.importorskip("transformers", reason="needs the extra [foundation]")
    command = [sys.executable, "-m", "cli", "annotate", "--src", "sample", "--out"]
    runner = ("--runner", "apache_beam.runners.dask.dask_runner.DaskRunner", "--")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=4, processes=True, dashboard_address=None) as cluster:
        options = [f"--dask_client_address={cluster.scheduler_address}", "--dask_npartitions=4"]
        subprocess.run([*command, tmp_path / "dask", *runner, *options], check=True, cwd=ROOT)
    subprocess.run([*command, tmp_path / "local"], check=True, cwd=ROOT)
    parts = sorted(path.name for path in (tmp_path / "local").glob("part-*.parquet"))
    assert len(parts) >= 4
    for name in parts:
        assert (tmp_path / "dask" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()

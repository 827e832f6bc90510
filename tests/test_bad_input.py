"""Bad input gets one clear line or a counted row: never a traceback, never a silent loss. All through the command."""

import io
import json
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tfrecord_files
from scene import episode, one_step_episode, write_scenes

from cli import main
from pixel160k.format.table import read_annotations
from pixel160k.tfrecord import read_records, write_records


def run(*arguments):
    """Run pixelcli; returns exit code and output, and checks that there is no traceback in it."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def run_annotate(data_dir, out, *more):
    return run("annotate", "--src", "libero", "--data-dir", data_dir, "--out", out, "--set", "annotators=motion", *more)


def reasons(out):
    return [(row.status, row.reason) for row in read_annotations(out)]


def one_line_error(output):
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert output.rstrip().endswith(line)
    return line


@pytest.fixture
def scenes(tmp_path):
    """One file of three episodes."""
    return write_scenes(tmp_path / "data", [episode(), episode(seed=1), episode(seed=2)])


def test_missing_directory(tmp_path):
    code, output = run_annotate(tmp_path / "absent", tmp_path / "out")
    assert code == 1
    assert "absent is not a directory" in one_line_error(output)


def test_empty_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    code, output = run_annotate(tmp_path / "empty", tmp_path / "out")
    assert code == 1
    assert "holds no RLDS data set" in one_line_error(output)


def test_another_sources_data(tmp_path, scenes):
    out = tmp_path / "out"
    code, output = run("annotate", "--src", "fractal", "--data-dir", scenes, "--out", out, "--set", "annotators=motion")
    assert code == 1
    assert "is not a fractal data set: its features.json lacks steps/observation/natural_language" in one_line_error(
        output
    )


def test_unknown_source(tmp_path):
    code, output = run("annotate", "--src", "nonsense", "--out", tmp_path / "out")
    assert code == 2
    assert "'nonsense' is not one of 'sample', 'bridge_orig', 'fractal', 'libero'" in output


def test_unwritable_out(tmp_path, scenes):
    (tmp_path / "file").write_text("")
    code, output = run_annotate(scenes, tmp_path / "file" / "out")
    assert code == 1
    assert "cannot write to" in one_line_error(output) and "choose another --out" in output


def test_out_that_holds_something_else(tmp_path, scenes):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    code, output = run_annotate(scenes, tmp_path / "out")
    assert code == 1
    assert "is not empty and holds no run of this kind" in one_line_error(output)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_out_that_holds_another_run(tmp_path, scenes):
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    code, output = run_annotate(scenes, tmp_path / "out", "--set", "prompts.points=5")
    assert code == 1
    assert "holds the results of another run (different: settings.prompts.points)" in one_line_error(output)
    assert {path: path.read_bytes() for path in before} == before


def test_truncated_file(tmp_path, scenes):
    (path,) = tfrecord_files(scenes)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    assert [reason for _, reason in reasons(tmp_path / "out")] == ["", "truncated_file", "truncated_file"]


def test_bad_checksum(tmp_path, scenes):
    (path,) = tfrecord_files(scenes)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    code, output = run_annotate(scenes, tmp_path / "out")
    assert code == 0
    assert reasons(tmp_path / "out") == [("failed", "malformed_record"), ("accepted", ""), ("accepted", "")]
    assert "malformed_record" in output  # counted in the summary


def test_corrupt_jpeg_in_a_good_record(tmp_path):
    data = write_scenes(tmp_path / "data", [episode(broken=[0]), episode(broken=[8]), episode()])
    assert run_annotate(data, tmp_path / "out")[0] == 0
    assert reasons(tmp_path / "out") == [("failed", "bad_image"), ("failed", "bad_image"), ("accepted", "")]
    assert [row.detail for row in read_annotations(tmp_path / "out")][1] == "step 8: the JPEG is cut short"


def test_frames_of_different_sizes(tmp_path):
    mixed = episode()
    small = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8))[1].tobytes()
    mixed["steps"][23]["observation"]["image"] = io.BytesIO(small)
    assert run_annotate(write_scenes(tmp_path / "data", [mixed, episode()]), tmp_path / "out")[0] == 0
    assert reasons(tmp_path / "out") == [("failed", "bad_image"), ("accepted", "")]
    assert next(read_annotations(tmp_path / "out")).detail == "step 23: the frame is 128x128, that of step 0 256x256"


def as_integers(features):
    features["steps/action"].Clear()
    features["steps/action"].int64_list.value.extend([1] * 7 * 24)


def as_floats(features):
    features["steps/observation/image"].Clear()
    features["steps/observation/image"].float_list.value.append(1.0)


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda features: features.pop("steps/action"), "the record lacks the feature steps/action"),
        (lambda features: features.pop("steps/is_first"), "the record lacks the feature steps/is_first"),
        (lambda features: features["steps/is_first"].Clear(), "the episode holds no steps"),
        (lambda features: features["steps/action"].Clear(), "steps/action holds 0 numbers, not 24 x 7"),
        (
            lambda features: features["steps/action"].float_list.value.pop(),
            "steps/action holds 167 numbers, not 24 x 7",
        ),
        (as_integers, "steps/action is stored as int64_list, not as float_list"),
        (as_floats, "steps/observation/image is stored as float_list, not as bytes_list"),
        (
            lambda features: features["steps/observation/image"].bytes_list.value.pop(),
            "steps/observation/image holds 23 values for 24 steps",
        ),
        (
            lambda features: features["steps/observation/state"].float_list.value.append(float("inf")),
            "steps/observation/state holds 193 numbers, not 24 x 8",
        ),
        (None, "the record is no tf.Example"),
    ],
)
def test_a_record_that_breaks_its_schema(tmp_path, scenes, damage, detail):
    from tensorflow_datasets.proto import tf_example_pb2

    (path,) = tfrecord_files(scenes)
    payloads = [record.payload for record in read_records(path)]
    example = tf_example_pb2.Example.FromString(payloads[1])
    if damage is not None:
        damage(example.features.feature)
    payloads[1] = example.SerializeToString() if damage is not None else b"\xff no protobuf"
    write_records(path, payloads)
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    assert reasons(tmp_path / "out") == [("accepted", ""), ("failed", "malformed_record"), ("accepted", "")]
    assert [row.detail for row in read_annotations(tmp_path / "out")][1] == detail


def test_a_data_set_that_does_not_say_how_many_records_it_holds(tmp_path, scenes):
    (path,) = scenes.rglob("dataset_info.json")
    path.write_text('{"name": "drawn"}')
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    assert reasons(tmp_path / "out") == [("accepted", "")] * 3


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("dataset_info.json", "{", "cannot read"),
        ("dataset_info.json", "[]", "is not as tensorflow_datasets writes it: the file: "),
        ("dataset_info.json", '{"splits": 3}', "is not as tensorflow_datasets writes it: splits: "),
        ("dataset_info.json", '{"splits": [{}]}', "is not as tensorflow_datasets writes it: splits.0.name: "),
        (
            "dataset_info.json",
            '{"splits": [{"name": "train", "shardLengths": ["many"]}]}',
            "is not as tensorflow_datasets writes it: splits.0.shardLengths.0: ",
        ),
        ("features.json", "7", "is not as tensorflow_datasets writes it: the file: "),
        ("features.json", '{"featuresDict": {"features": {"steps": []}}}', "featuresDict.features.steps: "),
        ("features.json", "{}", "is not a libero data set"),
        ("features.json", None, "cannot read"),
    ],
)
def test_descriptions_that_no_tfds_wrote(tmp_path, scenes, name, content, fault):
    (path,) = scenes.rglob(name)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    code, output = run_annotate(scenes, tmp_path / "out")
    assert code == 1
    assert fault in one_line_error(output) and (str(path) in output or content == "{}")


@pytest.mark.parametrize("content", ["", '{"job": "annot', "[]", "{}"])
def test_damaged_run_files(tmp_path, scenes, content):
    out, again = tmp_path / "out", ("--out", tmp_path / "again")
    assert run_annotate(scenes, out)[0] == 0
    for name in ("run.json", "stats.json"):
        whole = (out / name).read_text()
        (out / name).write_text(content)
        for command in (("build-shards", "--annotations", out, *again), ("annotate", "--refilter", out, *again)):
            code, output = run(*command)
            assert code == 1 and str(out / name) in one_line_error(output)
            assert not (tmp_path / "again").exists()
        (out / name).write_text(whole)
    (out / "run.json").write_text(content)
    code, output = run_annotate(scenes, out)
    assert code == 1 and (str(out / "run.json") in one_line_error(output) or content == "{}")


def test_annotations_of_an_unknown_source(tmp_path, scenes):
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    record = tmp_path / "out" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"source": "nonsense"}))
    code, output = run("build-shards", "--annotations", tmp_path / "out", "--out", tmp_path / "shards")
    assert code == 1 and "source 'nonsense'" in one_line_error(output)


def test_empty_instruction_and_one_step(tmp_path):
    data = write_scenes(
        tmp_path / "data", [episode(instruction=" "), one_step_episode(), episode(instruction="pick it up")]
    )
    assert run_annotate(data, tmp_path / "out")[0] == 0
    assert reasons(tmp_path / "out") == [
        ("rejected", "no_instruction"),
        ("rejected", "too_short"),
        ("rejected", "no_target_object"),
    ]
    code, _ = run("build-shards", "--annotations", tmp_path / "out", "--out", tmp_path / "shards", "--include", "all")
    assert code == 0
    assert run("verify", "--shards", tmp_path / "shards")[0] == 0


def test_shards_of_annotations_that_are_not_there_or_not_finished(tmp_path, scenes):
    code, output = run("build-shards", "--annotations", tmp_path, "--out", tmp_path / "shards")
    assert code == 1 and "holds no finished annotations" in one_line_error(output)
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    (tmp_path / "out" / "stats.json").unlink()
    code, output = run("build-shards", "--annotations", tmp_path / "out", "--out", tmp_path / "shards")
    assert code == 1 and "run `pixelcli annotate` to its end first" in one_line_error(output)


def test_annotations_that_do_not_belong_to_the_data(tmp_path, scenes):
    assert run_annotate(scenes, tmp_path / "out")[0] == 0
    shutil.rmtree(scenes)
    write_scenes(scenes, [episode(seed=5), episode(seed=1), episode(seed=2)])
    code, output = run("build-shards", "--annotations", tmp_path / "out", "--out", tmp_path / "shards")
    assert code == 1
    assert "the annotations do not belong to this data: record 0 has another checksum" in one_line_error(output)


def test_unknown_setting(tmp_path, scenes):
    code, output = run_annotate(scenes, tmp_path / "out", "--set", "evidence_frame=9")
    assert code == 1
    assert "unknown setting 'evidence_frame'; did you mean 'evidence_frames'?" in one_line_error(output)


def test_debug_shows_the_traceback(tmp_path):
    arguments = [
        "--debug",
        "annotate",
        "--src",
        "libero",
        "--data-dir",
        str(tmp_path / "absent"),
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, [*arguments, "--set", "annotators=motion"])
    assert isinstance(result.exception, ValueError)

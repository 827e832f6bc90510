"""The sources: every trap of the data sets, on real Bridge records and on records written in the other schemas."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import fractal_episode, jpeg, read_all, tfrecord_files
from hypothesis import given
from hypothesis import strategies as st

from annotate.sources import SOURCES, bridge_orig, fractal, sample
from annotate.sources.episode import BadImage, Episode
from annotate.sources.rlds import list_files
from pixel160k.errors import InputError
from simulation.rlds import libero_features, write_rlds


def first_close(gripper):
    """The rule of the data sets' page, written out the slow way."""
    state, states = None, []
    for value in reversed(gripper):
        state = True if value > 0.95 else False if value < 0.05 else state
        states.append(state)
    states.reverse()
    for step, state in enumerate(states):
        if state is None:
            states[step] = states[step - 1] if step else True
    return next((t for t in range(1, len(states)) if states[t - 1] and not states[t]), -1)


# bridge_orig, on the real records


def raw_bridge(bridge_dir):
    from tensorflow_datasets.proto import tf_example_pb2

    from pixel160k.tfrecord import read_records

    for path in tfrecord_files(bridge_dir):
        for record in read_records(path):
            yield record, tf_example_pb2.Example.FromString(record.payload).features.feature


def test_bridge_episodes_are_the_records(bridge_dir):
    episodes = read_all("bridge_orig", bridge_dir)
    assert [episode.identity.episode_id for episode in episodes] == [
        f"bridge_orig-train-{shard:05d}-{record:05d}" for shard in range(2) for record in range(6)
    ]
    assert len({episode.native_id for episode in episodes}) == 12
    for episode, (record, raw) in zip(episodes, raw_bridge(bridge_dir), strict=True):
        action = np.array(raw["steps/action"].float_list.value, np.float32).reshape(-1, 7)
        state = np.array(raw["steps/observation/state"].float_list.value, np.float32).reshape(-1, 7)
        assert list(episode.images) == list(raw["steps/observation/image_0"].bytes_list.value)
        assert episode.identity.record_crc32c == record.masked_crc32c
        assert (episode.close_steps or [-1])[0] == first_close(action[:, 6])
        assert (episode.first_step, episode.last_step) == (1, len(action) - 2)
        valid = slice(1, len(action) - 1)
        np.testing.assert_array_equal(episode.actions[valid, :6], state[2:, :6] - state[1:-1, :6])
        assert set(np.unique(episode.actions[:, 6])) <= {0.0, 1.0}
        assert episode.frame(1).shape == (64, 64, 3)


def test_bridge_scene_is_the_viewpoint(bridge_dir):
    viewpoints = {episode.viewpoint for episode in read_all("bridge_orig", bridge_dir)}
    assert all(viewpoint.endswith("#image_0") and "out.npy" not in viewpoint for viewpoint in viewpoints)
    assert len(viewpoints) == 1  # all twelve are of toysink2_bww


def test_bridge_blank_camera_is_detected_whatever_has_image_says(bridge_dir):
    episode = read_all("bridge_orig", bridge_dir, camera="image_3")[0]  # its has_image_0 is 0 as well, and untrue
    with pytest.raises(BadImage, match="step 1: the frame is blank"):
        episode.frame(1)


@pytest.mark.parametrize(
    ("gripper", "states"),
    [
        ([1, 1, 0.5, 0, 0], [1, 1, 0, 0, 0]),  # undecided: the next decided value
        ([0, 0.5, 1, 0.5, 0.5, 0], [0, 1, 1, 0, 0, 0]),
        ([1, 0, 0.5, 0.5], [1, 0, 0, 0]),  # a trailing undecided run holds the last decided value
        ([0.5, 0.5], [1, 1]),  # nothing decided: open
        ([0.95, 0.05, 1], [1, 1, 1]),  # the bounds themselves are undecided
    ],
)
def test_bridge_gripper_rule(gripper, states):
    assert bridge_orig.is_open(np.array(gripper, np.float32)).tolist() == [bool(state) for state in states]


# fractal, on records written in its schema


def test_fractal_schema_and_conventions(write_fractal):
    (episode,) = read_all("fractal", write_fractal([fractal_episode([0, 0, 1, 0, 0, -1])]))
    assert isinstance(episode, Episode)
    assert episode.identity.episode_id == "fractal20220817_data-train-00000-00000"
    np.testing.assert_array_equal(episode.actions[2], [2, 2, 3, 4, 5, 6, 0])
    assert episode.gripper_open.tolist() == [True, True, False, False, False, True]
    assert episode.close_steps == [2]
    assert (episode.first_step, episode.last_step, episode.num_steps) == (0, 5, 6)
    assert episode.state.shape == (6, 8) and episode.state[0, 7] == 0.25
    assert episode.images[3] == jpeg(3)  # the very bytes
    assert not episode.base_moves


@pytest.mark.parametrize(
    ("commands", "states"),
    [
        ([0, 0, 0], [1, 1, 1]),  # no command at all: open
        ([0, -1, 0], [0, 1, 1]),  # before the first command: its opposite
        ([0.1, 0.11, -0.1, -0.2], [1, 0, 0, 1]),  # only beyond ±0.1
        ([1, 0, -1, 0, 1], [0, 0, 1, 1, 0]),
    ],
)
def test_fractal_gripper_is_relative(commands, states):
    assert fractal.is_open(np.array(commands, np.float32)).tolist() == [bool(state) for state in states]


@given(st.lists(st.sampled_from([-1.0, -0.05, 0.0, 0.05, 1.0]), min_size=1, max_size=30))
def test_fractal_gripper_against_the_scan_it_stands_for(commands):
    state = next((command > 0.1 for command in commands if abs(command) > 0.1), True)
    expected = []
    for command in commands:
        state = command < 0 if abs(command) > 0.1 else state
        expected.append(state)
    assert fractal.is_open(np.array(commands, np.float32)).tolist() == expected


def test_fractal_very_short_episode_and_moving_base(write_fractal):
    short, driving = read_all("fractal", write_fractal([fractal_episode([0, 0]), fractal_episode([0, 1], base=0.1)]))
    assert (short.num_steps, short.close_steps) == (2, [])
    assert driving.base_moves


# libero, on records written in its schema


def libero_episode(gripper, instruction="pick up the milk and place it in the basket"):
    images = [jpeg(step, 256, 256) for step in range(len(gripper))]
    return {
        "steps": [
            {
                "observation": {
                    "image": image,
                    "wrist_image": image,
                    "state": np.arange(8, dtype=np.float32),
                    "joint_state": np.zeros(7, np.float32),
                },
                "action": np.array([1, 2, 3, 4, 5, 6, command], np.float32),
                "discount": 1.0,
                "reward": 0.0,
                "is_first": step == 0,
                "is_last": step == len(gripper) - 1,
                "is_terminal": False,
                "language_instruction": instruction,
            }
            for step, (command, image) in enumerate(zip(gripper, images, strict=True))
        ],
        "episode_metadata": {"file_path": "demo_0"},
    }


def test_libero_gripper_and_name(tmp_path):
    episodes = [libero_episode([-1, -1, 1, 1, -1])]
    write_rlds(tmp_path, "libero_object_no_noops", "1.0.0", libero_features(), {"train": [episodes]})
    (episode,) = read_all("libero", tmp_path)
    assert episode.identity.episode_id == "libero_object_no_noops-train-00000-00000"  # the directory's own name
    assert episode.actions[:, 6].tolist() == [1, 1, 0, 0, 1]
    assert episode.close_steps == [2]
    assert episode.instruction == "pick up the milk and place it in the basket"


# what holds for all


def bridge_opening(readings):
    """Bridge's own rule for commands, those between open and closed among them."""
    return bridge_orig.is_open(np.array(readings, np.float32))


def fractal_opening(commands):
    return fractal.is_open(np.array(commands, np.float32))


@pytest.mark.parametrize(
    ("gripper_open", "fingers", "grasps"),
    [
        # step:          0  1  2  3  4  5  6  7; the arm rises 2 cm a step, so a lift of 3 cm takes two
        (fractal_opening([0, 1, 0, -1, 0, 1, 0, 0]), None, [(1, 3, 3, None), (5, 8, 7, None)]),
        (bridge_opening([1, 0.5, 0, 0.4, 1, 1, 0.3, 0]), None, [(1, 3, 3, None), (6, 8, -1, None)]),
        (bridge_opening([1, 0, 0, 0, 1, 0, 0, 0]), [1, 0.9, 0, 0, 0.9, 1, 0.4, 0.3], [(1, 4, 3, True), (5, 8, 7, True)]),
        (bridge_opening([1, 0, 0, 0, 0, 1, 0, 0]), [1, 0.5, 0, 0, 0, 0, 0.6, 0.6], [(1, 5, 3, False), (6, 8, -1, True)]),
        (bridge_opening([1, 0, 0, 0, 0, 0, 0, 0]), [0.25] * 8, [(1, 8, 3, None)]),  # a reading that never moves
        (bridge_opening([0, 0, 0, 1, 1, 1, 1, 1]), None, []),  # closed from the start is no close
    ],
)  # fmt: skip
def test_grasps_are_told_by_states(write_fractal, gripper_open, fingers, grasps):
    (episode,) = read_all("fractal", write_fractal([fractal_episode([0] * 8)]))
    fingers = None if fingers is None else np.array(fingers, np.float32)
    episode = dataclasses.replace(episode, gripper_open=gripper_open, finger_opening=fingers)
    found = episode.grasps(lift_distance=0.03, least_opening=0.03)
    assert [(grasp.close, grasp.release, grasp.lift, grasp.holds) for grasp in found] == grasps
    assert episode.close_steps == [grasp.close for grasp in found]


def test_each_source_says_how_far_the_fingers_are_apart(bridge_dir, write_fractal):
    bridge = read_all("bridge_orig", bridge_dir)[5]  # its fingers close in the last steps
    assert bridge.finger_opening[0] == pytest.approx(1, abs=0.01) and 0.5 < bridge.finger_opening[-1] < 0.6
    (robot,) = read_all("fractal", write_fractal([fractal_episode([0, 1])]))
    np.testing.assert_array_equal(robot.finger_opening, [0.75, 0.75])  # its state says how far they are closed
    simulated = read_all("sample", sample.default_directory())[0]
    assert simulated.finger_opening.max() == pytest.approx(0.08, abs=0.002)  # metres


def test_nothing_is_decoded_that_is_not_asked_for(write_fractal, monkeypatch):
    import cv2

    decoded = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *args: decoded.append(1) or real(*args))
    (episode,) = read_all("fractal", write_fractal([fractal_episode([0, 1, 0])]))
    assert not decoded
    episode.frame(0)  # the first with this head is looked at more closely
    decoded.clear()
    episode.frame(1)
    assert len(decoded) == 1


def test_a_value_that_is_not_finite_is_a_malformed_record(write_fractal):
    broken = fractal_episode([0, 1])
    broken["steps"][1]["action"]["world_vector"] = np.array([np.nan, 0, 0], np.float32)
    good, bad = read_all("fractal", write_fractal([fractal_episode([0, 1]), broken]))
    assert isinstance(good, Episode)
    assert (bad.status, bad.reason) == ("failed", "malformed_record")
    assert "steps/action/world_vector" in bad.detail


def renamed(directory, name, info):
    """The data set in `directory` under another folder, and with another name in its dataset_info.json ("" for none)."""
    description = json.loads((directory / "dataset_info.json").read_text()) | {"name": info}
    (directory / "dataset_info.json").write_text(json.dumps(description))
    target = directory.parents[1] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    directory.rename(target)
    return target


@pytest.mark.parametrize(
    ("folder", "info", "found"),
    [
        ("toy/1.0.0", "toy", "toy"),
        ("home/user/1.0.0", "toy", "toy"),  # copied without its name
        ("home/user", "toy", "toy"),  # without its version
        ("libero_10_no_noops/1.0.0", "liber_o10", "libero_10_no_noops"),  # as OpenVLA's copies are
        ("libero_10_no_noops", "liber_o10", "libero_10_no_noops"),
        ("my-copy/1.0.0", "toy", "toy"),
        ("toy/1.0.0", "my-toy", None),
        ("toy/1.0.0", "", None),
    ],
)
def test_a_data_set_is_called_as_it_says_wherever_it_lies(tmp_path, folder, info, found):
    write_rlds(tmp_path, "toy", "1.0.0", libero_features(), {"train": [[libero_episode([-1, 1])]]})
    directory = renamed(tmp_path / "toy" / "1.0.0", folder, info)
    if found is None:
        with pytest.raises(InputError, match="may hold only letters, digits and _; write another `name` into"):
            list_files(SOURCES["libero"], directory)
    else:
        (file,) = list_files(SOURCES["libero"], directory)
        assert (file.dataset, file.split, file.version) == (found, "train", "1.0.0")


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ("toy-train-extra.tfrecord-00000-of-00001", "the split's name 'train-extra' may hold only"),
        ("toy-train.tfrecord-00001-of-00002", "mixes two copies of split 'train'"),
        ("copy-train.tfrecord-00000-of-00001", "mixes two copies of split 'train'"),
    ],
)
def test_files_that_do_not_belong_together_are_one_line(tmp_path, other, fault):
    write_rlds(tmp_path, "toy", "1.0.0", libero_features(), {"val": [[libero_episode([-1, 1])]]})
    (val,) = tfrecord_files(tmp_path)
    for name in ("toy-train.tfrecord-00000-of-00001", other):
        (val.parent / name).write_bytes(val.read_bytes())
    with pytest.raises(InputError, match=fault):
        list_files(SOURCES["libero"], tmp_path)
    assert [file.split for file in list_files(SOURCES["libero"], tmp_path, "val")] == ["val"]


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab", "a Git LFS pointer and not the data"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (bytes(99), "filled with zeros"),
        (b"\x1f\x8b\x08" + bytes(range(60)), "compressed by gzip"),
        (b"", "the file is empty"),
        (b"anything else" * 9, "the length checksum does not match"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_is_not_the_data_says_what_it_is(write_fractal, content, detail, known):
    """One row for each record that it should hold, or one where nobody says how many; the file beside it is read."""
    data_dir = write_fractal([fractal_episode([0, 1]), fractal_episode([1, 0])], [fractal_episode([0, 1])])
    tfrecord_files(data_dir)[0].write_bytes(content)
    if not known:
        (info,) = data_dir.rglob("dataset_info.json")
        info.write_text("{}")
    *lost, good = read_all("fractal", data_dir)
    assert isinstance(good, Episode) and len(lost) == (2 if known else 1)
    assert all(row.status == "failed" and detail in row.detail for row in lost)


def test_a_camera_is_asked_for_only_where_it_is_there(tmp_path):
    write_rlds(tmp_path, "toy", "1.0.0", libero_features(), {"train": [[libero_episode([-1, 1])]]})
    (path,) = tmp_path.rglob("features.json")
    path.write_text(path.read_text().replace('"wrist_image"', '"another"'))
    assert len(read_all("libero", tmp_path)) == 1
    with pytest.raises(InputError, match="has no camera 'wrist_image'"):
        list_files(SOURCES["libero"], tmp_path, cameras=["wrist_image"])


def test_a_file_cut_between_records_is_noticed(write_fractal):
    data_dir = write_fractal([fractal_episode([0, 1]), fractal_episode([1, 0]), fractal_episode([0, 1])])
    (path,) = tfrecord_files(data_dir)
    whole = path.read_bytes()
    first = 16 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:first])
    good, *lost = read_all("fractal", data_dir)
    assert isinstance(good, Episode)
    assert [(row.record, row.status, row.reason) for row in lost] == [
        (1, "failed", "truncated_file"),
        (2, "failed", "truncated_file"),
    ]


def test_partial_download_keeps_its_file_numbers(write_fractal):
    data_dir = write_fractal(*([fractal_episode([0, 1])] for _ in range(3)))
    tfrecord_files(data_dir)[0].unlink()
    assert [episode.identity.shard for episode in read_all("fractal", data_dir)] == [1, 2]


def test_the_sample_is_found_without_a_directory():
    episodes = read_all("sample", sample.default_directory())
    assert 12 <= len(episodes) <= 16
    assert len({episode.identity.shard for episode in episodes}) >= 4
    assert all(isinstance(episode, Episode) and episode.close_steps[0] > 0 for episode in episodes)


def test_features_json_is_the_schema_that_tfds_reads(write_fractal):
    import tensorflow_datasets as tfds

    data_dir = write_fractal([fractal_episode([0, 1])])
    builder = tfds.builder_from_directory(data_dir / "fractal20220817_data" / "0.1.0")
    assert builder.info.splits["train"].num_examples == 1
    saved = json.loads((data_dir / "fractal20220817_data" / "0.1.0" / "features.json").read_text())
    assert "featuresDict" in saved

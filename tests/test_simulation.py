"""The simulator's room: thinning, RLDS and truth files, perturbed sets, the shipped sample; one slow recording."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pixel160k.errors import InputError
from pixel160k.format.masks import area, encode, iou
from pixel160k.tfrecord import read_records
from simulation import libero, recording, truth, two_alike
from simulation.demonstration import Demonstration, attempt_until_solved
from simulation.environment import AGENT_VIEW, CLOSE, OPEN, TaskEnvironment
from simulation.grasping import GRASP_VARIATIONS, WIDEST_GRASP, downward_rotation, plan_grasp
from simulation.libero import PICK_AND_PLACE_TASKS, category_of
from simulation.perturb import cut_before_home, shake_camera
from simulation.policy import Attempt
from simulation.recording import draw_scenes, record_data_set, record_sample
from simulation.rlds import encode_episode, find_dataset, libero_features, read_libero_episodes, write_rlds
from simulation.rotations import (
    compose_rotations,
    matrix_from_vector,
    multiply_quaternions,
    quaternion_from_vector,
    vector_from_matrix,
    vector_from_quaternion,
)
from simulation.thinning import ROTATION_UNIT, thin_actions
from simulation.two_alike import record_two_alike

SAMPLE = Path(__file__).parents[1] / "simulation" / "sample"

unit = st.floats(-1, 1, width=32)
actions_strategy = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(7)), elements=unit)


def matrix_of(vector):
    """Rodrigues' formula, as an independent check of the quaternions."""
    angle = np.linalg.norm(vector)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def fake_episode(steps, seed=0):
    """An episode of `libero_features()` with random contents and real JPEG bytes."""
    random = np.random.default_rng(seed)

    def image():
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=30)
        return io.BytesIO(buffer.getvalue())

    return {
        "steps": [
            {
                "observation": {
                    "image": image(),
                    "wrist_image": image(),
                    "state": random.normal(size=8).astype(np.float32),
                    "joint_state": random.normal(size=7).astype(np.float32),
                },
                "action": random.normal(size=7).astype(np.float32),
                "discount": 1.0,
                "reward": float(number == steps - 1),
                "is_first": number == 0,
                "is_last": number == steps - 1,
                "is_terminal": number == steps - 1,
                "language_instruction": "put the bowl on the plate",
            }
            for number in range(steps)
        ],
        "episode_metadata": {"file_path": f"fake/{seed}"},
    }


def sample_episodes(directory):
    """The episodes of a recorded set by episode id."""
    folder = find_dataset(directory)
    return {
        f"{folder.parent.name}-train-{file:05d}-{number:05d}": episode
        for file, path in enumerate(sorted(folder.glob("*.tfrecord-*")))
        for number, episode in enumerate(read_libero_episodes(path))
    }


@pytest.fixture(scope="module")
def shipped():
    """The shipped sample: (episodes, truths), both by episode id."""
    return sample_episodes(SAMPLE), truth.read(SAMPLE / truth.FILE_NAME)


# --- rotations and thinning


@given(hnp.arrays(np.float64, 3, elements=st.floats(-1.7, 1.7)))
def test_rotation_representations_agree(vector):
    matrix = matrix_of(vector)
    back = vector_from_quaternion(quaternion_from_vector(vector))
    np.testing.assert_allclose(matrix_of(back), matrix, atol=1e-9)
    np.testing.assert_allclose(matrix_of(vector_from_matrix(matrix)), matrix, atol=1e-6)
    np.testing.assert_allclose(matrix_from_vector(vector), matrix, atol=1e-9)


def test_half_turns_survive_the_matrix():
    for axis in np.eye(3):
        matrix = matrix_of(np.pi * axis)
        np.testing.assert_allclose(matrix_of(vector_from_matrix(matrix)), matrix, atol=1e-9)


@given(hnp.arrays(np.float64, (5, 3), elements=st.floats(-1, 1)))
def test_composition_applies_the_first_rotation_first(vectors):
    expected = np.eye(3)
    for vector in vectors:
        expected = matrix_of(vector) @ expected
    np.testing.assert_allclose(matrix_of(compose_rotations(vectors)), expected, atol=1e-9)


@given(actions_strategy, st.sampled_from([1, 2, 4]))
def test_thinned_actions_do_the_same_as_all(actions, window):
    thinned = thin_actions(actions, window)
    assert thinned.shape == (-(-len(actions) // window), 7) and thinned.dtype == np.float32
    np.testing.assert_allclose(thinned[:, :3].sum(0), actions[:, :3].astype(np.float64).sum(0), atol=1e-4)

    def whole_rotation(some):
        total = np.array([1.0, 0, 0, 0])
        for vector in some[:, 3:6].astype(np.float64):
            total = multiply_quaternions(quaternion_from_vector(vector * ROTATION_UNIT), total)
        return matrix_of(vector_from_quaternion(total))

    np.testing.assert_allclose(whole_rotation(thinned), whole_rotation(actions), atol=1e-5)


@given(st.integers(0, 30), st.integers(14, 30))
def test_thinning_keeps_the_grasp_in_its_window(opened, closed):
    actions = np.zeros((opened + closed, 7), dtype=np.float32)
    actions[:, 6] = [OPEN] * opened + [CLOSE] * closed
    assert np.argmax(thin_actions(actions, 4)[:, 6] == CLOSE) == opened // 4


def test_full_rate_changes_nothing():
    actions = np.random.default_rng(0).uniform(-1, 1, (9, 7)).astype(np.float32)
    np.testing.assert_array_equal(thin_actions(actions, 1), actions)


# --- choosing scenes and grasps


@pytest.mark.parametrize("suite", PICK_AND_PLACE_TASKS)
def test_every_task_is_drawn_once_before_any_again(suite):
    scenes = list(draw_scenes(suite, seed=3))
    tasks = PICK_AND_PLACE_TASKS[suite]
    assert scenes == list(draw_scenes(suite, seed=3)) != list(draw_scenes(suite, seed=4))
    assert len(set(scenes)) == len(scenes) == 50 * len(tasks)
    assert {scene.task_id for scene in scenes[: len(tasks)]} == set(tasks)


@pytest.mark.parametrize("suite", PICK_AND_PLACE_TASKS)
def test_no_restriction_draws_what_was_always_drawn(suite):
    random = np.random.default_rng([7, sorted(PICK_AND_PLACE_TASKS).index(suite)])
    orders = {task: random.permutation(50) for task in PICK_AND_PLACE_TASKS[suite]}
    always = [
        (int(task), int(orders[task][turn]))
        for turn in range(50)
        for task in random.permutation(PICK_AND_PLACE_TASKS[suite])
    ]
    assert [(scene.task_id, scene.initial_state) for scene in draw_scenes(suite, seed=7)] == always


def test_restricted_scenes_are_all_of_their_tasks_and_states():
    scenes = list(draw_scenes("libero_goal", 3, tasks=(8, 1), initial_states=range(30, 35)))
    assert len(set(scenes)) == len(scenes) == 10
    assert {scene.task_id for scene in scenes} == {1, 8}
    assert {scene.initial_state for scene in scenes} == set(range(30, 35))


def cylinder(radius, height):
    angles = np.linspace(0, 2 * np.pi, 60)
    ring = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    return np.concatenate([np.column_stack([ring, np.full(60, z)]) for z in np.linspace(0, height, 12)])


def test_narrow_objects_are_grasped_across_and_bowls_by_the_rim():
    shoulder, nothing, carry = np.array([-0.6, 0, 0.3]), np.full((1, 3), 9.0), np.array([0, 0.2, 0])
    can = plan_grasp(cylinder(0.03, 0.1), nothing, carry, shoulder, GRASP_VARIATIONS[0])
    assert can.kind == "across" and np.linalg.norm(can.tool[:2]) < 1e-3
    bowl = plan_grasp(cylinder(WIDEST_GRASP, 0.05), nothing, carry, shoulder, GRASP_VARIATIONS[0])
    assert bowl.kind == "rim" and 0.06 < np.linalg.norm(bowl.tool[:2]) < WIDEST_GRASP


def test_a_grasp_turns_away_from_a_neighbour():
    shoulder, carry = np.array([-0.6, 0, 0.3]), np.array([0, 0.2, 0])
    beside = cylinder(0.02, 0.1) + np.array([0, 0.055, 0])  # where the fingers of an unturned hand would go
    grasp = plan_grasp(cylinder(0.02, 0.1), beside, carry, shoulder, GRASP_VARIATIONS[0])
    in_hand = (beside - grasp.tool) @ downward_rotation(grasp.yaw)
    assert np.abs(in_hand[:, 0]).min() > 0.02


# --- files


def test_written_rlds_loads_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    episodes = [fake_episode(3, seed) for seed in range(3)]
    jpegs = [episode["steps"][1]["observation"]["image"].getvalue() for episode in episodes]
    write_rlds(tmp_path, "fake_set", "0.1.0", libero_features(), {"train": [episodes[:2], episodes[2:]], "val": [[]]})

    folder = tmp_path / "fake_set" / "0.1.0"
    builder = tfds.builder_from_directory(str(folder))
    assert builder.info.splits["train"].num_examples == 3
    assert builder.info.splits["train"].shard_lengths == [2, 1]
    records = [
        record for path in sorted(folder.glob("fake_set-train.tfrecord-*-of-00002")) for record in read_records(path)
    ]
    assert [record.fault for record in records] == [""] * 3
    skip = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    for record, jpeg in zip(records, jpegs, strict=True):
        steps = list(builder.info.features.deserialize_example_np(record.payload, decoders=skip)["steps"])
        assert len(steps) == 3 and steps[1]["observation"]["image"] == jpeg
        assert steps[0]["observation"]["wrist_image"].shape == (256, 256, 3)


def test_episode_survives_reading_and_encoding_again(tmp_path):
    features = libero_features()
    write_rlds(tmp_path, "fake_set", "1.0.0", features, {"train": [[fake_episode(4)]]})
    (path,) = find_dataset(tmp_path).glob("*.tfrecord-*")
    (record,) = read_records(path)
    (episode,) = read_libero_episodes(path)
    assert encode_episode(episode, features) == record.payload


def some_truth(episode_id="set-train-00000-00000"):
    mask = np.zeros((256, 256), dtype=bool)
    mask[10:20, 30:50] = True
    step = truth.StepTruth(encode(~mask), encode(mask), {"plate_1": encode(mask.T), "robot_arm": encode(mask)})
    return truth.EpisodeTruth(
        episode_id,
        "libero_goal",
        8,
        3,
        "put the bowl on the plate",
        "akita_black_bowl_1",
        "bowl",
        5,
        4,
        9,
        1,
        [step] * 2,
    )


def test_truth_round_trip(tmp_path):
    rows = [some_truth(), some_truth("set-train-00000-00001")]
    truth.write(rows, tmp_path / "a.parquet", {})
    truth.write(rows, tmp_path / "b.parquet", {})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = truth.read(tmp_path / "a.parquet")
    assert list(back.values()) == rows and list(back) == [row.episode_id for row in rows]
    first = back["set-train-00000-00000"]
    assert first.mask(0).sum() == 200 and first.mask(0, "akita_black_bowl_1").sum() == 200
    assert first.mask(1, "gripper").sum() == 256 * 256 - 200 and first.mask(1, "plate_1")[30:50, 10:20].all()
    assert not first.mask(0, "not_there").any()


def test_what_is_no_truth_table_is_named(tmp_path):
    torn, other = tmp_path / "torn.parquet", tmp_path / "other.parquet"
    torn.write_bytes((SAMPLE / truth.FILE_NAME).read_bytes()[:-100])
    pq.write_table(pa.table({"episode_id": ["a"]}), other)
    for path, message in ((torn, "cannot read"), (tmp_path / "missing", "cannot read"), (other, "is no truth table")):
        with pytest.raises(InputError, match=message) as error:
            truth.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("instance", "instruction", "phrase"),
    [
        ("akita_black_bowl_1", "pick up the black bowl between the plate and the ramekin", "black bowl"),
        ("akita_black_bowl_1", "put the bowl on the plate", "bowl"),
        ("wine_bottle_1", "Put the wine bottle on top of the cabinet", "wine bottle"),
        ("porcelain_mug_1", "put the white cup down", ""),
    ],
)
def test_target_phrase(instance, instruction, phrase):
    assert truth.phrase_of(category_of(instance), instruction) == phrase


# --- the shipped sample


def test_shipped_sample_is_whole(shipped):
    episodes, truths = shipped
    folder = find_dataset(SAMPLE)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert 12 <= len(episodes) <= 16
    assert list(episodes) == list(truths)
    lengths = [int(length) for length in info["splits"][0]["shardLengths"]]
    assert len(lengths) >= 4 and sum(lengths) == len(episodes)
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= 12e6
    assert {row.suite for row in truths.values()} == set(PICK_AND_PLACE_TASKS)


def test_shipped_sample_has_the_schema_of_libero(shipped):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(find_dataset(SAMPLE))).info
    assert info.features.to_json() == libero_features().to_json()
    for episode in shipped[0].values():
        steps = episode["steps"]
        for step in (steps[0], steps[-1]):
            for camera in ("image", "wrist_image"):
                assert Image.open(step["observation"][camera]).size == (256, 256)
        assert [bool(step["is_first"]) for step in steps] == [True] + [False] * (len(steps) - 1)
        assert [bool(step["is_last"]) for step in steps] == [False] * (len(steps) - 1) + [True]


def test_shipped_truth_fits_its_episodes(shipped):
    for identifier, episode in shipped[0].items():
        row = shipped[1][identifier]
        steps = episode["steps"]
        grippers = [float(step["action"][6]) for step in steps]
        assert len(row.steps) == len(steps)
        assert row.instruction == steps[0]["language_instruction"].decode()
        assert row.target_phrase and row.target_phrase in row.instruction
        assert row.grasp_step == grippers.index(CLOSE) <= row.contact_step < row.home_step < len(steps)
        assert all(area(step.gripper) > 0 for step in (row.steps[0], row.steps[-1]))
        assert row.mask(0).sum() >= 40
        assert not (row.mask(0) & row.mask(0, "gripper")).any() and row.mask(0, "robot_arm").any()


def test_shipped_demonstrations_end_where_they_began(shipped):
    for identifier, episode in shipped[0].items():
        first, last = (episode["steps"][index]["observation"]["state"] for index in (0, -1))
        assert np.linalg.norm(first[:3] - last[:3]) < 0.03
        row = shipped[1][identifier]
        assert (row.mask(0) & row.mask(len(row.steps) - 1)).sum() < 0.5 * row.mask(0).sum()  # the object has moved


# --- perturbed sets


def test_cut_ends_where_the_way_home_begins(tmp_path, shipped):
    cut_before_home(SAMPLE, tmp_path / "cut")
    episodes, truths = sample_episodes(tmp_path / "cut"), truth.read(tmp_path / "cut" / truth.FILE_NAME)
    assert list(episodes) == list(truths) == list(shipped[0])
    for identifier, episode in episodes.items():
        row, before = truths[identifier], shipped[0][identifier]["steps"]
        assert len(episode["steps"]) == len(row.steps) == row.home_step
        assert bool(episode["steps"][-1]["is_last"]) and bool(episode["steps"][-1]["is_terminal"])
        assert not any(bool(step["is_last"]) for step in episode["steps"][:-1])
        for step, old in zip(episode["steps"], before, strict=False):
            assert step["observation"]["image"].getvalue() == old["observation"]["image"].getvalue()
        assert row == replace(shipped[1][identifier], steps=shipped[1][identifier].steps[: row.home_step])


def test_shaken_images_and_masks_move_together(tmp_path, shipped):
    shake_camera(SAMPLE, tmp_path / "shaken", pixels=3, seed=5)
    episodes, truths = sample_episodes(tmp_path / "shaken"), truth.read(tmp_path / "shaken" / truth.FILE_NAME)
    identifier = next(iter(shipped[0]))
    before, after = shipped[0][identifier]["steps"], episodes[identifier]["steps"]
    assert after[0]["observation"]["image"].getvalue() == before[0]["observation"]["image"].getvalue()
    moves = set()
    for step in range(1, 12):
        old, new = (np.asarray(Image.open(s[step]["observation"]["image"]), dtype=int) for s in (before, after))
        x, y = best_move(old, new)
        moves.add((x, y))
        old_mask, new_mask = shipped[1][identifier].mask(step), truths[identifier].mask(step)
        np.testing.assert_array_equal(np.roll(old_mask, (y, x), (0, 1))[8:-8, 8:-8], new_mask[8:-8, 8:-8])
    assert len(moves) > 5


def best_move(old, new):
    """The whole-pixel move that explains `new` best."""
    moves = [(x, y) for x in range(-3, 4) for y in range(-3, 4)]
    inner = (slice(8, -8), slice(8, -8))
    return min(moves, key=lambda m: np.abs(np.roll(old, (m[1], m[0]), (0, 1))[inner] - new[inner]).mean())


def test_a_perturbed_set_is_never_mixed_into_another(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(InputError, match="is not empty; choose a new --out"):
        cut_before_home(SAMPLE, tmp_path)
    with pytest.raises(InputError, match="holds 0 finished RLDS data sets"):
        shake_camera(tmp_path / "nowhere", tmp_path / "new")


# --- recording


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suites": "libero_kitchen"}, "unknown LIBERO suite 'libero_kitchen': choose one of libero_object"),
        ({"suites": []}, "no suite given"),
        ({"episodes": 0}, "ask for at least 1"),
        ({"files": 3}, "ask for 1 to 2 files"),
        ({"hz": 3}, "cannot record at 3 Hz"),
        ({"out": SAMPLE}, "is not empty; choose a new --out"),
        ({"tasks": {"libero_goal": [1]}}, "'libero_goal', which is not among the recorded suites"),
        ({"tasks": {"libero_object": [10]}}, r"cannot record tasks \[10\] of libero_object"),
        ({"tasks": {"libero_object": []}}, r"cannot record tasks \[\] of libero_object"),
        ({"tasks": {"libero_object": [1, 1]}}, "each once"),
        ({"initial_states": range(40, 60)}, r"cannot draw from initial states range\(40, 60\)"),
        ({"initial_states": range(0)}, "cannot draw from initial states"),
    ],
)
def test_impossible_requests_are_named(tmp_path, change, message):
    request = {"suites": "libero_object", "episodes": 2, "seed": 0, "out": tmp_path, "files": 1, "hz": 5} | change
    with pytest.raises(InputError, match=message) as error:
        record_sample(**request)
    assert "\n" not in str(error.value)


def test_missing_libero_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    for module in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "libero", None)
    with pytest.raises(InputError, match=r"pip install 'pixelvla\[sim\]'"):
        record_sample("libero_object", 1, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_renderer_that_does_not_start_is_one_line(monkeypatch):
    """Of an unknown name it is said as LIBERO is imported; of one without a device as the environment is made."""
    asked = "from simulation.libero import import_libero\nimport_libero()"
    environment = os.environ | {"MUJOCO_GL": "cpu"}
    failed = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    assert "InputError: the simulator's renderer does not start with MUJOCO_GL=cpu (invalid value" in failed.stderr
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    libero.import_libero()
    monkeypatch.setattr("OpenGL.osmesa.OSMesaCreateContextExt", lambda *_: None)
    with pytest.raises(
        InputError, match=r"MUJOCO_GL=osmesa \(Failed to create .* context\): osmesa, on the CPU, wants lib"
    ):
        TaskEnvironment("libero_object", 0)


def test_another_mujoco_is_refused_by_name_unless_allowed(tmp_path, monkeypatch):
    """Under another version the scenes are not those that others evaluate in."""
    monkeypatch.setattr(libero, "version", lambda distribution: "3.17.0")
    with pytest.raises(
        InputError, match=r"MuJoCo 3\.17\.0 .* pip install mujoco==3\.3\.2, or .* PIXELVLA_ANY_MUJOCO=1"
    ):
        record_sample("libero_object", 1, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv(libero.ANY_MUJOCO, "1")
    libero.import_libero()


def test_the_shipped_sample_says_which_simulator_made_it():
    versions = truth.read_versions(SAMPLE / truth.FILE_NAME)
    assert versions["mujoco"] == libero.MUJOCO_VERSION and len(versions) == 3
    info = json.loads((SAMPLE / "libero_sample" / "1.0.0" / "dataset_info.json").read_text(encoding="utf-8"))
    assert all(f"{name} {number}" in info["description"] for name, number in versions.items())


class FakeEnvironment:
    """Stands in for a `TaskEnvironment`; `solve_fake` reads its task."""

    def __init__(self, suite, task_id, target):
        self.suite, self.task_id, self.target, self.instruction = suite, task_id, target, "put it there"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture()
def without_simulator(monkeypatch):
    """Recording with the simulator replaced; returns the set of tasks whose attempts are to fail, empty at first."""
    hopeless = set()

    def solve(environment, initial_state, mishap):
        task = environment.suite, environment.task_id
        if task in hopeless or (*task, environment.target) in hopeless:
            return [Attempt(failure="too hard")] * len(GRASP_VARIATIONS)
        return [Attempt(failure="bad luck"), Attempt(solved=True)]

    def render(environment, initial_state, attempts, episode_id, hz, mishap):
        target = environment.target or "black_bowl_1"
        row = replace(
            some_truth(episode_id), suite=environment.suite, task_id=environment.task_id, initial_state=initial_state,
            target_instance=target, instruction=f"{environment.instruction} {mishap}".strip(),
        )  # fmt: skip
        return Demonstration(fake_episode(2, initial_state), row)

    monkeypatch.setattr(recording, "import_libero", lambda: None)
    monkeypatch.setattr(two_alike, "import_libero", lambda: None)
    monkeypatch.setattr(recording, "TaskEnvironment", FakeEnvironment)
    monkeypatch.setattr(recording, "attempt_until_solved", solve)
    monkeypatch.setattr(recording, "render_demonstration", render)
    return hopeless


def test_failed_episodes_are_counted_and_replaced(tmp_path, without_simulator):
    suites = ["libero_object", "libero_goal"]
    without_simulator.update({("libero_goal", 1), ("libero_goal", 4)})
    progress = []
    summary = record_sample(suites, 11, 0, tmp_path, files=3, progress=lambda done, asked: progress.append(done))
    rows = truth.read(tmp_path / truth.FILE_NAME)
    assert [row.suite for row in rows.values()] == [suites[number % 2] for number in range(11)]
    assert list(rows) == list(sample_episodes(tmp_path)) and len(rows) == 11
    assert list(rows)[-1] == "libero_simulated-train-00002-00002"
    assert progress == list(range(1, 12))
    failed = [counts for task, counts in summary.tasks.items() if task in without_simulator]
    assert failed and all(counts.recorded == 0 < counts.failed_episodes for counts in failed)
    total = summary.total()
    assert total.recorded == 11 and total.attempts == total.failed_attempts + 11
    assert total.failed_attempts == 11 + len(GRASP_VARIATIONS) * total.failed_episodes
    assert summary.total("libero_object").failed_episodes == 0


def test_recording_keeps_to_its_tasks_and_states(tmp_path, without_simulator):
    tasks, states = {"libero_goal": [6]}, range(3, 7)
    summary = record_sample(["libero_object", "libero_goal"], 8, 0, tmp_path, tasks=tasks, initial_states=states)
    assert {task for suite, task in summary.tasks if suite == "libero_goal"} == {6}
    assert len([task for suite, task in summary.tasks if suite == "libero_object"]) == 4
    with pytest.raises(InputError, match="no initial state is left to draw"):
        record_sample("libero_goal", 5, 0, tmp_path / "more", tasks=tasks, initial_states=states)


def test_tasks_without_carrying_are_recorded_only_when_asked_for(tmp_path, without_simulator):
    suite, tasks = "libero_goal", (0, 7)
    by_default = record_sample(suite, 10, 0, tmp_path / "default")
    asked = record_sample(suite, 4, 0, tmp_path / "asked", tasks={suite: tasks})
    assert {task for _, task in by_default.tasks}.isdisjoint(tasks)
    assert {task for _, task in asked.tasks} == set(tasks)


def test_mishaps_come_in_turn_and_stay_with_their_episode(tmp_path, without_simulator):
    without_simulator.add(("libero_goal", 1))
    record_sample(["libero_object", "libero_goal"], 8, 0, tmp_path, mishaps=["miss", "never"])
    rows = truth.read(tmp_path / truth.FILE_NAME).values()
    assert [row.instruction.split()[-1] for row in rows] == ["miss", "miss", "never", "never"] * 2
    with pytest.raises(
        InputError, match="unknown mishap 'slip': choose from miss, beside, drop, push, nudge, never, none"
    ):
        record_sample("libero_goal", 1, 0, tmp_path / "more", mishaps=["slip"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="LIBERO is not installed: pip install 'pixelvla[sim]'"
)
def test_the_truth_knows_which_close_holds():
    """How many closes each mishap takes, and which of them lifts the target."""
    with TaskEnvironment("libero_goal", 8) as environment:
        counts = {"miss": (2, 1), "beside": (2, 1), "drop": (2, 0), "never": (1, None), "nudge": (1, 0)}
        for mishap, (count, holding) in counts.items():
            attempt = attempt_until_solved(environment, 1, mishap)[-1]
            closed = np.array([action[6] for action in attempt.actions]) == CLOSE
            closes = np.flatnonzero(~closed[:-1] & closed[1:]) + 1
            assert attempt.solved and len(closes) == count
            assert attempt.grasp_step == (-1 if holding is None else closes[holding])
        # Of a nudged hand what is stored is the way back alone: done again without the nudges, it does not come to the target.
        environment.restore(attempt.states[0])
        for action in attempt.actions[: attempt.grasp_step]:
            environment.step(action)
        there = environment.tool_position()
        environment.restore(attempt.states[attempt.grasp_step])
        assert np.linalg.norm(environment.tool_position() - there) > 0.02


def test_a_recording_that_ends_early_leaves_nothing(tmp_path, without_simulator):
    without_simulator.update(("libero_goal", task) for task in PICK_AND_PLACE_TASKS["libero_goal"])
    with pytest.raises(InputError, match="no initial state is left to draw"):
        record_sample(["libero_object", "libero_goal"], 4, 0, tmp_path)
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(".tmp-*"))


def test_two_alike_demonstrates_both_targets_of_every_scene(tmp_path, without_simulator):
    without_simulator.add(("libero_spatial", 1, two_alike.TARGETS[0]))  # its twin is demonstrated, and not recorded
    summary = record_two_alike(40, 3, tmp_path, files=2)
    rows = list(truth.read(tmp_path / truth.FILE_NAME).values())
    splits = {split: [row for row in rows if f"-{split}-" in row.episode_id] for split in ("train", "val")}
    assert {split: len(members) for split, members in splits.items()} == {"train": 32, "val": 8}
    states = {split: {row.initial_state for row in members} for split, members in splits.items()}
    assert max(states["train"]) < 40 <= min(states["val"])
    pairs = [(first, second) for first, second in zip(rows[::2], rows[1::2], strict=True)]
    assert all(
        (first.task_id, first.initial_state) == (second.task_id, second.initial_state) for first, second in pairs
    )
    assert all({first.target_instance, second.target_instance} == set(two_alike.TARGETS) for first, second in pairs)
    assert len({first.target_instance for first, _ in pairs}) == 2  # the coin falls on both sides
    assert {row.instruction for row in rows} == {two_alike.INSTRUCTION}
    assert all(row.task_id != 1 for row in rows)
    in_task = Counter(row.task_id for row in rows)
    assert in_task == {task: counts.recorded for (_, task), counts in summary.tasks.items() if counts.recorded}
    assert summary.total().recorded == 40


def test_mishaps_of_two_alike_come_scene_by_scene(tmp_path, without_simulator):
    record_two_alike(20, 3, tmp_path, mishaps=["nudge", "none"])
    rows = list(truth.read(tmp_path / truth.FILE_NAME).values())
    told = [row.instruction.removeprefix(two_alike.INSTRUCTION).strip() for row in rows]
    assert told == ["nudge", "nudge", "", ""] * 5
    with pytest.raises(InputError, match="unknown mishap 'slip'"):
        record_two_alike(10, 3, tmp_path / "more", mishaps=["slip"])


def test_two_alike_wants_whole_scenes(tmp_path):
    with pytest.raises(InputError, match="ask for a multiple of 10, at most 400"):
        record_two_alike(12, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="LIBERO is not installed: pip install 'pixelvla[sim]'"
)
def test_two_alike_scenes_begin_alike_and_both_bowls_arrive(tmp_path, monkeypatch):
    def record_first_scene(out, name, splits, groups, *rest):
        (ids, *_), *_ = splits.values()
        return record_data_set(out, name, {"train": [ids[:2]]}, groups[:1], *rest)

    monkeypatch.setattr(two_alike, "record_data_set", record_first_scene)
    record_two_alike(10, 5, tmp_path)
    (folder,) = tmp_path.glob("*/*/")
    episodes = [episode for path in sorted(folder.glob("*.tfrecord*")) for episode in read_libero_episodes(path)]
    first, second = (episode["steps"][0]["observation"]["image"].getvalue() for episode in episodes[:2])
    assert first == second
    last = [episode["steps"][-1]["observation"]["image"].getvalue() for episode in episodes[:2]]
    assert last[0] != last[1]
    one, other = list(truth.read(tmp_path / truth.FILE_NAME).values())[:2]
    for row, twin in ((one, other), (other, one)):
        at_first, at_last = row.mask(0), row.mask(len(row.steps) - 1)
        assert iou(at_first, at_last) < 0.3  # it was carried away
        assert (row.steps[0].others[twin.target_instance]) == twin.steps[0].target
    assert not (one.mask(0) & other.mask(0)).any()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="LIBERO is not installed: pip install 'pixelvla[sim]'"
)
def test_the_same_seed_records_the_same_bytes(tmp_path):
    seen = []
    for copy in ("first", "second"):
        summary = record_sample(
            "libero_object", 1, 11, tmp_path / copy, progress=lambda done, asked: seen.append((done, asked))
        )
        assert summary.total("libero_object").recorded == summary.total().recorded == 1
    assert seen == [(1, 1), (1, 1)]
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert {path.name for path in files} == {
        "truth.parquet",
        "features.json",
        "dataset_info.json",
        "libero_object_simulated-train.tfrecord-00000-of-00001",
    }
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()
    (row,) = truth.read(tmp_path / "first" / "truth.parquet").values()
    assert row.attempts == summary.total().attempts


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="LIBERO is not installed: pip install 'pixelvla[sim]'"
)
@pytest.mark.parametrize(("task", "part"), [(0, "middle_drawer_handle"), (7, "stove_knob")])
def test_handles_and_knobs_are_held_and_moved(task, part):
    with TaskEnvironment("libero_goal", task) as environment:
        solved = attempt_until_solved(environment, 3)[-1]
        assert solved.solved and solved.touched == part and solved.touch_step < solved.home_step
        grippers = [action[6] for action in solved.actions]
        assert abs(grippers.index(CLOSE) - solved.touch_step) < 20 and grippers[-1] == OPEN
        at_end = environment.part_position(part) if task == 0 else environment.render(AGENT_VIEW)
        environment.restore(solved.states[0])
        at_start = environment.part_position(part) if task == 0 else environment.render(AGENT_VIEW)
        if task == 0:
            assert np.linalg.norm(at_end - at_start) > 0.1  # the drawer came out
        else:  # the burner glows at the end, and no longer in the state before
            redder = at_end.astype(int)[..., 0] - at_start[..., 0]
            assert (redder > 60).sum() > 100
        assert environment.instance_masks(AGENT_VIEW)[part].sum() >= 100

"""Policies in LIBERO: which episodes, what they are shown, how actions are carried out, what is counted, and what a kill costs."""

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from full_disk import files_of_at_most

pytest.importorskip("libero", reason="needs the extra [sim]")
pytest.importorskip("torch", reason="needs the extra [train]")

from evaluation.closed_loop import results
from evaluation.closed_loop.episode import EpisodeResult, commands, run_episode
from evaluation.closed_loop.measures import measured, paired, share, summarise
from evaluation.closed_loop.pointing import point_at_target
from evaluation.closed_loop.run import evaluate
from evaluation.closed_loop.scenes import Scene, most_steps, scenes_of
from evaluation.closed_loop.scripted import Expert, Replay, recorded_commands
from evaluation.closed_loop.settings import LiberoSettings
from evaluation.closed_loop.video import film
from pixel160k.errors import InputError
from pixel160k.format.masks import iou
from policies.base import Seen, looks
from policies.simple import RandomPolicy
from simulation.environment import AGENT_VIEW, STAND_STILL, TaskEnvironment
from simulation.libero import load_task
from simulation.rlds import find_dataset, libero_features, write_rlds
from simulation.two_alike import TARGETS


def settings(**values):
    return LiberoSettings.load(values=values)


# --- which episodes


def test_the_protocol_is_openvlas():
    chosen = settings()
    scenes = scenes_of(chosen)
    assert len(scenes) == 500 and {scene.task_id for scene in scenes} == set(range(10))
    limits = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
    for suite, steps in limits.items():
        assert most_steps(settings(suite=suite)) == most_steps(settings(suite=f"{suite}_swap")) == steps
    assert most_steps(settings(suite="libero_10", most_steps=7)) == 7
    with pytest.raises(InputError, match="libero_study_table: say when an episode ends with most_steps=N"):
        most_steps(settings(suite="libero_study_table"))


def test_a_wrong_request_is_one_line():
    for wrong, said in (
        ({"suite": "libero_spatail"}, "unknown LIBERO suite 'libero_spatail'"),
        ({"suite": "libero_goal_env"}, "names the suite libero_goal_env, but has no files of it"),
        ({"tasks": [10]}, "libero_spatial has no task 10"),
        ({"first_state": 45}, "has 50 initial states, not 95"),
        ({"suite": "libero_object", "two_alike": True}, "two alike bowls stand in libero_spatial alone"),
    ):
        with pytest.raises(InputError, match=said):
            scenes_of(settings(**wrong))
    for wrong in ({"hz": 7}, {"prompts": ["points"]}, {"prompts": []}, {"tasks": [1, 1]}):
        with pytest.raises(InputError, match=r"setting '(hz|prompts|tasks)'"):
            settings(**wrong)


def test_either_bowl_is_meant_in_half_of_the_scenes():
    scenes = scenes_of(settings(two_alike=True, first_state=40, episodes=10))
    assert len(scenes) == 40
    for task in range(4):
        meant = [scene.target for scene in scenes if scene.task_id == task]
        assert sorted(meant) == sorted(TARGETS * 5)


def test_a_suite_that_words_anew_is_told_so():
    assert load_task("libero_goal", 0).instruction == "open the middle drawer of the cabinet"
    assert load_task("libero_goal_swap", 0).instruction == "open the middle drawer of the cabinet"
    assert load_task("libero_goal_lan", 0).instruction == "open the cabinet’s middle drawer"
    assert load_task("libero_goal_task", 0).instruction == "open the bottom drawer of the cabinet"


# --- what is counted


def row(state, success, condition="none", task=0, **values):
    return EpisodeResult(task, "", state, condition, success=success, **values)


def test_intervals_are_wilsons():
    found = share(41, 50)
    assert found["rate"] == 0.82 and found["interval"] == [0.692, 0.9023]  # Wilson's formula by hand
    assert share(0, 20)["interval"] == [0.0, 0.1611] and share(0, 0)["rate"] is None


def test_comparisons_are_paired_and_leave_out_what_did_not_end():
    ours = [row(state, state < 9) for state in range(12)]
    theirs = [row(state, state == 10) for state in range(11)] + [row(11, False, error="the server is gone")]
    found = paired(ours, theirs)
    assert (found["scenes"], found["only_first"], found["only_second"]) == (11, 9, 1)
    assert found["p"] == pytest.approx(2 * (1 + 10) / 2**10, abs=1e-5)  # the exact binomial, two-sided


def test_an_error_is_no_failure():
    rows = [row(0, True), row(1, False), row(2, False, error="the simulator's process died")]
    found = summarise(rows, ["none"])["conditions"]["none"]
    assert found["success"]["rate"] == 0.5 and found["errors"] == 1 and found["tasks"][0]["of"] == 2


def test_a_first_touch_is_right_where_it_is_one_of_what_is_meant():
    touched = [("a", "a,b"), ("b", "a,b"), ("c", "a,b"), ("", "a"), ("a", "")]  # the last: nobody can tell
    found = measured(
        [row(state, False, first_touch=first, meant=meant) for state, (first, meant) in enumerate(touched)]
    )
    assert (found["first_touch"]["successes"], found["first_touch"]["of"]) == (2, 4)


def test_what_would_be_compared_or_gone_on_with_wrongly_is_refused(tmp_path):
    here = settings(episodes=1, tasks=[0])
    other = settings(episodes=1, tasks=[0], suite="libero_object", seed=3)
    for folder in ("other", "made"):
        (tmp_path / folder).mkdir()
    results.write([row(0, True)], {"policy": "random", "settings": other.model_dump(mode="json")}, tmp_path / "other")
    with pytest.raises(
        InputError, match="other is of other scenes: suite is libero_object there and libero_spatial here"
    ):
        evaluate("random", here, tmp_path / "out", against=tmp_path / "other")
    seeded = settings(episodes=1, tasks=[0], suite="libero_object", shifts=["none", "camera-1"])
    with pytest.raises(InputError, match="seed is 3 there and 0 here"):
        evaluate("random", seeded, tmp_path / "out", against=tmp_path / "other")
    for policy in ("random", "expert"):
        with pytest.raises(InputError, match=f"{policy} knows none"):
            evaluate(policy, here, tmp_path / "out", dataset="libero_spatial")
    with pytest.raises(InputError, match="never has the same scene twice"):
        evaluate("expert", settings(fixtures="once"), tmp_path / "out")
    made = {"policy": "runs/pue", "settings": here.model_dump(mode="json"), "dataset": "a", "renderer": "osmesa"}
    results.write([row(0, True)], made, tmp_path / "made")
    with pytest.raises(InputError, match="holds another evaluation, with another dataset;"):
        evaluate("runs/pue", here, tmp_path / "made", dataset="b")


def test_a_film_of_nothing_is_no_file(tmp_path):
    """As of an episode that cannot be begun, whose reason must not be lost."""
    with film(tmp_path / "episode.mp4"):
        pass
    with pytest.raises(InputError, match="gone"), film(tmp_path / "episode.mp4"):
        raise InputError("gone")
    assert not list(tmp_path.iterdir())


def test_a_film_that_the_disk_does_not_hold_is_no_file(tmp_path):
    """ffmpeg says nothing to who sends it images."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with film(tmp_path / "whole.mp4") as take:
        take(picture, ([], []))
    with (
        pytest.raises(InputError, match="was not written whole"),
        files_of_at_most(1000),
        film(tmp_path / "cut.mp4") as take,
    ):
        take(picture, ([], []))
    assert [file.name for file in tmp_path.iterdir()] == ["whole.mp4"]


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [row(1, True, first_touch="plate_1", seconds=1.5), row(0, False, error="it fell")]
    results.write(rows, {"policy": "random"}, tmp_path)
    assert results.read(tmp_path) == (rows[::-1], {"policy": "random"})
    (tmp_path / results.FILE_NAME).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"cannot read .*episodes\.parquet"):
        results.read(tmp_path)


@pytest.mark.parametrize("noise", [None, 0, 12])
def test_rows_from_before_there_were_shifts_are_of_scenes_as_they_are(noise, tmp_path):
    """Settings had the noise before the camera then, or not yet."""
    now = settings(episodes=2).model_dump(mode="json")
    results.write([row(0, True), row(1, False)], {"policy": "random", "settings": now}, tmp_path)
    table = pq.read_table(tmp_path / results.FILE_NAME)
    then = {key: value for key, value in now.items() if key != "shifts"} | ({} if noise is None else {"noise": noise})
    metadata = {b"pixelvla": json.dumps({"policy": "random", "settings": then}).encode()}
    pq.write_table(table.drop_columns("shift").replace_schema_metadata(metadata), tmp_path / results.FILE_NAME)
    if noise:
        with pytest.raises(InputError, match=r"cannot read .*: noise was before its camera"):
            results.read(tmp_path)
        return
    rows, made_with = results.read(tmp_path)
    assert [(row.success, row.shift) for row in rows] == [(True, "none"), (False, "none")]
    assert made_with == {"policy": "random", "settings": now}  # so that it goes on


# --- how actions are carried out


def test_a_slow_action_is_spread_over_control_steps():
    steps = commands(np.array([2, -4, 0.4, 0, 0, 8, 1], np.float32), 4)
    assert len(steps) == 4 and np.allclose(steps[0], [0.5, -1, 0.1, 0, 0, 1, -1])
    assert commands(np.array([0.2, 0, 0, 0, 0, 0, 0.49]), 1)[0].tolist() == pytest.approx([0.2, 0, 0, 0, 0, 0, 1])


def test_random_actions_depend_on_the_episode_alone():
    image = np.zeros((4, 4, 3), np.uint8)
    seen = [Seen(image, "go", episode=name) for name in ("a", "b")]
    one, other = RandomPolicy(3), RandomPolicy(3)
    together = [one.act(seen), one.act(seen)]
    other.reset("b", "go")
    assert np.array_equal(other.act(seen[1:])[0], together[0][1])
    assert np.array_equal(other.act(seen[1:])[0], together[1][1])
    assert not looks(one)
    assert not np.array_equal(together[0], together[1]) and np.isin(together[0][..., 6], (0, 1)).all()


# --- what was recorded


def recording(folder, *episodes):
    """A data set as `pixelcli sample` writes it, of pairs of where and LIBERO's commands; its images are none."""

    def step(command, number, last):
        picture = dict.fromkeys(("image", "wrist_image"), io.BytesIO(b"no image"))
        state = {"state": np.zeros(8, np.float32), "joint_state": np.zeros(7, np.float32)}
        flags = {"is_first": number == 0, "is_last": last, "is_terminal": last, "discount": 1.0, "reward": float(last)}
        return {"observation": {**picture, **state}, "action": command, "language_instruction": "move it", **flags}

    made = [
        {
            "steps": [step(command, n, n == len(commands) - 1) for n, command in enumerate(commands)],
            "episode_metadata": {"file_path": place},
        }
        for place, commands in episodes
    ]
    write_rlds(folder, "recorded", "1.0.0", libero_features(), {"train": [made[:1], made[1:]]})
    return folder


def test_what_was_recorded_is_found_by_its_scene(tmp_path):
    one, other = np.random.default_rng(0).uniform(-1, 1, (2, 3, 7)).astype(np.float32)
    spatial, elsewhere = "libero_spatial/task_03/initial_state_07", "libero_goal/task_03/initial_state_07"
    folder = recording(tmp_path / "sound", (elsewhere, other), (spatial, one))
    scenes = [Scene(3, "", 6), Scene(3, "", 7)]
    (place, found), *others = recorded_commands(folder, scenes, "libero_spatial").items()
    assert place == (3, 7) and np.array_equal(found, one) and not others
    thinned, twice = 4 * one, [(spatial, one), (spatial, other)]
    for name, episodes, said in (
        ("none", [(elsewhere, other)], "was recorded in none of these scenes"),
        ("thinned", [(elsewhere, other), (spatial, thinned)], "is thinned; replay wants a recording of 20 Hz"),
        ("twice", twice, "holds libero_spatial/task_03/initial_state_07 twice"),
    ):
        with pytest.raises(InputError, match=said):
            recorded_commands(recording(tmp_path / name, *episodes), scenes, "libero_spatial")
    file = sorted(find_dataset(folder).glob("*.tfrecord-*"))[0]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(
        InputError, match=r"recorded-train\.tfrecord-00000-of-00002 record 0: the file ends inside a record"
    ):
        recorded_commands(folder, scenes, "libero_spatial")


@pytest.fixture
def environment():
    """One environment at a time: where one of two in a process is closed, the other draws nothing any more."""
    with TaskEnvironment("libero_spatial", 0, reflections=True) as made:
        yield made


@pytest.mark.slow
def test_states_and_images_are_those_of_liberos_own_wrapper(environment):
    """As OpenVLA's evaluation makes them: the wrapper with its cameras, a seed once, the initial state, ten steps.

    The wrapper's own image is drawn up to 2 ms before the control step ends, and so differs at the edges of what still settles.
    """
    from libero.libero.envs import OffScreenRenderEnv

    task = load_task("libero_spatial", 0)
    theirs = OffScreenRenderEnv(bddl_file_name=str(task.description), camera_heights=256, camera_widths=256)
    try:
        theirs.seed(0)
        theirs.reset()
        theirs.set_init_state(task.initial_states[7])
        for _ in range(10):
            seen, *_ = theirs.step(STAND_STILL.tolist())
        environment.reset(7)
        assert np.array_equal(environment.state(), theirs.get_sim_state())
        image = environment.render(AGENT_VIEW)
        assert (image != seen["agentview_image"][::-1, ::-1]).mean() < 0.002
        seen = theirs.env._get_observations(force_update=True)
        assert np.array_equal(image, seen["agentview_image"][::-1, ::-1])
        state = environment.proprioception()[0]
        assert np.allclose(state[:3], seen["robot0_eef_pos"]) and np.allclose(state[6:], seen["robot0_gripper_qpos"])
    finally:
        theirs.close()


@pytest.mark.slow
def test_wandering_fixtures_stand_where_liberos_own_wrapper_puts_them():
    """As in OpenVLA's script: a seed once, then reset after reset. What no initial state holds stands elsewhere each time."""
    from libero.libero.envs import OffScreenRenderEnv

    task, simulated = load_task("libero_spatial", 0), {}
    theirs = OffScreenRenderEnv(bddl_file_name=str(task.description), use_camera_obs=False)
    try:
        theirs.seed(0)
        for state in (7, 8):
            theirs.reset()
            theirs.set_init_state(task.initial_states[state])
            for _ in range(10):
                theirs.step(STAND_STILL.tolist())
            simulated[state] = (theirs.sim.model._model.body_pos.copy(), theirs.get_sim_state().copy())
    finally:
        theirs.close()
    assert 0.001 < np.abs(simulated[7][0] - simulated[8][0]).max() < 0.02  # m
    with TaskEnvironment("libero_spatial", 0, hard_reset=True) as ours:
        for state, (fixtures, whole) in simulated.items():
            ours.reset(state, seeded=False)
            assert np.array_equal(ours.model.body_pos, fixtures) and np.array_equal(ours.state(), whole)


@pytest.mark.slow
def test_the_expert_solves_what_it_is_shown_and_pointing_ends_with_its_grasp(environment, tmp_path):
    chosen, expert, pointed, done = settings(suite="libero_spatial"), Expert(environment), [], []

    class Watched:
        reset = expert.reset

        def act(self, seen):
            pointed.append(len(seen[0].prompts))
            chunk = expert.act(seen)
            done.extend(commands(action, 1)[0] for action in chunk[0])
            return chunk

    result = run_episode(environment, Watched(), chosen, Scene(0, "", 3), "point")
    assert result.success and not result.error and result.first_touch == result.meant == environment.target
    assert 0 < result.close_step < result.control_steps <= 220
    assert pointed == [1] * sum(pointed) + [0] * pointed.count(0) and 0 < sum(pointed) <= result.close_step / 8 + 1
    # What it did is recorded, and done again: the same becomes of it, and no image is drawn.
    recorded = recorded_commands(
        recording(tmp_path, ("libero_spatial/task_00/initial_state_03", done)), [result.scene], "libero_spatial"
    )
    again = run_episode(environment, Replay(recorded, environment), chosen, Scene(0, "", 3), "none")
    assert replace(again, condition="point", seconds=0, policy_seconds=0, render_seconds=0) == replace(
        result, seconds=0, policy_seconds=0, render_seconds=0
    )
    assert again.render_seconds < 0.01 * result.render_seconds
    environment.reset(3)
    image = environment.render(AGENT_VIEW)

    def pointing(condition):
        return point_at_target(condition, environment, 3, image, environment.instruction, chosen.foundation)

    (mask,), none = pointing("pixel_mask").shown(image, False)
    ((clicked,),) = [pointing("point").shown(image, False)[1]]
    x, y = clicked.coordinates[0].astype(int)
    assert not none and mask[y, x] and pointing("pixel_mask").shown(image, True) == ([], [])
    wrong = pointing("wrong_mask").shown(image, False)[1][0].mask
    assert not (wrong & mask).any() and wrong.any()
    for condition in ("followed_point", "followed_text"):
        following = pointing(condition)
        (first,), _ = following.shown(image, False)
        (second,), _ = following.shown(image, False)  # the scene stands still
        assert iou(first, mask) > 0.5 and iou(first, second) > 0.7
        assert following.shown(image, True) == ([], [])
    environment._env.env.timestep = 2000  # longer than robosuite's own limit, which no suite has
    environment.step(STAND_STILL)


# --- processes, and what a kill costs

OPTIONS = ["suite=libero_spatial", "tasks=[2]", "episodes=6", "most_steps=24", "reflections=false", "hz=5", "replan=2"]


def table(folder):
    """The rows of an evaluation without what no two runs have alike."""
    rows, _ = results.read(folder)
    return [replace(row, **dict.fromkeys(results.TIMED, 0.0)) for row in rows]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_table_with_any_number_of_processes(tmp_path):
    whole = evaluate("random", LiberoSettings.load(overrides=OPTIONS), tmp_path / "whole")
    assert whole["conditions"]["none"]["success"]["of"] == 6 and whole["cost"]["seconds_per_episode"] > 0
    command = [
        sys.executable,
        "-m",
        "cli",
        "evaluate",
        "libero",
        "--policy",
        "random",
        "--out",
        str(tmp_path / "killed"),
    ]
    command += [text for option in OPTIONS for text in ("--set", option)] + ["--film"]
    running = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / results.FILE_NAME).exists() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 0 < len(results.read(tmp_path / "killed")[0]) < 6
    # One of its films was begun, and one row is lost to an error, which is tried again.
    kept, made_with = results.read(tmp_path / "killed")
    results.write([replace(kept[0], error="the simulator's process died"), *kept[1:]], made_with, tmp_path / "killed")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = table(tmp_path / "killed")
    assert [replace(row, video="") for row in ours] == table(tmp_path / "whole")
    assert all((tmp_path / "killed" / "films" / row.video).stat().st_size > 1000 for row in ours)
    assert "films/libero_spatial_task_02_state_00_none.mp4" in (tmp_path / "killed" / "libero.html").read_text()
    assert json.loads((tmp_path / "killed" / "evaluation.json").read_text())["made_with"]["versions"]["mujoco"]
    with pytest.raises(InputError, match="holds another evaluation, with another settings"):
        evaluate("random", LiberoSettings.load(overrides=[*OPTIONS, "seed=1"]), tmp_path / "killed")

"""SimplerEnv by its API: the grids of both tables, the robots' conventions, the loop, the client, and kills."""

import ast
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import binomtest

pytest.importorskip("websockets", reason="needs the extra [serve]")

import fake_simpler

from evaluation.simpler import run
from evaluation.simpler.client import GRIPPERS, Server, pack, unpack
from evaluation.simpler.conventions import GOOGLE, WIDOWX, Driver, rotation_vector
from evaluation.simpler.score import tabulate, wilson
from evaluation.simpler.tables import TABLES
from pixel160k.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def simulator(monkeypatch):
    for name, module in fake_simpler.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def planned(table, task=None):
    return [episode for episode in TABLES[table]() if task in (None, episode.task)]


def run_directly(episodes, tmp_path, execute=None):
    """The rows of episodes, without a server in between."""
    with run.rows_file(tmp_path, "1-of-1") as file:
        run.run_episodes(episodes, fake_simpler.Scripted(), file, execute)
    return run.read_rows(tmp_path)


def numbers(table):
    """The first number of each line of a table, by its name."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    return {line[0]: line[1] for line in lines}


def test_tables_have_the_published_numbers_of_episodes():
    def counts(table):
        return dict(Counter(episode.task for episode in TABLES[table]()))

    assert counts("visual_matching") == {"coke_can": 300, "move_near": 240, "drawer": 216, "apple_in_drawer": 108}
    assert counts("variant_aggregation") == {"coke_can": 675, "move_near": 480, "drawer": 378, "apple_in_drawer": 189}
    assert set(counts("widowx").values()) == {24} and len(counts("widowx")) == 4


def test_every_episode_is_its_own_and_one_that_the_environments_take(simulator):
    for table in TABLES:
        episodes, built = planned(table), set()
        for episode in episodes:
            environment, options = run.make_environment(episode), episode.reset_options()
            assert (episode.overlay is None) == (table == "variant_aggregation")
            built.add(str((episode.environment, environment.unwrapped.keywords, options)))
            environment.unwrapped.check(options)
            environment.close()
        assert len(built) == len({episode.id for episode in episodes}) == len(episodes)
        # Each variant of a part weighs the same, so that a mean of means is the share of all.
        weights = Counter((e.task, e.part, e.variant) for e in episodes)
        assert len({(task, n) for (task, _, _), n in weights.items()}) == len({e.task for e in episodes})


def test_robot_stands_as_the_scripts_say():
    """The scripts' pose is the yaw, applied after half a turn about z; SAPIEN's quaternions have w first."""
    for episode in (planned("visual_matching", "move_near")[0], planned("visual_matching", "coke_can")[0]):
        w, x, y, z = episode.reset_options()["robot_init_options"]["init_rot_quat"]
        expected = Rotation.from_euler("z", episode.robot_yaw) * Rotation.from_quat([0, 0, 1, 0])
        assert (expected.inv() * Rotation.from_quat([x, y, z, w])).magnitude() < 1e-7


def test_rotation_is_axis_times_angle():
    rng = np.random.default_rng(0)
    for rpy in [*rng.uniform(-0.5, 0.5, (50, 3)), *rng.uniform(-1e-9, 1e-9, (5, 3)), np.zeros(3)]:
        np.testing.assert_allclose(rotation_vector(*rpy), Rotation.from_euler("xyz", rpy).as_rotvec(), atol=1e-12)


def drive(robot, openings):
    driver = Driver(robot)
    return [driver.convert(np.array([0.01, 0, 0, 0, 0, 0, opening]))[6] for opening in openings]


def test_gripper_of_the_google_robot_is_relative_and_sticky():
    """The first action says nothing; a change goes on for 15 steps, whatever is said meanwhile; then small ones count."""
    assert drive(GOOGLE, [0, 0, 0]) == [0, 0, 0]
    openings = [1.0, 0.0, *[1.0, 0.0] * 7, 0.25, 0.0, 1.0]
    assert drive(GOOGLE, openings) == [0, *[1.0] * 15, -0.25, 0.25, -1.0]
    assert drive(GOOGLE, [1, 0.5, 0]) == [0, 0.5, 0.5], "a change of a half is not beyond a half"
    driver = Driver(GOOGLE)
    driver.convert(np.ones(7))
    driver.reset()
    assert driver.convert(np.zeros(7))[6] == 0, "another instruction begins without a last opening"


def test_gripper_of_the_widowx_is_open_or_closed():
    assert drive(WIDOWX, [1, 0.51, 0.5, 0]) == [1, 1, -1, -1]


def test_wrong_success_rule_shows_other_numbers(simulator, tmp_path):
    """Towers that fall: success at any step is 75%, at the last one 29%. Nothing but the table is another one."""
    rows = run_directly(planned("widowx"), tmp_path)
    last, any_step = (numbers(tabulate(planned("widowx"), rows, rule)) for rule in ("last", "any"))
    stack = "stack green block on yellow block"
    assert (last[stack], any_step[stack]) == ("29.2", "75.0")
    assert (last["average"], any_step["average"]) == ("82.3", "93.8")
    assert last["put spoon on towel"] == any_step["put spoon on towel"] == "100.0"
    assert "| 29.2 | 14.9 to 49.2 | 24 | 75.0 |" in tabulate(planned("widowx"), rows, "last"), "interval, n, grasps"
    assert {row["steps"] for row in rows.values()} == {60, 120}, "an episode goes on after success"
    assert fake_simpler.TimeLimit.open == 0, "environments are closed"


def test_score_is_the_mean_of_variants_then_of_parts(simulator, tmp_path):
    """Of three can places, two are run in the dark, which fail, one in the light: 50%, not 33."""
    can = planned("variant_aggregation", "coke_can")
    dark, light = ([e for e in can if e.variant == name] for name in ("darker", "base"))
    rows = run_directly([*dark[:2], light[0]], tmp_path)
    found = numbers(tabulate(can, rows, "last"))
    assert found["pick coke can: horizontal"] == found["pick coke can"] == "50.0*"
    assert "1 of 225" not in (table := tabulate(can, rows, "last")) and "3 of 225" in table
    assert "* 672 episodes are missing" in table and "average of three" not in table
    rows |= {e.id: {"success_last": e.part != "standing", "success_any": True} for e in can if e.part != "horizontal"}
    assert numbers(tabulate(can, rows, "last"))["pick coke can"] == "50.0*", "parts weigh the same: 50, 100 and 0"


def test_instruction_is_read_again_at_every_step(simulator, tmp_path):
    """The apple: another order from step 101 on. What was left of the old order's chunk is not carried out."""
    rows = run_directly(planned("visual_matching", "apple_in_drawer")[:2], tmp_path)
    for row in rows.values():
        assert row["instructions"] == ["open top drawer", "place apple into top drawer"]
        assert row["success_last"] and row["first_success"] == 107
        assert row["asked"] == 26, "8 actions a time: 13 times for 101 steps, 13 times for 99"


def test_chunks_are_carried_out_as_far_as_asked(simulator, tmp_path):
    episode = planned("visual_matching", "drawer")[:1]
    asked = [
        run_directly(episode, folder, execute)[episode[0].id]["asked"]
        for execute, folder in ((None, tmp_path / "all"), (4, tmp_path / "four"), (1, tmp_path / "one"))
        if folder.mkdir() is None
    ]
    assert asked == [15, 29, 113]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 24), (7, 24), (24, 24), (150, 300)])
def test_intervals_are_wilsons(successes, episodes):
    expected = binomtest(successes, episodes).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(successes, episodes), [expected.low, expected.high], atol=1e-9)


IMAGE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize("said", ["unit", "signed"])
def test_gripper_is_read_in_the_servers_convention(said):
    values = {"unit": [1.1, 0.0], "signed": [-1.0, 1.0]}[said]
    actions = np.array([[0.01, 0.02, 0.03, 0.1, 0.2, 0.3, value] for value in values], np.float32)
    reply = fake_simpler.packed({"actions": actions})
    with fake_simpler.serving({"gripper": said}, lambda data: reply) as url, Server(url) as server:
        assert (server.ask(IMAGE, "go", "one")[:, 6] == [1, 0]).all()
        np.testing.assert_array_equal(server.ask(IMAGE, "go", "one")[:, :6], actions[:, :6])
    with fake_simpler.serving({}, lambda data: reply) as url, Server(url, gripper=said) as server:
        assert (server.ask(IMAGE, "go", "one")[:, 6] == [1, 0]).all()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("Traceback\n  ...\nValueError: no image\n", "refuses: ValueError: no image"),
        (b"\xc1", "does not speak openpi's protocol"),
        (
            fake_simpler.packed({"actions": {b"__ndarray__": True, b"data": b"12", b"dtype": "<f4", b"shape": [7]}}),
            "openpi's",
        ),
        (fake_simpler.packed({"action": 1}), "without actions"),
        (fake_simpler.packed({"actions": np.zeros((8, 6), np.float32)}), "N x 7"),
        (fake_simpler.packed({"actions": np.zeros((0, 7), np.float32)}), "N x 7"),
        (fake_simpler.packed({"actions": np.full((1, 7), np.nan)}), "finite"),
        (fake_simpler.packed({"actions": [["a"] * 7]}), "N x 7"),
        (fake_simpler.packed({"actions": -np.ones((1, 7))}), "'unit'"),
        (None, "does not answer any more"),
    ],
    ids=["error", "rubbish", "half an array", "no actions", "six", "none", "nan", "texts", "other gripper", "gone"],
)
def test_bad_answers_get_one_line(reply, message):
    with (
        fake_simpler.serving(reply=lambda data: reply) as url,
        Server(url) as server,
        pytest.raises(InputError) as raised,
    ):
        server.ask(IMAGE, "go", "one")
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("metadata", "gripper", "message"),
    [
        ({}, None, "--gripper"),
        ({"gripper": "closed_1"}, None, "closed_1"),
        ({"gripper": ["unit"]}, None, "does not say"),
        ({"gripper": "signed"}, "unit", "signed"),
        ([], None, "metadata"),
    ],
)
def test_servers_whose_gripper_is_not_known_are_refused(metadata, gripper, message):
    with fake_simpler.serving(metadata) as url, pytest.raises(InputError, match=message):
        Server(url, gripper)


def test_only_who_has_the_key_is_let_in():
    with fake_simpler.serving(key="k") as url:
        with pytest.raises(InputError, match=r"lets nobody in: .*401 wants its API key"):
            Server(url)
        with Server(url, api_key="k") as server:
            assert server.gripper == "unit"


def as_process(url, out, *more, killed_at=0):
    """A run as a process that may import nothing but what SimplerEnv's environment has."""
    return subprocess.run(
        [sys.executable, ROOT / "tests/fake_simpler.py", str(killed_at), "--server", url, "--out", out, *more],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_a_killed_run_goes_on(tmp_path, capsys):
    """Killed twice in the middle, with half a row at the end of the file: all rows in the end, none run twice."""
    out, tasks = tmp_path / "killed", ("--table", "widowx", "--tasks", "stack_cubes")
    with fake_simpler.serving() as url:
        for killed_at, rows in ((200, 3), (400, 9)):  # episodes have 60 steps
            assert as_process(url, out, *tasks, killed_at=killed_at).returncode == -signal.SIGKILL
            kept = run.read_rows(out)
            assert len(kept) == rows
        with (out / "episodes-1-of-1.jsonl").open("a") as file:
            file.write('{"id": "widowx/stack_c')
        done = as_process(url, out, *tasks)
    assert done.returncode == 0, done.stderr
    assert all(run.read_rows(out)[name] == row for name, row in kept.items()), "kept, not run again"
    assert "15/15 widowx" in done.stdout and "| 29.2 | 14.9 to 49.2 | 24 | 75.0 |" in done.stdout
    assert sorted(json.loads((out / "settings.json").read_text())) == ["execute", "gripper", "policy", "versions"]
    # All is there: the other rule needs neither a server nor another run.
    assert run.main([*tasks, "--out", str(out), "--success", "any"]) == 0
    assert "| 75.0 |" in capsys.readouterr().out


def test_parts_make_one_table_and_other_settings_are_refused(simulator, tmp_path, capsys):
    command = ["--table", "widowx", "--tasks", "carrot_on_plate", "--out", str(tmp_path)]
    with fake_simpler.serving() as url:
        command += ["--server", url]
        for part in ("1/3", "2/3"):
            assert run.main([*command, "--part", part]) == 0
        assert "* 8 episodes are missing" in capsys.readouterr().out
        with run.rows_file(tmp_path, "3-of-3"):
            assert run.main([*command, "--part", "3/3"]) == 1
        assert run.main([*command, "--execute", "2"]) == 1
        errors = capsys.readouterr().err.splitlines()
        assert "--part" in errors[0] and "another execute" in errors[1] and len(errors) == 2
        assert run.main(command) == 0, "other parts, the same episodes"
        assert "| put carrot on plate | 100.0 | 86.2 to 100.0 | 24 | 100.0 |" in capsys.readouterr().out
    assert run.main([*command, "--tasks", "stack_cubes"]) == 1
    assert "start it first" in capsys.readouterr().err
    assert run.main([*command, "--out", str(tmp_path / "settings.json")]) == 1
    assert "settings.json" in (said := capsys.readouterr().err) and said.startswith("Error: ") and said.count("\n") == 1


def test_episodes_are_named_for_servers_that_take_a_name(simulator, tmp_path):
    """Each time anew, also where the same one is run again at once; other servers are told nothing (`fake_simpler.answer`)."""
    names, policy = [], fake_simpler.Scripted()

    def reply(data):
        seen = unpack(data)
        names.append(seen.pop("episode"))
        return fake_simpler.answer(pack(seen), policy)

    episode = planned("widowx")[0]
    with (
        fake_simpler.serving({"gripper": "unit", "keys": ["episode", "prompt"]}, reply) as url,
        Server(url) as server,
        run.rows_file(tmp_path, "1-of-1") as file,
    ):
        run.run_episodes([episode, episode], server, file)
    assert len(set(names)) == 2 and len(names) == 16 and names == sorted(names)
    assert all(name.startswith(f"{episode.id} ") and len(name) <= 200 for name in names)


def test_without_simplerenv_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mani_skill2_real2sim", None)
    with pytest.raises(InputError, match="own environment"):
        run.make_environment(planned("widowx")[0])


def test_client_and_our_server_mean_the_same():
    framing = pytest.importorskip("policies.framing", reason="the server is not here yet")
    assert set(get_args(framing.Gripper)) == GRIPPERS.keys()
    seen = framing.unpack(pack({"observation/image": IMAGE, "prompt": "go"}))
    assert seen["prompt"] == "go" and seen["observation/image"].dtype == np.uint8
    assert (seen["observation/image"] == IMAGE).all()
    actions = np.arange(14, dtype=np.float32).reshape(2, 7)
    assert (unpack(framing.pack({"actions": actions}))["actions"] == actions).all()


def test_client_is_python_310():
    """SimplerEnv's environment has 3.10 or 3.11."""
    for path in (ROOT / "evaluation/simpler").glob("*.py"):
        ast.parse(path.read_text("utf-8"), feature_version=(3, 10))

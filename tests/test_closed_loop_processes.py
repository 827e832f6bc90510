"""The processes of an evaluation in LIBERO: any number of them, killed wherever, writes one and the same table.

The simulator costs nothing here (`no_simulator`), so that an evaluation can be killed ten times in seconds, and often while it writes.
tests/test_closed_loop.py kills one with LIBERO.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra [train]")

from evaluation.closed_loop import results
from pixel160k.owner import TEMPORARY

PROGRAM = Path(__file__).with_name("no_simulator.py")
SETTINGS = {"suite": "libero_spatial", "tasks": [1, 4, 7], "episodes": 24, "most_steps": 24}
KILLS = 10


def start(out, workers, *, settings=SETTINGS, **environment):
    command = [sys.executable, str(PROGRAM), str(out), json.dumps(settings), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), **environment}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


def finish(out, workers, **more):
    """The rows of an evaluation that comes to its end, without what no two runs have alike."""
    running = start(out, workers, **more)
    _, told = running.communicate(timeout=300)
    assert running.returncode == 0, told
    return rows(out), told


def rows(out):
    if not (out / results.FILE_NAME).exists():
        return []
    return [replace(row, **dict.fromkeys(results.TIMED, 0.0)) for row in results.read(out)[0]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of an evaluation in one process; its episodes end in all the ways that there are."""
    table, _ = finish(tmp_path_factory.mktemp("whole"), 1)
    assert len(table) == 72 and 5 < sum(row.success for row in table) < 67
    assert {row.first_touch for row in table} == {"", "it", "another"}
    return table


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_number_of_processes_changes_nothing(whole, tmp_path):
    """Nor does it matter to a policy that draws whether it is shown images, nor that an evaluation has nothing left to do."""
    (tmp_path / "temporary").mkdir()
    for _ in range(2):
        assert finish(tmp_path / "two", 2, TMPDIR=str(tmp_path / "temporary"))[0] == whole
        assert not list((tmp_path / "temporary").iterdir()) and not list((tmp_path / "two").glob(f"{TEMPORARY}*"))
    assert finish(tmp_path / "three", 3, LOOKS="1")[0] == whole


def test_ten_kills_anywhere_lose_nothing(whole, tmp_path):
    """Before the first row, between rows and while they are written; what was killed leaves no process behind."""
    rng = np.random.default_rng(16)
    for _ in range(KILLS):
        before = len(rows(tmp_path))
        wanted = before + int(rng.integers(0, 6))
        running = start(tmp_path, int(rng.integers(1, 3)))
        wait_for(lambda running=running, wanted=wanted: len(rows(tmp_path)) >= wanted or running.poll() is not None)
        time.sleep(rng.uniform(0, 0.02 if wanted > before else 1))
        assert running.poll() is None  # else it is no kill
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)  # until the last of its processes has ended
        kept = rows(tmp_path)
        assert len(kept) >= wanted and all(row in whole for row in kept)
    assert len(kept) < len(whole)
    assert finish(tmp_path, 2)[0] == whole
    assert (tmp_path / "evaluation.json").exists() and not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_ctrl_c_ends_the_simulators_without_a_word_of_theirs(tmp_path):
    running = start(tmp_path, 2)
    wait_for(lambda: len(rows(tmp_path)) > 1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, told = running.communicate(timeout=60)
    assert told.count("Traceback") == 1 and "SpawnProcess" not in told  # pixelcli shows not even that one


def test_wandering_fixtures_go_on_where_they_were(tmp_path):
    """What becomes of an episode depends here on how many were before it."""
    wandering = {**SETTINGS, "tasks": [4], "fixtures": "once"}
    undisturbed, _ = finish(tmp_path / "whole", 1, settings=wandering)
    (tmp_path / "killed").mkdir()
    kept, made_with = results.read(tmp_path / "whole")
    results.write(kept[:7], made_with, tmp_path / "killed")
    assert finish(tmp_path / "killed", 1, settings=wandering)[0] == undisturbed


def test_a_simulator_that_dies_costs_its_episode_until_it_is_tried_again(whole, tmp_path):
    table, told = finish(tmp_path, 2, DIES="6", BREAKS="17")
    lost = [row for row in table if row.error]
    assert [row.initial_state for row in lost] == [6, 17] * 3
    assert {row.error for row in lost} == {
        "the simulator's process died (exit code 9)",
        "ZeroDivisionError: a bug of ours",
    }
    assert [row for row in table if not row.error] == [row for row in whole if row.initial_state not in (6, 17)]
    assert "bugs.log" in told and "no_simulator.py" in (tmp_path / "bugs.log").read_text()
    assert finish(tmp_path, 2)[0] == whole


def test_a_simulator_that_does_not_start_ends_the_command_after_a_few_episodes(tmp_path):
    running = start(tmp_path, 2, BROKEN="1")
    _, told = running.communicate(timeout=300)
    assert running.returncode == 1 and len(rows(tmp_path)) <= 4
    assert "first 3 episodes all failed, RuntimeError: cannot initialise EGL: if the simulator does not start" in told
    few = start(tmp_path / "few", 1, settings={**SETTINGS, "tasks": [1], "episodes": 1}, BREAKS="0")
    _, told = few.communicate(timeout=300)
    assert few.returncode == 1 and "no episode came to its end; the first: ZeroDivisionError: a bug of ours" in told


def test_an_evaluation_does_not_go_on_with_another_server(tmp_path):
    few = {**SETTINGS, "tasks": [1], "episodes": 2}
    table, _ = finish(tmp_path, 1, settings=few, SERVER='{"dataset": "ours"}')
    kept, made_with = results.read(tmp_path)
    assert made_with["server"] == {"dataset": "ours"} and len(table) == 2
    results.write(kept[:1], made_with, tmp_path)
    other = start(tmp_path, 1, settings=few, SERVER='{"dataset": "theirs"}')
    _, told = other.communicate(timeout=300)
    assert other.returncode == 1 and "with another server; name another --out" in told
    for _ in range(2):  # then there is nothing left to do, and the server is not asked
        assert finish(tmp_path, 1, settings=few, SERVER='{"dataset": "ours"}')[0] == table
        assert json.loads((tmp_path / "evaluation.json").read_text())["made_with"]["server"] == {"dataset": "ours"}

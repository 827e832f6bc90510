"""Tasks of several steps and with fixtures: what their goals ask for, and that the scripted demonstrator does it."""

import importlib.util

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from pixel160k.errors import InputError
from simulation.demonstration import attempt_until_solved
from simulation.environment import CLOSE, TaskEnvironment
from simulation.goals import subtasks_of, target_of
from simulation.libero import PICK_AND_PLACE_TASKS, SCRIPTED_TASKS, drawn_by_default
from simulation.recording import draw_scenes, record_sample
from simulation.script import left_to_do
from simulation.truth import phrase_of

with_libero = pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="LIBERO is not installed: pip install 'pixelvla[sim]'"
)


def things(goal, objects=()):
    return [(subtask.thing, subtask.place) for subtask in subtasks_of(goal, objects)]


def test_a_goal_is_read_as_subtasks_in_the_order_of_doing_them():
    into_drawer = ["in", "bowl_1", "white_cabinet_1_bottom_region"]
    close = ["close", "white_cabinet_1_bottom_region"]
    assert things([close, into_drawer]) == [
        ("bowl_1", "white_cabinet_1_bottom_region"),
        ("bottom_drawer_handle", ""),
    ]
    # Nothing is put into the drawer that is closed here: then the goal's own order holds.
    onto = ["on", "bowl_1", "white_cabinet_1_top_side"]
    assert things([close, onto])[0] == ("bottom_drawer_handle", "")
    assert things([["close", "microwave_1"], ["in", "mug_1", "microwave_1_heating_region"]])[0][0] == "mug_1"
    assert things([["turnon", "flat_stove_1"], ["on", "pot_1", "flat_stove_1_cook_region"]])[0] == ("stove_knob", "")


def test_what_stands_free_is_filled_as_a_whole_and_a_fixture_region_by_region():
    goal = [["in", "soup_1", "basket_1_contain_region"], ["in", "book_1", "desk_caddy_1_back_contain_region"]]
    assert things(goal, {"soup_1", "basket_1", "book_1"}) == [
        ("soup_1", "basket_1"),
        ("book_1", "desk_caddy_1_back_contain_region"),
    ]


def test_the_target_is_the_first_thing_that_is_carried():
    goal = [["open", "cabinet_1_top_region"], ["in", "bowl_1", "cabinet_1_top_region"], ["on", "cup_1", "plate_1"]]
    assert target_of(subtasks_of(goal, ())).thing == "bowl_1"
    assert target_of(subtasks_of(goal[:1], ())).thing == "top_drawer_handle"


@pytest.mark.parametrize(
    ("category", "instruction", "phrase"),
    [
        ("white_yellow_mug", "put the yellow and white mug in the microwave and close it", "yellow and white mug"),
        ("alphabet_soup", "put both the alphabet soup and the tomato sauce in the basket", "alphabet soup"),
        ("black_book", "pick up the book and place it in the caddy", "book"),
    ],
)
def test_phrases_of_longer_instructions(category, instruction, phrase):
    assert phrase_of(category, instruction) == phrase


def test_a_recording_draws_what_it_always_drew_and_more_when_asked():
    for suite, tasks in PICK_AND_PLACE_TASKS.items():
        assert drawn_by_default(suite) == tasks and set(tasks) <= set(SCRIPTED_TASKS[suite])
    for suite in ("libero_10", "libero_90"):
        assert {scene.task_id for scene in draw_scenes(suite, 3)} == set(SCRIPTED_TASKS[suite])
    first = [next(draw_scenes(suite, 0, tasks=range(10))) for suite in ("libero_goal", "libero_10", "libero_90")]
    assert len({(scene.task_id, scene.initial_state) for scene in first}) == 3  # each suite has draws of its own


def test_a_task_that_nobody_demonstrates_is_refused_by_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot record tasks \[9\] of libero_goal: choose one or more of \[0, 1,"):
        record_sample("libero_goal", 1, 0, tmp_path / "out", tasks={"libero_goal": [9]})
    asked = ["sample", "--task", "0", "--episodes", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*asked, "--suite", "libero_10", "--suite", "libero_goal"])
    assert result.exit_code == 2 and "--task chooses among the tasks of one --suite" in result.output


def replayed(environment, attempt, initial_state):
    """Whether LIBERO itself reports success after an attempt's actions, done again from the start."""
    environment.reset(initial_state)
    for action in attempt.actions:
        environment.step(action)
    return environment.succeeded()


@with_libero
@pytest.mark.slow
def test_a_closed_drawer_is_opened_first_and_the_truth_is_that_of_what_is_put_into_it():
    with TaskEnvironment("libero_goal", 3) as environment:
        environment.reset(0)
        assert [subtask.thing for subtask in left_to_do(environment)] == ["top_drawer_handle", "akita_black_bowl_1"]
        attempt = attempt_until_solved(environment, 0)[-1]
        assert attempt.solved and attempt.touched == environment.target == "akita_black_bowl_1"
        closed = np.array([action[6] for action in attempt.actions]) == CLOSE
        closes = np.flatnonzero(~closed[:-1] & closed[1:]) + 1
        assert len(closes) == 2 and attempt.grasp_step == closes[1]  # the first is that on the handle
        assert replayed(environment, attempt, 0)

"""Shifts of the domain in LIBERO: made of names alone, ever farther, undone, seen by the masks, and counted beside none."""

import json
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("libero", reason="needs the extra [sim]")

from annotate.annotators.grammar import target_object
from evaluation.closed_loop import results
from evaluation.closed_loop.degradation import by_shift
from evaluation.closed_loop.episode import EpisodeResult
from evaluation.closed_loop.run import evaluate
from evaluation.closed_loop.settings import LiberoSettings
from evaluation.shifts import KINDS, LEVELS, Shift
from evaluation.wording import reworded
from pixel160k.errors import InputError
from simulation.environment import AGENT_VIEW, IMAGE_SIZE, TaskEnvironment
from simulation.libero import load_task, suite_tasks

SUITE, TASK, STATE, SEED = "libero_spatial", 1, 4, 0
ADDED = Shift("distractors", 3).added(SUITE, TASK, SEED)


def shifted(environment, name):
    """The environment in a scene under a shift."""
    environment.change = Shift.named(name).change(SUITE, SEED)
    environment.reset(STATE)
    return environment


@pytest.fixture(scope="module")
def scenes():
    """An environment, and what one with three objects more was like; one after the other, as they share a renderer."""
    with TaskEnvironment(SUITE, TASK, added=ADDED) as more:
        shifted(more, "distractors-3")
        with_objects = {
            "places": {name: more.body_position(name) for name in more.things()},
            "masks": more.instance_masks(AGENT_VIEW),
            "arm": more.proprioception()[1],
            "added": more.added,
        }
        for _ in range(10):
            more.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        with_objects["later"] = {name: more.body_position(name) for name in more.things()}
    del more
    with TaskEnvironment(SUITE, TASK) as environment:
        yield environment, with_objects


# --- what is said


def test_a_shift_has_a_kind_and_a_level():
    assert Shift.named("none") == Shift() and Shift.named("camera-3") == Shift("camera", 3)
    settings = LiberoSettings.load(
        values={"shifts": ["none", *(f"{kind}-{level}" for kind in KINDS for level in LEVELS)]}
    )
    assert len(settings.shifts) == 1 + 9 * 5


@pytest.mark.parametrize(
    "wrong", [["camera-6"], ["camera-0"], ["camera"], ["camra-3"], ["none-1"], [], ["none", "none"]]
)
def test_an_unknown_shift_is_one_line(wrong):
    with pytest.raises(InputError, match="setting 'shifts'") as refused:
        LiberoSettings.load(values={"shifts": wrong})
    assert "\n" not in str(refused.value)


# --- what becomes of a scene


def turned(environment):
    camera = environment.model.camera(AGENT_VIEW)
    return np.concatenate([camera.pos, camera.quat])


def lit(environment):
    model = environment.model
    return np.concatenate([np.log2(model.light_diffuse).ravel(), model.light_dir.ravel(), model.light_specular.ravel()])


def papered(*names):
    def pixels(environment):
        textures = environment.textures
        return np.concatenate([textures.pixels(environment.model.texture(name).id).ravel() for name in names]) / 1.0

    return pixels


def standing(environment):
    movable = [name for name in environment.things() if environment.is_movable(name)]
    return np.concatenate([environment.body_position(name)[:2] for name in sorted(movable)])


MEASURES = {
    "camera": turned,
    "light": lit,
    "background": papered("tex-wall", "texplane"),
    "table": papered("tex-table"),
    "places": standing,
    "robot": lambda environment: environment.proprioception()[1],
}


@pytest.mark.parametrize("kind", MEASURES)
def test_a_scene_shifts_farther_at_each_level_and_the_same_way_each_time(scenes, kind):
    environment, _ = scenes
    measure, far = MEASURES[kind], []
    before, state = measure(shifted(environment, "none")), environment.state()
    for level in (1, 3, 5):
        after = measure(shifted(environment, f"{kind}-{level}"))
        far.append(np.abs(after - before).mean())
    assert 0 < far[0] < far[1] < far[2]
    assert np.array_equal(measure(shifted(environment, f"{kind}-5")), after), "twice the same"
    assert np.array_equal(measure(shifted(environment, "none")), before), "the next reset undoes it"
    assert np.array_equal(environment.state(), state)


def test_none_and_what_was_undone_look_as_if_nothing_had_been(scenes):
    environment, _ = scenes
    environment.change = None
    environment.reset(STATE)
    first, masks = environment.render(AGENT_VIEW), environment.instance_masks(AGENT_VIEW)
    images = {}
    for kind in ("camera", "light", "background", "table"):
        images[kind] = shifted(environment, f"{kind}-5").render(AGENT_VIEW)
        share = (images[kind] != first).mean()
        assert share > 0.05 and images[kind].mean() > 20, f"{kind}: {share}"
    assert np.array_equal(shifted(environment, "none").render(AGENT_VIEW), first)
    again = environment.instance_masks(AGENT_VIEW)
    assert all(np.array_equal(masks[name], again[name]) for name in masks)


def test_masks_follow_the_camera(scenes):
    """Where the shifted camera projects a bowl's middle, there is the bowl's mask; the unshifted one has it elsewhere."""
    environment, _ = scenes
    shifted(environment, "none")
    before = environment.instance_masks(AGENT_VIEW)[environment.target]
    mask = shifted(environment, "camera-3").instance_masks(AGENT_VIEW)[environment.target]
    camera = environment.model.camera(AGENT_VIEW).id
    rotation = environment.data.cam_xmat[camera].reshape(3, 3)
    x, y, z = rotation.T @ (environment.body_position(environment.target) - environment.data.cam_xpos[camera])
    focal = IMAGE_SIZE / 2 / np.tan(np.deg2rad(environment.model.cam_fovy[camera]) / 2)
    # Images are turned by 180 degrees, see `TaskEnvironment.render`; robosuite's frames begin at the bottom.
    column, row = IMAGE_SIZE / 2 - focal * x / -z, IMAGE_SIZE / 2 - focal * y / -z
    rows, columns = np.nonzero(mask)
    assert mask.any() and (mask & before).sum() < 0.5 * before.sum()
    assert columns.min() <= column <= columns.max() and rows.min() - 3 <= row <= rows.max() + 3


def test_places_shift_by_a_centimetre_a_level(scenes):
    environment, _ = scenes
    before = standing(shifted(environment, "none")).reshape(-1, 2)
    moves = np.linalg.norm(standing(shifted(environment, "places-4")).reshape(-1, 2) - before, axis=1)
    assert np.allclose(moves[moves > 0.005], 0.04, atol=0.004) and (moves > 0.005).sum() >= 3


def test_added_objects_stand_by_themselves_and_leave_the_rest_as_it_was(scenes):
    environment, more = scenes
    shifted(environment, "none")
    own = {name: environment.body_position(name) for name in environment.things()}
    assert more["places"].keys() - own.keys() == set(more["added"]) and len(more["added"]) == 3
    assert all(np.allclose(own[name], more["places"][name], atol=1e-3) for name in own)
    assert np.allclose(environment.proprioception()[1], more["arm"], atol=1e-3)
    for name in more["added"]:
        assert more["masks"][name].sum() > 20, f"{name} is not to be seen"
        assert np.linalg.norm(more["places"][name] - more["later"][name]) < 0.002, f"{name} does not stand"
        assert abs(more["places"][name][2] - environment.workspace[2]) < 0.12
    assert set(Shift("distractors", 1).added(SUITE, TASK, SEED)) < set(ADDED)
    assert Shift("distractors", 3).added(SUITE, TASK, 1) != ADDED


def test_no_object_is_added_that_an_instruction_could_mean():
    for suite in ("libero_object", "libero_10"):
        for task in range(suite_tasks(suite)):
            instruction = load_task(suite, task).instruction.split()
            kinds = Shift("distractors", 5).added(suite, task, SEED)
            assert len(kinds) == 5 and not set(instruction) & {word for kind in kinds for word in kind.split("_")}


def test_noise_grows_with_the_level_in_a_scene():
    for state in range(20):
        numbers = [Shift("noise", level).noise(Shift("noise").draws(SUITE, 0, state, SEED)) for level in LEVELS]
        assert [number % 10 for number in numbers] == [2, 4, 6, 8, 0] and numbers[0] // 10 == (numbers[4] - 1) // 10
    assert {Shift("noise", 1).noise(Shift("noise").draws(SUITE, 0, state, SEED)) // 10 for state in range(50)} == set(
        range(5)
    )
    assert Shift().noise(Shift().draws(SUITE, 0, 0, SEED)) == 0


# --- what is told


def in_words(instruction, level, state=0):
    return reworded(instruction, level, Shift("wording").draws(SUITE, 0, state, SEED))


def test_instructions_are_worded_farther_at_each_level():
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
        for task in range(10):
            said = load_task(suite, task).instruction
            worded = [in_words(said, level, task) for level in (0, *LEVELS)]
            assert worded[0] == said and worded[1:] == [in_words(said, level, task) for level in LEVELS]
            new = [len(set(words.lower().split()) - set(said.split())) for words in worded]
            assert all(less <= more for less, more in pairwise(new)), worded
            assert new[1] > 0 and new[5] > new[2] > new[1], worded
            assert target_object(worded[5]) == target_object(worded[4]), (
                worded
            )  # the sentence before names nothing to grasp


def test_sides_that_name_an_object_are_kept():
    said = "put the white mug on the left plate and put the wine bottle on top of the cabinet"
    worded = in_words(said, 4)
    assert (
        "on the left dish" in worded
        and "bottle of wine" in worded
        and "cupboard" in worded
        and "white cup" in worded
        and "mug" not in worded
    )
    assert "bowl in the middle" in in_words("stack the black bowl at the front on the black bowl in the middle", 4)


# --- what is counted


def row(state, success, shift="none", **values):
    return EpisodeResult(0, "", state, "none", shift, success=success, **values)


def test_what_is_lost_is_counted_on_the_same_scenes():
    ours = [row(state, state < 8) for state in range(10)] + [row(state, state < 3, "camera-5") for state in range(9)]
    ours += [row(9, True, "camera-5", error="it fell")]
    theirs = [row(state, True) for state in range(10)] + [row(state, state != 0, "camera-5") for state in range(10)]
    none, camera = by_shift(ours, ["none"], ["none", "camera-5"], theirs)
    assert none["lost"] is None and none["success"]["rate"] == 0.8 and none["between"]["only_second"] == 2
    assert camera["success"]["of"] == 9 and camera["errors"] == 1
    assert camera["lost"] == {"rate": 0.5556, "scenes": 9, "only_first": 5, "only_second": 0, "p": 0.0625}
    assert camera["there"]["lost"]["rate"] == 0.1 and camera["between"]["only_first"] == 1
    (alone,) = by_shift(ours, ["none"], ["light-1"])
    assert alone["lost"] is None and alone["success"]["rate"] is None and "there" not in alone


@pytest.mark.slow
def test_an_evaluation_tries_each_scene_under_each_shift(tmp_path):
    pytest.importorskip("torch", reason="needs the extra [train]")
    options = ["tasks=[2]", "episodes=1", "most_steps=8", "reflections=false"]
    shifts = ["none", "distractors-1", "noise-5", "wording-5"]
    settings = LiberoSettings.load(overrides=options, values={"shifts": shifts})
    seen = evaluate("random", settings, tmp_path / "one")
    rows, _ = results.read(tmp_path / "one")
    assert sorted(found.shift for found in rows) == sorted(shifts) and not any(found.error for found in rows)
    said = {found.shift: found.instruction for found in rows}
    assert said["none"] == said["noise-5"] == said["distractors-1"] != said["wording-5"]
    assert [found["shift"] for found in seen["shifts"]] == shifts and "there" not in seen["shifts"][0]
    again = evaluate("random", settings, tmp_path / "one", against=tmp_path / "one")
    assert again["shifts"][1]["between"]["scenes"] == 1 and again["shifts"][1]["lost"]["scenes"] == 1
    page = (tmp_path / "one" / "libero.html").read_text("utf-8")
    assert "Shifts of the domain" in page and "distractors-1" in page
    unshifted = LiberoSettings.load(overrides=options)
    made_with = seen["made_with"] | {"settings": unshifted.model_dump(mode="json")}
    (tmp_path / "plain").mkdir()
    results.write([found for found in rows if found.shift == "none"], made_with, tmp_path / "plain")
    plain = evaluate("random", unshifted, tmp_path / "plain")  # nothing is left to do
    assert plain["shifts"] == [] and plain["conditions"] == seen["conditions"]
    assert json.loads((tmp_path / "plain" / "evaluation.json").read_text("utf-8"))["shifts"] == []

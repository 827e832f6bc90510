"""Held-out action error: what is compared with what, and that pointing elsewhere is pointing elsewhere."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")

import numbered_shards  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from numbered_shards import HORIZON, SIZE, write_shards  # noqa: E402

from cli import main  # noqa: E402
from evaluation.action_report import DEMONSTRATED, summary_table  # noqa: E402
from evaluation.actions import MEAN_ACTION, REPEAT_LAST, measure_policy  # noqa: E402
from model.policy import PixelVLA  # noqa: E402
from pixel160k.read.episodes import ShardDirectory  # noqa: E402

CHUNK = 4


class Oracle:
    """Stands in for a policy: perfect where it is shown the episode's own object, else off by one in x and y."""

    def __init__(self, directory):
        self.directory, self.processor = directory, self
        self.own = {sample.image.tobytes(): sample for e in directory.episode_ids for sample in directory.episode(e)}
        self.first = {e: directory.sample(e, 0) for e in directory.episode_ids}
        self.asked = []

    def statistics_of(self, dataset):
        return self.directory.statistics

    def act(self, observations):
        chunks = []
        for observation in observations:
            sample = self.own[observation.image.tobytes()]
            self.asked.append(observation)
            shown = [prompt.coordinates for prompt in observation.prompts]
            own = [prompt.coordinates for prompt in self.first[sample.episode_id].prompts if prompt.kind == "point"]
            right = bool(shown) and np.array_equal(shown[0], own[0])
            chunks.append(sample.actions + (0 if right else np.array([1, 1, 0, 0, 0, 0, 0])))
        return np.stack(chunks)


@pytest.fixture()
def directory(tmp_path):
    """One shard of four episodes of twelve steps, the third of them rejected and without prompts."""
    return ShardDirectory(write_shards(tmp_path / "shards", [[12] * 4]), chunk=CHUNK)


def test_the_errors_are_those_of_each_condition(directory, tmp_path):
    oracle = Oracle(directory)
    result = measure_policy(
        oracle, directory, directory.episode_ids, ["none", "point", "wrong_point"], tmp_path / "out"
    )
    assert (result["episodes"], result["left_out"]) == (3, 1)
    conditions = result["conditions"]
    assert list(conditions) == [MEAN_ACTION, REPEAT_LAST, "none", "point", "wrong_point"]
    assert conditions["point"]["before_close"]["error"] == [0.0] * 7
    assert 0 < conditions["point"]["all"]["xy"] < 1  # after the close nothing marks the object
    for wrong in ("none", "wrong_point"):
        assert conditions[wrong]["all"]["error"] == [1, 1, 0, 0, 0, 0, 0]
        assert conditions[wrong]["before_close"] == {
            "episodes": 3, "error": [1, 1, 0, 0, 0, 0, 0], "xy": 1.0, "xy_95": [1.0, 1.0]
        }  # fmt: skip
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    page = (tmp_path / "out" / "actions.html").read_text()
    assert "wrong_point" in page and "1 more were not accepted, or have no prompts" in page
    first_moves = [page.count(f"<title>{name}</title>") for name in (DEMONSTRATED, "none", "point", "wrong_point")]
    assert first_moves == [3] * 4 and page.count("move right") == 3 + 1  # one line per episode, and the key
    assert summary_table(result).row_count == 5


def test_a_full_gpu_is_asked_for_less_at_once(directory):
    class Small(Oracle):
        def act(self, observations):
            if len(observations) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().act(observations)

    asked = (directory, directory.episode_ids, ["none", "point"])
    assert measure_policy(Small(directory), *asked) == measure_policy(Oracle(directory), *asked)


def test_a_policy_of_another_data_set_acts_by_its_own_statistics(directory):
    oracle = Oracle(directory)
    oracle.statistics_of = lambda name: {"home": {"action": {"mean": [9] * 7}}}[name]
    result = measure_policy(oracle, directory, directory.episode_ids, ["none"], scaled_as="home")
    assert {one.dataset for one in oracle.asked} == {"home"} and result["scaled_as"] == "home"
    assert result["conditions"][MEAN_ACTION]["all"]["error"][6] > 8


def test_the_trivial_policies(directory):
    """y is the step: the last action is one step behind at first, and further with every row of the chunk."""
    result = measure_policy(Oracle(directory), directory, directory.episode_ids, ["none"])
    sample = directory.episode(directory.episode_ids[0])
    errors = []
    for index, one in enumerate(sample):
        last = sample[index - 1].actions[0] if index else np.array([0, 0, 0, 0, 0, 0, 1.0])
        errors += list(np.abs(one.actions - last)[one.action_mask])
    of_first = np.mean(errors, axis=0)
    repeated = result["conditions"][REPEAT_LAST]["all"]["error"]
    np.testing.assert_allclose(repeated[1:], of_first[1:], atol=1e-5)  # x is the record's number, the rest is alike
    mean = np.array(directory.statistics["action"]["mean"])
    by_hand = [
        np.mean(
            [row for s in directory.episode(e) for row in np.abs(s.actions - mean)[s.action_mask]],
            axis=0,
        )
        for e in directory.episode_ids
        if directory.sample(e, 0).prompts
    ]
    np.testing.assert_allclose(result["conditions"][MEAN_ACTION]["all"]["error"], np.mean(by_hand, axis=0), atol=1e-5)


def test_before_the_close_is_before_the_close(directory):
    """Close step 1: of step 0's chunk the first row counts, of no other step any."""
    result = measure_policy(Oracle(directory), directory, directory.episode_ids, ["none"])
    assert result["conditions"][REPEAT_LAST]["before_close"]["error"][1] == 0  # step 0, whose y is 0
    assert result["conditions"][REPEAT_LAST]["all"]["error"][1] > 1


def test_the_wrong_object_is_the_twin_s_where_there_is_one(tmp_path, monkeypatch):
    """Episodes 0 and 1 begin with the same picture: each is pointed at the other's object, never at the third's."""
    same = np.full((SIZE, SIZE, 3), 77, np.uint8)
    encode = cv2.imencode

    def alike(suffix, image):
        return encode(suffix, same if image[0, 0, 1] <= 10 and image[0, 0, 0] == 0 else image)

    monkeypatch.setattr(numbered_shards.cv2, "imencode", alike)
    directory = ShardDirectory(write_shards(tmp_path / "shards", [[3] * 5]), chunk=CHUNK)
    monkeypatch.undo()
    first, second = (directory.sample(e, 0) for e in directory.episode_ids[:2])
    assert directory.members(first.episode_id, 0)["jpg"] == directory.members(second.episode_id, 0)["jpg"]

    class Listener(Oracle):
        def act(self, observations):
            self.asked += observations
            return np.zeros((len(observations), CHUNK, 7))

    listener = Listener(directory)
    measure_policy(listener, directory, directory.episode_ids, ["wrong_pixel_mask"])
    of_first = [one for one in listener.asked if one.instruction == first.instruction]
    expected = next(prompt.mask for prompt in second.prompts if prompt.kind == "mask")
    assert [len(one.masks) for one in of_first] == [1, 0, 0]  # as long as its own would be shown: it closes at step 1
    assert np.array_equal(of_first[0].masks[0], expected)


def test_one_episode_has_no_wrong_object_and_needs_none(directory):
    result = measure_policy(Oracle(directory), directory, directory.episode_ids[:1], ["none", "point"])
    assert result["episodes"] == 1 and result["conditions"]["point"]["before_close"]["error"] == [0.0] * 7


def test_what_was_rejected_points_at_nothing(tmp_path, monkeypatch):
    """Its prompts are of a mask that was found and not believed."""
    made = numbered_shards.annotation

    def contradicted(*asked):
        row = made(*asked)
        return replace(row, status="rejected", reason="contradicted_by_motion") if row.record == 1 else row

    monkeypatch.setattr(numbered_shards, "annotation", contradicted)
    directory = ShardDirectory(write_shards(tmp_path / "shards", [[12] * 4]), chunk=CHUNK)
    assert directory.sample(directory.episode_ids[1], 0).prompts
    result = measure_policy(Oracle(directory), directory, directory.episode_ids, ["point", "wrong_point"])
    assert (result["episodes"], result["left_out"]) == (2, 2)


def test_wrong_requests(directory, tmp_path):
    with pytest.raises(InputError, match="no prompt 'circle'; choose of none, point"):
        measure_policy(Oracle(directory), directory, directory.episode_ids, ["circle"])
    with pytest.raises(InputError, match="each prompt once, not none,point,none"):
        measure_policy(Oracle(directory), directory, directory.episode_ids, ["none", "point", "none"])
    rejected = [e for e in directory.episode_ids if not directory.sample(e, 0).prompts]
    with pytest.raises(InputError, match="none of the 1 episodes"):
        measure_policy(Oracle(directory), directory, rejected, ["none"])
    with pytest.raises(InputError, match="there is only one"):
        measure_policy(Oracle(directory), directory, directory.episode_ids[:1], ["wrong_point"])


def test_the_command(directory, tmp_path):
    torch.manual_seed(0)
    settings = ["backbone.vision.image_size=48", "backbone.vision.patch_size=16", f"chunk={CHUNK}"]
    PixelVLA.start("tiny", {"drawn": directory.statistics}, settings).save_pretrained(tmp_path / "policy")
    arguments = ["evaluate", "actions", "--checkpoint", str(tmp_path / "policy"), "--shards", str(directory.directory)]
    arguments += ["--out", str(tmp_path / "out"), "--prompts", "none, mask,pixel_mask, wrong_mask"]
    result = CliRunner().invoke(main, [*arguments, "--split", "train"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "wrong_mask" in json.loads((tmp_path / "out" / "evaluation.json").read_text())["conditions"]
    assert CHUNK <= HORIZON
    assert "no episode of the split 'val'" in CliRunner().invoke(main, [*arguments, "--split", "val"]).output
    assert "does not say what it was trained on" in CliRunner().invoke(main, arguments).output
    absent = CliRunner().invoke(main, [*arguments, "--checkpoint", str(tmp_path / "absent")])
    assert absent.exit_code == 1 and "absent" in absent.output and "--split" not in absent.output
    (tmp_path / "policy" / "model.safetensors").unlink()  # said before weights are read
    elsewhere = CliRunner().invoke(main, [*arguments, "--split", "train", "--scaled-as", "bridge_orig"])
    assert "has no statistics of 'bridge_orig', only of drawn: name the one that" in elsewhere.output

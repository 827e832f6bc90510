"""Studies: what a grid says, that what is finished is kept, and that intervals are over seeds."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [notebook]")

from numbered_shards import write_shards
from PIL import Image

from evaluation.actions import MEAN_ACTION
from evaluation.study import STEPS as STAGES
from evaluation.study import Study, over_seeds, read_grid, run_study, stages_after, summary_table
from pixel160k.errors import InputError
from train import checkpoints
from train.run import train
from train.settings import load_recipe

STEPS = {"pretrain": 2, "cat": 1, "pue": 1}
FAST = ("workers=0", "batch_size=2", "held_out_share=0.5", "evaluate_every=100", "evaluate_batches=1", "report_to=[]")


def test_a_grid_is_read_and_a_wrong_one_is_one_line():
    grid = read_grid(["decoder_blocks=1,2", "backbone.vision.levels=[1],[1,3]", "lora.rank=4", "multiscale=on,off"])
    assert grid["backbone.vision.levels"] == ["[1]", "[1,3]"] and grid["lora.rank"] == ["4"]
    assert len(Study(grid, [0], STEPS).combinations()) == 8
    for wrong, said in (
        (["decoder_blocks"], "takes key=value"),
        (["decoder_blocks=1", "decoder_blocks=2"], "each key once"),
        (["decoder_block=1"], "did you mean 'decoder_blocks'"),
        (["max_steps=4"], "cannot vary 'max_steps'"),
    ):
        with pytest.raises(InputError, match=said):
            read_grid(wrong)


def test_intervals_are_students_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["interval"] == pytest.approx(
        [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-5
    )
    assert over_seeds([1.5])["interval"] is None


def test_what_is_wrong_is_found_before_anything_is_trained(tmp_path):
    shards = str(write_shards(tmp_path / "shards", [[6] * 4, [6] * 4]))
    copy = str(write_shards(tmp_path / "copy", [[6] * 4]))
    other = str(write_shards(tmp_path / "other", [[6]], dataset="other"))
    right = {"grid": {}, "seeds": [0], "steps": STEPS, "overrides": FAST}
    for changed, sources, said in (
        ({"grid": {"decoder_blocks": ["2", "9"]}}, [shards], "decoder_blocks"),
        ({"grid": {"multiscale": ["on", "many"]}}, [shards], "on or off"),
        ({"grid": {"held_out_share": ["0.5", "0"]}}, [shards], "no episode of these shards is held out"),
        ({"conditions": ("none", "circle")}, [shards], "no prompt 'circle'"),
        ({"cross": True}, [shards], "two of them or more"),
        ({"cross": True}, [shards, copy], "drawn"),
        ({"cross": True}, [shards, other], "other: .* held out"),
        ({"init": str(tmp_path / "none")}, [shards], "none"),
    ):
        with pytest.raises(InputError, match=said):
            run_study(Study(**right | changed), sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_trains_each_combination_once_and_tells_them_apart(tmp_path):
    shards = str(write_shards(tmp_path / "shards", [[6] * 4, [6] * 4]))
    study = Study({"multiscale": ["on", "off"]}, [0], STEPS, overrides=FAST, conditions=("none", "point"))
    seen = []
    result = run_study(study, [shards], tmp_path / "out", lambda *counted: seen.append(counted))
    assert seen == [(1, 2), (2, 2)]
    on, off = (tmp_path / "out" / f"multiscale={value}" / "drawn" / "seed_0" for value in ("on", "off"))
    levels = [checkpoints.settings_of(checkpoints.latest(run / "pue"))[0].backbone.vision.levels for run in (on, off)]
    assert levels == [(1, 3), (3,)]
    assert [row["values"] for row in result["rows"]] == [{"multiscale": "on"}, {"multiscale": "off"}]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoint-*/*")}
    (off / "on_drawn" / "evaluation.json").unlink()
    assert (
        run_study(study, [shards], tmp_path / "out") == result == json.loads((tmp_path / "out/study.json").read_text())
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoint-*/*")} == before
    assert summary_table(result).row_count == 2 and Image.open(tmp_path / "out" / "study.png").size[0] > 500
    for changed, said in (
        ({"steps": STEPS | {"pue": 3}}, "1 steps of pue, and this one has 3"),
        ({"overrides": (*FAST, "learning_rate=0.1")}, "learning_rate was 0.001 and is now 0.1"),
    ):
        with pytest.raises(InputError, match=said):
            run_study(replace(study, **changed), [shards], tmp_path / "out")
    # The same bytes elsewhere are the same study; others, of the same data set, are not.
    moved = str(write_shards(tmp_path / "moved", [[6] * 4, [6] * 4]))
    assert run_study(study, [moved], tmp_path / "out") == result
    with pytest.raises(InputError, match=r"study on other shards of drawn than .*fewer: choose another --out"):
        run_study(study, [str(write_shards(tmp_path / "fewer", [[6] * 4, [6] * 3]))], tmp_path / "out")


@pytest.mark.slow
def test_across_data_sets_each_policy_is_measured_on_all_and_acts_by_what_it_was_trained_on(tmp_path):
    """One policy is trained to `cat`; from it the study goes on, on each data set alone and on both."""
    shards = {
        "drawn": str(write_shards(tmp_path / "drawn", [[6] * 8])),
        "other": str(write_shards(tmp_path / "other", [[9] * 8], dataset="other")),
    }
    seed, init = tmp_path / "seed", "tiny"
    for stage in ("pretrain", "cat"):
        changed = {"stage": stage, "init": init, "max_steps": STEPS[stage]}
        train(load_recipe("tiny-sample", FAST, changed), [shards["drawn"]], seed / stage)
        init = str(seed / stage)
    assert [stages_after(init) for init in ("", "tiny", str(seed / "pretrain"), str(seed / "cat"), "openvla-7b")] == [
        tuple(STAGES), tuple(STAGES), ("cat", "pue"), ("pue",), ("cat", "pue")
    ]  # fmt: skip
    study = Study({}, [0], {"pue": 1}, init=str(seed / "cat"), cross=True, overrides=FAST, conditions=("none",))
    with pytest.raises(InputError, match="fixed"):
        run_study(replace(study, grid={"multiscale": ["on", "off"]}), [*shards.values()], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    overrides = (*FAST, "mixture.drawn=1", "mixture.other=3")  # of both together; alone a data set needs no weight
    result = run_study(replace(study, overrides=overrides), [*shards.values()], tmp_path / "out")
    told = [(row["measured_on"], row["trained_on"], row["scaled_as"]) for row in result["rows"]]
    both = ["drawn", "other"]
    assert told == [
        ("drawn", ["drawn"], "drawn"), ("drawn", ["other"], "other"), ("drawn", both, "drawn"),
        ("other", ["drawn"], "drawn"), ("other", ["other"], "other"), ("other", both, "other"),
    ]  # fmt: skip
    trivial = [row["measures"][MEAN_ACTION]["xy"]["mean"] for row in result["rows"]]
    assert trivial[0] == trivial[2] != trivial[1] and trivial[4] == trivial[5] != trivial[3]
    assert not list((tmp_path / "out").rglob("cat")) and summary_table(result).row_count == 6
    with pytest.raises(InputError, match="one of pue, the last"):
        stages_after(str(tmp_path / "out" / "as it is" / "drawn" / "seed_0" / "pue"))

"""Studies: what a grid says, that what is finished is kept, and that intervals are over seeds."""

import json

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [notebook]")

from numbered_shards import write_shards
from PIL import Image

from evaluation.study import Study, over_seeds, read_grid, run_study, summary_table
from pixel160k.errors import InputError
from train import checkpoints

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


def test_wrong_values_are_found_before_anything_is_trained(tmp_path):
    for grid, said in (
        ({"decoder_blocks": ["2", "9"]}, "decoder_blocks"),
        ({"multiscale": ["on", "many"]}, "on or off"),
    ):
        with pytest.raises(InputError, match=said):
            run_study(Study(grid, [0], STEPS, overrides=FAST), ["nowhere"], tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_trains_each_combination_once_and_tells_them_apart(tmp_path):
    shards = str(write_shards(tmp_path / "shards", [[6] * 4, [6] * 4]))
    study = Study({"multiscale": ["on", "off"]}, [0], STEPS, overrides=FAST, conditions=("none", "point"))
    seen = []
    result = run_study(study, [shards], tmp_path / "out", lambda *counted: seen.append(counted))
    assert seen == [(1, 2), (2, 2)]
    on, off = (tmp_path / "out" / f"multiscale={value}" / "seed_0" for value in ("on", "off"))
    levels = [checkpoints.settings_of(checkpoints.latest(run / "pue"))[0].backbone.vision.levels for run in (on, off)]
    assert levels == [(1, 3), (3,)]
    assert [row["values"] for row in result["rows"]] == [{"multiscale": "on"}, {"multiscale": "off"}]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoint-*/*")}
    (off / "evaluation.json").unlink()
    assert (
        run_study(study, [shards], tmp_path / "out") == result == json.loads((tmp_path / "out/study.json").read_text())
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoint-*/*")} == before
    assert summary_table(result).row_count == 2 and Image.open(tmp_path / "out" / "study.png").size[0] > 500

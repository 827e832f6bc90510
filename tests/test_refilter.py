"""Accepting anew gives, byte by byte, what a fresh run with those thresholds gives; and never touches the first run."""

import json
import shutil

import pytest
from click.testing import CliRunner
from scene import episode, write_scenes

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.refilter import refilter
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from cli import main
from pixel160k.format.table import read_annotations


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Data and finished annotations of two files."""
    path = tmp_path_factory.mktemp("run")
    data = write_scenes(path / "data", [episode(), episode(seed=1)], [episode(centre=(150, 200), seed=2)])
    annotate("libero", data, path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    return path


def parts(directory):
    return {path.name: path.read_bytes() for path in directory.glob("part-*.parquet")}


@pytest.mark.parametrize(
    "override", ["filter.min_evidence=1.0", "filter.max_mask_area=0.002", "filter.min_mask_score=0.99"]
)
def test_same_bytes_as_a_fresh_run(run, tmp_path, override):
    before = parts(run / "annotations")
    totals = refilter(run / "annotations", tmp_path / "anew", (override,))
    fresh = annotate(
        "libero",
        run / "data",
        tmp_path / "fresh",
        AnnotateSettings.load(None, ["annotators=motion", override]),
        Execution(),
    )
    assert parts(tmp_path / "anew") == parts(tmp_path / "fresh")
    assert (totals["status"], totals["reasons"]) == (fresh["status"], fresh["reasons"])
    assert totals["status"].get("accepted", 0) < 3
    assert parts(run / "annotations") == before


def test_shards_can_be_built_from_it(run, tmp_path):
    refilter(run / "annotations", tmp_path / "anew", ("filter.max_mask_area=0.002",))
    manifest = build_shards(tmp_path / "anew", tmp_path / "shards", Execution())
    assert manifest["episodes"] == 0
    assert all(row.reason == "mask_too_large" for row in read_annotations(tmp_path / "anew"))


def test_only_the_filter_and_only_an_empty_out(run, tmp_path):
    arguments = ["annotate", "--refilter", str(run / "annotations"), "--out", str(tmp_path / "anew")]
    result = CliRunner().invoke(main, [*arguments, "--set", "prompts.points=2"])
    assert result.exit_code == 1 and "only settings of the filter" in result.output
    result = CliRunner().invoke(main, [*arguments, "--set", "filter.min_evidence=0.5"])
    assert result.exit_code == 0 and "accepted" in result.output
    result = CliRunner().invoke(main, [*arguments, "--set", "filter.min_evidence=0.5"])
    assert result.exit_code == 1 and "is not empty" in result.output
    assert CliRunner().invoke(main, ["annotate", "--out", str(tmp_path / "x")]).exit_code == 2


def test_damaged_tracks_are_said(run, tmp_path):
    annotations = shutil.copytree(run / "annotations", tmp_path / "annotations")
    described = json.loads((annotations / "run.json").read_text())
    described["settings"]["tracks"] = "accepted"
    (annotations / "run.json").write_text(json.dumps(described))
    (annotations / "tracks").mkdir()
    (annotations / "tracks" / "part-train-00000.parquet").write_bytes(b"PAR1, and no more")
    arguments = ["annotate", "--refilter", str(annotations), "--out", str(tmp_path / "anew")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "part-train-00000.parquet is not a part of the tracks" in result.output

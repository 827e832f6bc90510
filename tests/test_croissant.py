"""The Croissant description, validated and read by `mlcroissant` itself: its records are the samples of the shards."""

import json

import numpy as np
import pytest
from scene import episode, write_scenes

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from pixel160k.format import shards
from pixel160k.publish.croissant import croissant
from pixel160k.read.folder import read_manifest

mlcroissant = pytest.importorskip("mlcroissant", reason="needs the extra [export]")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Shards of two files with one episode each."""
    path = tmp_path_factory.mktemp("croissant")
    data = write_scenes(path / "data", [episode()], [episode(seed=1)])
    annotate("libero", data, path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return path / "shards"


@pytest.fixture(scope="module")
def dataset(directory, tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # else tars of the same name from another run would be taken from a cache
        from mlcroissant._src.operation_graph.operations import extract
        from mlcroissant._src.operation_graph.operations.extract import epath

        patch.setattr(extract, "EXTRACT_PATH", epath.Path(tmp_path_factory.mktemp("extracted")))
        yield mlcroissant.Dataset(jsonld=directory / "croissant.json")


def records(dataset, name):
    return [{key.partition("/")[2]: value for key, value in row.items()} for row in dataset.records(name)]


def test_valid(dataset):
    """No error and no warning but of the date, which would make each build another."""
    assert not dataset.metadata.ctx.issues.errors
    assert all("datePublished" in warning or "license" in warning for warning in dataset.metadata.ctx.issues.warnings)


def test_the_index_is_read(directory, dataset):
    expected = shards.read_index(directory / "index.parquet")
    found = records(dataset, "index")
    assert [row["key"].decode() for row in found] == [row.key for row in expected]
    assert [(row["step"], row["offset"]) for row in found] == [(row.step, row.offset) for row in expected]


def test_members_are_read_and_share_the_key(directory, dataset):
    keys = {row.key for row in shards.read_index(directory / "index.parquet")}
    images, masks, annotations = (
        {row["key"].decode(): row for row in records(dataset, name)} for name in ("images", "masks", "annotations")
    )
    assert set(images) == set(masks) == set(annotations) == keys
    for key in sorted(keys)[::9]:
        metadata = json.loads(annotations[key]["json"])
        assert shards.sample_key(metadata["episode_id"], metadata["step"]) == key
        assert images[key]["image"].size == masks[key]["mask"].size == (256, 256)
        assert (2 in np.unique(np.asarray(masks[key]["mask"]))) == metadata["object_mask_valid"]


def test_checksums_are_those_of_the_manifest(directory):
    described = json.loads((directory / "croissant.json").read_text())
    checksums = {file["@id"]: file["sha256"] for file in described["distribution"] if "sha256" in file}
    manifest = read_manifest(directory)
    assert checksums.pop("index.parquet") == manifest["files"]["index.parquet"]
    assert checksums == {shard["name"]: shard["sha256"] for shard in manifest["shards"]}


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("bridge_orig", "https://creativecommons.org/licenses/by/4.0/"),
        ("fractal", "https://creativecommons.org/licenses/by/4.0/"),
        ("libero", None),
    ],
)
def test_the_licence_is_the_sources(directory, source, licence):
    manifest = read_manifest(directory)
    manifest["annotations"]["source"] = source
    assert croissant(manifest, "").get("license") == licence

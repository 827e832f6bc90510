"""The shards in the tools of others: Hugging Face `datasets` with the declared features, plain `webdataset`, the card's snippets."""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import webdataset
import yaml

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from annotate.sources.sample import default_directory
from pixel160k.format import masks, shards
from pixel160k.format.actions import chunk_mask
from pixel160k.read.folder import read_manifest

datasets = pytest.importorskip("datasets", reason="needs the extra [export]")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The shards of the sample that ships with the package."""
    path = tmp_path_factory.mktemp("sample")
    annotate("sample", default_directory(), path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return path / "shards"


@pytest.fixture(scope="module")
def declared(directory):
    """The features of the data card's header, as `datasets` reads them."""
    _, header, card = (directory / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert card.startswith("# libero_sample")
    return datasets.Features._from_yaml_list(yaml.safe_load(header)["dataset_info"]["features"])


def members(directory):
    """key -> raw members, by plain webdataset."""
    tars = sorted(str(path) for path in directory.glob("*.tar"))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False)}


def assert_same(found, raw):
    """A sample as `datasets` gives it is the one in the tar."""
    metadata = json.loads(raw["json"])
    assert set(found["json"]) == set(metadata)
    for name, value in metadata.items():
        if isinstance(value, float):
            assert found["json"][name] == pytest.approx(value, rel=1e-6)
        else:
            assert found["json"][name] == value or np.allclose(found["json"][name], value)
    np.testing.assert_array_equal(np.asarray(found["mask.png"]), masks.decode_indexed_png(raw["mask.png"]))
    assert found["jpg"].size == found["mask.png"].size == (256, 256)
    for name in ("action.npy", "state.npy"):
        np.testing.assert_array_equal(np.array(found[name], np.float32), np.load(io.BytesIO(raw[name])))


def test_load_dataset_by_the_card(directory, declared, tmp_path):
    """`load_dataset(DIRECTORY)` takes files and features from the card."""
    loaded = datasets.load_dataset(str(directory), split="train", cache_dir=str(tmp_path))
    assert loaded.features == declared
    raw = members(directory)
    assert loaded["__key__"] == list(raw) and len(raw) == read_manifest(directory)["samples"] == 477
    for index in range(0, len(loaded), 45):
        assert_same(loaded[index], raw[loaded[index]["__key__"]])


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_webdataset_with_declared_features(directory, declared, tmp_path, streaming):
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(directory / "*.tar")},
        features=declared,
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path),
    )
    assert loaded.features == declared
    raw = members(directory)
    first = next(iter(loaded))
    assert_same(first, raw[first["__key__"]])
    assert sum(1 for _ in loaded) == len(raw)


def test_rejected_only_shards_have_the_same_features(bridge_dir, declared, tmp_path):
    """No mask, no prompt, no box anywhere: sentinels keep the types, so data sets can be joined."""
    annotate("bridge_orig", bridge_dir, tmp_path / "a", AnnotateSettings(annotators="motion"), Execution())
    build_shards(tmp_path / "a", tmp_path / "s", Execution(), include="all")
    loaded = datasets.load_dataset(str(tmp_path / "s"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == declared
    assert set(loaded.flatten()["json.status"]) == {"rejected"}


def test_plain_webdataset(directory):
    """Every key once, every member there, the arrays as promised."""
    manifest = read_manifest(directory)
    raw = members(directory)
    assert len(raw) == manifest["samples"]
    for key, sample in raw.items():
        assert {name for name in sample if not name.startswith("__")} == set(shards.MEMBERS)
        metadata = json.loads(sample["json"])
        assert key == shards.sample_key(metadata["episode_id"], metadata["step"])
        chunk = np.load(io.BytesIO(sample["action.npy"]), allow_pickle=False)
        real = chunk_mask(metadata["step"], metadata["last_step"], manifest["horizon"])
        assert chunk.shape == (manifest["horizon"], 7) and not chunk[~real, :6].any()


def test_the_cards_snippets_run(directory, tmp_path):
    """Each as its own program beside the folder `shards`, offline."""
    snippets = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 3
    assert "load_dataset" in snippets[0] and "webdataset" in snippets[1] and "pixel160k" in snippets[2]
    for number, snippet in enumerate(snippets):
        program = tmp_path / f"snippet_{number}.py"
        program.write_text(snippet, encoding="utf-8")
        run = {"cwd": directory.parent, "env": os.environ | {"HF_HOME": str(tmp_path / "cache")}}
        result = subprocess.run([sys.executable, program], capture_output=True, text=True, **run)
        assert result.returncode == 0, result.stderr
        assert "pick up the butter" in result.stdout


def test_the_card_names_what_a_user_must_know(directory):
    card = (directory / "README.md").read_text(encoding="utf-8")
    for fact in (
        "Apache-2.0",
        "motion",
        "| accepted | 12 |",
        "Left out of these shards: nothing",
        "annotators: motion",
    ):
        assert fact in card

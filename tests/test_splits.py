"""The splits of a source stay splits: every reader is given them, and what is not for training is in no statistics."""

import contextlib
import glob
import io
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import CliRunner
from pycocotools.coco import COCO
from splits_source import SPLITS, build

import pixel160k
from cli import main
from pixel160k import ShardDirectory
from pixel160k.errors import InputError
from pixel160k.format.shards import split_of
from pixel160k.format.statistics import dataset_statistics
from pixel160k.publish.export import export
from pixel160k.read.verify import verify
from pixel160k.show.data_figure import figure_numbers

LEROBOT = Path(__file__).parents[1] / ".venv-lerobot" / "bin" / "python"
ORDER = ["train", "test", "validation"]
EPISODES = {
    split: [f"drawn-{split}-{file:05d}-{record:05d}" for file, count in enumerate(files) for record in range(count)]
    for split, files in SPLITS.items()
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build(tmp_path_factory.mktemp("splits"), SPLITS)


@pytest.fixture(scope="module")
def exported(directory, tmp_path_factory):
    """Each export, by its name."""
    path = tmp_path_factory.mktemp("exported")
    for to in ("lerobot", "coco", "hf"):
        export(directory, to, path / to, fps=5)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` and `mlcroissant` keep files by name: each test has its own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def of_keys(keys):
    return [key.rpartition("-")[0] for key in keys]


def load_dataset(folder, tmp_path):
    return pytest.importorskip("datasets").load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


def read_by_loader(directory, exported, tmp_path):
    return {
        split: of_keys(sample.key for sample in pixel160k.open_shards(directory, split=split, members=()))
        for split in ORDER
    }


def read_by_directory(directory, exported, tmp_path):
    opened = {split: ShardDirectory(directory, split=split) for split in ORDER}
    assert all(len(of_split.index) == 24 * len(of_split.episode_ids) for of_split in opened.values())
    assert ShardDirectory(directory).splits == {split: of_split.episode_ids for split, of_split in opened.items()}
    return {
        split: [sample.episode_id for episode in of_split.episode_ids for sample in of_split.episode(episode)]
        for split, of_split in opened.items()
    }


def read_by_webdataset(directory, exported, tmp_path):
    """By the pattern of the data card's own program."""
    card = (directory / "README.md").read_text(encoding="utf-8")
    pattern = re.search(r'glob\("shards/(.*?)"\)', card)[1]
    assert pattern == "*-train-*.tar"
    tars = {split: sorted(glob.glob(str(directory / pattern.replace("train", split)))) for split in ORDER}
    return {
        split: of_keys(sample["__key__"] for sample in webdataset.WebDataset(of_split, shardshuffle=False))
        for split, of_split in tars.items()
    }


def read_by_datasets(directory, exported, tmp_path):
    return {split: of_keys(rows["__key__"]) for split, rows in load_dataset(directory, tmp_path).items()}


def read_annotations_by_datasets(directory, exported, tmp_path):
    return {split: rows["episode_id"] for split, rows in load_dataset(exported / "hf", tmp_path).items()}


def lerobot_episodes(exported):
    table = pq.read_table(exported / "lerobot" / "meta" / "episodes", columns=["annotation/episode_id"])
    return table["annotation/episode_id"].to_pylist()


def read_lerobot_by_datasets(directory, exported, tmp_path):
    episodes = lerobot_episodes(exported)
    loaded = load_dataset(exported / "lerobot", tmp_path)
    return {split: [episodes[number] for number in rows["episode_index"]] for split, rows in loaded.items()}


def read_by_lerobot(directory, exported, tmp_path):
    """LeRobot itself gives the splits of info.json where it is asked for their episodes."""
    if not LEROBOT.exists():
        pytest.skip("lerobot's environment is not there; `make .venv-lerobot/.all` makes it")
    command = [LEROBOT, Path(__file__).parent / "lerobot_loads.py", exported / "lerobot", tmp_path / "fewer"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    loaded, episodes = json.loads(result.stdout.splitlines()[-1]), lerobot_episodes(exported)
    return {split: [episodes[number] for number in numbers] for split, numbers in loaded["splits"].items()}


def read_by_mlcroissant(directory, exported, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    described = mlcroissant.Dataset(jsonld=directory / "croissant.json")
    assert not described.metadata.ctx.issues.errors
    found = {record["splits/name"]: [] for record in described.records("splits")}
    for record in described.records("index"):
        found[record["index/split"].decode()].append(record["index/episode_id"].decode())
    return found


def read_croissant_members(directory, exported, tmp_path):
    """Filtered by split, as mlcroissant offers it for names of files."""
    mlcroissant = pytest.importorskip("mlcroissant")
    from mlcroissant._src.operation_graph.operations import extract

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "EXTRACT_PATH", extract.epath.Path(tmp_path / "extracted"))
        found = {}
        for split in ORDER:  # a filter stays in the description: each is read anew
            described = mlcroissant.Dataset(jsonld=directory / "croissant.json")
            records = list(described.records("annotations", filters={"annotations/split": split}))
            assert {record["annotations/split"].decode() for record in records} == {split}
            found[split] = of_keys(sorted(record["annotations/key"].decode() for record in records))
    return found


@pytest.mark.parametrize(
    "read",
    [
        read_by_loader,
        read_by_directory,
        read_by_webdataset,
        read_by_datasets,
        read_annotations_by_datasets,
        read_lerobot_by_datasets,
        pytest.param(read_by_lerobot, marks=pytest.mark.slow),
        read_by_mlcroissant,
        read_croissant_members,
    ],
)
def test_a_reader_is_given_every_step_of_each_split(read, directory, exported, tmp_path):
    found = read(directory, exported, tmp_path)
    assert list(found) == ORDER
    for split, episodes in found.items():
        assert sorted(episodes) == sorted(EPISODES[split] * 24)


def test_pycocotools_loads_a_file_for_each_split(exported):
    """All have the same categories; images and instances can be joined, since no number comes twice."""
    numbers, categories = [], []
    for split in ORDER:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(exported / "coco" / "annotations" / f"instances_{split}.json")
        images = coco.loadImgs(coco.getImgIds())
        assert {image["episode_id"] for image in images} == set(EPISODES[split])
        assert all((exported / "coco" / "images" / image["file_name"]).exists() for image in images)
        assert set(coco.getImgIds()) == {annotation["image_id"] for annotation in coco.loadAnns(coco.getAnnIds())}
        numbers += [("image", number) for number in coco.getImgIds()]
        numbers += [("instance", number) for number in coco.getAnnIds()]
        categories.append(coco.loadCats(coco.getCatIds()))
    assert len(numbers) == len(set(numbers)) >= 2 * len(ORDER)
    assert categories[0] == categories[1] == categories[2] and len(categories[0]) == 2


def test_lerobots_episodes_of_a_split_follow_each_other(exported):
    """`train` first, as those expect that know no other, though `test` stands before it in the shards."""
    info = json.loads((exported / "lerobot" / "meta" / "info.json").read_text())
    assert info["splits"] == {"train": "0:2", "test": "2:3", "validation": "3:4"}
    assert list(info["splits"]) == ORDER
    assert lerobot_episodes(exported) == list(itertools.chain(*(EPISODES[split] for split in ORDER)))


def test_statistics_are_over_the_training_split_alone(directory, exported):
    """Elsewhere the arm moves three times as far."""
    opened = ShardDirectory(directory, members=("actions", "state"), split="train")
    samples = [sample for episode in opened.episode_ids for sample in opened.episode(episode)]
    actions, states = np.stack([s.actions[0] for s in samples]), np.stack([s.state for s in samples])
    assert opened.statistics == dataset_statistics(actions, states, 2) | {"split": "train"}
    assert opened.statistics["action"]["max"][0] == pytest.approx(0.23)
    found = json.loads((exported / "lerobot" / "meta" / "stats.json").read_text())
    assert found["action"]["count"] == [48] and found["action"]["max"] == opened.statistics["action"]["max"]
    assert "48 valid transitions of 2 episodes of the source's split `train`" in (directory / "README.md").read_text()


def test_verify_checks_the_statistics_of_that_split(directory, tmp_path):
    assert verify(directory) == []
    damaged = shutil.copytree(directory, tmp_path / "damaged")
    path = damaged / "dataset_statistics.json"
    statistics = json.loads(path.read_text())
    for change, fault in (({"split": "validation"}, "samples lie outside min and max"), ({"split": 3}, "split: ")):
        statistics["drawn"] |= change
        path.write_text(json.dumps(statistics))
        assert any(fault in line for line in verify(damaged))


def test_verify_finds_a_tar_that_is_named_after_another_split(directory, tmp_path):
    """Readers that go by the name would train on it."""
    renamed = shutil.copytree(directory, tmp_path / "renamed")
    old, new = "drawn-test-00000.tar", "drawn-train-00002.tar"
    (renamed / old).rename(renamed / new)
    manifest = (renamed / "manifest.json").read_text()
    (renamed / "manifest.json").write_text(manifest.replace(old, new))
    index = pq.read_table(renamed / "index.parquet")
    shard = pa.array([name.replace(old, new) for name in index["shard"].to_pylist()])
    pq.write_table(index.set_column(index.column_names.index("shard"), "shard", shard), renamed / "index.parquet")
    faults = verify(renamed)
    fault = f"{new}: holds drawn-test-00000-00000-0000, which is of another source file than the tar's name says"
    assert fault in faults


def test_where_no_split_is_called_train_none_is(tmp_path):
    """Statistics are over all there is, and a reader that asks for `train` is told what there is."""
    splits = {"demos": [1], "val": [1]}
    directory = build(tmp_path, splits)
    assert verify(directory) == []
    loaded = load_dataset(directory, tmp_path)
    assert {name: len(rows) for name, rows in loaded.items()} == dict.fromkeys(splits, 24)
    assert 'split="demos"' in (directory / "README.md").read_text()
    statistics = ShardDirectory(directory).statistics
    assert statistics["num_transitions"] == 48 and "split" not in statistics
    export(directory, "lerobot", tmp_path / "lerobot", fps=5)
    assert json.loads((tmp_path / "lerobot" / "meta" / "stats.json").read_text())["action"]["count"] == [48]
    with pytest.raises(InputError, match=r"no episode of the split 'train'; it has demos, val$"):
        ShardDirectory(directory, split="train")
    with pytest.raises(InputError, match=r"split 'train'\); it has the splits demos, val$"):
        pixel160k.open_shards(directory, split="train")


def test_names_that_are_no_episode_ids_are_not_made_names_of_files(directory, tmp_path):
    damaged = shutil.copytree(directory, tmp_path / "damaged")
    index = pq.read_table(damaged / "index.parquet")
    ids = pc.replace_substring(index["episode_id"], "drawn-test-", "drawn-../../test-")
    pq.write_table(
        index.set_column(index.column_names.index("episode_id"), "episode_id", ids), damaged / "index.parquet"
    )
    for to in ("coco", "hf"):
        with pytest.raises(
            InputError, match=r"index.parquet lists 'drawn-\.\./\.\./test-00000-00000', which is no episode id"
        ):
            export(damaged, to, tmp_path / "out" / to)


def test_stats_count_by_split(directory, tmp_path):
    every = figure_numbers(ShardDirectory(directory))
    validation = figure_numbers(ShardDirectory(directory, split="validation"))
    assert {name: part["episodes"] for name, part in every["splits"].items()} == {
        "train": 2,
        "test": 1,
        "validation": 1,
    }
    assert {name: part["samples"] for name, part in every["splits"].items()} == {
        "train": 48,
        "test": 24,
        "validation": 24,
    }
    assert list(validation["splits"]) == ["validation"] and validation["episodes"] == 1
    assert validation["splits"]["validation"] == every["splits"]["validation"]
    assert sum(validation["actions"]["gripper"]["counts"]) == 24
    arguments = ["stats", "--shards", str(directory), "--out", str(tmp_path), "--split", "val"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "no episode of the split 'val'; it has train, test, validation" in " ".join(result.output.split())


def test_training_goes_on_with_other_workers(directory, monkeypatch):
    """What was left of the epoch comes once, with as many loader processes as then or with others."""
    pytest.importorskip("torchdata", reason="needs the extra [train]")
    from train import stream
    from train.settings import load_recipe

    collated = lambda *_, **__: lambda samples: [(epoch, sample.key) for epoch, sample in samples]  # noqa: E731
    monkeypatch.setattr(stream, "Collator", collated)
    processor, sources = SimpleNamespace(settings=SimpleNamespace(chunk=2)), [str(directory)]

    def opened(workers):
        recipe = load_recipe("tiny-sample", ("batch_size=4", f"workers={workers}", "held_out_share=0"))
        return stream.open_stream(processor, recipe, sources)

    stopped = opened(1)
    first = [sample for batch in itertools.islice(stopped, 3) for sample in batch]
    saved = json.loads(json.dumps(stopped.state_dict()))
    whole = sorted(pixel160k.open_shards(directory, split="train", members=()), key=lambda sample: sample.key)
    for workers in (1, 2):
        going_on = opened(workers)
        stream.resume_stream(going_on, [saved], rank=0, workers=1)
        rest = itertools.islice(going_on, 16)  # the rest of this epoch, and more
        keys = [key for _, key in first] + [key for batch in rest for epoch, key in batch if epoch == 0]
        assert sorted(keys) == [sample.key for sample in whole]


def test_training_reads_its_split_alone(directory, monkeypatch, tmp_path):
    """What is for validation is held out, what is for a test is not touched, and another split is trained on when asked."""
    pytest.importorskip("torchdata", reason="needs the extra [train]")
    from train import stream
    from train.settings import load_recipe

    collated = lambda *arguments, **keywords: lambda samples: {sample.episode_id for _, sample in samples}  # noqa: E731
    monkeypatch.setattr(stream, "Collator", collated)
    processor, sources = SimpleNamespace(settings=SimpleNamespace(chunk=2)), [str(directory)]

    def recipe(*changes):
        return load_recipe("tiny-sample", ("batch_size=8", "evaluate_batches=100", "workers=0", *changes))

    def read(settings):
        stream.check_held_out(settings, sources)
        trained = set().union(*itertools.islice(stream.open_stream(processor, settings, sources), 40))
        return trained, set().union(*stream.HeldOut(processor, settings, sources))

    with pytest.raises(InputError, match="cache_bytes=7 is too little"):
        stream.open_stream(processor, recipe(f"cache_dir={tmp_path / 'cache'}", "cache_bytes=7"), sources)
    trained, held_out = read(recipe("held_out_share=0.8"))
    assert trained | held_out == set(EPISODES["train"]) and trained and held_out and not trained & held_out
    trained, held_out = read(recipe("held_out_share=0", "held_out_split=validation"))
    assert (trained, held_out) == (set(EPISODES["train"]), set(EPISODES["validation"]))
    trained, held_out = read(recipe("held_out_share=0", "held_out_split=test", "split=validation"))
    assert {split_of(episode) for episode in trained} == {"validation"} and held_out == set(EPISODES["test"])
    with pytest.raises(InputError, match="of the split 'all', which is to be trained on; they have train, test, valid"):
        stream.check_held_out(recipe("split=all"), sources)

"""Past frames: each sample has those of the steps before it, whoever reads it, in whatever order and from wherever."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from numbered_shards import SIZE, write_shards
from test_loader import as_worker, list_anew, replaced, rewrite
from web_server import serve_folder

from pixel160k import ShardDirectory, open_shards
from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.read.collate import collate

FILES = [[5, 1, 4], [6], [2, 2], [7]]
HISTORY = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("history") / "shards", FILES)


@pytest.fixture(scope="module")
def images(directory):
    """The image of every sample by its episode and step."""
    return {
        (sample.episode_id, sample.step): sample.image
        for sample in open_shards(directory, members=["image"], interleave=0)
    }


def check(sample, images, history=HISTORY):
    """The images of the steps before it, oldest first; before the first step that of the first step again."""
    steps = range(sample.step - history, sample.step)
    expected = np.stack([images[sample.episode_id, max(0, step)] for step in steps])
    np.testing.assert_array_equal(sample.history, expected)
    assert sample.history.dtype == np.uint8 and sample.history.flags.writeable
    assert sample.history_valid.dtype == bool and sample.history_valid.tolist() == [step >= 0 for step in steps]
    np.testing.assert_array_equal(sample.image, images[sample.episode_id, sample.step])


@pytest.mark.parametrize("interleave", [0, 3])
@pytest.mark.parametrize("history", [1, HISTORY, 9])
def test_the_stream_gives_the_frames_before(directory, images, interleave, history):
    seen = set()
    for sample in open_shards(directory, members=["image"], history=history, interleave=interleave):
        check(sample, images, history)
        seen.add((sample.episode_id, sample.step))
    assert seen == images.keys()


def test_random_access_gives_the_frames_before(directory, images):
    opened = ShardDirectory(directory, history=HISTORY)
    for number in range(len(opened)):
        check(opened[number], images)
    assert opened.sample(opened.episode_ids[0], 2, members=["state"]).history is None


def test_nothing_else_of_a_stream_changes(directory):
    """Order, resuming and what else a sample holds are those of a stream without past frames."""
    plain = open_shards(directory, interleave=3)
    with_past = open_shards(directory, interleave=3, history=2)
    for one, other in zip(plain, with_past, strict=True):
        assert one.key == other.key and one.history is None and one.history_valid is None
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert plain.state_dict() == with_past.state_dict()


def read_some(directory, images, count, states, stops):
    """What each of `count` readers gives from `states` on until its stop, checked, and their states then."""
    read, saved = [], []
    for number, stop in enumerate(stops):
        with as_worker(number, count):
            loader = open_shards(directory, members=["image"], history=HISTORY, interleave=2)
            if states:
                loader.load_state_dict(states)
            for sample in itertools.islice(iter(loader), stop):
                check(sample, images)
                read.append(sample.key)
            saved.append(json.loads(json.dumps(loader.state_dict())))
    return read, saved


def test_resuming_with_other_readers_loses_and_repeats_nothing(directory, images):
    generator = random.Random(0)
    for _ in range(5):
        first, states = read_some(directory, images, 4, None, [generator.randrange(8) for _ in range(4)])
        rest, _ = read_some(directory, images, 3, states, [99] * 3)
        assert sorted(first + rest) == sorted(shards.sample_key(*place) for place in images)


def test_a_damaged_frame_costs_the_samples_that_see_it(tmp_path):
    """As images now and as those before; each error names the damaged step."""
    directory = write_shards(tmp_path / "shards", FILES)
    tar, broken = "drawn-train-00003.tar", "drawn-train-00003-00000-0002"
    rewrite(directory / tar, replaced(f"{broken}.jpg", b"no image at all" * 40))
    list_anew(directory, tar)
    asked = {"members": ["image"], "history": 2}
    skipping = open_shards(directory, on_error="skip", **asked)
    seen = {sample.key for sample in skipping}
    lost = {f"{broken[:-1]}{step}" for step in (2, 3, 4)}
    assert lost == {row.key for row in shards.read_index(directory / "index.parquet")} - seen and skipping.skipped == 3
    opened = ShardDirectory(directory, **asked)
    for read in (lambda: list(open_shards(directory, **asked)), lambda: opened.sample(broken[:-5], 4)):
        with pytest.raises(InputError, match=rf"{broken}: jpg is damaged"):
            read()


def test_an_index_that_lacks_a_step_is_refused(tmp_path):
    directory = write_shards(tmp_path / "shards", FILES)
    rows = shards.read_index(directory / "index.parquet")
    shards.write_index(directory / "index.parquet", [replace(row, step=row.step + (row.step > 1)) for row in rows])
    with pytest.raises(InputError, match=r"index.parquet lacks a step before drawn-train-\d+-\d+-000\d; `pixelcli"):
        list(open_shards(directory, history=2))
    with pytest.raises(InputError, match="does not list one step after the other"):
        ShardDirectory(directory, history=2).sample("drawn-train-00003-00000", 3)


@pytest.mark.parametrize(
    ("asked", "fault"),
    [({"history": -1}, "not -1"), ({"history": 1, "members": ["state"]}, "ask for the member 'image'")],
)
def test_wrong_arguments_say_what_is_right(directory, asked, fault):
    for open_them in (open_shards, ShardDirectory):
        with pytest.raises(InputError, match=f"history is .*{fault}"):
            open_them(directory, **asked)


def test_a_batch_has_the_past(directory, images):
    pytest.importorskip("torch")
    samples = list(open_shards(directory, history=HISTORY))[:5]
    batch = collate(samples)
    assert batch["history"].shape == (5, HISTORY, SIZE, SIZE, 3) and batch["history_valid"].shape == (5, HISTORY)
    for sample, history, valid in zip(samples, batch["history"], batch["history_valid"], strict=True):
        check(replace(sample, history=history.numpy(), history_valid=valid.numpy()), images)


@pytest.mark.parametrize("interleave", [0, 3])
def test_no_frame_is_asked_for_by_itself(directory, images, interleave, monkeypatch):
    """In order one request is for a whole small shard, shuffled one for each sample and its past."""
    pytest.importorskip("aiohttp", reason="needs the extra [cloud]")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_folder(directory) as (url, requests):
        for sample in open_shards(url, members=["image"], history=HISTORY, interleave=interleave):
            check(sample, images)
    asked = [path for path, _ in requests if path.endswith(".tar")]
    assert len(asked) == len(FILES) if interleave == 0 else len(asked) <= len(images)

"""The loader: every sample once, an order that the seed and epoch determine, exact resuming, and no silent loss."""

import functools
import http.server
import io
import json
import os
import pickle
import random
import re
import shutil
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_shards import HORIZON, SIZE, write_shards

from pixel160k import ShardDirectory, open_shards
from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.read.order import window_shuffle

FILES = [[5, 3, 4], [6], [2, 2], [7], [3, 3, 3], [4]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Six shards of eleven episodes."""
    return write_shards(tmp_path_factory.mktemp("loader") / "shards", FILES)


@pytest.fixture
def damaged(tmp_path):
    """The same, to be damaged."""
    return write_shards(tmp_path / "shards", FILES)


def all_keys(directory):
    return [row.key for row in shards.read_index(directory / "index.parquet")]


def keys(loader):
    return [sample.key for sample in loader]


def open_keys(directory, **changed):
    """A loader that decodes nothing but the JSON, with a small buffer."""
    return open_shards(directory, **{"members": (), "shuffle_buffer": 10} | changed)


def data_loader(loader, workers, batch_size=2):
    """A DataLoader whose batches are lists of keys."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="extra [train]")
    return stateful.StatefulDataLoader(loader, batch_size=batch_size, num_workers=workers, collate_fn=keys)


def test_samples_are_those_of_random_access(directory):
    opened = ShardDirectory(directory, chunk=8)
    for sample in open_shards(directory, shuffle_buffer=10):
        expected = opened.sample(sample.episode_id, sample.step)
        for name, value in vars(expected).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(sample, name), value)
            elif name != "prompts":
                assert getattr(sample, name) == value
        assert [prompt.kind for prompt in sample.prompts] == [prompt.kind for prompt in expected.prompts]
        assert sample.actions.shape == (8, 7) and sample.action_mask.shape == (8,)


def test_without_shuffling_samples_come_as_they_lie(directory):
    loader = open_keys(directory, shuffle_buffer=0)
    assert keys(loader) == keys(loader) == all_keys(directory)


def test_order_is_that_of_seed_and_epoch(directory):
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            first, second = open_keys(directory, seed=seed, epoch=epoch), open_keys(directory, seed=seed)
            second.set_epoch(epoch)
            orders[seed, epoch] = keys(first)
            assert orders[seed, epoch] == keys(first) == keys(second)
            assert sorted(orders[seed, epoch]) == sorted(all_keys(directory))
    assert len({tuple(order) for order in orders.values()}) == 4


@settings(deadline=None, max_examples=50)
@given(count=st.integers(0, 300), held=st.integers(1, 100), seed=st.integers(0, 2**32))
def test_a_window_shuffle_holds_no_more_than_its_window(count, held, seed):
    order = window_shuffle(count, held, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(count))
    assert (held_samples(order) <= 2 * held).all()


def held_samples(order):
    """How many samples a reader from front to back holds when each is due: read so far, less those given before."""
    return np.maximum.accumulate(order) + 1 - np.arange(len(order))


def test_a_window_shuffle_uses_the_buffer_it_may_hold():
    order = window_shuffle(20_000, 1000, np.random.default_rng(0))
    held = held_samples(order)[2000:-2000]
    assert 900 < held.mean() < 1100 and held.max() < 1200
    assert np.abs(order - np.arange(20_000)).mean() > 400


@settings(deadline=None, max_examples=15)
@given(world_size=st.integers(1, 6), workers=st.integers(1, 3), epoch=st.integers(0, 3), buffer=st.integers(0, 20))
def test_every_sample_once_over_ranks_and_workers(directory, world_size, workers, epoch, buffer):
    if world_size * workers > len(FILES):
        return
    read, lengths = Counter(), 0
    for rank in range(world_size):
        loader = open_keys(directory, rank=rank, world_size=world_size, epoch=epoch, shuffle_buffer=buffer)
        lengths += len(loader)
        for worker in range(workers):
            with (
                pytest.MonkeyPatch.context() as patch
            ):  # what webdataset takes a worker from, as torch sets it elsewhere
                patch.setenv("WORKER", str(worker))
                patch.setenv("NUM_WORKERS", str(workers))
                read.update(keys(loader))
    assert read == Counter(all_keys(directory))
    assert lengths == len(all_keys(directory))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_sample_once_through_a_data_loader(directory, workers):
    loader = open_keys(directory)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([key for batch in data_loader(loader, workers) for key in batch])
        assert sorted(epochs[-1]) == sorted(all_keys(directory))
    assert epochs[0] != epochs[1]


def test_too_few_shards_state_the_arithmetic(directory):
    open_keys(directory, world_size=6)
    with pytest.raises(InputError, match="6 shards with wanted samples, but 7 ranks x 1 workers = 7 readers"):
        open_keys(directory, world_size=7)
    with pytest.raises(InputError, match="6 shards with wanted samples, but 3 ranks x 3 workers = 9 readers"):
        list(data_loader(open_keys(directory, world_size=3), workers=3))


def test_resuming_without_workers_is_exact_from_first_to_last(directory):
    whole = open_keys(directory, epoch=3)
    expected = keys(whole)
    for stop in [*range(0, len(expected), 4), len(expected)]:
        loader = open_keys(directory, epoch=3)
        iterator = iter(loader)
        assert [next(iterator).key for _ in range(stop)] == expected[:stop]
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = open_keys(directory)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert resumed.epoch == 3
        assert keys(resumed) == expected[stop:]
        resumed.set_epoch(4)
        whole.set_epoch(4)
        assert keys(resumed) == keys(whole)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_with_workers_is_exact_wherever_it_stopped(directory, workers):
    """Twenty interruptions one after the other through two epochs, the state going through bytes each time."""
    expected = []
    for epoch in range(2):
        expected.append(list(data_loader(open_keys(directory, epoch=epoch), workers)))
    generator = random.Random(workers)
    total = sum(map(len, expected))
    stops = sorted(generator.sample(range(total + 1), 20))
    epoch, state, read = 0, None, [[], []]
    for stop in [*stops, total]:
        loader = open_keys(directory)
        batches = data_loader(loader, workers)
        if state is not None:
            batches.load_state_dict(pickle.loads(state))
        loader.set_epoch(epoch)
        iterator = iter(batches)
        while sum(map(len, read)) < stop:
            batch = next(iterator, None)
            if batch is None:
                epoch += 1
                loader.set_epoch(epoch)
                iterator = iter(batches)
            else:
                read[epoch].append(batch)
        state = pickle.dumps(batches.state_dict())
    assert read == expected


def test_resuming_opens_no_shard_that_is_done(directory, damaged):
    loader = open_keys(damaged, shuffle_buffer=0)
    iterator = iter(loader)
    for _ in range(13):  # the first shard has twelve
        next(iterator)
    (damaged / "drawn-train-00000.tar").unlink()
    resumed = open_keys(damaged, shuffle_buffer=0)
    resumed.load_state_dict(loader.state_dict())
    assert keys(resumed) == all_keys(directory)[13:]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"shuffle_buffer": 9}, "shuffle_buffer was 10 and is now 9"),
        ({"world_size": 2}, "world_size was 1 and is now 2"),
        ({"status": "accepted"}, "samples was {'drawn': 42} and is now {'drawn': 35}"),
    ],
)
def test_a_state_of_another_order_is_refused(directory, changed, fault):
    state = open_keys(directory).state_dict()
    with pytest.raises(InputError, match=fault):
        open_keys(directory, **changed).load_state_dict(state)


def test_what_is_no_state_is_refused(directory):
    with pytest.raises(InputError, match="no state of a loader: it lacks 'epoch'"):
        open_keys(directory).load_state_dict({"model": {}})


def test_only_the_status_and_split_asked_for(tmp_path):
    directory = write_shards(tmp_path / "shards", FILES)
    both = {status: keys(open_keys(directory, status=status)) for status in ("accepted", "rejected")}
    assert sorted(both["accepted"] + both["rejected"]) == sorted(all_keys(directory))
    assert {sample.status for sample in open_keys(directory, status="rejected")} == {"rejected"}
    # Only two of the six shards hold a rejected episode: the others are not opened, and do not count.
    with pytest.raises(InputError, match="2 shards with wanted samples, but 3 ranks"):
        open_keys(directory, status="rejected", world_size=3)
    assert len(open_keys(directory, split="train")) == len(all_keys(directory))
    with pytest.raises(InputError, match=r"holds no sample of what is asked for \(data set 'drawn', split 'val'\)"):
        open_keys(directory, split="val")
    with pytest.raises(InputError, match="status is 'accepted', 'rejected' or None"):
        open_keys(directory, status="failed")


def test_splits_are_kept_apart(tmp_path):
    """Shards of two splits in one folder, as build-shards writes them."""
    train, val = (write_shards(tmp_path / split, FILES[:2], split=split) for split in ("train", "val"))
    for tar in val.glob("*.tar"):
        tar.rename(train / tar.name)
    rows = [row for folder in (train, val) for row in shards.read_index(folder / "index.parquet")]
    shards.write_index(train / "index.parquet", rows)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (train, val)]
    manifests[0]["shards"] += manifests[1]["shards"]
    (train / "manifest.json").write_text(json.dumps(manifests[0]))
    for split in ("train", "val"):
        assert {key.split("-")[1] for key in keys(open_keys(train, split=split))} == {split}
        assert len(open_keys(train, split=split)) == 18
    assert len(open_keys(train)) == 36


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """30 samples of one data set, 120 of another."""
    path = tmp_path_factory.mktemp("mixed")
    return [
        write_shards(path / "small", [[5, 5], [5, 5], [10]], "small"),
        write_shards(path / "large", [[10, 10]] * 6, "large"),
    ]


def test_data_sets_without_weights_come_once_each_mixed(two_sets):
    loader = open_keys(two_sets)
    assert len(loader) == 150
    assert sorted(keys(loader)) == sorted(all_keys(two_sets[0]) + all_keys(two_sets[1]))
    halves = [Counter(key.split("-")[0] for key in half) for half in (keys(loader)[:75], keys(loader)[75:])]
    assert all(8 <= half["small"] <= 22 for half in halves)
    assert set(loader.statistics) == {"small", "large"}
    assert loader.statistics["small"]["num_transitions"] == 30
    assert loader.statistics["large"]["num_transitions"] == 120


@pytest.mark.parametrize("share", [1, 3, 0.35])
def test_weights_are_shares_of_an_epoch(two_sets, share):
    loader = open_keys(two_sets, weights={"small": share, "large": 1})
    order = keys(loader)
    counts = Counter(order)
    assert len(order) == len(loader)
    assert set(counts) == {*all_keys(two_sets[0]), *all_keys(two_sets[1])}  # nothing is lost
    small = sum(count for key, count in counts.items() if key.startswith("small"))
    assert small / (len(order) - small) == pytest.approx(share, rel=0.02)
    of_small = [count for key, count in counts.items() if key.startswith("small")]
    assert max(of_small) - min(of_small) <= 1
    assert all(count == 1 for key, count in counts.items() if key.startswith("large"))


def test_a_mixture_is_resumed_exactly_and_shared_out(two_sets):
    changed = {"weights": {"small": 1, "large": 2}, "seed": 5}
    expected = keys(open_keys(two_sets, **changed))
    for stop in (0, 1, 50, 179, 180):
        loader = open_keys(two_sets, **changed)
        iterator = iter(loader)
        for _ in range(stop):
            next(iterator)
        resumed = open_keys(two_sets, **changed)
        resumed.load_state_dict(loader.state_dict())
        assert keys(resumed) == expected[stop:]
    ranks = [keys(open_keys(two_sets, rank=rank, world_size=3, **changed)) for rank in range(3)]
    assert sorted(key for of_rank in ranks for key in of_rank) == sorted(expected)


@pytest.mark.parametrize("weights", [{"small": 1}, {"small": 1, "large": 0}, {"small": 1, "large": 1, "other": 1}])
def test_weights_need_a_positive_number_for_each_set(two_sets, weights):
    with pytest.raises(InputError, match=r"weights need a positive number for each data set \(small, large\)"):
        open_keys(two_sets, weights=weights)


def test_tars_and_patterns_name_shards(directory):
    pattern = f"{directory}/drawn-train-{{00001..00003}}.tar"
    some = [key for key in all_keys(directory) if key.split("-")[2] in ("00001", "00002", "00003")]
    assert keys(open_keys(pattern, shuffle_buffer=0)) == some
    tars = [directory / f"drawn-train-{number:05d}.tar" for number in (1, 2, 3)]
    assert keys(open_keys(tars, shuffle_buffer=0)) == some
    with pytest.raises(InputError, match=r"manifest.json lists no drawn-train-00006.tar"):
        open_keys(f"{directory}/drawn-train-{{00005..00006}}.tar")


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl")
def test_urls_are_read_as_folders_are(directory, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, pattern = f"http://127.0.0.1:{server.server_port}", "drawn-train-{00001..00003}.tar"
        loader = open_keys(f"{url}/{pattern}")
        assert keys(loader) == keys(open_keys(f"{directory}/{pattern}"))
        assert loader.statistics == open_keys(directory).statistics
        with pytest.raises(InputError, match="/nowhere holds no shards"):
            open_keys(f"{url}/nowhere")
        server.shutdown()


def test_commands_are_not_run(directory, tmp_path):
    with pytest.raises(InputError, match="commands are not run"):
        open_keys(f"pipe:touch {tmp_path}/touched; cat {directory}/drawn-train-00000.tar")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"chunk": HORIZON + 1}, "holds 10 actions per sample; a chunk of 11"),
        ({"chunk": 0}, "a chunk of 0"),
        ({"members": ["mask"]}, "no member 'mask'"),
        ({"shuffle_buffer": -1}, "shuffle_buffer is a number of samples"),
        ({"rank": 2, "world_size": 2}, "rank 2 is none of the 2"),
    ],
)
def test_wrong_arguments_say_what_is_right(directory, asked, fault):
    with pytest.raises(InputError, match=fault):
        open_shards(directory, **asked)


def test_no_shards_and_unknown_formats_are_refused(damaged, tmp_path):
    with pytest.raises(InputError, match="nowhere holds no shards"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no shards were named"):
        open_shards([])
    twin = write_shards(tmp_path / "twin", FILES[:1])
    with pytest.raises(InputError, match="both hold drawn"):
        open_shards([damaged, twin])
    with pytest.raises(InputError, match=r"shards/x-\{1 is no pattern: Unbalanced braces"):
        open_shards("shards/x-{1")
    with pytest.raises(InputError, match=r"nfs://host/shards: URLs with nfs: cannot be read; there are .*https"):
        open_shards("nfs://host/shards")
    manifest = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(InputError, match="format version 99; this software reads 1"):
        open_shards(damaged)


def rewrite(tar, change):
    """Rewrite a tar through `change(list of (name, bytes))`."""
    with tarfile.open(tar) as opened:
        entries = [(member.name, opened.extractfile(member).read()) for member in opened]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as opened:
        for name, data in change(entries):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))


BROKEN = "drawn-train-00003-00000-0004"


def without(name):
    return lambda entries: [entry for entry in entries if not entry[0].startswith(name)]


def replaced(name, data):
    return lambda entries: [(member, data if member == name else content) for member, content in entries]


def doubled(name):
    return lambda entries: [one for entry in entries for one in [entry] * (1 + entry[0].startswith(name))]


@pytest.mark.parametrize(
    "change",
    [
        without(BROKEN),
        without(f"{BROKEN}.jpg"),
        without(f"{BROKEN}.json"),
        doubled(BROKEN),
        replaced(f"{BROKEN}.jpg", b"no image"),
        replaced(f"{BROKEN}.json", b"{}"),
        replaced(f"{BROKEN}.action.npy", pickle.dumps([1])),
    ],
)
@pytest.mark.parametrize("shuffle_buffer", [0, 10])
def test_a_broken_sample_is_never_dropped(damaged, change, shuffle_buffer):
    rewrite(damaged / "drawn-train-00003.tar", change)
    with pytest.raises(InputError, match=f"drawn-train-00003.tar.*{BROKEN}.*pixelcli verify"):
        list(open_shards(damaged, shuffle_buffer=shuffle_buffer))


@pytest.mark.parametrize("block", [1, 7, 11, 12, 13, 30])
def test_a_cut_shard_names_shard_and_key(damaged, block):
    tar = damaged / "drawn-train-00003.tar"
    tar.write_bytes(tar.read_bytes()[: 512 * block])
    with pytest.raises(InputError, match=r"drawn-train-00003.tar.*drawn-train-00003-00000-000\d.*pixelcli verify"):
        list(open_keys(damaged))
    tar.unlink()
    with pytest.raises(InputError, match=r"drawn-train-00003.tar.*No such file"):
        list(open_keys(damaged))


def test_samples_that_the_index_does_not_list_are_refused(damaged):
    first = "drawn-train-00005-00000-0000"
    extra = first.replace("-0000", "-0009")
    rewrite(
        damaged / "drawn-train-00005.tar",
        lambda entries: entries + [(n.replace(first, extra), d) for n, d in entries if n.startswith(first)],
    )
    for buffer in (0, 10):
        with pytest.raises(InputError, match=r"drawn-train-00005.tar holds .* where the index says that it ends"):
            list(open_keys(damaged, shuffle_buffer=buffer))


def test_index_and_manifest_must_agree(damaged):
    rows = shards.read_index(damaged / "index.parquet")
    shards.write_index(damaged / "index.parquet", rows[:-1])
    with pytest.raises(InputError, match=r"index.parquet lists 3 samples of drawn-train-00005.tar, the manifest 4"):
        open_shards(damaged)
    outside = [replace(row, shard="../outside.tar") for row in rows]
    shards.write_index(damaged / "index.parquet", outside)
    with pytest.raises(InputError, match=r"samples of \.\./outside.tar, the manifest 0"):
        open_shards(damaged)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("suffix", ["pkl", "pyd", "pickle", "pth", "npz", "jpg.pyd"])
def test_foreign_members_are_never_unpickled(damaged, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    rewrite(
        damaged / "drawn-train-00003.tar",
        lambda entries: [
            one
            for name, data in entries
            for one in ([(f"{BROKEN}.{suffix}", pickle.dumps(Bomb()))] if name == f"{BROKEN}.jpg" else [])
            + [(name, data)]
        ],
    )
    assert sorted(keys(open_shards(damaged))) == sorted(all_keys(damaged))
    assert not Path("exploded").exists()


def test_images_keep_their_colours(directory):
    for sample in open_shards(directory, members=["image"], shuffle_buffer=0):
        number, record = (int(part) for part in sample.key.split("-")[2:4])
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert np.abs(sample.image.mean((0, 1)) - [10 * number, 10 * record, 10 * sample.step]).max() < 4
        assert sample.labels is None and sample.actions is None and sample.state is None and sample.prompts == ()


def test_the_guide_runs(tmp_path, monkeypatch):
    """Every code block of docs/loading.md, one after the other, on shards named as it names them."""
    pytest.importorskip("torchdata", reason="extra [train]")
    guide = (Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", FILES, "libero_sample")
    write_shards(tmp_path / "other", FILES[:3])
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["sample"].step == 3 and names["statistics"]["num_transitions"] == 22

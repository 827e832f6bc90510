"""The loader: every sample once, an order that the seed and epoch determine, exact resuming, and no silent loss."""

import io
import itertools
import json
import logging
import os
import pickle
import random
import re
import shutil
import tarfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_shards import HORIZON, SIZE, write_shards

from pixel160k import Sample, ShardDirectory, open_shards
from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.read.collate import collate
from pixel160k.read.order import interleaved

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
    """A loader that decodes nothing but the JSON, from three shards at once."""
    return open_shards(directory, **{"members": (), "interleave": 3} | changed)


def data_loader(loader, workers, batch_size=2, **more):
    """A DataLoader whose batches are lists of keys."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="extra [train]")
    return stateful.StatefulDataLoader(loader, batch_size=batch_size, num_workers=workers, collate_fn=keys, **more)


def test_samples_are_those_of_random_access(directory):
    opened = ShardDirectory(directory, chunk=8)
    for sample in open_shards(directory):
        expected = opened.sample(sample.episode_id, sample.step)
        for name, value in vars(expected).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(sample, name), value)
            elif name != "prompts":
                assert getattr(sample, name) == value
        assert [prompt.kind for prompt in sample.prompts] == [prompt.kind for prompt in expected.prompts]
        assert sample.actions.shape == (8, 7) and sample.action_mask.shape == (8,)


def test_without_shuffling_samples_come_as_they_lie(directory):
    loader = open_keys(directory, interleave=0)
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
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40), lanes=st.integers(1, 50), seed=st.integers(0, 2**32)
)
def test_interleaving_gives_every_sample_and_reads_from_few_shards(lengths, lanes, seed):
    order = interleaved([np.ones(length, bool) for length in lengths], lanes, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(sum(lengths)))
    assert interleaved([np.zeros(3, bool)] * 2, lanes, np.random.default_rng(seed)).tolist() == []


def test_shards_are_drawn_from_a_few_at_a_time():
    """Of 200 shards of 100 samples: any 800 that follow each other come from 8 lanes, each in one or two shards."""
    order = interleaved([np.ones(100, bool)] * 200, 8, np.random.default_rng(0)) // 100
    touched = [len(np.unique(order[begin : begin + 800])) for begin in range(0, len(order), 800)]
    assert min(touched) >= 12 and max(touched) <= 24
    changes = np.flatnonzero(
        np.isin(np.arange(len(order)), [np.flatnonzero(order == shard)[0] for shard in range(200)])
    )
    assert np.diff(changes[8:]).mean() == pytest.approx(100, rel=0.1)  # a new shard now and then, not eight together
    assert np.median(np.diff(changes[8:])) > 20


@pytest.mark.parametrize("episodes", [510, 6 * 510])
def test_batches_come_from_as_many_episodes_as_in_an_ideal_shuffle(episodes):
    """Shards as those of fractal: 85 episodes of some 43 steps in each. 100 batches of 16 samples."""
    generator = np.random.default_rng(0)
    steps = generator.integers(20, 67, episodes)
    of_sample = np.repeat(np.arange(episodes), steps)
    shards = [np.ones(int(steps[begin : begin + 85].sum()), bool) for begin in range(0, episodes, 85)]
    order = of_sample[interleaved(shards, 64, generator)]
    ideal = np.mean([len(np.unique(generator.permutation(of_sample)[:1600])) for _ in range(5)])
    seen = [len(np.unique(order[begin : begin + 1600])) for begin in range(0, len(order) - 1600, 1600)]
    assert min(seen) > 0.9 * ideal


@contextmanager
def as_worker(number, workers):
    """This process as a worker of a DataLoader, as torch sets it elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        info = SimpleNamespace(id=number, num_workers=workers)
        patch.setattr("pixel160k.read.loader.get_worker_info", lambda: info)
        yield


@settings(deadline=None, max_examples=15)
@given(world_size=st.integers(1, 9), workers=st.integers(1, 3), epoch=st.integers(0, 3), interleave=st.integers(0, 7))
def test_every_sample_once_over_ranks_and_workers(directory, world_size, workers, epoch, interleave):
    read, lengths = Counter(), 0
    for rank in range(world_size):
        loader = open_keys(directory, rank=rank, world_size=world_size, epoch=epoch, interleave=interleave)
        lengths += len(loader)
        for worker in range(workers):
            with as_worker(worker, workers):
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


def test_workers_that_live_on_hear_of_each_epoch(directory):
    loader = open_keys(directory)
    batches = data_loader(loader, 2, persistent_workers=True)
    for epoch in (0, 1, 5):
        loader.set_epoch(epoch)
        expected = open_keys(directory, epoch=epoch)
        assert [key for batch in batches for key in batch] == [
            key for batch in data_loader(expected, 2) for key in batch
        ]


def test_workers_that_live_on_refuse_a_state_that_they_never_saw(directory):
    loader = open_keys(directory)
    batches = data_loader(loader, 2, persistent_workers=True)
    list(batches)
    loader.load_state_dict(open_keys(directory, epoch=3).state_dict())
    with pytest.raises(InputError, match="which live on and never saw it; make a new DataLoader"):
        list(batches)
    assert list(data_loader(loader, 2)) == list(data_loader(open_keys(directory, epoch=3), 2))


def test_readers_may_be_more_than_shards(directory):
    read = [key for rank in range(9) for key in keys(open_keys(directory, rank=rank, world_size=9))]
    assert sorted(read) == sorted(all_keys(directory))


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


def read_some(directory, world_size, workers, states, stops, epoch=0):
    """What loaders of all processes give from `states` on, each until its stop, and their states then."""
    read, saved = [], []
    for rank, stop in zip(range(world_size), stops, strict=True):
        loader = open_keys(directory, rank=rank, world_size=world_size, epoch=epoch)
        if states is not None:
            loader.load_state_dict(states)
        batches = data_loader(loader, workers)
        iterator = iter(batches)
        for _ in range(stop):
            read += next(iterator, [])
        saved.append(pickle.loads(pickle.dumps(batches.state_dict())))
    return read, saved


@pytest.mark.parametrize("readers", [((1, 2), (1, 4)), ((1, 0), (2, 0)), ((2, 2), (1, 1))])
def test_other_numbers_of_workers_and_processes_go_on_with_data_loaders(directory, readers):
    """Of processes that are not equally far."""
    generator = random.Random(str(readers))
    (processes, workers), (other_processes, other_workers) = readers
    stops = [generator.randrange(0, 21 // processes + 1) for _ in range(processes)]
    first, states = read_some(directory, processes, workers, None, stops, epoch=1)
    states = json.loads(json.dumps(states))
    rest, _ = read_some(directory, other_processes, other_workers, states, [99] * other_processes)
    assert sorted(first + rest) == sorted(all_keys(directory)), stops


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_after_a_resumed_one_are_whole(directory, workers):
    """Each iteration has new workers, which inherit the state that this process loaded."""
    first, states = read_some(directory, 1, 2, None, [5])
    for told in (False, True):
        loader = open_keys(directory)
        loader.load_state_dict(states)
        batches = data_loader(loader, workers)
        read = []
        for epoch in range(2):
            if told:
                loader.set_epoch(epoch)
            read.append([key for batch in batches for key in batch])
        assert sorted(first + read[0]) == sorted(read[1]) == sorted(all_keys(directory))
    loader.load_state_dict(states)
    loader.set_epoch(3)
    whole = open_keys(directory, epoch=3)
    assert list(data_loader(loader, workers)) == list(data_loader(whole, workers))


def test_the_epoch_that_is_said_follows_a_finished_one(directory):
    loader = open_keys(directory)
    keys(loader)
    for resumed in (open_keys(directory), open_keys(directory, epoch=1)):
        resumed.load_state_dict(loader.state_dict())
        resumed.set_epoch(1)
        assert keys(resumed) == keys(open_keys(directory, epoch=1))


def as_readers(directory, count, saved, stops, **changed):
    """`read_some` without processes: each of `count` readers gives so many samples."""
    read, states = [], []
    for number, stop in enumerate(stops):
        with as_worker(number, count):
            loader = open_keys(directory, **changed)
            if saved:
                loader.load_state_dict(saved)
            read += [sample.key for sample in itertools.islice(iter(loader), stop)]
            states.append(loader.state_dict())
    return read, states


@pytest.mark.parametrize("readers", [(2, 4), (4, 3), (1, 2)])
def test_other_numbers_of_readers_lose_and_repeat_nothing(directory, readers):
    """At 20 random points."""
    generator = random.Random(str(readers))
    for _ in range(20):
        first, states = as_readers(
            directory, readers[0], None, [generator.randrange(42 // readers[0] + 1) for _ in range(readers[0])]
        )
        rest, _ = as_readers(directory, readers[1], states, [99] * readers[1])
        assert sorted(first + rest) == sorted(all_keys(directory))


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_chain_of_readers_gives_an_epoch_once(directory, data):
    read, saved = [], None
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 5))
        stops = data.draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
        given_now, saved = as_readers(directory, count, saved, stops)
        read += given_now
    rest, _ = as_readers(directory, 3, saved, [99] * 3)
    assert sorted(read + rest) == sorted(all_keys(directory))


def test_readers_that_are_in_different_epochs_go_on_as_others(directory):
    """As a stream without end has them: the one has begun the next epoch, the other has not."""
    total = len(all_keys(directory))
    states, read = [], []
    for number, stops in enumerate(([total // 2, 3], [5])):
        with as_worker(number, 2):
            loader = open_keys(directory)
            for epoch, stop in enumerate(stops):
                loader.set_epoch(epoch)
                read += [sample.key for sample in itertools.islice(iter(loader), stop)]
            states.append(loader.state_dict())
    loaders = [open_keys(directory, rank=rank, world_size=3) for rank in range(3)]
    for loader in loaders:
        loader.load_state_dict(states)
        assert loader.epoch == 0
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            read += keys(loader)
    assert Counter(read) == Counter(all_keys(directory) * 2)
    loaders[0].set_epoch(1)
    assert len(loaders[0]) == total // 3  # the rest was given once; again it is a whole epoch


def test_states_that_are_not_of_all_readers_are_refused(directory):
    _, states = as_readers(directory, 3, None, [2, 2, 2])
    with pytest.raises(InputError, match=r"the state of 2 readers of 3; to go on with another number .* give a list"):
        open_keys(directory).load_state_dict(states[:2])
    with pytest.raises(InputError, match="snapshot_every_n_steps=1"):
        loader = open_keys(directory)
        batches = data_loader(loader, 1, snapshot_every_n_steps=4)
        next(iter(batches))
        iterator = iter(batches)
        next(iterator), next(iterator)
        open_keys(directory).load_state_dict(batches.state_dict())


def test_resuming_opens_no_shard_that_is_done(directory, damaged):
    loader = open_keys(damaged, interleave=0)
    iterator = iter(loader)
    for _ in range(13):  # the first shard has twelve
        next(iterator)
    (damaged / "drawn-train-00000.tar").unlink()
    resumed = open_keys(damaged, interleave=0)
    resumed.load_state_dict(loader.state_dict())
    assert keys(resumed) == all_keys(directory)[13:]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"interleave": 9}, "interleave was 3 and is now 9"),
        ({"status": "accepted"}, "samples was {'drawn': 42} and is now {'drawn': 35}"),
    ],
)
def test_a_state_of_another_order_is_refused(directory, changed, fault):
    state = open_keys(directory).state_dict()
    with pytest.raises(InputError, match=fault):
        open_keys(directory, **changed).load_state_dict(state)


def test_what_is_no_state_is_refused(directory):
    with pytest.raises(InputError, match="no state of a loader: give what state_dict"):
        open_keys(directory).load_state_dict({"model": {}})


def test_only_the_status_and_split_asked_for(tmp_path):
    directory = write_shards(tmp_path / "shards", FILES)
    both = {status: keys(open_keys(directory, status=status)) for status in ("accepted", "rejected")}
    assert sorted(both["accepted"] + both["rejected"]) == sorted(all_keys(directory))
    assert {sample.status for sample in open_keys(directory, status="rejected")} == {"rejected"}
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
    assert keys(open_keys(pattern, interleave=0)) == some
    tars = [directory / f"drawn-train-{number:05d}.tar" for number in (1, 2, 3)]
    assert keys(open_keys(tars, interleave=0)) == some
    for sources in ([directory, tars[0]], [tars[0], directory]):
        assert len(open_keys(sources)) == len(all_keys(directory))
    with pytest.raises(InputError, match=r"manifest.json lists no drawn-train-00006.tar"):
        open_keys(f"{directory}/drawn-train-{{00005..00006}}.tar")


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
        ({"interleave": -1}, "interleave is a number of shards"),
        ({"on_error": "ignore"}, "on_error is 'raise' or 'skip'"),
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
    with pytest.raises(InputError, match=r"nfs://host/shards: nfs:// cannot be read; a path is local, or .*https"):
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


CHANGES = [
    without(BROKEN),
    without(f"{BROKEN}.jpg"),
    without(f"{BROKEN}.json"),
    doubled(BROKEN),  # the file is longer than the manifest says, which its first sample meets
    replaced(f"{BROKEN}.jpg", b"no image"),
    replaced(f"{BROKEN}.json", b"{}"),
    replaced(f"{BROKEN}.action.npy", pickle.dumps([1])),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("interleave", [0, 3])
def test_a_broken_sample_is_never_dropped(damaged, change, interleave):
    """It is named, or, shuffled, one that no longer lies where the index says."""
    rewrite(damaged / "drawn-train-00003.tar", change)
    key = rf"{BROKEN[:-1]}\d" if interleave or change is CHANGES[3] else BROKEN
    with pytest.raises(InputError, match=f"drawn-train-00003.tar.*{key}.*pixelcli verify"):
        list(open_shards(damaged, interleave=interleave))


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
    for interleave in (0, 3):
        with pytest.raises(InputError, match=r"drawn-train-00005.tar .*the file has \d+ bytes, the manifest says \d+"):
            list(open_keys(damaged, interleave=interleave))


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
    list_anew(damaged, "drawn-train-00003.tar")
    assert sorted(keys(open_shards(damaged))) == sorted(all_keys(damaged))
    assert not Path("exploded").exists()


def list_anew(directory, name):
    """Let manifest and index say where the samples of a rewritten tar lie."""
    begins = {}
    with tarfile.open(directory / name) as tar:
        for member in tar:
            begins.setdefault(member.name.partition(".")[0], member.offset)
        ends = dict(zip(begins, [*list(begins.values())[1:], tar.offset], strict=True))
    rows = [
        replace(row, offset=begins[row.key], bytes=ends[row.key] - begins[row.key]) if row.shard == name else row
        for row in shards.read_index(directory / "index.parquet")
    ]
    shards.write_index(directory / "index.parquet", rows)
    manifest = json.loads((directory / "manifest.json").read_text())
    for entry in manifest["shards"]:
        entry["bytes"] = (directory / entry["name"]).stat().st_size
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_damaged_samples_are_skipped_and_counted(damaged, caplog):
    caplog.set_level(
        logging.WARNING, "pixel160k.read.loader"
    )  # pixelcli, where a test ran it, silences all below errors
    rewrite(damaged / "drawn-train-00003.tar", replaced(f"{BROKEN}.jpg", b"no image at all" * 40))
    list_anew(damaged, "drawn-train-00003.tar")
    (damaged / "drawn-train-00001.tar").unlink()  # six samples
    loader = open_shards(damaged, members=["image"], on_error="skip")
    expected = {key for key in all_keys(damaged) if key != BROKEN and not key.startswith("drawn-train-00001-")}
    assert expected == {sample.key for sample in loader} and loader.skipped == 7
    assert len(caplog.records) == 2 and BROKEN in caplog.text and "No such file" in caplog.text
    batches = data_loader(loader, 2)
    assert {key for batch in batches for key in batch} == expected and loader.skipped == 14
    for tar in damaged.glob("*.tar"):
        tar.unlink()
    with pytest.raises(InputError, match=r"all 42 samples had to be skipped; the last: .*No such file"):
        list(open_shards(damaged, on_error="skip"))


def test_a_plain_data_loader_makes_batches(directory, tmp_path):
    torch = pytest.importorskip("torch")
    batch = next(iter(torch.utils.data.DataLoader(open_shards(directory, chunk=4), batch_size=5)))
    assert {name: tuple(value.shape) for name, value in batch.items() if hasattr(value, "shape")} == {
        "step": (5,),
        "image": (5, SIZE, SIZE, 3),
        "labels": (5, SIZE, SIZE),
        "actions": (5, 4, 7),
        "action_mask": (5, 4),
        "state": (5, 3),
    }
    opened = ShardDirectory(directory, chunk=4)
    for number, key in enumerate(batch["key"]):
        sample = opened.sample(batch["episode_id"][number], int(batch["step"][number]))
        assert sample.key == key and (batch["image"][number].numpy() == sample.image).all()
    first = next(iter(open_shards(directory)))
    with pytest.raises(InputError, match=r"image of the shapes .* write DataLoader\(..., collate_fn=list\)"):
        collate([first, replace(first, image=np.zeros((3, 4, 3), np.uint8))])


def test_a_directory_is_a_map_style_data_set(directory, monkeypatch):
    torch = pytest.importorskip("torch")
    known = torch.utils.data._utils.collate.default_collate_fn_map
    monkeypatch.delitem(known, Sample)  # as where the loader was never imported
    steps, episodes = ShardDirectory(directory), ShardDirectory(directory, by="episode")
    assert [sample.key for sample in steps] == all_keys(directory) and len(steps) == len(all_keys(directory))
    assert steps[-1].key == all_keys(directory)[-1]
    assert [[sample.step for sample in episode] for episode in episodes] == [
        episodes.steps(e) for e in episodes.episode_ids
    ]
    assert len(episodes) == 11
    with pytest.raises(IndexError, match="holds 11 episodes, there is no number 11"):
        episodes[11]
    with pytest.raises(InputError, match="by is 'step' or 'episode'"):
        ShardDirectory(directory, by="row")
    batches = torch.utils.data.DataLoader(steps, batch_size=4, shuffle=True, num_workers=1)
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(all_keys(directory))
    assert next(iter(torch.utils.data.DataLoader(steps, batch_size=4)))["image"].shape == (4, SIZE, SIZE, 3)


def test_folders_may_be_named_in_any_way(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a:b", "x{1}", "http:", "s3:"):
        shutil.copytree(directory, tmp_path / name)
    for name in ("a:b", "~/a:b", "x{1}", f"file:{tmp_path}/a:b", "a:b/drawn-train-00001.tar", "http:", "s3:"):
        assert len(open_keys(name)) == (6 if name.endswith(".tar") else 42)


def test_images_keep_their_colours(directory):
    for sample in open_shards(directory, members=["image"], interleave=0):
        number, record = (int(part) for part in sample.key.split("-")[2:4])
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert np.abs(sample.image.mean((0, 1)) - [10 * number, 10 * record, 10 * sample.step]).max() < 4
        assert sample.labels is None and sample.actions is None and sample.state is None and sample.prompts == ()


def test_the_guide_runs(tmp_path, monkeypatch):
    """Every code block of docs/loading.md, one after the other, on shards named as it names them."""
    pytest.importorskip("torchdata", reason="extra [train]")
    guide = (Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 7
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", FILES, "libero_sample")
    write_shards(tmp_path / "other", FILES[:3])
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["sample"].step == 3 and names["statistics"]["num_transitions"] == 22

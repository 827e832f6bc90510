"""Samples and random access: what was written comes out typed, nothing is unpickled, damage is named."""

import io
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numbered_shards import HORIZON, SIZE, episode_actions, object_mask, write_shards

from pixel160k import ShardDirectory, open_shards
from pixel160k.errors import InputError
from pixel160k.format import masks, prompts, shards
from pixel160k.read import foreign, samples

FILES = [[5, 3, 4], [6]]


@pytest.fixture
def directory(tmp_path):
    return write_shards(tmp_path / "shards", FILES)


@pytest.fixture
def members(directory):
    """The bytes of the first sample."""
    return ShardDirectory(directory).members("drawn-train-00000-00000", 0)


KEY = "drawn-train-00000-00000-0000"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_episodes_come_out_as_they_were_written(directory):
    shards = ShardDirectory(directory)
    assert shards.episode_ids == [
        f"drawn-train-{n:05d}-{r:05d}" for n, steps in enumerate(FILES) for r, _ in enumerate(steps)
    ]
    assert shards.statistics["num_trajectories"] == 4
    for episode_id in shards.episode_ids:
        number, record = (int(part) for part in episode_id.split("-")[2:])
        episode = shards.episode(episode_id)
        steps = FILES[number][record]
        assert [sample.step for sample in episode] == shards.steps(episode_id) == list(range(steps))
        actions = episode_actions(record, steps)
        for sample in episode:
            assert sample.key == f"{episode_id}-{sample.step:04d}"
            assert (sample.dataset, sample.episode_id) == ("drawn", episode_id)
            assert sample.instruction == f"move the cup {record}"
            assert (sample.status, sample.reason) == (("accepted", ""), ("rejected", "not_detected"))[record == 2]
            assert sample.state.tolist() == [number, record, sample.step]
            assert sample.image.shape == (SIZE, SIZE, 3) and sample.image.dtype == np.uint8
            colour = [10 * number, 10 * record, 10 * sample.step]
            assert np.abs(sample.image.mean((0, 1)) - colour).max() < 4  # JPEG, and red first
            assert sample.actions.dtype == np.float32 and sample.actions.shape == (HORIZON, 7)
            np.testing.assert_array_equal(sample.actions[sample.action_mask], actions[sample.step :])
            np.testing.assert_array_equal(sample.actions[~sample.action_mask][:, :6], 0)
            np.testing.assert_array_equal(sample.actions[~sample.action_mask][:, 6], actions[-1, 6])


def test_what_is_not_annotated_is_never_background(directory):
    episode = ShardDirectory(directory).episode("drawn-train-00000-00000")
    np.testing.assert_array_equal(episode[0].object_mask, object_mask(0))
    assert episode[0].gripper_mask is None
    np.testing.assert_array_equal(episode[1].gripper_mask, object_mask(0).T)
    assert episode[1].object_mask is None
    for sample in episode[2:]:
        assert sample.object_mask is None and sample.gripper_mask is None
        assert (sample.labels == masks.NOT_ANNOTATED).all()


def test_prompts_are_those_of_the_first_step(directory):
    shards = ShardDirectory(directory)
    for sample in shards.episode("drawn-train-00000-00001"):
        assert sample.metadata.prompt_step == 0
        assert [prompt.kind for prompt in sample.prompts] == ["point"] * 3 + ["line", "region", "mask"]
        for prompt in sample.prompts:
            prompts.validate(prompt, SIZE, SIZE)
        mask = object_mask(1)
        for point in sample.prompts[:3]:
            x, y = (point.coordinates[0] - 0.5).astype(int)
            assert mask[y, x]
        np.testing.assert_array_equal(sample.prompts[4].coordinates.ravel(), masks.box_of(mask))
        np.testing.assert_array_equal(sample.prompts[5].mask, mask)
    assert shards.sample("drawn-train-00000-00002", 0).prompts == ()  # rejected: there are none


def test_only_what_is_asked_for_is_decoded(directory, members):
    broken = members | dict.fromkeys(("jpg", "mask.png", "action.npy"), b"nothing")
    sample = samples.decode(KEY, broken, {"state"})
    assert sample.state.tolist() == [0, 0, 0]
    assert sample.image is None and sample.labels is None and sample.actions is None and sample.prompts == ()
    with pytest.raises(InputError, match="ask for the member 'labels'"):
        _ = sample.object_mask
    chunk = ShardDirectory(directory, {"actions"}, chunk=4).sample("drawn-train-00000-00000", 3)
    assert chunk.image is None
    assert chunk.actions.shape == (4, 7) and chunk.action_mask.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"members": ["images"]}, "no member 'images'; there are image, labels, prompts, actions, state"),
        ({"chunk": HORIZON + 1}, "holds 10 actions per sample; a chunk of 11"),
        ({"chunk": 0}, "a chunk of 0"),
    ],
)
def test_asking_for_what_there_is_not(directory, asked, fault):
    with pytest.raises(InputError, match=fault):
        ShardDirectory(directory, **asked)


@pytest.mark.parametrize(
    ("suffix", "content", "fault"),
    [
        ("jpg", b"no image", "jpg is damaged"),
        ("jpg", b"", "jpg is damaged"),
        ("mask.png", b"\x89PNG\r\n\x1a\n", "mask.png is damaged"),
        ("json", b"{", "json is damaged"),
        ("json", b"[]", "json is damaged"),
        ("json", b'{"episode_id": "drawn-train-00000-00001", "step": 0}', "json is damaged .dataset: field required"),
        ("action.npy", npy(np.zeros((3, 6), np.float32)), r"action.npy is damaged .its shape is \(3, 6\)"),
        ("action.npy", npy(np.zeros((3, 7))), "action.npy is damaged .no float32"),
        ("state.npy", npy(np.array([{}])), "state.npy is damaged .no float32"),
        ("state.npy", b"", "state.npy is damaged"),
        ("state.npy", None, "lacks 'state.npy'"),
    ],
)
def test_damage_names_key_and_member(members, suffix, content, fault):
    damaged = {name: data for name, data in (members | {suffix: content}).items() if data is not None}
    with pytest.raises(InputError, match=f"^{KEY}: {fault}"):
        samples.decode(KEY, damaged)


@pytest.mark.parametrize(
    "changes",
    [
        {"object_mask": {"size": [SIZE, SIZE], "counts": "~~~~"}},
        {"object_mask": {"size": [SIZE, SIZE], "counts": "ooo5oo7o9"}},  # pycocotools would write beyond the mask
        {"object_mask": {"size": [SIZE, SIZE], "counts": "é"}},
        {"object_mask": {"size": [SIZE], "counts": ""}},
        {"points": [[1.0]]},
        {"line": [[1.0, "2"], [3.0, 4.0]]},
        {"line": [[1.0, 2.0]]},
        {"last_step": None},
        {"status": "failed"},
        {"score": float("nan")},
    ],
)
def test_a_json_that_is_not_in_the_form_is_damage(members, changes):
    content = json.dumps(json.loads(members["json"]) | changes).encode()
    with pytest.raises(InputError, match=f"^{KEY}: json is damaged"):
        samples.decode(KEY, members | {"json": content})


@settings(max_examples=300, deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), noise=st.text("0123456789:NOo", max_size=8))
def test_a_foreign_rle_is_decoded_or_refused(mask, noise):
    rle = masks.encode(mask)
    np.testing.assert_array_equal(foreign.decode_rle(rle), mask)
    for counts in (noise, rle["counts"] + noise, noise + rle["counts"]):
        try:
            assert foreign.decode_rle({"size": rle["size"], "counts": counts}).shape == mask.shape
        except InputError as error:
            assert f"no RLE of a mask of {mask.shape[1]}x{mask.shape[0]}" in str(error)


def test_the_json_of_another_sample_is_damage(directory, members):
    other = ShardDirectory(directory).members("drawn-train-00000-00001", 0)
    with pytest.raises(InputError, match=f"^{KEY}: json is damaged .it is of drawn-train-00000-00001, step 0"):
        samples.decode(KEY, members | {"json": other["json"]})


def test_a_bug_of_ours_is_not_taken_for_damage(members, directory, monkeypatch):
    def broken(*_):
        raise ValueError("ours")

    monkeypatch.setattr(samples, "chunk_mask", broken)
    for read in (
        lambda: samples.decode(KEY, members),
        lambda: ShardDirectory(directory).sample("drawn-train-00000-00000", 0),
        lambda: list(open_shards(directory)),
    ):
        with pytest.raises(ValueError, match=r"^ours$") as error:
            read()
        assert not isinstance(error.value, InputError)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", "<f4", np.float64, np.int32])
def test_only_arrays_as_the_shards_have_them_are_read(members, order, dtype):
    content = npy(np.asarray(np.arange(21).reshape(3, 7), dtype, order=order))
    if (order, dtype) == ("C", "<f4"):
        np.testing.assert_array_equal(samples.decode(KEY, members | {"action.npy": content}).actions.ravel(), range(21))
        for cut in (0, 5, 9, 20, len(content) - 1):
            with pytest.raises(InputError, match=r"action.npy is damaged"):
                samples.decode(KEY, members | {"action.npy": content[:cut]})
    else:
        with pytest.raises(InputError, match=r"action.npy is damaged"):
            samples.decode(KEY, members | {"action.npy": content})


def test_a_cut_jpeg_is_no_image(members):
    for cut in (1, 100, len(members["jpg"]) // 2):
        with pytest.raises(InputError, match=f"^{KEY}: jpg is damaged"):
            samples.decode(KEY, members | {"jpg": members["jpg"][:-cut]})
    assert samples.decode(KEY, members | {"jpg": members["jpg"] + b"\0"}).image is not None


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_foreign_members_are_never_unpickled(members, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    foreign = members | dict.fromkeys(("pkl", "pyd", "pickle", "pth", "npz", "json.pkl"), bomb)
    assert samples.decode(KEY, foreign).key == KEY
    for suffix in ("action.npy", "state.npy"):
        for content in (bomb, npy(np.array([Bomb()], object))):
            with pytest.raises(InputError, match="is damaged"):
                samples.decode(KEY, members | {suffix: content})
    assert not Path("exploded").exists()
    pickle.loads(bomb)
    assert Path("exploded").exists()  # the bomb is a real one


def test_a_wrong_place_names_the_file_and_the_way_out(directory):
    index = shards.read_index(directory / "index.parquet")
    moved = [replace(row, offset=row.offset + shift) for row, shift in zip(index, [0, 512, -512], strict=False)]
    shards.write_index(directory / "index.parquet", moved)
    opened = ShardDirectory(directory)
    for step in (1, 2):
        with pytest.raises(InputError, match=r"drawn-train-00000\.tar (cannot be read at|lacks).*pixelcli verify"):
            opened.sample("drawn-train-00000-00000", step)


def test_a_foreign_sample_in_that_place_is_refused(directory):
    index = shards.read_index(directory / "index.parquet")
    swapped = [replace(index[0], offset=index[1].offset, bytes=index[1].bytes)]
    shards.write_index(directory / "index.parquet", swapped)
    with pytest.raises(InputError, match="there stands drawn-train-00000-00000-0001"):
        ShardDirectory(directory).sample("drawn-train-00000-00000", 0)


def test_an_index_cannot_lead_out_of_the_directory(directory, tmp_path):
    (directory / "drawn-train-00000.tar").rename(tmp_path / "outside.tar")
    index = [replace(row, shard="../outside.tar") for row in shards.read_index(directory / "index.parquet")]
    shards.write_index(directory / "index.parquet", index)
    with pytest.raises(InputError, match="cannot be read"):
        ShardDirectory(directory).sample("drawn-train-00000-00000", 0)


def test_a_cut_tar_names_the_file_and_the_way_out(directory):
    tar = directory / "drawn-train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    opened = ShardDirectory(directory)
    with pytest.raises(InputError, match=r"drawn-train-00001\.tar .*pixelcli verify"):
        opened.episode("drawn-train-00001-00000")
    assert len(opened.episode("drawn-train-00000-00000")) == 5


def test_no_tar_is_read_from_its_start(directory):
    """All before the sample is overwritten, and it is still read."""
    row = next(row for row in shards.read_index(directory / "index.parquet") if row.episode_id.endswith("00002"))
    tar = directory / "drawn-train-00000.tar"
    tar.write_bytes(b"\xff" * row.offset + tar.read_bytes()[row.offset :])
    assert ShardDirectory(directory).sample(row.episode_id, 0).instruction == "move the cup 2"


def test_what_is_not_there_is_named(directory):
    opened = ShardDirectory(directory)
    with pytest.raises(InputError, match="holds no episode 'drawn-train-00000-00009'"):
        opened.episode("drawn-train-00000-00009")
    with pytest.raises(InputError, match="holds the steps 0 to 4 of drawn-train-00000-00000, not 5"):
        opened.sample("drawn-train-00000-00000", 5)
    (directory / "dataset_statistics.json").unlink()
    with pytest.raises(InputError, match="holds no statistics of drawn"):
        _ = opened.statistics


def test_unknown_formats_are_refused(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format_version": 4}))
    with pytest.raises(InputError, match="format version 4; this software reads 1 to 3"):
        ShardDirectory(directory)


def test_an_empty_directory_has_no_episodes(directory):
    shards.write_index(directory / "index.parquet", [])
    assert ShardDirectory(directory).episode_ids == []


def test_importing_is_light():
    code = "import time; s = time.process_time(); import pixel160k; t = time.process_time() - s; import sys; print(t, *sys.modules)"
    seconds, *modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 0.5
    assert not {"apache_beam", "transformers", "torch", "webdataset", "tensorflow_datasets"} & set(modules)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda manifest: manifest.pop("dataset"), "manifest.json: dataset: field required"),
        (lambda manifest: manifest.update(horizon="10"), "manifest.json: horizon: input should be a valid integer"),
        (lambda manifest: manifest["shards"][0].pop("samples"), "manifest.json: shards.0.samples: field required"),
    ],
)
def test_a_damaged_manifest_is_named(directory, change, fault):
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    for opening in (ShardDirectory, open_shards):
        with pytest.raises(InputError, match=f"{fault}.*pixelcli verify"):
            opening(directory)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[]", "holds no statistics of drawn"),
        (b"{", "holds no statistics of drawn"),
        (b'{"drawn": {}}', "is not in the form of the format .action: field required"),
        (b'{"drawn": 1}', "is not in the form of the format"),
    ],
)
def test_damaged_statistics_are_named(directory, content, fault):
    (directory / "dataset_statistics.json").write_bytes(content)
    for opening in (lambda: ShardDirectory(directory).statistics, lambda: open_shards(directory)):
        with pytest.raises(InputError, match=f"dataset_statistics.json {fault}.*; build these shards again"):
            opening()


@pytest.mark.parametrize(
    "column", [pa.array([None] * 18, pa.int32()), pa.array([str(step) for step in range(18)])], ids=["gaps", "text"]
)
def test_an_index_of_other_types_is_named(directory, column):
    path = directory / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("step"), "step", column), path)
    for opening in (ShardDirectory, open_shards):
        with pytest.raises(
            InputError, match=r"index.parquet cannot be read \(column step: .*; build these shards again"
        ):
            opening(directory)


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nothing else PAR1", None])
def test_a_damaged_index_is_named(directory, damage):
    path = directory / "index.parquet"
    if damage is None:  # a sound file without the columns
        pq.write_table(pq.read_table(path).drop_columns(["status"]), path)
    else:
        path.write_bytes(damage)
    for opening in (ShardDirectory, open_shards):
        with pytest.raises(InputError, match=r"index.parquet cannot be read .*; build these shards again"):
            opening(directory)


def test_the_index_is_held_by_columns_and_each_text_once(directory):
    """Of millions of samples: no key, which follows from the rest, and texts that repeat as numbers."""
    index = ShardDirectory(directory).index
    assert index.column_names == ["episode_id", "step", "status", "shard", "offset", "bytes"]
    assert all(pa.types.is_dictionary(column.type) or pa.types.is_integer(column.type) for column in index.schema)

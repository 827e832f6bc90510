"""`pixelcli verify` on sound shards and on every kind of damage, each named in one line and with exit code 1."""

import dataclasses
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scene import episode, write_scenes

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from cli import main
from pixel160k.errors import InputError
from pixel160k.files import sha256_of
from pixel160k.format import masks, shards
from pixel160k.format.metadata import Metadata
from pixel160k.processes import in_order
from pixel160k.publish.features import METADATA, declared
from pixel160k.read.loader import open_shards
from pixel160k.read.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Shards of two files with one episode each."""
    path = tmp_path_factory.mktemp("sound")
    data = write_scenes(path / "data", [episode()], [episode(seed=1)])
    annotate("libero", data, path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return path / "shards"


@pytest.fixture
def directory(sound, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(sound, tmp_path / "shards")


def first_tar(directory):
    return min(directory.glob("*.tar"))


def edit_manifest(directory, change):
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def make_checksums_agree(directory):
    """As if whoever damaged the files had written the manifest too."""

    def change(manifest):
        for entry in manifest["shards"]:
            path = directory / entry["name"]
            entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        manifest["files"] = {name: sha256_of(directory / name) for name in manifest["files"]}

    edit_manifest(directory, change)


def rewrite(directory, change):
    """Rewrite the first tar through `change(list of (TarInfo, bytes))`, and its checksum with it."""
    path = first_tar(directory)
    with tarfile.open(path) as tar:
        entries = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, data in change(entries):
            member.size = len(data) if member.isfile() else 0
            tar.addfile(member, io.BytesIO(data))
    make_checksums_agree(directory)


def edit_member(directory, suffix, step, change):
    """Change one member of the first episode by `change(bytes) -> bytes`."""
    name = f"drawn-train-00000-00000-{step:04d}.{suffix}"
    rewrite(directory, lambda entries: [(m, change(data) if m.name == name else data) for m, data in entries])


def edit_json(directory, at_step, **changes):
    edit_member(directory, "json", at_step, lambda data: json.dumps(json.loads(data) | changes).encode())


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def edit_array(directory, suffix, step, change):
    def changed(data):
        array = np.load(io.BytesIO(data))
        buffer = io.BytesIO()
        np.save(buffer, change(array))
        return buffer.getvalue()

    edit_member(directory, suffix, step, changed)


def edit_statistics(directory, change):
    path = directory / "dataset_statistics.json"
    statistics = json.loads(path.read_text())
    change(statistics["drawn"])
    path.write_text(json.dumps(statistics))
    make_checksums_agree(directory)


def named(name, **more):
    member = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(member, key, value)
    return member


def assert_fault(directory, expected):
    """The fault is reported in one line, and the command ends with exit code 1."""
    faults = verify(directory)
    assert any(expected in line for line in faults), faults
    assert all("\n" not in line for line in faults)
    result = CliRunner().invoke(main, ["verify", "--shards", str(directory)])
    assert result.exit_code == 1
    assert result.output.splitlines()[:-1] == faults


def assert_same_with_workers(directory):
    """Shards are checked by other processes, and the same is said in the same order."""
    alone = verify(directory)
    assert verify(directory, workers=2) == alone
    return alone


def test_sound(directory):
    assert assert_same_with_workers(directory) == []
    result = CliRunner().invoke(main, ["verify", "--shards", str(directory)])
    assert (result.exit_code, result.output) == (0, "48 samples, no fault\n")


def test_only_accepted_episodes_are_sound_too(sound, tmp_path):
    build_shards(sound.parent / "annotations", tmp_path / "accepted", Execution())
    assert verify(tmp_path / "accepted") == []


@pytest.mark.parametrize("members", [1, 25, 37, 119, 120])
def test_cut_at_a_block_boundary(directory, members):
    """Between two members, where a tar reads to its end without an error; even with checksums that agree."""
    path = first_tar(directory)
    with tarfile.open(path) as tar:
        offset = [*(member.offset for member in tar), tar.offset + 512][members]
    assert offset % 512 == 0
    path.write_bytes(path.read_bytes()[:offset])
    assert_fault(directory, "drawn-train-00000.tar: differs from the manifest's SHA-256")
    make_checksums_agree(directory)
    assert_fault(directory, "drawn-train-00000.tar: does not end as a tar ends")
    if members < 119:
        assert_fault(directory, "samples, the manifest says 24")
        assert_fault(directory, "in the index, in no shard")


def test_cut_within_a_member(directory):
    path = first_tar(directory)
    path.write_bytes(path.read_bytes()[:30_000])
    make_checksums_agree(directory)
    assert_fault(directory, "drawn-train-00000.tar: broken tar after sample drawn-train-00000-00000-000")


def test_something_appended(directory):
    path = first_tar(directory)
    path.write_bytes(path.read_bytes() + path.read_bytes())
    make_checksums_agree(directory)
    assert_fault(directory, "does not end as a tar ends: it was cut, or something was appended")


@pytest.mark.parametrize("offset", [600, 5000, 100_000])
def test_a_flipped_byte(directory, offset):
    path = first_tar(directory)
    content = bytearray(path.read_bytes())
    content[offset] ^= 64
    path.write_bytes(content)
    assert_fault(directory, "drawn-train-00000.tar: differs from the manifest's SHA-256")


@given(flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_makes_it_stumble(sound, tmp_path_factory, flips):
    """Whatever the bytes, verifying ends in faults of one line each, even where checksums were made to agree."""
    directory = shutil.copytree(sound, tmp_path_factory.mktemp("flipped") / "shards")
    path = first_tar(directory)
    content = bytearray(path.read_bytes())
    for offset, flip in flips:
        content[offset % len(content)] ^= flip
    changed = content != path.read_bytes()
    path.write_bytes(content)
    assert bool(verify(directory)) == changed
    make_checksums_agree(directory)
    assert all("\n" not in line for line in verify(directory))
    shutil.rmtree(directory)


def test_a_missing_and_a_stray_shard(directory):
    first_tar(directory).rename(directory / "other.tar")
    assert_fault(directory, "other.tar: not in the manifest")
    assert_fault(directory, "drawn-train-00000.tar: missing")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entries: entries[5:], "23 samples, the manifest says 24"),
        (lambda entries: entries[5:], "its episode lacks the steps from 0 on"),
        (lambda entries: entries[:50] + entries[55:], "a sample is missing, doubled or out of place"),
        (lambda entries: entries[:-5], "its episode lacks the steps after it, to 23"),
        (lambda entries: [*entries, *entries[:5]], "a sample is missing, doubled or out of place"),
        (lambda entries: entries[:10] + entries[5:], "drawn-train-00000-00000-0001: member jpg stands twice"),
        (lambda entries: entries[1:], "lacks action.npy"),
        (lambda entries: [entries[0], *entries], "member action.npy stands twice"),
        (lambda entries: [*entries, (named("../../evil.jpg"), b"x")], "foreign member '../../evil.jpg'"),
        (lambda entries: [*entries, (named("/etc/evil.json"), b"x")], "foreign member '/etc/evil.json'"),
        (lambda entries: [*entries, (named("a.pyd"), b"x")], "foreign member 'a.pyd'"),
        (lambda entries: [*entries, (named(f"d-t-00000-00000-{'9' * 5000}.jpg"), b"x")], "foreign member 'd-t-00000-0"),
        (lambda entries: [*entries, (named("link", type=tarfile.SYMTYPE, linkname="/etc"), b"")], "is no regular file"),
        (lambda entries: [*entries, (named("link", type=tarfile.LNKTYPE, linkname="/etc"), b"")], "is no regular file"),
    ],
)
def test_members_are_checked_even_where_the_checksum_agrees(directory, change, fault):
    rewrite(directory, change)
    assert_fault(directory, fault)


def test_an_episode_in_two_shards(directory):
    second = max(directory.glob("*.tar"))
    second.write_bytes(first_tar(directory).read_bytes())
    make_checksums_agree(directory)
    assert_fault(directory, "stands apart from the samples of its episode, or twice")


def test_what_several_processes_find_is_in_the_order_of_one(directory):
    """Faults of the files, of both shards, and of what only both together show: an episode twice, states that differ."""
    rewrite(directory, lambda entries: [entry for entry in entries if not entry[0].name.endswith("-0007.jpg")])
    edit_array(directory, "state.npy", 3, lambda state: state[:5])
    second = max(directory.glob("*.tar"))
    second.write_bytes(first_tar(directory).read_bytes())
    (directory / "croissant.json").write_text("{}")
    (directory / "stray.tar").write_bytes(b"")
    faults = assert_same_with_workers(directory)
    assert sum("lacks jpg" in fault for fault in faults) == 2
    assert sum("stands apart" in fault for fault in faults) == 1
    files = ["croissant.json: differs", f"{second.name}: differs", "stray.tar: not in the manifest"]
    assert [fault.startswith(files[place]) for place, fault in enumerate(faults[:3])] == [True] * 3, faults[:4]


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(InputError, match="a worker process died"):
        list(in_order(os._exit, [1, 1], 2))


@pytest.mark.parametrize(
    ("suffix", "change", "fault"),
    [
        ("jpg", lambda data: data[:99], "image or mask does not decode"),
        ("jpg", lambda data: data[: len(data) // 2], "image or mask does not decode"),
        ("mask.png", lambda data: data[:60], "image or mask does not decode"),
        ("mask.png", lambda data: masks.encode_indexed_png(np.zeros((9, 8), np.uint8)), "the mask is 8x9, the image 256x256"),
        ("mask.png", lambda data: masks.encode_indexed_png(np.full((256, 256), 7, np.uint8)), "the mask holds label 7, which is none of 0, 1, 2, 255"),
        ("mask.png", lambda data: masks.encode_indexed_png(np.full((256, 256), 1, np.uint8)), "holds label 1, which its JSON says"),
        ("mask.png", lambda data: png(np.zeros((256, 256, 3), np.uint8)), "the mask is no indexed image but RGB"),
        ("mask.png", lambda data: png(np.zeros((256, 256), bool)), "the mask is no indexed image but 1"),
        ("json", lambda data: data[:-1], "its JSON: "),
        ("json", lambda data: b"{}", "its JSON: dataset: field required"),
        ("json", lambda data: data.replace(b'"score": ', b'"score": NaN, "x": '), "its JSON: "),
        ("state.npy", lambda data: data[:-4], "state.npy cannot be read"),
        ("action.npy", lambda data: data[:-4] + b"\0\0\xc0\x7f", "action.npy holds a value that is not finite"),
    ],
)  # fmt: skip
def test_contents_are_checked(directory, suffix, change, fault):
    edit_member(directory, suffix, 0, change)
    assert_fault(directory, fault)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"step": "0"}, "its JSON: step: input should be a valid integer"),
        ({"score": None}, "its JSON: score: input should be a valid number"),
        ({"object_mask_valid": 1}, "its JSON: object_mask_valid: input should be a valid boolean"),
        ({"points": []}, "its JSON: points: list should have at least 1 item"),
        ({"object_box": [1.0, 2.0, 3.0]}, "its JSON: object_box: list should have at least 4 items"),
        ({"colour": "red"}, "its JSON: colour: extra inputs are not permitted"),
        ({"step": 1}, "its JSON is of drawn-train-00000-00000-0001"),
        ({"dataset": "other"}, "its JSON is of the data set other"),
        ({"last_step": 99}, "its steps are not"),
        ({"status": "rejected"}, "status rejected with reason ''"),
        ({"status": "rejected", "reason": "dull"}, "status rejected with reason 'dull'"),
        ({"object_box": [10.0, 10.0, 300.0, 20.0]}, "object_box [10.0, 10.0, 300.0, 20.0] is no box in an image of 256x256"),
        ({"line": [[-1.0, -1.0], [9.0, 9.0]]}, "line [[-1.0, -1.0], [9.0, 9.0]] lie outside the image of 256x256"),
        ({"object_mask": {"size": [256, 256], "counts": "~~~~"}}, "object_mask is no RLE"),
        ({"object_mask": {"size": [256, 256], "counts": "ooo5oo7o9"}}, "object_mask is no RLE"),
        ({"object_mask": {"size": [8, 8], "counts": "0`1"}}, "object_mask is no RLE of an image of 256x256"),
        ({"instruction": "sing"}, "another instruction than at the step before"),
    ],
)  # fmt: skip
def test_the_schema_is_checked(directory, changes, fault):
    edit_json(directory, 0, **changes)
    assert_fault(directory, fault)


def test_the_schema_is_the_one_that_the_card_declares():
    assert {feature["name"] for feature in declared(METADATA)} == {field.name for field in dataclasses.fields(Metadata)}


def test_object_arrays_are_never_unpickled(directory):
    edit_array(directory, "state.npy", 3, lambda array: np.array([{}, []], object))
    assert_fault(directory, "state.npy cannot be read (Object arrays cannot be loaded when allow_pickle=False)")


def test_an_array_that_claims_to_be_huge(directory):
    def huge(data):
        return data.replace(b"(50, 7), }", b"(50, 7000000000), }")

    edit_member(directory, "action.npy", 3, huge)
    assert_fault(directory, "action.npy cannot be read")


@pytest.mark.parametrize(
    ("suffix", "change", "fault"),
    [
        ("action.npy", lambda chunk: chunk.astype(np.float64), "action.npy holds no float32"),
        ("action.npy", lambda chunk: chunk[:9], "action.npy has the shape (9, 7), not (50, 7)"),
        ("action.npy", lambda chunk: chunk + np.float32(1e-3), "its action chunk does not continue that of the step"),
        ("state.npy", lambda state: state[:5], "state.npy has the shape"),
        ("state.npy", lambda state: state[None], "state.npy has the shape (1, 8), not (S,)"),
    ],
)
def test_arrays_are_checked(directory, suffix, change, fault):
    edit_array(directory, suffix, 3, change)
    assert_fault(directory, fault)


def test_shards_whose_states_differ(directory):
    """Each shard for itself is sound."""
    for step in range(24):
        edit_array(directory, "state.npy", step, lambda state: state[:5])
    assert_fault(directory, "its states have 8 numbers, those of the shards before 5")


@pytest.mark.parametrize("name", ["verify_sample.check_metadata", "verify.check_statistics"])
def test_a_bug_of_ours_is_no_fault_of_the_shards(sound, monkeypatch, name):
    def broken(*_):
        raise ValueError("ours")

    monkeypatch.setattr(f"pixel160k.read.{name}", broken)
    with pytest.raises(ValueError, match=r"^ours$"):
        verify(sound)


def test_motion_behind_the_last_step(directory):
    def moved(chunk):
        chunk[1:, 2] = 0.5
        return chunk

    edit_array(directory, "action.npy", 23, moved)
    assert_fault(directory, "its action chunk moves on behind the last step")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda found: found["action"]["mean"].__setitem__(0, 0.1), "action: mean differ from those of the samples"),
        (lambda found: found["proprio"]["q99"].__setitem__(2, -50.0), "proprio is not ordered"),
        (lambda found: found["action"]["max"].__setitem__(0, 0.01), "action: samples lie outside min and max"),
        (lambda found: found["action"]["std"].__setitem__(0, float("nan")), "7 finite numbers per row"),
        (lambda found: found["action"].pop("q01"), "is not in the form of the format"),
        (lambda found: found["action"].update(min=["a"] * 7), "is not in the form of the format"),
        (lambda found: found.update(num_transitions="many"), "is not in the form of the format"),
        (lambda found: found["proprio"].update(min=[0.0]), "8 finite numbers per row"),
        (lambda found: found["action"].update(mask=[True] * 7), "action.mask is not"),
        (lambda found: found.update(num_transitions=9), "counts fewer transitions"),
    ],
)
def test_statistics_are_recomputed(directory, change, fault):
    edit_statistics(directory, change)
    assert_fault(directory, fault)


def test_changed_files_beside_the_shards(directory):
    for name in ("dataset_statistics.json", "croissant.json"):
        (directory / name).write_text("{}")
    assert "dataset_statistics.json: differs from the manifest's SHA-256" in verify(directory)
    assert "croissant.json: differs from the manifest's SHA-256" in verify(directory)


@pytest.mark.parametrize(
    ("column", "fault"), [("offset", "another offset"), ("status", "another status"), ("key", "not in the index")]
)
def test_the_index_points_at_the_samples(directory, column, fault):
    path = directory / "index.parquet"
    rows = shards.read_index(path)
    wrong = {"offset": rows[3].offset + 512, "status": "rejected", "key": rows[3].key[:-1] + "9"}[column]
    rows[3] = shards.IndexRow(**{**rows[3].__dict__, column: wrong})
    shards.write_index(path, rows)
    make_checksums_agree(directory)
    assert_fault(directory, fault)


@pytest.mark.parametrize(
    "change", [lambda rows: rows[::-1], lambda rows: rows[3:] + rows[:3], lambda rows: [*rows[:4], *rows[3:]]]
)
def test_the_index_lists_samples_in_their_order(directory, change):
    """Each row may be right: the loader takes those of a shard together, in their order."""
    path = directory / "index.parquet"
    shards.write_index(path, change(shards.read_index(path)))
    make_checksums_agree(directory)
    assert_fault(directory, "index.parquet: does not list the samples of drawn-train-00000.tar one after the other")
    with pytest.raises(InputError, match="`pixelcli verify` says more"):
        open_shards(directory)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda manifest: manifest.update(samples="48"), "manifest.json: samples: input should be a valid integer"),
        (lambda manifest: manifest.pop("horizon"), "manifest.json: horizon: field required"),
        (lambda manifest: manifest["shards"][0].update(name="../up.tar"), "shards.0.name: string should match pattern"),
        (lambda manifest: manifest["files"].update({"../../passwd": "0" * 64}), "string should match pattern"),
        (lambda manifest: manifest.update(samples=47), "manifest.json: 47 samples, its shards have 48"),
        (lambda manifest: manifest.update(episodes=3), "manifest.json: 3 episodes, the shards have 2"),
        (lambda manifest: manifest["left_out"].update(a="bad_image"), "2 episodes were to be written, but 2 are here and 1 left"),
        (lambda manifest: manifest["left_out"].update(a="dull"), "manifest.json: unknown reason 'dull'"),
        (lambda manifest: manifest["files"].pop("croissant.json"), "lacks the checksum of croissant.json"),
    ],
)  # fmt: skip
def test_the_manifest_is_checked(directory, change, fault):
    edit_manifest(directory, change)
    assert_fault(directory, fault)


def test_unknown_format_version(directory):
    edit_manifest(directory, lambda manifest: manifest.update(format_version=99))
    result = CliRunner().invoke(main, ["verify", "--shards", str(directory)])
    assert result.exit_code == 1
    assert "has format version 99; this software reads 1" in result.output

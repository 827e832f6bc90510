"""`pixelcli verify` on sound shards and on every kind of damage, each named in one line and with exit code 1."""

import io
import json
import shutil
import tarfile

import pytest
from click.testing import CliRunner
from scene import episode, write_scenes

from annotate.annotate_job import annotate
from annotate.jobs import Execution, sha256_of
from annotate.settings import AnnotateSettings
from annotate.shards_job import build_shards
from cli import main
from pixel160k.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Shards of two files with one episode each."""
    path = tmp_path_factory.mktemp("sound")
    data = write_scenes(path / "data", [episode()], [episode(seed=1)])
    annotate("libero", data, path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return path / "shards"


@pytest.fixture
def shards(sound, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(sound, tmp_path / "shards")


def first_tar(shards):
    return min(shards.glob("*.tar"))


def rewrite(shards, change):
    """Rewrite the first tar through `change(list of (TarInfo, bytes))` and make the manifest agree with the new bytes."""
    path = first_tar(shards)
    with tarfile.open(path) as tar:
        entries = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in change(entries):
            member.size = len(data) if member.isfile() else 0
            tar.addfile(member, io.BytesIO(data))
    manifest = json.loads((shards / "manifest.json").read_text())
    entry = next(entry for entry in manifest["shards"] if entry["name"] == path.name)
    entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (shards / "manifest.json").write_text(json.dumps(manifest))


def named(name, **more):
    member = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(member, key, value)
    return member


def test_sound(shards):
    assert verify(shards) == []
    result = CliRunner().invoke(main, ["verify", "--shards", str(shards)])
    assert (result.exit_code, result.output) == (0, "48 samples, no fault\n")


def test_cut_at_a_block_boundary(shards):
    path = first_tar(shards)
    path.write_bytes(path.read_bytes()[: 512 * 60])
    faults = verify(shards)
    assert any("SHA-256" in fault for fault in faults)
    assert any("samples, the manifest says 24" in fault for fault in faults)


@pytest.mark.parametrize("place", [600, 5000, 100_000])
def test_a_flipped_byte(shards, place):
    path = first_tar(shards)
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)
    assert any("SHA-256" in fault for fault in verify(shards))


def test_a_missing_and_a_stray_shard(shards):
    first_tar(shards).rename(shards / "other.tar")
    faults = verify(shards)
    assert "other.tar: not in the manifest" in faults
    assert "drawn-train-00000.tar: missing" in faults


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entries: entries[5:], "23 samples, the manifest says 24"),
        (lambda entries: entries + entries[:5], "stands 2 times"),
        (lambda entries: entries[1:], "lacks action.npy"),
        (lambda entries: [*entries, (named("../../evil.jpg"), b"x")], "foreign member '../../evil.jpg'"),
        (lambda entries: [*entries, (named("/etc/evil.json"), b"x")], "foreign member '/etc/evil.json'"),
        (lambda entries: [*entries, (named("a.pyd"), b"x")], "foreign member 'a.pyd'"),
        (lambda entries: [*entries, (named("link", type=tarfile.SYMTYPE, linkname="/etc"), b"")], "is no regular file"),
        (lambda entries: [(m, b"{}" if m.name.endswith("json") else d) for m, d in entries], "unreadable JSON"),
        (lambda entries: [(m, d[:99] if m.name.endswith("0.jpg") else d) for m, d in entries], "does not decode"),
        (lambda entries: [(m, d[:-4] if "state" in m.name else d) for m, d in entries], "state.npy cannot be read"),
        (
            lambda entries: [(m, d[:-4] + b"\0\0\xc0\x7f" if "action" in m.name else d) for m, d in entries],
            "not finite",
        ),
    ],
)
def test_contents_are_checked_even_where_the_checksum_agrees(shards, change, fault):
    rewrite(shards, change)
    faults = verify(shards)
    assert any(fault in line for line in faults), faults
    assert all("\n" not in line for line in faults)
    assert CliRunner().invoke(main, ["verify", "--shards", str(shards)]).exit_code == 1


def test_changed_statistics(shards):
    (shards / "dataset_statistics.json").write_text("{}")
    assert verify(shards) == ["dataset_statistics.json: differs from the manifest's SHA-256"]


def test_unknown_format_version(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    result = CliRunner().invoke(main, ["verify", "--shards", str(shards)])
    assert result.exit_code == 1
    assert "has format version 99; this software reads 1" in result.output

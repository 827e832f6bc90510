"""Object stores: a real S3 server on loopback holds data, annotations and shards as a local disk does."""

import hashlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from numbered_shards import write_shards
from s3_server import serve
from scene import episode, write_scenes

from annotate.sources import SOURCES
from annotate.sources.episode import Episode
from annotate.sources.rlds import list_files, read_episodes
from cli import main
from pixel160k import packages
from pixel160k.errors import InputError
from pixel160k.files import copy_folder, create_file, move_file, new_folder, sha256_of, working_folder, write_text
from pixel160k.format import table
from pixel160k.paths import list_sizes, open_path
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.loader import open_shards
from pixel160k.read.verify import verify
from pixel160k.stores import StorePath

ROOT = Path(__file__).parents[1]
ANNOTATE = ["annotate", "--src", "libero", "--set", "annotators=motion"]
BUILD = ["build-shards", "--include", "all"]


@pytest.fixture(scope="module")
def requests():
    """What the server was asked; its bucket is `bucket`."""
    with serve("bucket") as requests:
        yield requests


@pytest.fixture
def bucket(requests, tmp_path):
    """A folder of the test's own in the bucket."""
    folder = open_path(f"s3://bucket/{tmp_path.name}")
    requests.clear()
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A local run over two files of drawn scenes: data, annotations with tracks, shards."""
    folder = tmp_path_factory.mktemp("built")
    write_scenes(folder / "data", [episode(), episode(seed=1)], [episode(seed=2)])
    check(run(*ANNOTATE, "--data-dir", folder / "data", "--out", folder / "annotations"))
    check(run(*BUILD, "--annotations", folder / "annotations", "--out", folder / "shards"))
    return folder


def upload(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).upload(path)
    return target


def files_below(folder):
    """The bytes of all files by their names."""
    found = {}
    for path in folder.iterdir():
        if path.is_dir():
            found |= {f"{path.name}/{name}": content for name, content in files_below(path).items()}
        else:
            found[path.name] = path.read_bytes()
    return found


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check(result):
    assert result.exit_code == 0, result.output


def test_local_paths_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a:b", "http:", "file:x"):
        Path(name).mkdir()
    assert open_path("a:b") == Path("a:b") and open_path("file:x") == Path("file:x")
    assert open_path("~/x") == tmp_path / "x" and open_path("~nobody-here/x") == Path("~nobody-here/x")
    assert (
        open_path("file:///a%20b/c")
        == open_path("file:/a b/c")
        == open_path("file://localhost/a b/c")
        == Path("/a b/c")
    )
    assert open_path("file:a/b") == Path("a/b")
    assert open_path(Path("x")) == Path("x") and type(open_path("x")) is type(Path("x"))
    assert open_path("http://") == Path("http:")  # there is such a folder
    with pytest.raises(InputError, match=r"s3:/bucket/x was a URL before it became a Path, .* give the URL as text"):
        open_path(Path("s3://bucket/x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs:/bucket/x", "two slashes"),
        ("s3://", "names no bucket"),
        ("s3a://bucket/x", "s3a:// cannot be read; a path is local, or begins with s3://, gs://, hf://"),
        ("file://elsewhere/x", "names the host elsewhere"),
    ],
)
def test_what_is_no_path_gets_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_path(text)
    result = run("annotate", "--src", "sample", "--out", text)
    assert result.exit_code == 1 and message in result.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf"])
def test_a_store_without_its_package_gets_one_line(scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: fsspec, \w+; pip install 'pixelvla\[cloud\]'"):
        open_path(f"{scheme}://bucket/x")
    for command in (["verify", "--shards"], ["export", "--to", "coco", "--out", "x", "--shards"]):
        result = run(*command, f"{scheme}://bucket/x")
        assert result.exit_code == 1 and "pixelvla[cloud]" in result.output
    assert not list(tmp_path.iterdir())


def test_paths_of_a_store_do_what_local_ones_do(bucket, tmp_path):
    for root in (tmp_path, bucket):
        for name in ("a/1.txt", "a/2.txt", "b/3.bin", "4.txt"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{name} é", encoding="utf-8")
        assert sorted(path.name for path in root.iterdir()) == ["4.txt", "a", "b"]
        assert sorted(path.name for path in root.glob("*.txt")) == ["4.txt"]
        assert sorted(str(path).removeprefix(f"{root}/") for path in root.glob("*/*.txt")) == ["a/1.txt", "a/2.txt"]
        assert not list((root / "none").glob("*")) and list_sizes(root / "none") == {}
        assert list_sizes(root / "a") == {"1.txt": 10, "2.txt": 10}
        assert (root / "a").is_dir() and not (root / "a").is_file() and (root / "4.txt").is_file()
        assert not (root / "4.txt").is_dir() and not (root / "none").exists() and not (root / "none").is_file()
        assert (root / "a" / "1.txt").with_name("2.txt").read_text(encoding="utf-8") == "a/2.txt é"
        path = root / "b" / "3.bin"
        assert (path.name, path.stem, path.suffix, path.parent) == ("3.bin", "3", ".bin", root / "b")
        with path.open("rb") as file:
            assert file.read(4) == b"b/3." and file.seek(-2, os.SEEK_END) == 8 and file.read() == "é".encode()
            assert file.seek(2) == 2 and file.read(3) == b"3.b" and file.seek(100) == 100 and file.read() == b""
        assert path.stat().st_size == 10 and sha256_of(path) == hashlib.sha256("b/3.bin é".encode()).hexdigest()
        missing = path.with_name("no")
        for call in (missing.read_bytes, missing.stat, partial(missing.open, "rb")):
            with pytest.raises(FileNotFoundError, match="/b/no"):
                call()
        with pytest.raises(FileNotFoundError, match="/none"):
            list((root / "none").iterdir())
        path.unlink()
        path.unlink(missing_ok=True)
        assert not path.exists()
    assert pickle.loads(pickle.dumps(bucket)) == bucket == bucket.absolute() == bucket.resolve()
    assert sorted([bucket / "b", bucket / "a"]) == [bucket / "a", bucket / "b"]


def test_a_listing_is_one_request(bucket, requests):
    for number in range(5):
        (bucket / f"{number}").write_bytes(b"x" * number)
    requests.clear()
    assert list_sizes(bucket) == {str(number): number for number in range(5)}
    assert [path.stat().st_size for path in bucket.iterdir() if path.is_file()] == list(range(5))
    assert len(requests) == 2 and not [method for method, _ in requests if method != "GET"]


def test_files_are_whole_or_not_there(bucket, tmp_path):
    for root in (tmp_path / "out", bucket):
        write_text(root / "text" if isinstance(root, StorePath) else tmp_path / "text", "é")
        with new_folder(root / "new" if isinstance(root, StorePath) else root, last="a") as folder:
            (folder / "sub").mkdir()
            (folder / "a").write_text("a")
            (folder / "sub" / "b").write_text("b")
    assert files_below(bucket) == {"text": "é".encode(), "new/a": b"a", "new/sub/b": b"b"}
    with pytest.raises(InputError, match=f"{bucket}/new is not empty"), new_folder(bucket / "new"):
        pass
    with pytest.raises(RuntimeError), new_folder(bucket / "other") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert not (bucket / "other").exists()
    copy_folder(bucket / "new", tmp_path / "copy")
    assert files_below(tmp_path / "copy") == files_below(bucket / "new") == files_below(tmp_path / "out")


def test_the_last_file_is_written_last(bucket, requests):
    with new_folder(bucket, last="a") as folder:
        for name in "abc":
            (folder / name).write_text(name)
    assert [path.rpartition("/")[2] for method, path in requests if method == "PUT"] == ["b", "c", "a"]


def test_work_is_done_on_the_local_disk_and_moved(bucket, tmp_path):
    for out in (tmp_path, bucket):
        with working_folder(out, "train-00000") as folder:
            (folder / "part").write_text("whole")
            assert folder.parent == tmp_path or isinstance(out, StorePath)
            move_file(folder / "part", out / "tracks" / "part")
            assert not (out / "tracks").is_file() and not (folder / "part").exists()
        assert not folder.exists() and (out / "tracks" / "part").read_text() == "whole"


def test_a_file_is_created_once(bucket, tmp_path):
    for path in (tmp_path / "claim", bucket / "claim"):
        create_file(path, b"first")
        with pytest.raises(FileExistsError, match="/claim"):
            create_file(path, b"second")
        assert path.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_records_stream_from_a_store(bucket, requests, tmp_path):
    local = write_scenes(tmp_path / "data", [episode(), episode(seed=1)], [episode(seed=2)])
    stored = upload(local, bucket / "data")
    source = SOURCES["libero"]
    requests.clear()
    files = list_files(source, stored)
    assert len(requests) < 15, requests
    expected = list_files(source, local)
    assert [(file.name, file.records, file.dataset) for file in files] == [
        (file.name, file.records, file.dataset) for file in expected
    ]
    for file, twin in zip(files, expected, strict=True):
        for ours, theirs in zip(read_episodes(source, file), read_episodes(source, twin), strict=True):
            assert isinstance(ours, Episode) and ours.identity == theirs.identity
            assert list(ours.images) == list(theirs.images)
    with pytest.raises(InputError, match=f"{bucket}/none is not a directory"):
        list_files(source, bucket / "none")


def test_files_travel_by_absolute_names(tmp_path, monkeypatch):
    write_scenes(tmp_path / "data", [episode()])
    monkeypatch.chdir(tmp_path)
    assert all(file.path.is_absolute() for file in list_files(SOURCES["libero"], "data"))


def test_shards_of_a_bucket_are_read_checked_and_shown(built, bucket, requests, tmp_path):
    local = built / "shards"
    stored = upload(local, bucket / "shards")
    assert verify(stored) == verify(local) == []
    ours, theirs = ShardDirectory(str(stored)), ShardDirectory(local)
    assert ours.episode_ids == theirs.episode_ids and ours.statistics == theirs.statistics
    first = ours.episode_ids[0]
    requests.clear()
    assert ours.members(first, ours.steps(first)[0]) == theirs.members(first, theirs.steps(first)[0])
    assert len(requests) == 1  # of the tar, only the sample
    for command in (
        ["browse", "--out", "page.html"],
        ["stats", "--out", "stats"],
        ["export", "--to", "coco", "--out", "coco"],
        ["export", "--to", "hf", "--out", "hf"],
        ["export", "--to", "lerobot", "--fps", "5", "--out", "lerobot"],
    ):
        name = command.pop()
        for shards, out in ((local, tmp_path / "made"), (stored, bucket / "made")):
            check(run(*command, out / name, "--shards", shards))
    made, expected = files_below(bucket / "made"), files_below(tmp_path / "made")
    assert made.keys() == expected.keys() and "lerobot/meta/info.json" in made
    assert not [name for name in made if made[name] != expected[name] and not name.endswith(".png")]
    (stored / "index.parquet").unlink()
    assert any("index.parquet: missing" in fault for fault in verify(stored))
    result = run("verify", "--shards", bucket / "none")
    assert result.exit_code == 1 and f"{bucket}/none holds no shards" in result.output


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_a_bucket(bucket, tmp_path, workers):
    from torch.utils.data import DataLoader

    local = write_shards(tmp_path / "numbered", [[3, 2], [4], [3]])
    stored = upload(local, bucket / "numbered")

    def keys(shards):
        loader = open_shards(str(shards), chunk=4)
        return [sample.key for sample in DataLoader(loader, batch_size=None, num_workers=workers)]

    assert keys(stored) == keys(local)


def test_a_store_that_does_not_answer_is_one_line(bucket, monkeypatch):
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        result = run("verify", "--shards", bucket)
        assert result.exit_code == 1 and "Could not connect" in result.output, result.output
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_what_must_be_local_says_so(tmp_path):
    result = run("train", "--shards", tmp_path, "--out", "s3://bucket/runs")
    assert result.exit_code == 2 and "here only local paths do" in result.output


def test_annotation_parts_are_read_from_a_bucket(bucket, tmp_path):
    rows = [table.EpisodeAnnotation("a-train-00000-00000", "a", "train", 0, 0, 7)]
    table.write_part(tmp_path / "part-train-00000.parquet", rows, {})
    upload(tmp_path, bucket)
    assert list(table.read_annotations(bucket)) == list(table.read_annotations(str(bucket))) == rows
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match="holds no annotations"):
        table.list_parts(bucket / "none")


def results(folder):
    """The bytes of a run's results by their names: all but its own records, and stats.json, which holds timings."""
    files = files_below(folder)
    return {
        name: content
        for name, content in files.items()
        if not name.startswith((".done/", ".work/")) and name != "stats.json"
    }


def test_a_run_in_a_bucket_writes_the_same_bytes(built, bucket, tmp_path):
    upload(built / "data", bucket / "data")
    check(run(*ANNOTATE, "--data-dir", bucket / "data", "--out", bucket / "annotations"))
    check(run(*BUILD, "--annotations", bucket / "annotations", "--out", bucket / "shards"))
    for name in ("annotations", "shards"):
        assert results(bucket / name) == results(built / name)
    assert not [name for name in files_below(bucket) if ".tmp-" in name or name.endswith(".claim")]
    result = run("verify", "--shards", bucket / "shards")
    assert result.exit_code == 0 and "no fault" in result.output
    for folder, out in ((built, tmp_path / "again"), (bucket, bucket / "again")):
        check(run("annotate", "--refilter", folder / "annotations", "--set", "filter.min_evidence=0.9", "--out", out))
    assert results(bucket / "again") == results(tmp_path / "again")


def test_a_finished_run_is_known_from_listings(built, bucket, requests):
    upload(built / "data", bucket / "data")
    command = [*ANNOTATE, "--data-dir", bucket / "data", "--out", bucket / "annotations"]
    check(run(*command))
    requests.clear()
    check(run(*command))
    asked = [path for method, path in requests if method in ("GET", "HEAD") and path != "/bucket"]
    assert not [path for path in asked if path.endswith((".parquet", ".claim", ".bug", ".failed"))]
    assert sum(path.endswith(".done/train-00000.json") for path in asked) == 1


def test_what_was_damaged_in_a_bucket_is_made_again(built, bucket):
    upload(built / "data", bucket / "data")
    command = [*ANNOTATE, "--data-dir", bucket / "data", "--out", bucket / "annotations"]
    check(run(*command))
    (bucket / "annotations" / "part-train-00001.parquet").write_bytes(b"cut")
    (bucket / "annotations" / ".done" / "train-00000.json").unlink()
    check(run(*command))
    assert results(bucket / "annotations") == results(built / "annotations")
    result = run(*command, "--set", "prompts.seed=7")
    assert result.exit_code == 1 and "holds the results of another run" in result.output


def test_a_fault_at_one_file_is_told_from_a_bucket(built, bucket):
    upload(built / "data", bucket / "data")
    check(run(*ANNOTATE, "--data-dir", bucket / "data", "--out", bucket / "annotations"))
    (bucket / "annotations" / "part-train-00001.parquet").write_bytes(b"no part")
    result = run(*BUILD, "--annotations", bucket / "annotations", "--out", bucket / "shards")
    assert (
        result.exit_code == 1
        and f"{bucket}/annotations/part-train-00001.parquet is not an annotation part" in result.output
    )
    assert (bucket / "shards" / "libero-train-00000.tar").exists() or list_sizes(bucket / "shards")


def start(folder, *words):
    """A process with a home and a temporary folder of its own, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=folder, env=environment)


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def kill(process):
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A local run over six files of six episodes each."""
    folder = tmp_path_factory.mktemp("larger")
    write_scenes(
        folder / "data",
        *([episode(centre=(60 + 12 * record, 150), seed=shard) for record in range(6)] for shard in range(6)),
    )
    check(run(*ANNOTATE, "--data-dir", folder / "data", "--out", folder / "annotations"))
    check(run(*BUILD, "--annotations", folder / "annotations", "--out", folder / "shards"))
    return folder


@pytest.mark.slow
def test_a_killed_command_is_resumed_in_a_bucket(larger, bucket, tmp_path):
    upload(larger / "data", bucket / "data")
    commands = (
        ([*ANNOTATE, "--data-dir", bucket / "data"], "annotations"),
        ([*BUILD, "--annotations", bucket / "annotations"], "shards"),
    )
    for command, name in commands:
        words = ["-m", "cli", *command, "--out", bucket / name]
        killed = start(tmp_path / "killed", *words, "--workers", "2")
        assert wait_for(lambda name=name: list((bucket / name / ".done").glob("train-*.json")))
        kill(killed)
        assert start(tmp_path / "again", *words).wait() == 0
        assert results(bucket / name) == results(larger / name)
    assert not [name for name in files_below(bucket) if ".tmp-" in name or name.endswith(".claim")]


@pytest.mark.slow
def test_dask_workers_that_share_no_folder_write_the_same_bytes(larger, bucket, tmp_path):
    """A scheduler, two workers and a client in folders of their own. A worker and the client are killed, then all resumed."""
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    upload(larger / "data", bucket / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    running = [
        start(tmp_path / "scheduler", "-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"),
        *(
            start(tmp_path / name, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard", "--nthreads", 1)
            for name in ("first", "second")
        ),
    ]  # fmt: skip
    runner = ["--runner", "apache_beam.runners.dask.dask_runner.DaskRunner", "--", f"--dask_client_address={address}", "--dask_npartitions=6"]  # fmt: skip
    first = ["-m", "cli", *ANNOTATE, "--data-dir", bucket / "data", "--out", bucket / "annotations", *runner]
    second = ["-m", "cli", *BUILD, "--annotations", bucket / "annotations", "--out", bucket / "shards", *runner]
    try:
        client = start(tmp_path / "client", *first)
        running.append(client)
        assert wait_for(lambda: list((bucket / "annotations" / ".done").glob("train-*.json")))
        kill(running[1])
        kill(client)
        for command in (first, second):
            assert start(tmp_path / "another client", *command).wait(timeout=300) == 0
    finally:
        for process in running:
            kill(process)
    for name in ("annotations", "shards"):
        assert results(bucket / name) == results(larger / name)
    assert not [name for name in files_below(bucket) if ".tmp-" in name or name.endswith(".claim")]

"""Shards on a web server or the hub: read as a folder is, over connections that drop, and kept in a cache."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from drawn_shards import write_drawn_shards
from hub_server import serve_hub
from numbered_shards import write_shards
from web_server import serve_folder

from cli import main
from pixel160k import ShardDirectory, open_shards, web
from pixel160k.errors import InputError
from pixel160k.files import sha256_of
from pixel160k.paths import open_path
from pixel160k.read import cache as caches
from pixel160k.read.verify import verify

pytest.importorskip("aiohttp", reason="needs the extra [cloud]")
FILES = [[5, 3, 4], [6], [2, 2], [7], [3, 3, 3], [4]]
SOME = "drawn-train-{00001..00002}.tar"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("web") / "shards", FILES)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def keys(*sources, **changed):
    return [sample.key for sample in open_shards(*sources, members=(), **changed)]


def test_urls_are_read_as_folders_are(directory, tmp_path):
    with serve_folder(directory) as (url, requests):
        pattern = "drawn-train-{00001..00003}.tar"
        assert keys(f"{url}/{pattern}") == keys(f"{directory}/{pattern}")
        assert open_shards(url).statistics == open_shards(directory).statistics
        ours, theirs = ShardDirectory(url), ShardDirectory(directory)
        assert ours.members(ours.episode_ids[3], 1) == theirs.members(theirs.episode_ids[3], 1)
        requests.clear()
        assert verify(url) == verify(directory)
        asked = [path for path, part in requests if path.endswith(".tar") and part != "bytes=0-0"]
        assert sorted(asked) == [f"/{path.name}" for path in sorted(directory.glob("*.tar"))]
        with pytest.raises(InputError, match="/nowhere holds no shards"):
            open_shards(f"{url}/nowhere")


def test_commands_read_urls(tmp_path):
    shards = write_drawn_shards(tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"annotations": {"source": "libero"}}))
    with serve_folder(shards) as (url, _):
        for command in (
            ["browse", "--out", tmp_path / "page.html"],
            ["export", "--to", "hf", "--out", tmp_path / "hf"],
        ):
            result = CliRunner().invoke(main, [*map(str, command), "--shards", url])
            assert result.exit_code == 0, result.output
        result = CliRunner().invoke(main, ["export", "--to", "hf", "--out", f"{url}/out", "--shards", url])
        assert result.exit_code == 1 and "the web can only be read; choose another --out" in result.output


def test_samples_that_follow_each_other_are_one_request(directory):
    with serve_folder(directory) as (url, requests):
        assert keys(url, interleave=0) == keys(directory, interleave=0)
        assert len([path for path, _ in requests if path.endswith(".tar")]) == len(FILES)


def test_a_server_that_is_busy_is_asked_again(tmp_path):
    (tmp_path / "x-train-00416.tar").write_bytes(b"shard")  # 416 is also what a server says of a file without a byte
    (tmp_path / "empty").touch()
    with serve_folder(tmp_path, busy=1) as (url, requests):
        assert [open_path(f"{url}/{name}").stat().st_size for name in ("x-train-00416.tar", "empty")] == [5, 0]
    assert len(requests) == 3


@pytest.mark.parametrize("interleave", [0, 3])
def test_an_epoch_over_connections_that_all_drop_is_complete_and_in_order(directory, interleave, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve_folder(directory, drop=6000) as (url, requests):  # a sample has 6,656 bytes
        loader = open_shards(f"{url}/{SOME}", interleave=interleave)
        first = [sample.key for sample in itertools.islice(iter(loader), 7)]
        resumed = open_shards(f"{url}/{SOME}", interleave=interleave)
        resumed.load_state_dict(loader.state_dict())
        read = first + [sample.key for sample in resumed]
    assert read == [sample.key for sample in open_shards(f"{directory}/{SOME}", interleave=interleave)]
    assert len(read) == 10 and len(requests) > 30


def test_a_host_that_does_not_answer_is_one_line_after_a_while(monkeypatch):
    waited = []

    def in_main():
        return threading.current_thread() is threading.main_thread()

    monkeypatch.setattr(web.time, "sleep", lambda seconds: in_main() and waited.append(seconds))
    for reading in (
        lambda: open_shards("http://127.0.0.1:1/shards"),
        lambda: ShardDirectory("http://127.0.0.1:1/shards"),
    ):
        with pytest.raises(InputError, match=r"cannot read http://127.0.0.1:1/shards/manifest.json: Cannot connect"):
            reading()
    assert sum(waited) < 20
    result = CliRunner().invoke(main, ["verify", "--shards", "http://127.0.0.1:1/shards"])
    assert result.exit_code == 1 and "Cannot connect" in result.output and "holds no shards" not in result.output


def test_a_server_that_goes_away_is_an_error_that_is_not_skipped(directory, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve_folder(directory) as (url, _):
        loader, opened = open_shards(url, on_error="skip"), ShardDirectory(url)
    with pytest.raises(InputError, match=r"drawn-train-0000.* cannot be read at drawn-train-.*Cannot connect"):
        list(loader)
    with pytest.raises(InputError, match=r"cannot read .*/dataset_statistics.json: Cannot connect"):
        _ = opened.statistics


def test_of_the_hub_samples_are_asked_for_and_no_more(directory, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="extra [cloud]")
    with serve_hub(directory) as (url, requests):
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        hub.HfFileSystem.clear_instance_cache()
        loader = open_shards("hf://datasets/me/shards", members=())
        requests.clear()
        assert [sample.key for sample in loader] == keys(directory)
    assert len(requests) == len(loader)
    assert sum(length for _, length in requests) <= sum(path.stat().st_size for path in directory.glob("*.tar"))


def test_whole_shards_are_kept(directory, tmp_path):
    # A server of its own: threads that a failed reading leaves behind may still ask a while later.
    gives_no_parts = pytest.raises(InputError, match=r"gives whole files only; read with cache_dir=")
    with serve_folder(directory, parts=False) as (url, _), gives_no_parts:
        keys(url)
    with serve_folder(directory, parts=False) as (url, requests):
        for _ in range(2):
            assert keys(url, cache_dir=tmp_path / "cache") == keys(directory)
            assert len([path for path, _ in requests if path.endswith(".tar")][-len(FILES) :]) == len(FILES)
        requests.clear()
        assert keys(url, cache_dir=tmp_path / "cache", epoch=1) == keys(directory, epoch=1)
        assert not [path for path, _ in requests if path.endswith(".tar")]
    kept = sorted(path.name.partition("-")[2] for path in (tmp_path / "cache").glob("*.tar"))
    assert kept == sorted(path.name for path in directory.glob("*.tar"))


def bytes_of(folder):
    """Bytes of the shards in a cache, where threads take room, give unfinished ones their names or delete others meanwhile.

    It is counted until two counts agree: one alone may have a shard that was deleted since, and what took its room.
    """
    before = None
    while True:
        sizes = {}
        for path in folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path.name] = path.stat().st_size
        if sizes == before:
            return sum(sizes.values())
        before = sizes


def test_the_cache_keeps_no_more_than_it_may(directory, tmp_path):
    sizes = sorted(path.stat().st_size for path in directory.glob("*.tar"))
    limit, folder = sum(sizes[-2:]), tmp_path / "cache"
    with serve_folder(directory) as (url, _):
        with pytest.raises(InputError, match=r"cache_bytes=.* is too little .* raise it, or lower interleave"):
            keys(url, cache_dir=folder, cache_bytes=limit)
        for epoch in range(2):
            loader = open_shards(url, cache_dir=folder, cache_bytes=limit, interleave=2, epoch=epoch)
            for _ in loader:
                assert bytes_of(folder) <= limit
        assert keys(url, cache_dir=folder, cache_bytes=limit, interleave=2) == keys(directory, interleave=2)


def test_what_is_kept_is_what_the_manifest_says(directory, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(directory, served)
    tar = served / "drawn-train-00003.tar"
    tar.write_bytes(tar.read_bytes().replace(b"move the cup 0", b"lift the cup 0"))
    with serve_folder(served) as (url, _):
        loader = open_shards(url, cache_dir=tmp_path / "cache", on_error="skip")
        assert len(list(loader)) == 35 and loader.skipped == 7
        with pytest.raises(
            InputError, match=r"drawn-train-00003.tar cannot be read .*differs from the manifest's SHA-256"
        ):
            keys(url, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*drawn-train-00003.tar"))


def test_processes_that_ask_at_once_copy_once(directory, tmp_path):
    with serve_folder(directory) as (url, requests):
        processes = [
            multiprocessing.get_context("fork").Process(
                target=keys, args=(url,), kwargs={"cache_dir": tmp_path / "cache"}
            )
            for _ in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert len([path for path, _ in requests if path.endswith(".tar")]) == len(FILES)


def test_what_a_killed_process_left_makes_room_and_what_is_not_of_the_cache_stays(directory, tmp_path):
    limit = sum(path.stat().st_size for path in directory.glob("*.tar"))
    first = min(directory.glob("*.tar"))
    for begun in ("0123456789abcdef-drawn-train-00009.tar", f"{sha256_of(first)[:16]}-{first.name}"):
        (tmp_path / f"{caches.TEMPORARY}host_12345678-99-1-abcdef01-{begun}").write_bytes(bytes(limit))
    mine = tmp_path / "mine.tar"
    mine.write_bytes(bytes(limit))
    with serve_folder(directory) as (url, _):
        assert keys(url, cache_dir=tmp_path, cache_bytes=limit) == keys(directory)
    assert mine.exists() and not list(tmp_path.glob(".tmp-*"))


def test_a_process_forked_while_a_shard_is_copied_keeps_no_lock(tmp_path):
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))

    def pieces(start, stop):
        forked.start()
        yield b"shard"

    shard = SimpleNamespace(name="a.tar", pieces=pieces)
    copy = caches.ShardCache(tmp_path, 10).copy(shard, 5, hashlib.sha256(b"shard").hexdigest())
    with open(copy.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    forked.kill()


def test_a_cache_that_cannot_be_written_is_named_and_not_skipped(directory, tmp_path):
    with serve_folder(directory) as (url, _):
        loader = open_shards(url, cache_dir=tmp_path / "cache", on_error="skip")
        (tmp_path / "cache").rmdir()
        with pytest.raises(InputError, match=r"cannot be kept in .*/cache: No such file or directory"):
            list(loader)
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"cache_dir=.*/file cannot be made: File exists"):
            open_shards(url, cache_dir=tmp_path / "file")

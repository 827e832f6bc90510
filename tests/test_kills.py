"""Commands that die, or share an output directory: afterwards the bytes are those of one undisturbed run.

PIXELVLA_KILLS sets at how many random moments the client is killed.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from scene import episode, write_scenes
from test_jobs import SETTINGS, digests, run_both

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.claims import read_claim
from annotate.jobs.shards import build_shards
from pixel160k.owner import is_alive, process_id

KILLS = int(os.environ.get("PIXELVLA_KILLS", "2"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Six files of six drawn scenes."""
    files = [[episode(centre=(60 + 12 * record, 150), seed=shard) for record in range(6)] for shard in range(6)]
    return write_scenes(tmp_path_factory.mktemp("drawn"), *files)


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    return run_both(data_dir, tmp_path_factory.mktemp("undisturbed"))


def start(command, data_dir, folder, *more):
    """Start `annotate` of the scenes, or `build-shards` of their annotations, into the folder."""
    arguments = {
        "annotate": ["--src", "libero", "--data-dir", data_dir, "--set", "annotators=motion", "--out", folder / "annotations"],
        "build-shards": ["--annotations", folder / "annotations", "--include", "all", "--out", folder / "shards"],
    }[command]  # fmt: skip
    words = [sys.executable, "-m", "cli", command, *map(str, arguments), *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def holders(out):
    """The processes of this host that hold a claim in an output directory, as owners."""
    claims = [read_claim(path) for path in (out / ".done").glob("*.claim")]
    return {claim.owner for claim in claims if claim is not None and process_id(claim.owner) > 0}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return value


def children(pid):
    """The processes that this one has started and that still run."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def runs(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def same(folder, undisturbed):
    """Whether all is there, byte by byte, and nothing else."""
    assert not [*folder.rglob(".tmp-*"), *folder.rglob("*.claim")]
    assert digests(folder) == digests(undisturbed)
    return True


def test_one_of_two_workers_is_killed(data_dir, undisturbed, tmp_path):
    client = start("annotate", data_dir, tmp_path, "--workers", "2")
    worker = next(iter(wait_for(lambda: holders(tmp_path / "annotations"))))
    os.kill(process_id(worker), signal.SIGKILL)
    said, _ = client.communicate(timeout=120)
    assert client.returncode == 0, said
    assert re.search(rf"worker {process_id(worker)} \(cpu\) was killed by SIGKILL", said)
    build_shards(tmp_path / "annotations", tmp_path / "shards", Execution(), include="all")
    assert same(tmp_path, undisturbed)


def test_the_client_is_killed_at_random_moments(data_dir, undisturbed, tmp_path):
    """At any moment from its first file on disk to its end, as long as a whole run takes; its workers end with it."""
    chance, durations = random.Random(12), {}
    for number in range(-2, KILLS):  # the first two run to their end
        folder, command = tmp_path / str(number), ["annotate", "build-shards"][number % 2]
        if command == "build-shards":
            shutil.copytree(undisturbed / "annotations", folder / "annotations")
        out = folder / {"annotate": "annotations", "build-shards": "shards"}[command]
        client = start(command, data_dir, folder, "--workers", "2")
        assert wait_for(out.exists)
        started, workers = time.monotonic(), []
        if command not in durations:
            client.communicate(timeout=120)
            durations[command] = time.monotonic() - started
        else:
            time.sleep(chance.uniform(0, durations[command]))
            workers = children(client.pid)
            client.kill()
            client.communicate()
            left = [len([*out.rglob(pattern)]) for pattern in (".done/*.json", "*.claim", ".tmp-*")]
            print(f"{command}: killed beside {len(workers)} workers; markers, claims, unfinished: {left}")
        annotate("libero", data_dir, folder / "annotations", SETTINGS, Execution())
        build_shards(folder / "annotations", folder / "shards", Execution(), include="all")
        assert same(folder, undisturbed), number
        assert wait_for(lambda pids=workers: not any(map(runs, pids)), 10), "a worker outlived its client"
        shutil.rmtree(folder)


@pytest.mark.parametrize("parts", [["1/1", "1/1"], ["1/2", "2/2"]], ids=["shared", "parts"])
def test_two_commands_make_one_run(data_dir, undisturbed, tmp_path, parts):
    shared = parts == ["1/1", "1/1"]
    for command, last in (("annotate", "stats.json"), ("build-shards", "manifest.json"))[: 2 if shared else 1]:
        clients = [start(command, data_dir, tmp_path, "--shard", part) for part in parts]
        said = [client.communicate(timeout=300)[0] for client in clients]
        assert [client.returncode for client in clients] == [0, 0], said
        assert len(list(tmp_path.rglob(last))) == 1, said
        if not shared:
            assert any("is done; of 6 files" in text for text in said) or all("part" not in text for text in said)
    build_shards(tmp_path / "annotations", tmp_path / "shards", Execution(), include="all")
    assert same(tmp_path, undisturbed)


def test_one_of_two_dask_workers_is_killed(data_dir, undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")
    runner = ("--runner", "apache_beam.runners.dask.dask_runner.DaskRunner", "--")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        options = [f"--dask_client_address={cluster.scheduler_address}", "--dask_npartitions=6"]
        client = start("annotate", data_dir, tmp_path, *runner, *options)
        worker = next(iter(wait_for(lambda: holders(tmp_path / "annotations"))))
        os.kill(process_id(worker), signal.SIGKILL)
        said, _ = client.communicate(timeout=180)
    assert client.returncode == 0, said
    assert is_alive(worker) is False
    build_shards(tmp_path / "annotations", tmp_path / "shards", Execution(), include="all")
    assert same(tmp_path, undisturbed)


FILL = """
mount -t tmpfs -o size=3m tmpfs {shards} || exit 77
{command} --workers 2; echo "exit code $?"
mount -o remount,size=64m {shards}
{command} --workers 2 && cp -r {shards} {copy}
"""


def test_a_disk_that_is_really_full(undisturbed, tmp_path):
    """A memory disk of 3 MB takes the first shard or two; then it gets more room."""
    (tmp_path / "shards").mkdir()
    command = f"{sys.executable} -m cli build-shards --annotations {undisturbed}/annotations --include all --out {{}}"
    script = FILL.format(
        shards=tmp_path / "shards",
        command=command.format(tmp_path / "shards"),
        copy=tmp_path / "copy",
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode in (1, 77) and "exit code" not in done.stdout:
        pytest.skip("no memory disk can be mounted here")
    assert "exit code 1\n" in done.stdout and done.returncode == 0, done
    assert len(re.findall(r"^Error: no space left on the disk of .*$", done.stderr, re.MULTILINE)) == 1, done.stderr
    assert "Traceback" not in done.stderr
    shutil.copytree(undisturbed / "annotations", tmp_path / "whole" / "annotations")
    shutil.copytree(tmp_path / "copy", tmp_path / "whole" / "shards")
    assert same(tmp_path / "whole", undisturbed)

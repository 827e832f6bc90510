"""The two jobs: the same bytes whatever the workers, exact restart after a kill, nothing lost, nothing twice."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scene import episode, write_scenes

from annotate.jobs import annotate as annotate_job
from annotate.jobs import shards as shards_job
from annotate.jobs import terminal
from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution, run_job
from annotate.jobs.shards import build_shards
from annotate.jobs.summary import check_episodes, summary_table
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES
from annotate.sources.rlds import SourceFile, first_episodes, list_files
from pixel160k.errors import InputError, JobBug
from pixel160k.format import masks, shards, table
from pixel160k.format.actions import chunk_mask
from pixel160k.format.episode_rows import write_rows
from pixel160k.format.table import read_annotations
from pixel160k.read.episode_table import episode_table
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.folder import read_manifest
from pixel160k.read.verify import verify

SETTINGS = AnnotateSettings(annotators="motion")


def run_both(data_dir, out, workers=1, source="libero", include="all"):
    execution = Execution(workers=workers)
    annotate(source, data_dir, out / "annotations", SETTINGS, execution)
    build_shards(out / "annotations", out / "shards", execution, include=include)
    return out


def digests(out):
    """What must not differ between runs: every Parquet file, tar and description of the data."""
    wanted = [
        *out.rglob("*.parquet"),
        *out.rglob("*.tar"),
        *out.rglob("manifest.json"),
        *out.rglob("dataset_statistics.json"),
    ]
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in wanted
        if not any(part.startswith(".") for part in path.relative_to(out).parts)
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four files of drawn scenes."""
    files = [
        [episode(centre=(70 + 20 * shard + 9 * record, 150), seed=shard) for record in range(2)] for shard in range(4)
    ]
    return write_scenes(tmp_path_factory.mktemp("drawn"), *files)


@pytest.fixture(scope="module")
def finished(drawn, tmp_path_factory):
    """An undisturbed run over them."""
    return run_both(drawn, tmp_path_factory.mktemp("finished"))


def members(tar_path):
    """key -> suffix -> bytes of a shard."""
    samples = {}
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return samples


def test_two_workers_write_the_same_bytes(drawn, finished, tmp_path):
    assert digests(run_both(drawn, tmp_path, workers=2)) == digests(finished)


def test_a_repeated_run_does_nothing(drawn, finished):
    before = {path: path.stat().st_mtime_ns for path in [*finished.rglob("part-*"), *finished.rglob("*.tar")]}
    run_both(drawn, finished)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def write_name(file, folder, device):
    (folder / f"{file.name}.txt").write_text(file.name)
    return {}


def test_a_limit_takes_the_first_episodes_of_the_set_and_no_other(drawn, finished, tmp_path):
    annotations, built = tmp_path / "annotations", tmp_path / "shards"
    totals = annotate("libero", drawn, annotations, SETTINGS, Execution(), limit=3)
    whole = [row.episode_id for row in read_annotations(finished / "annotations")]
    assert [row.episode_id for row in read_annotations(annotations)] == whole[:3]
    assert (totals["episodes"], totals["limit"], totals["files"], totals["files_missing"]) == (3, 3, 2, 0)
    shown = io.StringIO()
    Console(file=shown, width=100).print(summary_table(totals))
    assert re.search(
        r"^3 episodes, .* per second of work; no more than the first 3 were asked for", shown.getvalue(), re.M
    )
    first = "part-train-00000.parquet"  # of a file that was not cut: what a run without a limit writes
    assert (annotations / first).read_bytes() == (finished / "annotations" / first).read_bytes()

    build_shards(annotations, built, Execution(), include="all")
    assert verify(built) == []
    assert (read_manifest(built)["episodes"], read_manifest(built)["annotations"]["limit"]) == (3, 3)
    cut = "drawn-train-00001.tar"
    part, all_of_it = members(built / cut), members(finished / "shards" / cut)
    assert part == {key: sample for key, sample in all_of_it.items() if key.startswith(whole[2])}

    for other in (0, 4):  # it is another run, and says so
        with pytest.raises(InputError, match=r"different: .*limit"):
            annotate("libero", drawn, annotations, SETTINGS, Execution(), limit=other)


@pytest.mark.parametrize("limit", range(1, 10))
def test_a_limit_is_kept_where_nothing_says_how_many_records_a_file_holds(drawn, limit):
    known = list_files(SOURCES["libero"], drawn)
    unknown = [dataclasses.replace(file, records=-1) for file in known]
    takes = [file.take for file in first_episodes(known, limit)]
    assert takes == [file.take for file in first_episodes(unknown, limit)]
    assert sum(takes) == min(limit, 8) and all(takes)


def test_no_folder_is_listed_for_each_file(tmp_path, monkeypatch):
    """Folders grow with the files: who lists them for every file needs time that grows with the square of their number."""
    listed, scandir = [], os.scandir
    monkeypatch.setattr(terminal, "interval", lambda folder: 1000.0)  # the progress bar lists by the clock
    monkeypatch.setattr(os, "scandir", lambda path=".": (listed.append(str(path)), scandir(path))[1])

    def listings(count):
        out = tmp_path / f"{count} files"
        files = [SourceFile(tmp_path / f"{number}", "drawn", "train", number, count, 1) for number in range(count)]
        assert len(run_job("test", write_name, files, out, {}, Execution())) == count
        return sum(path in (str(out), str(out / ".done")) for path in listed)

    assert listings(3) == listings(60) > 0


def test_a_lost_part_is_made_again(drawn, finished, tmp_path):
    out = run_both(drawn, tmp_path)
    next(out.rglob("part-train-00002.parquet")).unlink()
    next(out.rglob("*-00001.tar")).write_bytes(b"cut")
    assert digests(run_both(drawn, tmp_path)) == digests(finished)


def test_indices_are_joined_without_an_object_per_sample(tmp_path, monkeypatch):
    """Millions of samples: the joined index is written in row groups of a fixed size, whatever the files hold."""
    monkeypatch.setattr(shards, "_ROW_GROUP", 7000)
    rows = [
        shards.IndexRow(
            f"e{number // 9:05d}-{number % 9:04d}", f"e{number // 9:05d}", number % 9, "accepted", "x", 1, 1
        )
        for number in range(3000)
    ]
    shards.write_index(tmp_path / "one.parquet", rows)
    shards.write_index(tmp_path / "none.parquet", [])
    paths = [tmp_path / f"{name}.parquet" for name in ("none", *["one"] * 20, "none")]
    tracemalloc.start()
    counts = shards.join_indices(paths, tmp_path / "all.parquet")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts == (60_000, 20 * 334)
    assert peak < 2 << 20, "60,000 rows as Python objects take some 30 MB"
    assert pq.read_table(tmp_path / "all.parquet") == pa.concat_tables([pq.read_table(tmp_path / "one.parquet")] * 20)
    groups = pq.ParquetFile(tmp_path / "all.parquet").metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [7000] * 8 + [4000]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["annotate", "build-shards"])
def test_killed_and_run_again(tmp_path, command):
    """SIGKILL to the whole process group once some but not all files are done."""
    files = [[episode(centre=(60 + 12 * record, 150), seed=shard) for record in range(6)] for shard in range(6)]
    data_dir = write_scenes(tmp_path / "data", *files)
    undisturbed = run_both(data_dir, tmp_path / "undisturbed")
    disturbed = tmp_path / "disturbed"
    if command == "build-shards":
        annotate("libero", data_dir, disturbed / "annotations", SETTINGS, Execution())
        arguments = [
            "--annotations",
            str(disturbed / "annotations"),
            "--out",
            str(disturbed / "shards"),
            "--include",
            "all",
        ]
        done = disturbed / "shards" / ".done"
    else:
        arguments = ["--src", "libero", "--data-dir", str(data_dir), "--set", "annotators=motion"]
        arguments += ["--out", str(disturbed / "annotations")]
        done = disturbed / "annotations" / ".done"
    process = subprocess.Popen([sys.executable, "-m", "cli", command, *arguments], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(done.glob("*.json"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list(done.glob("train-*.json"))) < 6, "the kill came too late or too early to show anything"
    run_both(data_dir, disturbed)
    assert digests(disturbed) == digests(undisturbed)
    assert not list(disturbed.rglob(".tmp-*"))


@pytest.mark.slow
def test_dask_cluster_writes_the_same_bytes(drawn, finished, tmp_path):
    """A scheduler and two worker processes over TCP, through Beam's DaskRunner."""
    distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")
    runner = ("--runner", "apache_beam.runners.dask.dask_runner.DaskRunner", "--")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        assert cluster.scheduler_address.startswith("tcp://")
        options = [f"--dask_client_address={cluster.scheduler_address}", "--dask_npartitions=4"]
        out = str(tmp_path / "annotations")
        first = ["annotate", "--src", "libero", "--data-dir", str(drawn), "--out", out, "--set", "annotators=motion"]
        second = ["build-shards", "--annotations", out, "--out", str(tmp_path / "shards"), "--include", "all"]
        for arguments in (first, second):
            subprocess.run([sys.executable, "-m", "cli", *arguments, *runner, *options], check=True)
    assert digests(tmp_path) == digests(finished)


def test_parts_say_how_they_were_made(finished):
    schema = pq.read_schema(finished / "annotations" / "part-train-00000.parquet")
    metadata = json.loads(schema.metadata[b"pixelvla"])
    assert metadata["settings"] == SETTINGS.model_dump(mode="json")
    assert metadata["dataset"] == "drawn"
    assert metadata["models"]["object"] == "motion"
    assert not {"workers", "runner", "data_dir", "seconds"} & set(json.dumps(metadata).replace('"', " ").split())


def test_real_bridge_records_pass_through(bridge_dir, tmp_path):
    """One row per episode; with --include all every JPEG is the record's own; keys carry the raw step."""
    from test_sources import first_close, raw_bridge

    out = run_both(bridge_dir, tmp_path, source="bridge_orig")
    rows = list(read_annotations(out / "annotations"))
    assert len({row.episode_id for row in rows}) == len(rows) == 12
    samples = {key: sample for tar in sorted(out.rglob("*.tar")) for key, sample in members(tar).items()}
    expected = set()
    for row, (record, raw) in zip(rows, raw_bridge(bridge_dir), strict=True):
        gripper = np.array(raw["steps/action"].float_list.value, np.float32).reshape(-1, 7)[:, 6]
        assert (row.close_steps or [-1])[0] == first_close(gripper)
        # These records are cut after ten steps: what closes never lifts anything, and only some of it should.
        failed = bool(row.close_steps) and row.verb == "pick_place"
        assert (row.reason == "failed_grasp") == failed
        assert (row.reason == "no_gripper_close") == (not row.close_steps)
        assert row.close_step == (-1 if failed or not row.close_steps else row.close_steps[0])
        assert row.record_crc32c == record.masked_crc32c
        images = raw["steps/observation/image_0"].bytes_list.value
        for step in range(1, len(images) - 1):
            expected.add(f"{row.episode_id}-{step:04d}")
            assert samples[f"{row.episode_id}-{step:04d}"]["jpg"] == images[step]
    assert set(samples) == expected


def test_samples_follow_the_format(finished):
    manifest = read_manifest(finished / "shards")
    rows = {row.episode_id: row for row in read_annotations(finished / "annotations")}
    for entry in manifest["shards"]:
        for key, sample in members(finished / "shards" / entry["name"]).items():
            assert set(sample) == set(shards.MEMBERS)
            about = json.loads(sample["json"])
            row, step = rows[about["episode_id"]], about["step"]
            assert key == f"{row.episode_id}-{step:04d}"
            assert all(value not in (None, [], "nan") for value in about.values())
            chunk = np.load(io.BytesIO(sample["action.npy"]))
            assert chunk.shape == (manifest["horizon"], 7) and chunk.dtype == np.float32
            real = chunk_mask(step, about["last_step"], manifest["horizon"])
            np.testing.assert_allclose(
                chunk[real, 0], np.arange(step, about["last_step"] + 1)[: len(chunk)] / 100, rtol=1e-6
            )
            labels = masks.decode_indexed_png(sample["mask.png"])
            assert labels.shape == (256, 256)
            if step == row.first_step and row.object_mask:
                np.testing.assert_array_equal(labels == masks.TARGET, masks.decode(row.object_mask))
                assert about["object_mask_valid"] and not about["gripper_mask_valid"]
            elif step == row.close_step:
                np.testing.assert_array_equal(labels == masks.GRIPPER, masks.decode(row.gripper_mask))
                assert about["gripper_mask_valid"] and not about["object_mask_valid"]
            else:
                assert (labels == masks.NOT_ANNOTATED).all()


def test_index_finds_each_sample_in_its_tar(finished):
    index = shards.read_index(finished / "shards" / "index.parquet")
    assert len(index) == read_manifest(finished / "shards")["samples"]
    for row in index[:: len(index) // 7]:
        content = (finished / "shards" / row.shard).read_bytes()[row.offset : row.offset + row.bytes]
        with tarfile.open(fileobj=io.BytesIO(content + bytes(1024))) as tar:
            assert sorted(tar.getnames()) == sorted(f"{row.key}.{suffix}" for suffix in shards.MEMBERS)


def test_the_table_of_episodes_says_what_their_samples_say(finished, tmp_path):
    directory = ShardDirectory(finished / "shards")
    table = episode_table(finished / "shards")
    verbs = {row.episode_id: row.verb for row in read_annotations(finished / "annotations")}
    assert [verbs[episode] for episode in directory.episode_ids] == table["verb"].to_pylist()
    assert set(table["verb"].to_pylist()) == {"pick_place"}

    other = shutil.copytree(finished / "shards", tmp_path / "shards")
    write_rows(other / "episodes.parquet", [])
    assert verify(other) == ["episodes.parquet: differs from the manifest's SHA-256"]
    with pytest.raises(InputError, match="lists 0 episodes, the manifest 8; build these shards again"):
        episode_table(other)
    manifest = read_manifest(other)
    manifest["files"].pop("episodes.parquet")  # as of shards that were built before there was one
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert episode_table(other).drop(["verb"]).equals(table.drop(["verb"]))


def test_statistics_are_over_all_episodes_accepted_or_not(drawn, finished, tmp_path):
    build_shards(finished / "annotations", tmp_path / "accepted", Execution())
    accepted, everything = (
        json.loads((path / "dataset_statistics.json").read_text())["drawn"]
        for path in (tmp_path / "accepted", finished / "shards")
    )
    assert accepted == everything
    assert everything["num_trajectories"] == 8
    assert everything["num_transitions"] == 8 * 24
    assert everything["action"]["max"][0] == pytest.approx(0.23)


def test_annotations_of_other_data_are_refused(drawn, finished, tmp_path):
    other = write_scenes(tmp_path / "other", *[[episode(seed=9), episode(seed=8)] for _ in range(4)])
    with pytest.raises(InputError, match="the annotations do not belong to this data: record 0 has another checksum"):
        build_shards(finished / "annotations", tmp_path / "shards", Execution(), data_dir=other)
    log = (tmp_path / "shards" / ".done" / "workers.log").read_text()
    assert log.count("Traceback") == 4 and "InputError: the annotations do not belong to this data" in log


def test_a_part_that_cannot_be_read_for_a_moment_is_read_again(finished, tmp_path, fails_for_a_moment):
    calls = fails_for_a_moment(table, "open_parquet", call=2)
    build_shards(finished / "annotations", tmp_path / "shards", Execution(), include="all")
    assert len(calls) == 5 and digests(tmp_path / "shards") == digests(finished / "shards")


def test_an_accepted_episode_with_a_broken_frame_elsewhere_is_left_out_and_counted(tmp_path):
    data_dir = write_scenes(tmp_path / "data", [episode(broken=[6]), episode(seed=3)])
    annotate("libero", data_dir, tmp_path / "annotations", SETTINGS, Execution())
    manifest = build_shards(tmp_path / "annotations", tmp_path / "shards", Execution(), include="all")
    assert manifest["left_out"] == {"drawn-train-00000-00000": "bad_image"}
    assert manifest["causes"] == {"drawn-train-00000-00000": "step 6: the JPEG is cut short"}
    assert manifest["episodes"] == 1


BUGS = pytest.mark.parametrize(
    "bug", [ValueError("operands could not\nbe broadcast"), TypeError("no such operand"), KeyError("x")]
)


@BUGS
def test_a_bug_of_ours_is_not_the_datas_fault(drawn, tmp_path, monkeypatch, bug):
    """A source module that raises anything but InputError: its episode alone fails, and not as a malformed record."""
    source, out = SOURCES["libero"], tmp_path / "out"

    def to_episode(columns, identity, camera):
        if identity.shard == 2 and identity.record == 1:
            raise bug
        return source.to_episode(columns, identity, camera)

    monkeypatch.setitem(SOURCES, "libero", dataclasses.replace(source, to_episode=to_episode))
    totals = annotate("libero", drawn, out, SETTINGS, Execution())
    assert totals["status"] == {"accepted": 7, "failed": 1} and totals["reasons"] == {"internal_error": 1}
    (failed,) = [row for row in read_annotations(out) if row.status == "failed"]
    assert (failed.shard, failed.record, failed.reason) == (2, 1, "internal_error")
    assert failed.detail.startswith(f"{type(bug).__name__}: ") and "annotate/sources/rlds.py:" in failed.detail
    assert totals["internal_errors"] == [f"{failed.episode_id}: {failed.detail}"]
    log = (out / ".done" / "workers.log").read_text()
    assert "in to_episode" in log and f"{type(bug).__name__}: " in log and failed.episode_id in log
    with pytest.raises(JobBug, match=f"^this is a bug, met at {failed.episode_id}: {type(bug).__name__}: [^\n]+$"):
        check_episodes(totals["internal_errors"], totals["reasons"]["internal_error"], out)


@BUGS
def test_a_bug_outside_any_episode_costs_its_file(drawn, tmp_path, monkeypatch, bug):
    """The other files are done, and a rerun does only that one."""
    whole, read = annotate_job.read_episodes, set()

    def read_episodes(source, file, camera):
        read.add(file.shard)
        if file.shard == 2 and bug:
            raise bug
        return whole(source, file, camera)

    monkeypatch.setattr(annotate_job, "read_episodes", read_episodes)
    with pytest.raises(JobBug) as caught:
        annotate("libero", drawn, tmp_path / "out", SETTINGS, Execution())
    message, log = str(caught.value), tmp_path / "out" / ".done" / "workers.log"
    assert message.startswith(f"this is a bug, met at drawn-train.tfrecord-00002-of-00004: {type(bug).__name__}: ")
    assert str(log) in message and "\n" not in message and "more files" not in message
    assert "in read_episodes" in log.read_text() and f"{type(bug).__name__}: " in log.read_text()
    assert [path.name for path in sorted((tmp_path / "out").glob("part-*"))] == [
        f"part-train-0000{shard}.parquet" for shard in (0, 1, 3)
    ]
    assert not (tmp_path / "out" / "stats.json").exists()
    bug = None
    read.clear()
    assert annotate("libero", drawn, tmp_path / "out", SETTINGS, Execution())["status"] == {"accepted": 8}
    assert read == {2}
    assert not list((tmp_path / "out" / ".done").glob("*.bug"))


def test_a_card_that_the_user_changed_stays_and_ours_is_brought_up_to_date(finished, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    build_shards(finished / "annotations", tmp_path, Execution())
    ours = readme.read_text()
    monkeypatch.setattr(shards_job, "data_card", lambda *_: "a newer card\n")
    build_shards(finished / "annotations", tmp_path, Execution())
    assert readme.read_text() == "a newer card\n"
    monkeypatch.undo()
    build_shards(finished / "annotations", tmp_path, Execution())
    assert readme.read_text() == ours
    readme.write_text(ours + "Cite us.\n")
    build_shards(finished / "annotations", tmp_path, Execution())
    assert readme.read_text() == ours + "Cite us.\n"
    readme.unlink()
    build_shards(finished / "annotations", tmp_path, Execution())
    assert readme.read_text() == ours


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The machine's folder for temporary files, to which nobody else writes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def list_temporary(file, folder, device):
    (folder / f"{file.name}.txt").write_text(str(os.listdir(tempfile.gettempdir())))
    return {}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_makes_no_folder_for_temporary_files_that_a_kill_would_leave(temporary, drawn, tmp_path, workers):
    files = list_files(SOURCES["libero"], drawn)
    run_job("test", list_temporary, files, tmp_path / "out", {}, Execution(workers=workers))
    assert {path.read_text() for path in (tmp_path / "out").glob("*.txt")} == {"[]"}
    assert not list(temporary.iterdir())


def test_a_runner_that_is_not_there_is_one_line(drawn, tmp_path):
    with pytest.raises(InputError, match=r"^--runner no\.such\.Runner: [^\n]+$"):
        annotate("libero", drawn, tmp_path / "out", SETTINGS, Execution(runner="no.such.Runner"))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--dask_npartitions=x"], "argument --dask_npartitions: invalid int value: 'x'"),
        (["--dask_npartitions"], "argument --dask_npartitions: expected one argument"),
        (["--type_check_strictness=x"], "argument --type_check_strictness: invalid choice: 'x'"),
        (["--dask_client_address=tcp://127.0.0.1:1", "--dask_connection_timeout=1"], "Timed out trying to connect to"),
    ],
    ids=["value", "none", "choice", "address"],
)
def test_a_wrong_option_of_a_runner_is_one_line(drawn, tmp_path, options, fault, temporary):
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    runner = "apache_beam.runners.dask.dask_runner.DaskRunner"
    with pytest.raises(InputError, match=rf"^--runner {runner}: {fault}[^\n]*$"):
        annotate("libero", drawn, tmp_path / "out", SETTINGS, Execution(runner=runner, options=options))
    assert not list(temporary.iterdir())

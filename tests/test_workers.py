"""Workers, claims and faults of the machine, with work that costs nothing: who does which file, and who does it again."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from annotate.faults import WorkerUnusable
from annotate.jobs import beam, claims, terminal, unit
from annotate.jobs.beam import Execution, run_job
from annotate.jobs.local import list_devices, worker_environment
from annotate.sources.rlds import SourceFile
from cli import main
from pixel160k.errors import InputError, PartDone
from pixel160k.owner import is_alive, owner_of, temporary_name, this_process

FILES = [SourceFile(Path(f"/x-train.tfrecord-0000{k}-of-00004"), "x", "train", k, 4, -1) for k in range(4)]
ELSEWHERE = "elsewhere_12345678-1-1"  # an owner on another host


class AcceleratorError(RuntimeError):
    """As torch calls it."""


@dataclass(frozen=True)
class Work:
    """Writes one file, after what the test wants to happen at the file of shard 2.

    `folder` is where calls are counted over all processes: each leaves a file.
    """

    folder: Path
    kills: int = 0  # the first calls for shard 2 that end their process
    error: int = 0  # the errno that the first calls for shard 2 raise
    errors: int = 0
    together: int = 0  # wait until so many processes are at work
    losses: int = 0  # the first calls for shard 2 that lose their device
    unusable: str = ""  # a device on which nothing can be done at all, as CUDA_VISIBLE_DEVICES names it
    bugs: int = 0  # the first calls for shard 2 in which an episode meets a bug
    ending: type[BaseException] | None = None  # what a signal raises at shard 2

    def __call__(self, file, folder, device):
        (self.folder / f"worker-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("worker-*"))) < self.together and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.unusable and os.environ.get("CUDA_VISIBLE_DEVICES") == self.unusable:
            (self.folder / f"unusable-{file.name}").touch()
            raise WorkerUnusable("--device cuda cannot be used: no such GPU")
        calls = len(list(self.folder.glob(f"{file.name}-*")))
        (self.folder / f"{file.name}-{calls}").touch()
        (folder / f"{file.name}.txt").write_text(file.name)
        if file.shard == 2 and calls < self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if file.shard == 2 and calls < self.losses:
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        if file.shard == 2 and calls < self.errors:
            raise OSError(self.error, os.strerror(self.error), "somewhere")
        if file.shard == 2 and self.ending:
            raise self.ending(143)
        return {
            "pid": os.getpid(),
            "device": device,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "internal_errors": ["x: a bug"] if file.shard == 2 and calls < self.bugs else [],
        }


@pytest.fixture
def calls(tmp_path):
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


def run(work, out, workers=1, devices=("cpu",), shard=(1, 1)):
    return run_job("x", work, FILES, out, {"job": "x"}, Execution(workers, shard=shard), devices)


def contents(out):
    """All that lies in an output directory, but for markers and the log."""
    return {
        p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file() and ".done" not in p.parts
    }


def unfinished(out):
    return [*out.rglob(".tmp-*"), *out.rglob("*.claim")]


def test_a_killed_worker_is_named_and_its_file_is_done_by_another(tmp_path, calls, capfd):
    markers = run(Work(calls, kills=1, together=2), tmp_path / "out", workers=2)
    assert len(markers) == 4 and len(list(calls.glob("train-00002-*"))) == 2
    for text in (capfd.readouterr().err, (tmp_path / "out" / ".done" / "workers.log").read_text()):
        assert re.search(r"worker \d+ \(cpu\) was killed by SIGKILL", text)
        assert FILES[2].path.name in " ".join(text.split())
    assert not unfinished(tmp_path / "out")


def test_a_file_that_kills_every_worker_is_given_up(tmp_path, calls):
    with pytest.raises(
        InputError, match=rf"^{FILES[2].path.name}: 3 workers died at it [^\n]*the other files are done"
    ):
        run(Work(calls, kills=9), tmp_path / "out", workers=2)
    assert len(list(calls.glob("train-00002-*"))) == 3
    assert not unfinished(tmp_path / "out")
    assert len(run(Work(calls), tmp_path / "out", workers=2)) == 4  # a new command tries anew
    assert [len(list(calls.glob(f"{file.name}-*"))) for file in FILES] == [1, 1, 4, 1]


def times(calls):
    return [len(list(calls.glob(f"{file.name}-*"))) for file in FILES]


def test_workers_whose_device_is_lost_stop_and_the_others_do_their_files(tmp_path, calls, capfd):
    """One loses its GPU at a file, one can use none from the start, which is no death of its file; one is left."""
    work = Work(calls, losses=1, unusable="2", together=3)
    markers = run(work, tmp_path / "out", devices=("cuda:0", "cuda:1", "cuda:2"))
    assert times(calls)[2] == 2 and [len(marker["died"]) for marker in markers] == [0, 0, 1, 0]
    assert {marker["summary"]["visible"] for marker in markers} <= {"0", "1"}
    for text in (capfd.readouterr().err, (tmp_path / "out" / ".done" / "workers.log").read_text()):
        text = " ".join(text.split())
        assert re.search(
            r"worker \d+ \(cuda:[01]\) does nothing more at x-train.tfrecord-00002\S+, which is done again", text
        )
        assert "AcceleratorError: CUDA error: an illegal memory access" in text
        assert re.search(r"worker \d+ \(cuda:2\) does nothing more: --device cuda cannot be used: no such GPU", text)
    assert not unfinished(tmp_path / "out")


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cuda:1")], ids=["one", "two"])
def test_a_job_ends_when_no_device_is_left_and_goes_on_on_others(tmp_path, calls, devices, monkeypatch):
    monkeypatch.setattr(unit, "_LOST", {})
    work = Work(calls, losses=len(devices))
    with pytest.raises(
        InputError,
        match=r"^no worker is left, since cuda:[01] does nothing more \(AcceleratorError: [^\n]*, at x-train[^\n]*\)"
        r"; the same command goes on from there once that is mended, or on other --devices$",
    ):
        run(work, tmp_path / "out", devices=devices)
    assert not list((tmp_path / "out" / ".done").glob("*.failed")) + list((tmp_path / "out" / ".done").glob("*.bug"))
    assert times(calls)[2] == len(devices)
    assert len(run(work, tmp_path / "out", devices=("cuda:2",))) == 4
    assert times(calls) == [1, 1, len(devices) + 1, 1]
    assert not unfinished(tmp_path / "out") and not list((tmp_path / "out" / ".done").glob("*.lost"))


def test_a_file_at_which_three_devices_are_lost_is_given_up(tmp_path, calls):
    """Each time in another process, or in this one as if it were another."""
    out, work = tmp_path / "out", Work(calls, losses=9)
    run(Work(calls), out)
    (out / ".done" / f"{FILES[2].name}.json").unlink()
    for lost in (1, 2, 3, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unit, "_LOST", {})
            patch.setattr(claims, "this_process", lambda lost=lost: f"{this_process()[:-1]}{lost}")
            for file in FILES:
                unit.Unit(work, str(out), fingerprint_of(out), "cuda")(file)
        assert times(calls) == [1, 1, 1 + lost, 1]
    assert "3 workers died at it" in (out / ".done" / f"{FILES[2].name}.failed").read_text()


def test_a_device_that_cannot_be_used_fails_no_file(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(unit, "_LOST", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")
    with pytest.raises(InputError, match=r"since cuda does nothing more \(--device cuda cannot be used: no such GPU\)"):
        run(Work(calls, unusable="none"), tmp_path / "out", devices=["cuda"])
    assert len(list(calls.glob("unusable-*"))) == 1 and not list((tmp_path / "out" / ".done").glob("*.failed"))
    assert not unfinished(tmp_path / "out")


def test_a_cluster_whose_workers_have_all_lost_their_device_says_so(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(unit, "_LOST", {})
    execution = Execution(runner="apache_beam.runners.portability.fn_api_runner.FnApiRunner")
    with pytest.raises(
        InputError, match=r"^no worker is left, since cuda of \S+ does nothing more \(AcceleratorError: "
    ):
        run_job("x", Work(calls, losses=1), FILES, tmp_path / "out", {"job": "x"}, execution, ["cuda"])
    monkeypatch.setattr(unit, "_LOST", {})  # as of a worker that was started again
    assert len(run_job("x", Work(calls), FILES, tmp_path / "out", {"job": "x"}, execution, ["cuda"])) == 4


def test_an_option_that_beam_does_not_know_is_named(tmp_path, calls, capfd):
    runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    execution = Execution(runner=runner, options=["--direct_running_mod=in_memory"])
    assert len(run_job("x", Work(calls), FILES, tmp_path / "out", {"job": "x"}, execution)) == 4
    assert "Beam knows no option direct_running_mod;" in " ".join(capfd.readouterr().err.split())


def test_what_met_a_bug_is_tried_once_by_each_command_and_nothing_else_is(tmp_path, calls):
    out, work = tmp_path / "out", Work(calls, bugs=2)
    for tries, bug in ((1, True), (2, True), (3, False), (3, False)):
        with pytest.raises(PartDone) if tries == 1 else nullcontext():
            run(work, out, shard=(1, 2))  # shard 2 is its third
        assert bool(run(work, out, shard=(2, 2))[2]["summary"]["internal_errors"]) == bug
        assert times(calls) == [1, 1, tries, 1]


def test_commands_at_once_try_what_met_a_bug_only_once(tmp_path, calls):
    """Also one that began before the other had tried it again."""
    run(Work(calls, bugs=9), tmp_path / "out")
    first = unit.met_bugs(FILES, unit.finished(tmp_path / "out", FILES, fingerprint_of(tmp_path / "out")))
    assert list(first) == [FILES[2].name]
    again = unit.Unit(Work(calls, bugs=9), str(tmp_path / "out"), fingerprint_of(tmp_path / "out"), "cpu", first)
    for file in [*FILES, *FILES]:
        again(file)
    assert times(calls) == [1, 1, 2, 1]


def fingerprint_of(out):
    return json.loads((out / ".done" / f"{FILES[0].name}.json").read_text())["fingerprint"]


def test_each_worker_gets_its_own_device(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-b")
    markers = run(Work(calls, together=4), tmp_path / "out", workers=2, devices=("cuda:0", "cuda:1"))
    bound = {
        marker["summary"]["pid"]: (marker["summary"]["device"], marker["summary"]["visible"]) for marker in markers
    }
    assert len(list(calls.glob("worker-*"))) == 4
    assert set(bound.values()) == {("cuda", "7"), ("cuda", "GPU-b")}


def test_a_worker_sees_only_its_own_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert worker_environment("cuda:2")["CUDA_VISIBLE_DEVICES"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment("cuda")
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment("cpu")


def test_devices_are_those_that_torch_sees(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert list_devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert list_devices("cuda:0, cuda:2") == ["cuda:0", "cuda:2"]
    for wrong in ("cuda:3", "cuda:0,cpu", "cuda:0,"):
        with pytest.raises(InputError, match=r"^--device [^\n]+$"):
            list_devices(wrong)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="torch sees 0 GPUs here"):
        list_devices("cuda")
    assert list_devices("cpu") == ["cpu"] and list_devices("mps") == ["mps"]


def test_workers_import_from_where_we_do_and_not_from_where_we_work(tmp_path, calls, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("random.py", "annotate.py"):
        (tmp_path / name).write_text("raise SystemExit")
    assert len(run(Work(calls), tmp_path / "out", workers=2)) == 4


def test_the_bar_goes_on_after_a_look_that_failed(monkeypatch):
    looks = []

    class Done:
        def glob(self, _):
            looks.append(1)
            if len(looks) == 2:
                raise OSError(errno.EIO, "no answer")
            return []

    monkeypatch.setattr(terminal, "interval", lambda _: 0.01)
    with terminal.progress("x", Done(), ["a"], io.StringIO()):
        deadline = time.monotonic() + 10
        while len(looks) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(looks) >= 4


def test_parts_of_a_run(tmp_path, calls):
    with pytest.raises(PartDone, match=r"part 2 of 3 is done; of 4 files 3 are missing, the first is x-train.*00000"):
        run(Work(calls), tmp_path / "out", shard=(2, 3))
    with pytest.raises(PartDone, match=r"2 are missing, the first is x-train.*00000"):
        run(Work(calls), tmp_path / "out", shard=(3, 3))
    assert len(run(Work(calls), tmp_path / "out", shard=(1, 3))) == 4
    assert len(run(Work(calls), tmp_path / "out", shard=(5, 5))) == 4  # a part without files ends a run as well
    assert [len(list(calls.glob(f"{file.name}-*"))) for file in FILES] == [1, 1, 1, 1]


def test_a_fault_that_passes_is_tried_again_and_counted(tmp_path, calls, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    markers = run(Work(calls, error=errno.EIO, errors=3), tmp_path / "out")
    assert [marker["retries"] for marker in markers] == [0, 0, 3, 0]
    assert waits == list(unit.WAITS[:3]) == sorted(waits)
    assert (
        "Input/output error: 'somewhere'; next try in 1 s" in (tmp_path / "out" / ".done" / "workers.log").read_text()
    )


def test_a_store_that_does_not_say_for_a_moment_what_is_done_is_asked_again(tmp_path, calls, fails_for_a_moment):
    looks = fails_for_a_moment(claims, "read_claim")
    assert len(run(Work(calls), tmp_path / "out")) == 4 and looks[1] == looks[0]


def test_nor_does_the_command_end_that_waits_for_others(tmp_path, calls, fails_for_a_moment):
    fails_for_a_moment(beam, "settled")
    assert len(run(Work(calls), tmp_path / "out")) == 4 and times(calls) == [1, 1, 1, 1]


@pytest.mark.parametrize(("code", "tries"), [("EIO", 5), ("ENOENT", 1), ("EACCES", 1), ("EROFS", 1)])
def test_a_fault_that_stays_fails_the_file(tmp_path, calls, monkeypatch, code, tries):
    monkeypatch.setattr(unit, "WAITS", (0, 0, 0, 0))
    with pytest.raises(InputError, match=rf"^{FILES[2].path.name}: .*{'tried 5 times' if tries > 1 else 'somewhere'}"):
        run(Work(calls, error=getattr(errno, code), errors=9), tmp_path / "out")
    assert len(list(calls.glob("train-00002-*"))) == tries
    assert not unfinished(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_next_command_goes_on(tmp_path, calls, workers):
    with pytest.raises(InputError, match=r"^no space left on the disk of [^\n]+ the same command goes on from there$"):
        run(Work(calls, error=errno.ENOSPC, errors=1), tmp_path / "out", workers)
    assert len(run(Work(calls, error=errno.ENOSPC, errors=1), tmp_path / "out", workers)) == 4
    assert not unfinished(tmp_path / "out")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_a_signal_ends_a_command_that_works_in_its_own_process(tmp_path, calls, ending):
    """Also when it has done files before; Beam makes a RuntimeError of it."""
    out = tmp_path / "out"
    with pytest.raises(ending):
        run(Work(calls, ending=ending), out)
    assert times(calls)[2] == 1 and sum(times(calls)) > 1 and not unfinished(out)
    assert len(run(Work(calls), out)) == 4


def test_workers_that_cannot_begin_end_the_job(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="workers end before they begin; the last one ended with exit code 1"):
        run(Work(calls), tmp_path / "out", workers=2)


def dead_owner():
    """The name of a process of this host that has ended."""
    code = "from pixel160k.owner import this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def leave(done, owner, name):
    """A claim and an unfinished output of this owner."""
    done.mkdir(parents=True, exist_ok=True)
    (done / f"{name}.claim").write_text(f'{{"owner": "{owner}", "token": "{owner}", "died": []}}')
    folder = done.parent / temporary_name(name).replace(this_process(), owner)
    folder.mkdir()
    (folder / "half").touch()
    assert owner_of(folder.name) == owner
    return folder


def test_owners_are_told_apart():
    dead = dead_owner()
    assert is_alive(this_process()) is True
    assert is_alive(dead) is False
    assert is_alive(ELSEWHERE) is None
    later = this_process().rsplit("-", 1)[0] + "-1"  # the same process id, another start
    assert is_alive(later) is False


def test_only_what_a_dead_owner_left_is_removed(tmp_path):
    done = tmp_path / ".done"
    dead, living, elsewhere, silent = (
        leave(done, owner, f"train-0000{number}")
        for number, owner in enumerate([dead_owner(), this_process(), ELSEWHERE, ELSEWHERE.replace("-1-", "-2-")])
    )
    (done / "train-00004.claim").write_text("")  # of nobody knows whom
    long_ago = time.time() - 2 * claims.LEASE
    os.utime(elsewhere, (long_ago, long_ago))  # at work for long, but its claim is renewed
    os.utime(silent, (long_ago, long_ago))
    os.utime(done / "train-00003.claim", (long_ago, long_ago))
    claims.remove_leftovers(tmp_path)
    assert [folder.exists() for folder in (dead, living, elsewhere, silent)] == [False, True, True, False]
    assert sorted(path.name for path in done.iterdir()) == [f"train-0000{number}.claim" for number in (1, 2, 4)]


def test_a_claim_is_taken_over_only_from_the_dead(tmp_path):
    dead = dead_owner()
    for owner, died in ((ELSEWHERE, None), (this_process(), None), (dead, [dead])):
        leave(tmp_path / ".done", owner, "train-00000")
        taken = claims.take(tmp_path / ".done", "train-00000")
        assert (taken and taken.died) == died
    assert claims.take(tmp_path / ".done", "train-00000") is None  # it is ours now
    with claims.renewed(tmp_path / ".done", "train-00000", taken):
        assert claims.is_ours(tmp_path / ".done", "train-00000", taken)
    assert not (tmp_path / ".done" / "train-00000.claim").exists()


@pytest.mark.parametrize("error", [FileExistsError, TimeoutError])
def test_a_claim_that_was_made_without_our_hearing_of_it_is_ours(tmp_path, monkeypatch, error):
    """A store that is asked again, since its answer was lost, says that there is one."""

    def create_file(path, content):
        path.write_bytes(content)
        raise error

    monkeypatch.setattr(claims, "create_file", create_file)
    assert claims.take(tmp_path, "train-00000") is not None


def test_a_claim_is_renewed_while_its_holder_works(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEWAL", 0.02)
    taken = claims.take(tmp_path, "train-00000")
    path = claims.claim_path(tmp_path, "train-00000")
    with claims.renewed(tmp_path, "train-00000", taken):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_job_waits_for_a_living_worker_elsewhere_and_takes_over_from_a_silent_one(
    tmp_path, calls, monkeypatch, capfd
):
    monkeypatch.setattr(claims, "LEASE", 1.5)
    folder = leave(tmp_path / "out" / ".done", ELSEWHERE, "train-00002")
    (tmp_path / "out" / "run.json").write_text('{"job": "x"}')
    started = time.monotonic()
    markers = run(Work(calls), tmp_path / "out")
    assert len(markers) == 4 and 1 < time.monotonic() - started < 30
    assert "waiting for other commands that work on 1 files" in " ".join(capfd.readouterr().err.split())
    assert not folder.exists() and not unfinished(tmp_path / "out")


def test_another_run_in_the_same_folder_is_refused_and_leftovers_are_no_content(tmp_path, calls):
    out = tmp_path / "out"
    out.mkdir()
    (out / temporary_name("run.json")).touch()  # killed before run.json was there
    ours = {"settings": {"filter": {"a": 0}}, "parts": dict.fromkeys("abcdefgh", 0)}
    run_job("x", Work(calls), FILES, out, ours, Execution())
    for other, said in (
        ({"settings": {"filter": {"a": 1}}}, "(different: settings.filter.a); `pixelcli annotate --refilter "),
        (
            {"parts": {}},
            "(different: parts.a, parts.b, parts.c, parts.d, parts.e, parts.f, and 2 more); choose another",
        ),
    ):
        with pytest.raises(InputError, match="holds the results of another run") as error:
            run_job("x", Work(calls), FILES, out, ours | other, Execution())
        assert said in str(error.value)


@pytest.mark.parametrize("value", ["0/2", "3/2", "1", "x/y", "-1/2", "1/0", ""])
def test_a_part_that_is_none_is_wrong_usage(value):
    result = CliRunner().invoke(main, ["build-shards", "--annotations", "x", "--out", "out", "--shard", value])
    assert result.exit_code == 2 and "is not I/N with 1 <= I <= N, as 2/8" in result.output


@pytest.mark.parametrize("more", [["--devices", "cuda:0", "cuda:1"], ["--", "--direct_num_workers=4"]])
def test_a_word_too_many_is_wrong_usage(tmp_path, more):
    result = CliRunner().invoke(main, ["annotate", "--src", "sample", "--out", str(tmp_path / "out"), *more])
    assert (
        result.exit_code == 2
        and f"unexpected {more[-1]}, which would be ignored: " in result.output
        and not (tmp_path / "out").exists()
    )


def test_devices_of_two_kinds_and_devices_of_a_cluster_are_one_line(tmp_path):
    annotate = ["annotate", "--src", "sample", "--set", "annotators=motion", "--out", str(tmp_path / "out")]
    tracked = ["--tracks"]
    for more in (
        ["--device", "cuda"],  # which nothing would use
        ["--devices", "cpu,cuda:0", *tracked],
        ["--device", "cuda:0,cuda:1", "--runner", "x", *tracked],
    ):
        result = CliRunner().invoke(main, [*annotate, *more])
        assert result.exit_code == 1 and result.output.startswith("Error: --device c"), result.output
        assert len(result.output.splitlines()) == 1 and not (tmp_path / "out").exists()

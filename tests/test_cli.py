"""The command line itself: help with an example everywhere, light to start, a doctor that knows this machine."""

import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import main
from pixel160k.doctor import examine
from pixel160k.errors import InputError, one_line


def commands(group, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert f"pixelcli {' '.join(path)}" in result.output.split("Options:")[0].split("\n", 2)[2]


def test_importing_is_light():
    """No room loads Beam, torch, TensorFlow or the simulator just because the command line starts."""
    heavy = "apache_beam torch tensorflow tensorflow_datasets libero mujoco cv2 pyarrow webdataset".split()
    code = f"import cli, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_rooms_keep_their_borders():
    """`pixel160k` stands alone; `simulation` stands on it only; nothing imports TensorFlow."""
    code = "import {0}, pkgutil, importlib, sys\nfor m in pkgutil.walk_packages({0}.__path__, '{0}.'): importlib.import_module(m.name)\n"
    code += "print(sorted({{name.split('.')[0] for name in sys.modules}} & {{'annotate', 'simulation', 'evaluation', 'pixel160k', "
    code += "'apache_beam', 'tensorflow', 'transformers'}}))"
    expected = {"pixel160k": ["pixel160k"], "simulation": ["pixel160k", "simulation"]}
    for room, rooms in expected.items():
        result = subprocess.run([sys.executable, "-c", code.format(room)], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == str(rooms)


# A command that works, with what it makes for the time of its work, in a process of its own.
WORKS = """
import tempfile, time
from pixel160k.read import verify
def work(*_):
    with tempfile.TemporaryDirectory():
        print("begun", flush=True)
        time.sleep(60)
verify.verify = work
from cli import main
main(["verify", "--shards", "."])
"""


def test_a_command_that_is_ended_by_sigterm_leaves_no_temporary_files(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = subprocess.Popen([sys.executable, "-c", WORKS], stdout=subprocess.PIPE, env=environment)
    assert command.stdout.readline() == b"begun\n" and len(list(tmp_path.iterdir())) == 1
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=30)
    assert command.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_warnings_of_our_own_are_one_line_on_stderr(monkeypatch, tmp_path):
    def warn(*_):
        logging.getLogger("pixel160k.read.loader").warning("skipped: %s", "a\nb")
        logging.getLogger("somebody.else").warning("a FutureWarning")
        return []

    monkeypatch.setattr("pixel160k.read.verify.verify", warn)
    monkeypatch.setattr("pixel160k.read.folder.read_manifest", lambda _: {"samples": 0})
    result = invoke("verify", "--shards", str(tmp_path))
    assert result.stderr == "Warning: skipped: a b\n"


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_a_bug_of_ours_is_one_line_and_its_traceback_is_kept(monkeypatch, tmp_path):
    """Neither numpy's ValueError nor an OSError that names no file may pose as the user's fault."""
    for error in (ValueError("operands could not be broadcast"), KeyError("episodes"), OSError("no file is named")):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr("pixel160k.show.browse_page.write_page", broken)
        result = invoke("browse", "--shards", str(tmp_path), "--out", str(tmp_path / "page.html"))
        assert result.exit_code == 3
        (line,) = result.output.splitlines()
        assert line.startswith(f"Error: a bug of pixelvla: {type(error).__name__}: ")
        log = Path(line.rpartition(" ")[2])
        assert "Traceback" in log.read_text() and "in broken" in log.read_text()
        log.unlink()
        assert isinstance(invoke("--debug", "browse", "--shards", ".", "--out", "x.html").exception, type(error))


@pytest.mark.parametrize(
    "error",
    [InputError("page: no"), FileNotFoundError(2, "No such file", "page"), OSError(28, "No space left on device")],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_1(error, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("pixel160k.show.browse_page.write_page", broken)
    result = invoke("browse", "--shards", str(tmp_path), "--out", str(tmp_path / "page.html"))
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert "bug" not in result.output and one_line(error) in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["annotate", "--refilter", "absent", "--out", "out", *more]
            for more in (
                ["--src", "sample"],
                ["--data-dir", "data"],
                ["--split", "train"],
                ["--limit", "3"],
                ["--config", "settings.yaml"],
                ["--tracks"],
                ["--device", "cpu"],
                ["--workers", "1"],
                ["--runner", "x"],
                ["--shard", "1/2"],
                ["--", "--dask_npartitions=2"],
            )
        ),
        ["annotate", "--src", "sample", "--out", "out", "--runner", "x", "--workers", "2"],
        ["export", "--shards", "absent", "--to", "coco", "--out", "out", "--fps", "5"],
        ["browse", "--shards", "absent", "--out", "page.html", "--port", "1"],
        ["browse", "--shards", "absent", "--limit", "3"],
    ],
    ids=lambda arguments: " ".join(arguments[-2:]),
)
def test_an_option_that_would_be_ignored_is_refused(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "which would be ignored" in result.output


@pytest.mark.parametrize(
    ("arguments", "tracks"),
    [
        ([], "none"),
        (["--tracks"], "accepted"),
        (["--tracks=all"], "all"),
        (["--tracks", "all"], "all"),
        (["--tracks=none"], "none"),
        (["--tracks", "--workers", "1"], "accepted"),
        (["--tracks", "--"], "accepted"),
        (["--set", "tracks=all"], "all"),
        (["--set", "tracks=true"], "all"),  # as it was said before
        (["--set", "tracks=false"], "none"),
        (["--set", "tracks=all", "--tracks"], "accepted"),
    ],
    ids=" ".join,
)
def test_tracks_alone_are_those_of_accepted_episodes(monkeypatch, tmp_path, arguments, tracks):
    seen = []

    def annotate(source, data_dir, out, settings, *_):
        seen.append((settings.tracks, out))
        raise InputError("seen")

    monkeypatch.setattr("annotate.jobs.annotate.annotate", annotate)
    out = ["--out", str(tmp_path)]
    invoke("annotate", "--src", "sample", *out, *arguments)
    if "--" not in arguments:
        invoke("annotate", "--src", "sample", *arguments, *out)
    assert set(seen) == {(tracks, tmp_path)}
    assert invoke("annotate", "--src", "sample", "--out", str(tmp_path), "--tracks=most").exit_code == 2


def test_what_is_typed_reaches_training_as_it_is(monkeypatch, tmp_path):
    """`--init` is a text: neither a comment, nor a number, nor YAML's no."""
    pytest.importorskip("peft")
    seen = []
    monkeypatch.setattr("train.run.train", lambda settings, *_: seen.append(settings.init))
    for init in ("runs/my run #2", "2024", "no"):
        assert invoke("train", "--shards", "x", "--init", init, "--out", str(tmp_path)).exit_code == 0
    assert seen == ["runs/my run #2", "2024", "no"]


def test_doctor_knows_this_installation():
    findings = {finding.subject: finding for finding in examine()}
    assert {"Python", "core", "[sim]", "[dask]", "[dev]", "[train]", "libGL", "devices"} <= set(findings)
    assert findings["core"].well and findings["[dev]"].well
    assert all(finding.remedy for finding in findings.values() if not finding.well)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0


def test_an_extra_that_stands_on_another_works_only_with_it(monkeypatch):
    installed = importlib.metadata.version

    def version(name):
        if name == "accelerate":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    found = {finding.subject: finding for finding in examine()}
    assert not any(found[extra].well for extra in ("[foundation]", "[train]", "[serve]"))
    assert "accelerate is missing" in found["[serve]"].found and found["[annotate]"].well == found["[dask]"].well


def test_doctor_says_that_a_gpu_cannot_be_used(monkeypatch):
    torch = pytest.importorskip("torch")

    def name(index):
        raise RuntimeError(
            "CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with TORCH_USE_CUDA_DSA"
        )

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    (devices,) = [finding for finding in examine() if finding.subject == "devices"]
    assert not devices.well and "devices are busy" in devices.found and "nvidia-smi" in devices.remedy


def test_a_bar_is_drawn_while_python_imports_otherwise(monkeypatch, tmp_path):
    """tensorflow_datasets replaces Python's import, for all threads, while it is loaded: in `sample`, beside the bar."""
    pytest.importorskip("libero", reason="needs the extra [sim]")
    lazy_imports = pytest.importorskip("etils.epy").lazy_imports
    from simulation.recording import Counts, RecordingSummary

    def record(suites, episodes, seed, out, name, files, hz, progress, **_):
        with lazy_imports():
            time.sleep(0.5)
        progress(1, 1)
        return RecordingSummary({("libero_object", 0): Counts(recorded=1)})

    failed = []
    monkeypatch.setattr("simulation.recording.record_sample", record)
    monkeypatch.setattr(threading, "excepthook", failed.append)
    asked = ["sample", "--suite", "libero_object", "--episodes", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert result.exit_code == 0 and "1 episodes recorded" in result.output and "100%" in result.stderr
    assert not failed

"""Files and folders that are whole or not there."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixel160k.errors import InputError
from pixel160k.files import new_folder, only_writer

# A process that writes to folders, and one forked from it, as a loader's worker is, which may outlive it.
WRITES = """
import os, sys, time
from contextlib import ExitStack
from pathlib import Path
from pixel160k import files
with ExitStack() as stack:
    for how, folder in zip(sys.argv[1::2], sys.argv[2::2]):
        stack.enter_context(getattr(files, how)(Path(folder)))
    child = os.fork()
    if child:
        print(child, flush=True)
        sys.stdin.read()
    else:
        time.sleep(60)
"""


@contextmanager
def another_process(*writes):
    """Another process that until the block ends writes to folders, each by one of the functions of `pixel160k.files`."""
    command = [sys.executable, "-c", WRITES, *(word for how, folder in writes for word in (how.__name__, str(folder)))]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(writer.stdout.readline())
    try:
        yield writer
    finally:
        writer.kill()
        os.kill(child, signal.SIGKILL)
        writer.communicate()


@pytest.mark.parametrize("how", [only_writer, new_folder])
def test_two_processes_do_not_write_to_one_folder(how, tmp_path):
    out = tmp_path / "out"
    with another_process((how, out)) as writer:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=f"^another process writes to {out}: wait for it, or"), how(out):
            pass
        assert sorted(tmp_path.rglob("*")) == before
        writer.kill()
        writer.wait()
        with how(out):  # though what was forked from it lives on
            pass
    assert list(tmp_path.rglob("*")) == [out]  # and nothing beside it, nor in it


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path):
    out = tmp_path / "out"
    for text in ("first", "second"):
        with new_folder(out, replace=True) as folder:
            (folder / text).touch()
        assert [path.name for path in out.iterdir()] == [text]
    with pytest.raises(RuntimeError), new_folder(out, replace=True) as folder:
        (folder / "third").touch()
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["second"] and list(tmp_path.iterdir()) == [out]


def test_the_current_folder_can_be_filled(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path()) as folder:
        (folder / "file").touch()
    assert (tmp_path / "here" / "file").exists()


def test_a_folder_that_cannot_be_replaced_is_named_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path} is not empty"), new_folder(tmp_path):
        pass
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    with (
        pytest.raises(InputError, match="is a mount point; choose a folder inside it"),
        new_folder(tmp_path / "mounted"),
    ):
        pass

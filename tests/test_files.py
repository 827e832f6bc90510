"""Files and folders that are whole or not there."""

from pathlib import Path

import pytest

from pixel160k.errors import InputError
from pixel160k.files import new_folder


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

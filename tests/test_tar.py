"""Members of a tar are written as `tarfile` and `webdataset` write them, byte for byte."""

import io
import tarfile

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel160k.format import tar

names = st.text("abcXYZ019_-.", min_size=1, max_size=130)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=25))
def test_a_tar_is_what_tarfile_writes(members):
    """Names of more than 100 letters too, and tars that fill a record."""
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w") as file:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mode, header.uname, header.gname = len(content), 0o444, tar.OWNER, tar.OWNER
            file.addfile(header, io.BytesIO(content))
    written = b"".join(tar.member(name, content) for name, content in members)
    assert written + tar.end(len(written)) == expected.getvalue()


@pytest.mark.parametrize("size", [0, 511, 512, 20_000])
def test_it_is_what_webdataset_writes(size):
    members = {"action.npy": bytes(size), "jpg": b"x" * size, "json": b"{}"}
    expected = io.BytesIO()
    with webdataset.TarWriter(expected, encoder=False, mtime=0, user=tar.OWNER, group=tar.OWNER) as writer:
        writer.write({"__key__": "drawn-train-00000-00000-0000", **members})
    written = b"".join(
        tar.member(f"drawn-train-00000-00000-0000.{suffix}", content) for suffix, content in members.items()
    )
    assert written + tar.end(len(written)) == expected.getvalue()

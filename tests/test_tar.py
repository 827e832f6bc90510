"""Members of a tar are written as `tarfile` and `webdataset` write them, byte for byte, and read as `tarfile` reads them."""

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


@settings(deadline=None, max_examples=60)
@given(
    names,
    st.integers(0, 9 << 30),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.AREGTYPE]),
    st.tuples(st.integers(0, 511), st.integers(0, 255)) | st.none(),
)
def test_what_is_read_of_a_header_is_what_tarfile_reads(name, size, form, kind, damage):
    """Of any writer's header, damaged or not: the same name and size, or nothing, as of all that is no plain file."""
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    try:
        block = bytearray(header.tobuf(form)[:512])
    except ValueError:  # a name or a size that this form cannot hold
        return
    if damage:
        block[damage[0]] = damage[1]
    found = tar.read_header(bytes(block))
    try:
        theirs = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        assert found is None
        return
    assert found in (None, (theirs.name, theirs.size))
    assert found is None or theirs.type == tarfile.REGTYPE
    if not damage and kind == tarfile.REGTYPE and len(name) <= 100 and size < 8 << 30:
        assert found == (name, size)

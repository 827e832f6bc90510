"""TFRecord framing: what is written is read; damage costs what it must and no more."""

from hypothesis import given
from hypothesis import strategies as st

from pixel160k.tfrecord import read_records, write_records


@given(payloads=st.lists(st.binary(max_size=300), max_size=8))
def test_round_trip(tmp_path_factory, payloads):
    path = tmp_path_factory.mktemp("records") / "file"
    assert write_records(path, payloads) == len(payloads)
    records = list(read_records(path))
    assert [record.payload for record in records] == payloads
    assert [record.number for record in records] == list(range(len(payloads)))
    assert not any(record.fault for record in records)


@given(st.data())
def test_no_flipped_byte_goes_unnoticed(tmp_path_factory, data):
    payloads = [b"first" * 9, b"second" * 9, b"third" * 9]
    path = tmp_path_factory.mktemp("records") / "file"
    write_records(path, payloads)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    records = list(read_records(path))
    assert sum(bool(record.fault) for record in records) == 1
    assert all(record.payload == payloads[record.number] for record in records if not record.fault)


def test_a_bad_payload_costs_one_record(tmp_path):
    path = tmp_path / "file"
    write_records(path, [b"a" * 20, b"b" * 20, b"c" * 20])
    content = bytearray(path.read_bytes())
    content[36 + 12] ^= 1  # the second payload's first byte
    path.write_bytes(content)
    assert [record.fault for record in read_records(path)] == ["", "the payload checksum does not match", ""]


@given(cut=st.integers(1, 35))
def test_a_cut_file_says_so(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("records") / "file"
    write_records(path, [b"a" * 20, b"b" * 20])
    path.write_bytes(path.read_bytes()[:-cut])
    first, second = read_records(path)
    assert (first.fault, first.payload) == ("", b"a" * 20)
    assert second.fault.startswith("the file ends inside a record")

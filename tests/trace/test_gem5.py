"""gem5's packets against a reader in plain Python."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import TraceError
from fastmmu.reference.trace.gem5 import Packet
from fastmmu.reference.trace.gem5 import events as plain
from fastmmu.trace import read_trace
from tests.support.trace_files import events


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(fields: Packet, other: bytes = b"") -> bytes:
    body = b"".join(varint(number << 3) + varint(value) for number, value in fields.items()) + other
    return varint(len(body)) + body


def file(*packets: bytes) -> bytes:
    return b"gem5" + message({3: 10**12}, b"\x0a\x06system") + b"".join(packets)


packet = st.fixed_dictionaries(
    {1: st.integers(0, 2**63), 2: st.sampled_from([1, 1, 4, 2, 5, 50]), 3: st.integers(0, 2**48)},
    optional={4: st.integers(0, 700), 5: st.sampled_from([0, 0x100, 0x1FF, 2**40]), 7: st.integers(0, 2**64 - 1)},
)
others = st.sampled_from([b"", b"\x32\x03abc", b"\x31" + bytes(8), b"\x35" + bytes(4)])


@settings(max_examples=300)
@given(st.lists(packet, min_size=1, max_size=20), others, st.integers(1, 9), st.sampled_from([64, 1 << 12]))
def test_same_events_as_plain_python(
    tmp_path_factory: pytest.TempPathFactory, packets: list[Packet], other: bytes, chunk: int, buffer: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "t.gem5"
    packets = [*packets, {2: 1, 3: 5, 4: 8}]
    path.write_bytes(file(*(message(fields, other) for fields in packets)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmmu.trace.gem5._BUFFER", buffer)
        trace = read_trace(path)
        got = events(trace, chunk)
    assert list(zip(got.op.tolist(), got.size.tolist(), got.addr.tolist(), strict=True)) == plain(packets)
    left_out = sum(fields[2] not in (1, 4) for fields in packets)
    assert len(trace.notes()) == 1 + bool(left_out)


GOOD = message({2: 1, 3: 5, 4: 8})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file(GOOD, GOOD[:-1]), "byte 27: the file ends within a message"),
        (file(GOOD, b"\xff" * 11), "byte 27: a length of more than 64 bits"),
        (file(GOOD, varint(1 << 20)), "byte 27: a message of more than 64 KiB"),
        (file(GOOD, b"\x02\x08\x80"), "byte 27: a message whose fields do not end"),
        (file(GOOD, b"\x01\x0b"), "byte 27: a message whose fields do not end"),
        (file(GOOD, message({2: 1})), "byte 27: a message that is no packet"),
        (file(GOOD, message({3: 1})), "byte 27: a message that is no packet"),
        (file(GOOD, message({2: 1, 3: 1, 4: 1 << 20})), "byte 27: a message that is no packet"),
        (file(), "holds no events"),
        (b"gem5", "header of the packet trace is malformed"),
        (b"gem5\x20ab", "header of the packet trace is malformed"),
    ],
    ids=itertools.count(),
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=said):
        list(read_trace(path).batches())

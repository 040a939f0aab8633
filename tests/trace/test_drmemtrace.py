"""drmemtrace against a reader in plain Python; threads, processes, folders; what is cut or unknown."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.reference.trace.drmemtrace import INSTRUCTIONS, Record
from fastmmu.reference.trace.drmemtrace import events as plain
from fastmmu.trace import Trace, read_trace
from tests.support.drmemtrace_files import (
    BUNDLE,
    MARKER,
    PID,
    SPLIT,
    THREAD,
    TIMESTAMP,
    VERSION,
    file,
)  # fmt: skip
from tests.support.trace_files import COMPRESS, events

address = st.integers(0x1000, 2**47)
access = st.tuples(st.sampled_from([0, 1]), st.one_of(st.integers(1, 64), st.integers(0, 3000)), address)
instruction = st.tuples(st.sampled_from(INSTRUCTIONS), st.integers(1, 15), address)
bundle = st.tuples(st.just(BUNDLE), st.integers(0, 8), st.integers(0, 2**64 - 1))
silent = st.tuples(st.sampled_from([2, 5, 9, 18, 19, 20, 21, 27, 29, 32, 40, 46, 47]), st.integers(0, 9), address)
marker = st.tuples(st.just(MARKER), st.sampled_from([0, 1, 3, 4, 6, 9, 10, 18, 20, 25, 29, 40]), address)
records = st.lists(st.one_of(access, instruction, bundle, silent, marker), max_size=30)


def rows(trace: Trace, chunk: int = 1000) -> list[tuple[int, int, int]]:
    got = events(trace, chunk)
    return list(zip(got.op.tolist(), got.size.tolist(), got.addr.tolist(), strict=True))


@settings(max_examples=400)
@given(records, st.integers(1, 9), st.sampled_from([24, 60, 1 << 12]))
def test_same_events_as_plain_python(
    tmp_path_factory: pytest.TempPathFactory, found: list[Record], chunk: int, buffer: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "t.memtrace"
    path.write_bytes(file([*found, (10, 4, 0x400000)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmmu.trace.drmemtrace._BUFFER", buffer)
        assert rows(read_trace(path), chunk) == plain([*found, (10, 4, 0x400000)])


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("width", [8, 12])
def test_it_is_known_by_its_content(tmp_path: Path, width: int, suffix: str) -> None:
    found = [(MARKER, VERSION, 6), (10, 4, 0x400000), (0, 8, 0x7000), (BUNDLE, 3, 0x030201), (1, 8, 0xFFFF0000)]
    path = tmp_path / f"t.trace{suffix}"
    path.write_bytes(COMPRESS[suffix](file(found, width=width)))
    trace = read_trace(path)
    assert (trace.format, trace.instructions) == ("drmemtrace", "fetches")
    assert rows(trace) == plain(found)
    assert trace.progress() == 1.0


def folder(tmp_path: Path) -> Path:
    """Two threads of a process and one of another, with time stamps; a file that is none of them."""
    place = tmp_path / "drmemtrace.app.1.dir" / "trace"
    place.mkdir(parents=True)

    def times(base: int, *stamps: int) -> list[Record]:
        return [each for stamp in stamps for each in ((MARKER, TIMESTAMP, stamp), (10, 1, base + stamp))]

    (place / "drmemtrace.app.10.trace.gz").write_bytes(gzip.compress(file(times(0x1000, 1, 5, 9), 10, 1)))
    (place / "drmemtrace.app.11.trace").write_bytes(file(times(0x2000, 2, 6), 11, 1))
    (place / "drmemtrace.app.12.trace").write_bytes(file(times(0x3000, 3, 4, 9), 12, 2))
    (place / "cpu_schedule.txt").write_text("nothing")
    return place.parent


def test_threads_of_a_folder_come_in_the_order_of_their_time_stamps(tmp_path: Path) -> None:
    place = folder(tmp_path)
    for path in (place, place / "trace"):
        for chunk in (1, 3, 100):
            got = rows(read_trace(path), chunk)
            assert [addr for op, _, addr in got if op == Op.FETCH] == [
                0x1001, 0x2002, 0x3003, 0x3004, 0x1005, 0x2006, 0x1009, 0x3009,
            ]  # fmt: skip
            switches = [(op == Op.SWITCH, addr) for op, _, addr in got]
            assert [addr for switch, addr in switches if switch] == [1, 0, 1]
            assert switches.index((True, 1)) == 2


def test_threads_apart_are_processes(tmp_path: Path) -> None:
    got = rows(read_trace(folder(tmp_path), threads="apart"))
    assert [addr for op, _, addr in got if op == Op.SWITCH] == [1, 2, 0, 1, 0, 2]
    path = tmp_path / "core"
    path.write_bytes(
        file([(10, 1, 1), (THREAD, 4, 9), (PID, 4, 7), (10, 1, 2), (THREAD, 4, 8), (PID, 4, 3), (10, 1, 3)])
    )
    assert [op for op, _, _ in rows(read_trace(path))] == [Op.FETCH, Op.FETCH, Op.SWITCH, Op.FETCH]
    assert [op for op, _, _ in rows(read_trace(path, threads="apart"))] == [3, Op.SWITCH, 3, Op.SWITCH, 3]
    (tmp_path / "t.lackey").write_text(" L 1000,4\n")
    with pytest.raises(TraceError, match="threads is for drmemtrace, this is lackey"):
        read_trace(tmp_path / "t.lackey", threads="apart")


def test_time_stamps_of_32_bits_are_split(tmp_path: Path) -> None:
    for tid, upper, lower in ((1, 2, 0), (2, 1, 5)):
        found = [(MARKER, SPLIT, upper), (MARKER, TIMESTAMP, lower), (10, 1, tid)]
        (tmp_path / f"{tid}.trace").write_bytes(file(found, tid, 7, width=8))
    assert [addr for _, _, addr in rows(read_trace(tmp_path))] == [2, 1]


GOOD = file([(10, 4, 0x400000), (0, 8, 0x7000)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD[:-12], "byte 72: the file ends without a footer: it was cut short"),
        (GOOD[:-5], "byte 72: the file ends within a record"),
        (GOOD + struct.pack("<HHQ", 10, 4, 1), "byte 84: records behind the footer"),
        (file([(50, 1, 1)]), r"byte 36: a record of a type that is not known \(50\)"),
        (file([(BUNDLE, 9, 1)]), "byte 36: a bundle of more"),
        (file([(10, 1, 1)], version=8), "version 8 of drmemtrace is not known"),
        (file([]), "the file holds no events"),
    ],
    ids=itertools.count(),
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "t.trace"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=said):
        list(read_trace(path).batches())


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="this is a directory"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="this is a directory"):
        read_trace(tmp_path, "drmemtrace")
    (tmp_path / "t").write_text(" L 1000,4\n")
    with pytest.raises(TraceError, match="byte 0: this does not begin with a header of drmemtrace"):
        list(read_trace(tmp_path / "t", "drmemtrace").batches())

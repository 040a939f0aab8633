"""Text with columns against a parser of regular expressions, at every way of cutting it; and its formats."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import TraceError
from fastmmu.reference.trace.text import Event
from fastmmu.reference.trace.text import parse as plain
from fastmmu.trace import read_trace
from fastmmu.trace import text_parse_py as _text
from fastmmu.trace.text import Columns, columns_of
from tests.support.trace_files import events


def parsed(text: bytes, columns: Columns, piece: int, room: int) -> tuple[list[Event], int | None]:
    found: list[Event] = []
    lines = start = stop = 0
    while True:
        op, size, addr = np.zeros(room, np.uint8), np.zeros(room, np.uint8), np.zeros(room, np.uint64)
        start, n, seen, fault = _text.parse(
            text, start, stop, stop == len(text), columns.kinds, columns.separator, op, size, addr, 0
        )
        lines += seen
        found += zip(op[:n].tolist(), size[:n].tolist(), addr[:n].tolist(), strict=True)
        if fault:
            return found, lines + 1
        if n < room:
            if stop == len(text):
                return found, None
            stop = min(stop + piece, len(text))


DESCRIPTIONS = ["op addr:hex size", "addr", "op:dinero addr:hex ...", "skip op addr ...", "time event addr:hex ip ...",
                "op,addr,size", "addr:dec;size", "ip addr:hex", "time ip addr event",
                "size,skip,addr:hex,...", "addr:dec op"]  # fmt: skip
word = st.one_of(
    st.sampled_from([b"R", b"w", b"Load", b"IFETCH", b"rw", b"0", b"1", b"2", b"3", b"x", b"LDX", b'"R"', b"", b"R:"]),
    st.integers(0, 2**64 + 5).map(lambda n: f"{n:x}".encode()),
    st.integers(0, 2**64 + 5).map(lambda n: f"0x{n:X}".encode()),
    st.integers(0, 300).map(lambda n: f"{n}".encode()),
    st.sampled_from(
        [b"12.34:", b"1.:", b".1:", b"1.2.3:", b"mem-loads:", b"cpu/mem-STORES/P:", b"#", b"#eof", b"store"]
    ),
    st.binary(max_size=4).map(lambda raw: raw.replace(b"\n", b"")),
)
gaps = st.sampled_from([b" ", b"\t", b"  ", b",", b", ", b";", b": "])
ends = st.sampled_from([b"", b"\r", b"  "])
line = st.builds(lambda words, gap, end: gap.join(words) + end, st.lists(word, max_size=6), gaps, ends)
texts = st.builds(lambda lines, end: b"\n".join(lines) + end, st.lists(line, max_size=8), st.sampled_from([b"", b"\n"]))


@settings(max_examples=1500)
@given(texts, st.sampled_from(DESCRIPTIONS), st.integers(1, 60), st.integers(1, 8))
def test_same_events_or_same_error_line_however_it_is_cut(text: bytes, said: str, piece: int, room: int) -> None:
    columns = columns_of(said)
    assert parsed(text, columns, piece, room) == plain(text, columns.kinds, columns.separator)


GOOD = {
    "op addr:hex size": b"R 7f00 8\nw 0x10 1\n",
    "op,addr,size": b'R,0x7f00,8\n"w", 0x10 ,1\n',
    "time event addr:hex ip ...": b"Web Content 1 [0] 2.3: page-faults: 7f00 11 x (y)\nls 1 2.3: mem-stores:P: 10 10\n",
}


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_one_changed_byte(said: str, data: st.DataObject) -> None:
    text = bytearray(GOOD[said])
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    columns = columns_of(said)
    assert parsed(bytes(text), columns, 7, 4) == plain(bytes(text), columns.kinds, columns.separator)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("op addr where", "column 'where' of 'op addr where' is none of skip, op"),
        ("op size", "one of them is addr"),
        ("addr addr:hex", "one of them is addr"),
        ("... addr", r"\.\.\. is the last"),
        ("op,addr;size", "with one separator"),
        (" ".join(["skip"] * 16 + ["addr"]), "give 1 to 16"),
        ("", "give 1 to 16"),
    ],
)
def test_descriptions_that_mean_nothing(said: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        columns_of(said)


FILES = {
    "dinero": ("2 401530 x\n0 1fff000770\n1 10\n", [(3, 1, 0x401530), (0, 1, 0x1FFF000770), (1, 1, 0x10)]),
    "pinatrace": ("0x401535: R 0x1fff\n0x401536: W 0x20 8 0x1\n#eof\n", [(0, 1, 0x1FFF), (1, 1, 0x20)]),
    "csv": ("time,op,address,size,note\n1,R,0x10,8,a\n2,w,0x20,1,b\n", [(0, 8, 0x10), (1, 1, 0x20)]),
    "hexlines": ("0x10\n# twenty\n0xFF20\n", [(0, 1, 0x10), (0, 1, 0xFF20)]),
    "perf": (
        """  ls 22866  4.7: page-faults:  55c0 ff9a
 Web Content 1/2 [003] 4.8: cpu-mem-stores/P: 20 30 main+0x1 (/a b)
a 1 4.9: page-faults: 70 70
""",
        [(0, 1, 0x55C0), (1, 1, 0x20), (3, 1, 0x70)],
    ),
}


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("name", FILES)
def test_each_form_is_known_by_its_content(tmp_path: Path, name: str, chunk: int) -> None:
    path = tmp_path / "t"
    path.write_text(FILES[name][0])
    trace = read_trace(path)
    assert trace.format == name
    got = events(trace, chunk)
    assert list(zip(got.op.tolist(), got.size.tolist(), got.addr.tolist(), strict=True)) == FILES[name][1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0x1: R 0x2\n", "#eof is missing"),
        ("0x1: R 0x2\n0x2: R\n#eof\n", "line 2: the line has fewer columns than 'skip op addr:hex ...': '0x2: R'"),
        ("op,addr\nR,0x10\nR,20\n", "line 3: the address has no 0x in front, .* addr:hex or addr:dec"),
        ("op,addr\nR,0x10\nQ,0x20\n", "line 3: the operation is none of R"),
        ("op,addr,size\nR,0x10,1\nR,0x20,0\n", "line 3: the size is not from 1 to 255"),
        ("op,addr\nR,0x10\nR,0x2", "line 3: the last line is cut short"),
        ("op,addr\nR,0x10\nR,0x20,7\n", "line 3: the line has more columns"),
        ("0x10\n0x20 0x30\n" + "0x40\n" * 9, "neither the name nor the content"),
        ("0x10\n0x2g\n", "neither the name nor the content"),
    ],
    ids=itertools.count(),
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / ("t.csv" if text.startswith("op,") else "t.pinatrace" if "R" in text else "t")
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        list(read_trace(path).batches())


def test_columns_of_the_callers_own(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("4096|x\n")
    with pytest.raises(TraceError, match="line 1"):
        list(read_trace(path, columns="addr:dec skip").batches())
    path.write_text("a 4096 R 8\nb 8192 W 4\n" * 100_000)
    trace = read_trace(path, columns="skip addr:dec op size")
    assert (trace.format, trace.name) == ("text", "t.txt")
    got = events(trace, 999)
    assert got.addr.tolist() == [4096, 8192] * 100_000
    assert got.size.tolist() == [8, 4] * 100_000
    with pytest.raises(TraceError, match="give one of them"):
        read_trace(path, "csv", columns="addr")
    (tmp_path / "b").write_bytes(b"KDUMP   ")
    with pytest.raises(TraceError, match="this is a kdump, no text"):
        read_trace(tmp_path / "b", columns="addr")
    (tmp_path / "long").write_text("0x10\n" + "x" * (1 << 18) + "\n")
    with pytest.raises(TraceError, match="line 2: the line is longer"):
        list(read_trace(tmp_path / "long", columns="addr").batches())


def test_csv_that_names_no_address(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("op,where\nR,0x10\n")
    with pytest.raises(TraceError, match="line 1: the first line names no one column addr: 'op,where'"):
        list(read_trace(path).batches())
    path.write_text("R,0x10\nW,0x20\n")
    assert events(read_trace(path)).op.tolist() == [0, 1]

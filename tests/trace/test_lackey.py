"""Lackey text against a parser of regular expressions, at every way of cutting it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.reference.trace.lackey import Event
from fastmmu.reference.trace.lackey import parse as plain
from fastmmu.trace import lackey_parse_py as _lackey
from fastmmu.trace import read_trace
from fastmmu.trace.events import concatenate
from fastmmu.trace.lackey import LackeyTrace


def parsed(
    text: bytes, piece: int = 1 << 20, room: int = 64, skip: bool = False
) -> tuple[list[Event], int | None, int]:
    """The kernel's answer, given `piece` bytes at a time and columns of `room` rows."""
    events: list[Event] = []
    lines = start = stop = pid = left_out = 0
    while True:
        op, size, addr = np.zeros(room, np.uint8), np.zeros(room, np.uint8), np.zeros(room, np.uint64)
        start, n, seen, fault, pid, others = _lackey.parse(
            text, start, stop, stop == len(text), op, size, addr, 0, pid, skip
        )
        lines, left_out = lines + seen, left_out + others
        events += zip(op[:n].tolist(), size[:n].tolist(), addr[:n].tolist(), strict=True)
        if fault:
            return events, lines + 1, left_out
        if n < room:
            if stop == len(text):
                return events, None, left_out
            stop = min(stop + piece, len(text))


addresses = st.one_of(
    st.integers(0, 2**64 - 1).map(lambda a: f"{a:x}"),
    st.integers(0, 2**40).map(lambda a: f"{a:08x}"),
    st.text("0123456789abcdefABCDEF", min_size=1, max_size=16),
)
good = st.builds(
    lambda head, addr, size, end: f"{head}{addr},{size}{end}".encode(),
    st.sampled_from(["I  ", " L ", " S ", " M ", "I ", "   L  ", "S "]),
    addresses,
    st.integers(1, 255),
    st.sampled_from(["", "", "", "\r", "  "]),
)
bad = st.one_of(
    st.builds(
        lambda head, addr, size: f"{head}{addr},{size}".encode(),
        st.sampled_from(["I  ", " L ", "L", "\0\0\0", "IL ", "I\t ", " l ", "X  "]),
        st.text("0123456789abcdefgG:/@`x", max_size=18),
        st.one_of(st.integers(0, 1000).map(str), st.text("0123456789:/ ,\0", max_size=5)),
    ),
    st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")),
)
chatter = st.sampled_from(
    [b"==12== Command: ls", b"--12-- warning", b"**12** client", b"", b"   ", b"\r", b"==13== Command: sh", b"==0== x",
     b"==12--", b"==99999999==", b"==123456789==", b"==0012==", b"==1234567890==", b"== 13 ==", b"--", b"total 4"]
)  # fmt: skip
texts = st.builds(
    lambda lines, end: b"\n".join(lines) + end,
    st.lists(st.one_of(good, good, good, good, chatter, bad), max_size=12),
    st.sampled_from([b"", b"\n"]),
)


@settings(max_examples=400)
@given(texts, st.integers(1, 60), st.integers(1, 8), st.booleans())
def test_same_events_or_same_error_line_however_it_is_cut(text: bytes, piece: int, room: int, skip: bool) -> None:
    assert parsed(text, piece, room, skip) == plain(text, skip)


@settings(max_examples=300)
@given(st.lists(good, min_size=1, max_size=4), st.data())
def test_one_changed_byte(lines: list[bytes], data: st.DataObject) -> None:
    """Lines long enough for the fast path, one byte of them anything."""
    text = bytearray(b"\n".join([*lines, b"I  04001000,3", b" L 1ffeffe8a0,16", b" S 04a5c040,4", b""]))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    assert parsed(bytes(text)) == plain(bytes(text))


def test_every_byte_in_every_place_of_a_line() -> None:
    line = b" L 1ffeffe8a0,16\n"
    for place in range(len(line)):
        for byte in range(256):
            text = line[:place] + bytes([byte]) + line[place + 1 :] + b"I  04001000,3\n" * 3
            assert parsed(text) == plain(text), (place, byte)


def test_print_is_the_inverse_of_parse() -> None:
    rng = np.random.default_rng(1)
    n = 5000
    op = rng.integers(0, 4, n).astype(np.uint8)
    size = rng.integers(1, 256, n).astype(np.uint8)
    addr = rng.integers(0, 2**64, n, dtype=np.uint64) >> rng.integers(0, 64, n).astype(np.uint64)
    text = bytes(_lackey.format(op, size, addr))
    names = {Op.FETCH: "I  ", Op.READ: " L ", Op.WRITE: " S ", Op.MODIFY: " M "}
    rows = zip(op, size, addr, strict=True)
    assert text == "".join(f"{names[Op(o)]}{a:08x},{s}\n" for o, s, a in rows).encode()
    assert parsed(text, room=n + 1) == (list(zip(op.tolist(), size.tolist(), addr.tolist(), strict=True)), None, 0)


@pytest.mark.parametrize("bad", ["text", "op", "n"])
def test_the_kernel_checks_its_bounds(bad: str) -> None:
    op, size, addr = np.zeros(4, np.uint8), np.zeros(4, np.uint8), np.zeros(4, np.uint64)
    args = {"text": (0, 9), "op": (0, 3), "n": (0, 3)}[bad]
    with pytest.raises(ValueError):
        _lackey.parse(b"I  ", *args, True, op[: 3 if bad == "op" else 4], size, addr, 5 if bad == "n" else 0)


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 18])
def test_error_line_over_many_buffers(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmu.trace.lackey._BUFFER", 4096)
    path = tmp_path / "t.lackey"
    lines = [f" L {line:08x},{line % 255 + 1}" for line in range(1, 3001)]
    lines[2500] = " L 00001000;8"
    path.write_text("\n".join(lines) + "\n")
    batches = read_trace(path).batches(chunk)
    for _ in range(2500 // chunk):
        assert len(next(batches)) == chunk
    with pytest.raises(TraceError, match=r"t\.lackey, line 2501: the address is not hex.*1000;8'") as caught:
        next(batches)
    assert caught.value.where == "line 2501"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hello", "not a lackey line"),
        (" L 1000g,4", "not hexadecimal"),
        (" L 1" + "0" * 16 + ",4", "more than 16 hexadecimal digits"),
        (" L 1000,0", "from 1 to 255"),
        (" L 1000,256", "from 1 to 255"),
        (" L 1000,", "from 1 to 255"),
        (" L 1000", "from 1 to 255"),
        (" L ,4", "not hexadecimal"),
        ("L1000,4", "not a lackey line"),
        ("x" * 5000, "not a lackey line"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "t.lackey"
    path.write_text(f"==1== Lackey\n L 1000,4\n{line}\n")
    with pytest.raises(TraceError, match=f"line 3: .*{said}"):
        list(read_trace(path).batches())


def test_a_line_longer_than_the_buffer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmu.trace.lackey._BUFFER", 1024)
    path = tmp_path / "t.lackey"
    path.write_text(" L 1000,4\n" * 300 + "==" + "x" * 2000 + "\n")
    with pytest.raises(TraceError, match="line 301: the line is longer than 1024 bytes"):
        list(read_trace(path).batches())


def test_lines_of_the_program_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmu.trace.lackey._BUFFER", 1024)
    path = tmp_path / "t.lackey"
    long = "x" * 1023 + "y" * 3000
    path.write_text("==7== Lackey\n" + f"total 4\n L 1000,4\n{long}\n S 2000,8\n" * 300 + "==7== end\nbye")
    trace = read_trace(path, skip_other_lines=True)
    got = concatenate(list(trace.batches(100)))
    assert got.addr.tolist() == [0x1000, 0x2000] * 300
    assert trace.head(5).data_only().notes() == trace.notes() == ["skipped 601 lines that the program itself wrote"]
    path.write_text("total 4\n" + " L 1000,4\n" * 3)
    assert len(list(read_trace(path, skip_other_lines=True).batches())) == 1
    np.save(tmp_path / "t.npy", [1])
    with pytest.raises(TraceError, match=r"skip_other_lines is for lackey, this is npy"):
        read_trace(tmp_path / "t.npy", skip_other_lines=True)


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_of_two_processes_is_refused_with_the_remedy(tmp_path: Path, skip: bool) -> None:
    path = tmp_path / "t.lackey"
    path.write_text("==7== Lackey\n L 1000,4\n--8-- Command: sh\n L 2000,4\n")
    with pytest.raises(TraceError, match=r"line 3: a second process: '--8-- Comm.*--log-file=x\.%p\.log"):
        list(read_trace(path, skip_other_lines=skip).batches())


@pytest.mark.parametrize("end", [" L 1000,1", " L 10", " ", "I"])
def test_a_last_line_cut_short_is_an_error(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.lackey"
    path.write_text(" L 1000,4\n" + end)
    with pytest.raises(TraceError, match="line 2: the last line is cut short"):
        list(read_trace(path).batches())


def test_real_valgrind_output() -> None:
    """The beginning and the end of a real run."""
    sample = Path(__file__).parents[1] / "data" / "true.lackey"
    got = concatenate(list(LackeyTrace(str(sample)).batches()))
    expected, error, _ = plain(sample.read_bytes())
    assert error is None
    assert len(expected) > 100
    assert list(zip(got.op.tolist(), got.size.tolist(), got.addr.tolist(), strict=True)) == expected

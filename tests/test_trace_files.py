"""Every format in every compression: round trips, detection, and what a cut or spoilt file says."""

from __future__ import annotations

import gzip
import itertools
import lzma
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmmu.errors import MissingExtraError, TraceError
from fastmmu.ops import Op
from fastmmu.trace import Batch, Trace, read_trace, write_trace
from fastmmu.trace.events import concatenate

pyarrow = pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")
if sys.version_info >= (3, 14):
    from compression.zstd import compress as zst
else:
    zstandard = pytest.importorskip("zstandard", reason="skipped: the extra zstd is not installed")

    def zst(data: bytes) -> bytes:
        return zstandard.ZstdCompressor().compress(data)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}


def sample(n: int, system: bool) -> Trace:
    rng = np.random.default_rng(n)
    ops = [Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]
    op = rng.choice(np.array(ops + [Op.SWITCH, Op.INVLPG, Op.UNMAP] * system, np.uint8), n)
    addr = rng.integers(0, 2**64, n, dtype=np.uint64) >> rng.integers(0, 40, n).astype(np.uint64)
    return Trace.from_arrays(addr, op, rng.integers(1, 256, n).astype(np.uint8))


def events(trace: Trace, chunk: int = 1 << 18) -> Batch:
    batches = list(trace.batches(chunk))
    assert all(1 <= len(batch) <= chunk for batch in batches)
    for batch in batches:
        for column, dtype in ((batch.op, np.uint8), (batch.size, np.uint8), (batch.addr, np.uint64)):
            assert column.dtype == dtype
            assert column.shape == (len(batch),)
            assert column.flags.c_contiguous
    return concatenate(batches)


def assert_same(left: Batch, right: Batch) -> None:
    np.testing.assert_array_equal(left.op, right.op)
    np.testing.assert_array_equal(left.size, right.size)
    np.testing.assert_array_equal(left.addr, right.addr)


# ---- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["lackey", "npy", "arrow"])
def test_what_is_written_is_read(tmp_path: Path, kind: str, suffix: str) -> None:
    trace = sample(3000, kind != "lackey")
    path = tmp_path / f"t.{kind}{suffix}"
    write_trace(trace, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    expected = events(trace)
    for chunk in (1, 77, 1 << 18):
        again = read_trace(path)
        assert (again.format, again.name) == (kind, "t")
        assert_same(events(again, chunk), expected)
        assert_same(events(again, chunk), expected)  # a second pass
        assert again.progress() == 1.0
    unnamed = tmp_path / "plain"
    path.rename(unnamed)
    assert_same(events(read_trace(unnamed)), expected)  # by content
    assert_same(events(read_trace(unnamed, format=kind)), expected)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_arrow_is_what_other_tools_read(tmp_path: Path, compression: str | None) -> None:
    trace = sample(2000, True)
    path = tmp_path / "t.arrow"
    write_trace(trace, path, compression=compression)
    with pyarrow.OSFile(str(path)) as file:
        table = pyarrow.ipc.open_file(file).read_all()
    assert table.schema.field("addr").type == pyarrow.uint64()
    np.testing.assert_array_equal(table["addr"].to_numpy(), events(trace).addr)
    again = read_trace(path)
    assert again.total == 2000
    assert_same(events(again, 333), events(trace))


def test_arrow_of_other_tools(tmp_path: Path) -> None:
    """Further columns, several record batches of odd lengths (one empty), no metadata."""
    parts = [Batch(b.op, b.size, b.addr) for b in sample(1000, True).batches(300)]
    path = tmp_path / "t.arrow"
    with pyarrow.OSFile(str(path), "wb") as file:
        schema = pyarrow.schema(
            {"note": pyarrow.string(), "addr": pyarrow.uint64(), "op": pyarrow.uint8(), "size": pyarrow.uint8()}
        )
        with pyarrow.ipc.new_file(file, schema) as writer:
            for part in [parts[0], parts[0][:0], *parts[1:]]:
                columns = [["x"] * len(part), part.addr, part.op, part.size]
                writer.write_batch(pyarrow.record_batch([pyarrow.array(c) for c in columns], schema=schema))
    trace = read_trace(path)
    assert trace.total is None
    assert_same(events(trace, 100), events(sample(1000, True)))


@pytest.mark.parametrize("dtype", ["u8", "i8", "u4", ">u8", "i2", "u1"])
@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_npy_of_addresses(tmp_path: Path, dtype: str, suffix: str) -> None:
    addr = np.arange(100, dtype=dtype)
    np.save(tmp_path / "t.npy", addr)
    path = tmp_path / f"t.npy{suffix}"
    path.write_bytes(COMPRESS[suffix]((tmp_path / "t.npy").read_bytes()))
    got = events(read_trace(path), 33)
    assert_same(got, events(Trace.from_arrays(addr)))
    assert set(got.op) == {Op.READ}
    assert set(got.size) == {1}
    assert read_trace(path).total == 100


def test_npy_of_events_without_size(tmp_path: Path) -> None:
    rows = np.zeros(3, [("addr", "<i8"), ("op", "<i4")])
    rows["op"], rows["addr"] = [Op.WRITE, Op.SWITCH, Op.FETCH], [5, 1, 7]
    np.save(tmp_path / "t.npy", rows)
    got = events(read_trace(tmp_path / "t.npy"))
    assert (list(got.op), list(got.size), list(got.addr)) == ([1, 16, 3], [1, 0, 1], [5, 1, 7])


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_concatenated_streams_are_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.lackey{suffix}"
    first, second = COMPRESS[suffix](b" L 1000,4\n S 20"), COMPRESS[suffix](b"00,8\n")
    path.write_bytes(first + second + (b"" if suffix == ".zst" else b"\0" * 8))
    assert list(events(read_trace(path)).addr) == [0x1000, 0x2000]
    path.write_bytes(first + second + b"garbage")
    with pytest.raises(TraceError, match=f"the {suffix} data is corrupt|the {suffix} data ends early"):
        events(read_trace(path))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_dense_file_is_decompressed_in_pieces(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.lackey{suffix}"
    line = b" L 1000,4\n"
    path.write_bytes(COMPRESS[suffix](line * 2_000_000))
    trace = read_trace(path)
    batches = trace.batches(1000)
    next(batches)
    source = trace._source  # type: ignore[attr-defined]
    assert 1 << 18 < len(source._output) <= (130 << 20 if suffix == ".zst" else 1 << 20)
    assert 1000 + sum(len(batch) for batch in batches) == 2_000_000


# ---- ChampSim -----------------------------------------------------------------------------------------------------


def record(ip: int, sources: list[int], destinations: list[int], branch: int = 0) -> bytes:
    sources, destinations = sources + [0] * (4 - len(sources)), destinations + [0] * (2 - len(destinations))
    return struct.pack("<Q2B2B4B2Q4Q", ip, branch, branch, 1, 2, 3, 4, 5, 6, *destinations, *sources)


@pytest.mark.parametrize("name", ["t.champsim", "t.champsimtrace.xz", "t.trace.gz", "t", "t.bin.zst"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 20, 1000])
def test_champsim(tmp_path: Path, name: str, chunk: int) -> None:
    data = record(0x400000, [], []) + record(0x400004, [0x7000, 0, 0x7008], [0x9000], 1)
    data += record(0x400008, [1, 2, 3, 4], [5, 6]) + record(0, [0x10], [0x10])
    path = tmp_path / name
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](data * 5))
    trace = read_trace(path)
    assert trace.format == "champsim"
    got = events(trace, chunk)
    assert list(zip(got.op, got.addr, strict=True)) == 5 * [
        (Op.FETCH, 0x400000),
        (Op.FETCH, 0x400004), (Op.READ, 0x7000), (Op.READ, 0x7008), (Op.WRITE, 0x9000),
        (Op.FETCH, 0x400008), (Op.READ, 1), (Op.READ, 2), (Op.READ, 3), (Op.READ, 4), (Op.WRITE, 5), (Op.WRITE, 6),
        (Op.FETCH, 0), (Op.READ, 0x10), (Op.WRITE, 0x10),
    ]  # fmt: skip
    assert set(got.size) == {1}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_champsim_of_the_wrong_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.champsim{suffix}"
    path.write_bytes(COMPRESS[suffix](record(1, [], []) * 3 + b"1234567"))
    with pytest.raises(TraceError, match="byte 192: 199 bytes are no whole number of 64-byte records"):
        events(read_trace(path))


# ---- cut and spoilt files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["lackey", "npy", "arrow", "champsim"])
def test_cut_at_every_byte(tmp_path: Path, kind: str, suffix: str) -> None:
    """A clean prefix and an error; success only for text cut where a shorter trace ends, and ChampSim at a record."""
    whole = tmp_path / f"whole.{kind}{suffix}"
    if kind == "champsim":
        whole.write_bytes(COMPRESS[suffix](b"".join(record(0x400000 + n, [n], []) for n in range(5))))
    else:
        write_trace(sample(12, kind != "lackey"), whole)
    data, expected = whole.read_bytes(), events(read_trace(whole))
    path = tmp_path / f"cut.{kind}{suffix}"
    said = set()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        got = []
        try:
            got += read_trace(path).batches(1)
        except TraceError as error:
            said.add((error.path, str(path) in str(error)))
        else:
            assert not suffix
            text = kind == "lackey" and (data[length - 1 : length] == b"\n" or data[:length].rsplit(b",")[-1].isdigit())
            assert text or (kind == "champsim" and length % 64 == 0)
        rows = concatenate(got)
        ends_in_a_cut_size = kind == "lackey" and len(rows) and data[:length][-1:].isdigit()
        n = len(rows) - bool(ends_in_a_cut_size)
        assert_same(rows[:n], expected[:n])
    assert said == {(str(path), True)}


@pytest.mark.parametrize("kind", ["arrow", "npy.xz", "arrow.gz", "lackey.zst"])
def test_spoilt_bytes_never_crash(tmp_path: Path, kind: str) -> None:
    """A flipped byte gives a TraceError or a trace (of other values), nothing else."""
    whole = tmp_path / f"whole.{kind}"
    write_trace(sample(12, not kind.startswith("lackey")), whole)
    data = whole.read_bytes()
    path = tmp_path / f"spoilt.{kind}"
    outcomes: set[str] = set()
    for place, flip in itertools.product(range(len(data)), (0x01, 0x80)):
        path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        try:
            events(read_trace(path))
        except TraceError as error:
            outcomes.add(str(path) if str(path) in str(error) else str(error))
    assert outcomes == {str(path)}


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_spoilt_content_is_noticed(tmp_path: Path, suffix: str) -> None:
    """What write_trace compresses has a checksum."""
    path = tmp_path / f"t.lackey{suffix}"
    write_trace(Trace.from_arrays(np.arange(3000) * 7), path)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) - 40, len(data) // 20):
        data[place] ^= 0x55
        path.write_bytes(data)
        refused(path, "corrupt|line|truncated")
        data[place] ^= 0x55


def refused(path: Path, match: str, format: str | None = None) -> None:
    with pytest.raises(TraceError, match=match) as caught:
        events(read_trace(path, format))
    assert str(path) in str(caught.value)


def test_no_such_file_directory_device_empty(tmp_path: Path) -> None:
    refused(tmp_path / "none.lackey", "No such file")
    refused(tmp_path, "this is a directory")
    refused(Path("/dev/null"), "no regular file")
    refused(tmp_path / "a\0b", "cannot be read")
    for name in ("t.lackey", "t.npy", "t.arrow", "t.champsim", "t", "t.lackey.xz"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "the file is empty")
    for suffix in (".gz", ".xz", ".zst"):
        path = tmp_path / f"e.lackey{suffix}"
        path.write_bytes(COMPRESS[suffix](b""))
        refused(path, "the compressed file holds nothing")
    path = tmp_path / "chatter.lackey"
    path.write_text("==1== Lackey\n==1== \n")
    refused(path, "the file holds no events")


@pytest.mark.parametrize("method", ["stat", "open", "read"])
def test_unreadable(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop the superuser, so the system's refusal is played."""
    path = tmp_path / "t.lackey"
    path.write_text(" L 1000,4\n")
    real = open

    class Failing:
        def __init__(self, *args: object, **rest: object) -> None:
            if method == "open":
                raise PermissionError(13, "Permission denied")
            self.file = real(path, "rb", buffering=0)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def readinto(self, view: memoryview) -> int:
            raise OSError(5, "Input/output error")

    def failing_stat(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    if method == "stat":
        monkeypatch.setattr("fastmmu.trace.source.os.stat", failing_stat)
    else:
        monkeypatch.setattr("fastmmu.trace.source.open", Failing, raising=False)
    refused(path, "cannot be read: Input/output" if method == "read" else "cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(3), "dtype float64"),
        (np.zeros((2, 2), np.uint64), r"shape \(2, 2\)"),
        (np.array(5, np.uint64), r"shape \(\)"),
        (np.zeros(0, np.uint64), "the array is empty"),
        (np.array([1, "a"], object), "dtype object"),
        (np.array([True]), "dtype bool"),
        (np.array([3, -5]), "byte 136: address -5 is outside"),
        (np.zeros(2, [("op", "u1"), ("where", "u8")]), "give integers op, size and addr"),
        (np.zeros(2, [("op", "u1"), ("addr", "f8")]), "give integers op, size and addr"),
        (np.zeros(2, [("op", "u1"), ("addr", "u8", (2,))]), "give integers op, size and addr"),
        (np.array([(99, 1)], [("op", "u1"), ("addr", "u8")]), "event 0: operation 99 does not exist"),
        (np.array([(0, 1), (300, 1)], [("op", "u2"), ("addr", "u8")]), "op 300 is outside 0 to 255"),
        (np.array([(19, 80)], [("op", "u1"), ("addr", "u8")]), "event 0: exit reason 80 is not below 80"),
        (np.array([(0, 1), (20, 256)], [("op", "u1"), ("addr", "u8")]), "event 1: interrupt vector 256"),
    ],
)
def test_npy_that_is_no_trace(tmp_path: Path, array: np.ndarray, said: str) -> None:
    path = tmp_path / "t.npy"
    np.save(path, array, allow_pickle=True)
    refused(path, said)


def test_npy_and_its_header(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    path.write_text("hello")
    refused(path, "not a .npy file")
    np.save(path, np.arange(10))
    good = path.read_bytes()
    path.write_bytes(good + b"x")
    refused(path, "byte 208: the header promises 208 bytes, the file has 209")
    path.write_bytes(good.replace(b"{", b"["))
    refused(path, "header is malformed")
    path.write_bytes(good.replace(b"(10,)", b"(1e9)"))
    refused(path, "header is malformed")
    long = tmp_path / "t.npy.gz"
    long.write_bytes(gzip.compress(good + b"x"))
    refused(long, "byte 208: there is data beyond")
    long.write_bytes(gzip.compress(good[:-3]))
    refused(long, "byte 205: the data ends early: the header promises 208 bytes")
    long.write_bytes(gzip.compress(good.replace(b"(10,), }                  ", b"(99999999999999999999,), }")))
    refused(long, "ends early|malformed")


@pytest.mark.parametrize(
    ("columns", "metadata", "said"),
    [
        ({"op": "uint8", "addr": "uint64"}, {}, "no one column size of type uint8"),
        ({"op": "uint8", "size": "uint8", "addr": "int64"}, {}, "no one column addr of type uint64"),
        ({"op": "uint8", "size": "uint8", "addr": "uint64"}, {"fastmmu.trace": "2"}, "version b'2'"),
        ({"op": "uint8", "size": "uint8", "addr": "uint64"}, {"fastmmu.events": "7"}, "promises 7 events, there are 1"),
        ({"op": "uint8", "size": "uint8", "addr": "uint64"}, {"fastmmu.events": "-1"}, "promises b'-1' events"),
    ],
)
def test_arrow_that_is_no_trace(tmp_path: Path, columns: dict[str, str], metadata: dict[str, str], said: str) -> None:
    path = tmp_path / "t.arrow"
    schema = pyarrow.schema([(name, getattr(pyarrow, dtype)()) for name, dtype in columns.items()], metadata=metadata)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        writer.write_batch(pyarrow.record_batch([pyarrow.array([1], field.type) for field in schema], schema=schema))
    refused(path, said)


def test_arrow_with_nulls_or_unknown_operations(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    for op, said in (([0, None], "has nulls"), ([0, 77], "event 1: operation 77 does not exist")):
        columns = [pyarrow.array(op, pyarrow.uint8()), pyarrow.array([1, 1], pyarrow.uint8())]
        batch = pyarrow.record_batch([*columns, pyarrow.array([1, 2], pyarrow.uint64())], names=["op", "size", "addr"])
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        refused(path, said)


def test_format_and_suffix(tmp_path: Path) -> None:
    path = tmp_path / "t.xz"
    path.write_text(" L 1000,4\n")
    refused(path, "the name ends in .xz, the content is none")
    path = tmp_path / "t.dat"
    path.write_bytes(bytes(range(256)) * 4)
    refused(path, "neither the name nor the content tells the format; pass one of lackey, champsim, npy, arrow")
    refused(path, "format 'pin' is not known; there are lackey", "pin")
    path.write_text("Hello world\n" * 20)
    refused(path, "neither the name nor the content")
    refused(path, "line 1: not a lackey line", "lackey")
    path.write_text("==1== Lackey\n L 1000,4\n")
    assert read_trace(path).format == "lackey"


def test_without_the_optional_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trace(sample(5, False), tmp_path / "t.arrow")
    write_trace(sample(5, False), tmp_path / "t.lackey.zst")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastmmu\[arrow\]'"):
        read_trace(tmp_path / "t.arrow")
    with pytest.raises(MissingExtraError, match=r"fastmmu\[arrow\]"):
        write_trace(sample(5, False), tmp_path / "u.arrow")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(sys, "version_info", (3, 13))
    with pytest.raises(MissingExtraError, match=r"pip install 'fastmmu\[zstd\]'"):
        read_trace(tmp_path / "t.lackey.zst")
    with pytest.raises(MissingExtraError, match=r"fastmmu\[zstd\]"):
        write_trace(sample(5, False), tmp_path / "u.lackey.zst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.arrow", "t.lackey.zst"]


# ---- writing is all or nothing ------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    bad = tmp_path / "bad.lackey"
    bad.write_text(" L 1000,4\n" * 1000 + "oops\n")
    old = tmp_path / "old.arrow"
    write_trace(sample(5, True), old)
    before = old.read_bytes()
    for name in ("old.arrow", "n.npy", "n.lackey.xz", "n.arrow.zst", "bad.lackey"):
        with pytest.raises(TraceError, match="line 1001"):
            write_trace(read_trace(bad), tmp_path / name)
    with pytest.raises(TraceError, match="event 1: lackey text cannot hold operation 16"):
        write_trace(Trace.from_arrays([1, 2], [0, 16]), tmp_path / "n.lackey")
    with pytest.raises(TraceError, match="cannot write this as a trace"):
        write_trace(sample(5, False), tmp_path / "n.champsim")
    with pytest.raises(TraceError, match="compression 'gz' of Arrow buffers"):
        write_trace(sample(5, False), tmp_path / "n.arrow", compression="gz")
    with pytest.raises(TraceError, match="cannot be written: No such file or directory"):
        write_trace(sample(5, False), tmp_path / "none" / "n.arrow")
    with pytest.raises(TraceError, match="no regular file"):
        write_trace(sample(5, False), tmp_path, format="npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.lackey", "old.arrow"]
    assert old.read_bytes() == before


def test_a_trace_can_replace_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    write_trace(sample(100, True), path)
    expected = events(read_trace(path).head(40))
    write_trace(read_trace(path).head(40), path)
    assert_same(events(read_trace(path)), expected)

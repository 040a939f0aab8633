"""What a cut, spoilt or foreign file says: a TraceError that names the file and the place, and nothing else."""

from __future__ import annotations

import gzip
import itertools
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastmmu.errors import MissingExtraError, TraceError
from fastmmu.trace import Trace, read_trace, write_trace
from fastmmu.trace.archive import contents
from fastmmu.trace.events import concatenate
from tests.support.trace_files import COMPRESS, assert_same, events, record, sample

pyarrow = pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix != ".zip"])
@pytest.mark.parametrize("kind", ["lackey", "npy", "arrow", "champsim"])
def test_cut_at_every_byte(tmp_path: Path, kind: str, suffix: str) -> None:
    """A clean prefix and an error; success only for text cut behind a line, and ChampSim at a record."""
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
            text = kind == "lackey" and data[length - 1 : length] == b"\n"
            assert text or (kind == "champsim" and length % 64 == 0)
        rows = concatenate(got)
        n = len(rows)
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
        (np.zeros(2, [("op", "u1"), ("where", "u8")]), "give integers op, size, addr, instructions"),
        (np.zeros(2, [("op", "u1"), ("addr", "f8")]), "give integers op, size, addr, instructions"),
        (np.zeros(2, [("op", "u1"), ("addr", "u8", (2,))]), "give integers op, size, addr, instructions"),
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
    path.write_bytes(good.replace(b"\x76\0{", b"\x16\0{"))
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
        ({"op": "uint8", "size": "uint8"}, {}, "no one column addr of integers"),
        ({"op": "uint8", "size": "uint8", "addr": "float64"}, {}, "no one column addr of integers"),
        ({"op": "float32", "addr": "uint64"}, {}, "no one column op of integers"),
        ({"addr": "uint64", "va": "uint64"}, {}, "no one column addr of integers"),
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


def test_a_zip_that_holds_very_much_takes_little_memory(tmp_path: Path) -> None:
    """`zipfile` decompresses bzip2 without a limit, here 256 MB out of 300 bytes."""
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive, archive.open("addr.npy", "w") as out:
        np.save(out, np.zeros(1 << 25, np.uint64))
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            assert next(contents(file, "t.zip", 1 << 20)).startswith(b"\x93NUMPY")
        assert len(next(read_trace(path).batches(1 << 10))) == 1 << 10
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_each_method_of_a_zip(tmp_path: Path, method: int) -> None:
    text = b"".join(b"%#x\n" % addr for addr in range(0x1000, 0x9000))
    with zipfile.ZipFile(tmp_path / "t.zip", "w", method) as archive:
        archive.writestr("chunk.0000", text[:70_000])
        archive.writestr("chunk.0001", text[70_000:])
    assert events(read_trace(tmp_path / "t.zip")).addr.tolist() == list(range(0x1000, 0x9000))
    with zipfile.ZipFile(tmp_path / "t.npz", "w", method) as archive:
        for name, dtype in (("addr", "u8"), ("op", "u1"), ("size", "u1")):
            with archive.open(f"{name}.npy", "w") as out:
                np.save(out, np.arange(50_000).astype("u2") % 4 + 1 if name != "op" else np.zeros(50_000, dtype))
    assert len(events(read_trace(tmp_path / "t.npz"), 999)) == 50_000
    data = bytearray((tmp_path / "t.zip").read_bytes())
    data[data.index(b"chunk") + 3000] ^= 1
    (tmp_path / "t.zip").write_bytes(data)
    refused(tmp_path / "t.zip", "archive cannot be read|address|columns")


def test_format_and_suffix(tmp_path: Path) -> None:
    path = tmp_path / "t.xz"
    path.write_text(" L 1000,4\n")
    refused(path, "the name ends in .xz, the content is none")
    path = tmp_path / "t.dat"
    path.write_bytes(bytes(range(256)) * 4)
    refused(path, "neither the name nor the content tells the format; pass one of lackey, champsim, .*npy, .*arrow")
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

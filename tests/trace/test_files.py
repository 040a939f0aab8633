"""Every format in every compression: round trips and detection, whatever the batch length."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.trace import Batch, Trace, read_trace, write_trace
from tests.support.trace_files import COMPRESS, assert_same, events, record, sample

pyarrow = pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")


WRITTEN = [suffix for suffix in COMPRESS if suffix != ".zip"]


@pytest.mark.parametrize("suffix", WRITTEN)
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


addresses = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.just(2**64 - 1))
access = st.tuples(st.sampled_from([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]), st.integers(1, 255), addresses)
system = st.one_of(
    st.tuples(st.sampled_from([Op.SWITCH, Op.INVLPG, Op.UNMAP]), st.just(0), addresses),
    st.tuples(st.just(Op.EXIT), st.just(0), st.integers(0, 79)),
    st.tuples(st.just(Op.INTERRUPT), st.just(0), st.integers(0, 255)),
)


@settings(max_examples=80)
@given(st.data(), st.sampled_from(["lackey", "npy", "arrow"]), st.sampled_from(WRITTEN), st.integers(1, 50))
def test_any_events_survive(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, suffix: str, chunk: int
) -> None:
    kinds = access if kind == "lackey" else st.one_of(access, system)
    rows = data.draw(st.lists(kinds, min_size=1, max_size=60))
    path = tmp_path_factory.getbasetemp() / f"any.{kind}{suffix}"
    op, size, addr = (list(column) for column in zip(*rows, strict=True))
    write_trace(Trace.from_arrays(np.array(addr, np.uint64), op, size), path)
    got = events(read_trace(path), chunk)
    assert list(zip(got.op.tolist(), got.size.tolist(), got.addr.tolist(), strict=True)) == rows


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["lackey", "npy", "champsim"])
def test_memory_does_not_grow_with_the_length(tmp_path: Path, kind: str, suffix: str) -> None:
    def peak(n: int) -> int:
        plain, path = tmp_path / f"t.{kind}", tmp_path / f"t{n}.{kind}{suffix}"
        if kind == "champsim":
            plain.write_bytes(b"".join(record(ip, [ip], []) for ip in range(1, n // 2 + 1)))
        else:
            write_trace(sample(n, False), plain)
        path.write_bytes(COMPRESS[suffix](plain.read_bytes()))
        trace = read_trace(path)
        tracemalloc.start()
        assert sum(len(batch) for batch in trace.batches(1000)) == n
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1000)  # imports
    assert peak(450_000) < peak(150_000) + (1 << 20)


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


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2"])
def test_concatenated_streams_are_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.lackey{suffix}"
    first, second = COMPRESS[suffix](b" L 1000,4\n S 20"), COMPRESS[suffix](b"00,8\n")
    path.write_bytes(first + second + (b"" if suffix in (".zst", ".bz2") else b"\0" * 8))
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
    assert 0 < len(source._output) <= 1 << 18
    assert 1000 + sum(len(batch) for batch in batches) == 2_000_000


@pytest.mark.parametrize("name", ["t.champsim", "t.champsimtrace.xz", "t.trace.gz", "t", "t.bin.zst"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 20, 1000])
def test_champsim(tmp_path: Path, name: str, chunk: int) -> None:
    data = record(0x400000, [], []) + record(0x400004, [0x7000, 0, 0x7008], [0x9000], 1)
    data += record(0x400008, [1, 2, 3, 4], [5, 6]) + record(0x3FF000, [0x10], [0x10])
    path = tmp_path / name
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](data * 5))
    trace = read_trace(path)
    assert trace.format == "champsim"
    got = events(trace, chunk)
    assert list(zip(got.op, got.addr, strict=True)) == 5 * [
        (Op.FETCH, 0x400000),
        (Op.FETCH, 0x400004), (Op.READ, 0x7000), (Op.READ, 0x7008), (Op.WRITE, 0x9000),
        (Op.FETCH, 0x400008), (Op.READ, 1), (Op.READ, 2), (Op.READ, 3), (Op.READ, 4), (Op.WRITE, 5), (Op.WRITE, 6),
        (Op.FETCH, 0x3FF000), (Op.READ, 0x10), (Op.WRITE, 0x10),
    ]  # fmt: skip
    assert set(got.size) == {1}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_champsim_of_the_wrong_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.champsim{suffix}"
    path.write_bytes(COMPRESS[suffix](record(1, [], []) * 3 + b"1234567"))
    with pytest.raises(TraceError, match="byte 192: 199 bytes are no whole number of 64-byte records"):
        events(read_trace(path))

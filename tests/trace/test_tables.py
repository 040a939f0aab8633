"""Arrow, Parquet and .npz files as other tools write them, and counts of instructions through all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.trace import Trace, exits_every, interleave, read_trace, with_tpr, write_trace
from fastmmu.trace.events import Batch, concatenate
from tests.support.trace_files import assert_same, cloudsuite, events, record, sample

pyarrow = pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")
pyarrow_parquet = pytest.importorskip("pyarrow.parquet")


def table_file(path: Path, table: object) -> None:
    """The same table as Parquet, as an Arrow file, or as an Arrow stream."""
    if path.suffix == ".parquet":
        pyarrow_parquet.write_table(table, path, row_group_size=7)
        return
    make = pyarrow.ipc.new_file if path.suffix == ".arrow" else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


FILES = ["t.parquet", "t.arrow", "t.arrows"]


@pytest.mark.parametrize("name", ["http:t.parquet", "a b:c.parquet", "\udcff.parquet", "s3:t.arrow", "file:t.arrows"])
def test_a_name_is_never_a_url(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(Trace.from_arrays(np.arange(20) << 12), "t.parquet" if name.endswith("parquet") else "t.arrow")
    Path("t.parquet" if name.endswith("parquet") else "t.arrow").rename(name)
    assert sum(len(batch) for batch in read_trace(name).batches()) == 20


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("name", FILES)
def test_what_other_tools_write(tmp_path: Path, name: str, chunk: int, named: bool) -> None:
    addr = [5, 2**40, 2**62] * 10
    tables = [
        ({"address": pyarrow.array(addr, pyarrow.int64())}, [0] * 30, [1] * 30),
        ({"addr": addr, "is_write": [True, False, True] * 10, "pc": [1.5] * 30}, [1, 0, 1] * 10, [1] * 30),
        (
            {"size": [8] * 30, "VADDR": pyarrow.array(addr, pyarrow.uint64()), "op": [0, 3, 2] * 10},
            [0, 3, 2] * 10,
            [8] * 30,
        ),
    ]
    for columns, op, size in tables:
        path = tmp_path / name
        table_file(path, pyarrow.table(columns))
        if not named:
            path = path.rename(tmp_path / "unnamed")
        got = events(read_trace(path), chunk)
        assert (got.addr.tolist(), got.op.tolist(), got.size.tolist()) == (addr, op, size)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"addr": [1, -1]}, "event 1: addr -1 is outside 0 to 18446744073709551615"),
        ({"addr": [1, 1], "size": [1, 256]}, "event 1: size 256 is outside 0 to 255"),
        ({"addr": [1, 1], "is_write": [0, 2]}, "event 1: is_write 2 is neither 0 nor 1"),
        ({"addr": [1, None]}, "column addr has nulls"),
        ({"addr": [1, 1], "op": [0, 77]}, "event 1: operation 77 does not exist"),
        ({"where": [1, 1]}, "no one column addr of integers in"),
        ({"addr": [1.5, 1]}, "no one column addr of integers in"),
    ],
)
def test_what_is_no_trace_is_said(tmp_path: Path, name: str, columns: dict[str, list[object]], said: str) -> None:
    table_file(tmp_path / name, pyarrow.table(columns))
    with pytest.raises(TraceError, match=said):
        list(read_trace(tmp_path / name).batches())


@pytest.mark.parametrize("name", FILES)
def test_cut_at_every_byte(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table_file(path, pyarrow.table({"addr": list(range(20))}))
    data = path.read_bytes()
    for length in range(0, len(data), 1 if name != "t.parquet" else 7):
        path.write_bytes(data[:length])
        with pytest.raises(TraceError) as caught:
            list(read_trace(path).batches())
        assert str(path) in str(caught.value)


def test_parquet_is_written_and_compressed_as_a_whole_is_not_read(tmp_path: Path) -> None:
    trace = sample(3000, True)
    for compression in (None, "lz4", "zstd"):
        write_trace(trace, tmp_path / "t.parquet", compression=compression)
        again = read_trace(tmp_path / "t.parquet")
        assert (again.format, again.total) == ("parquet", 3000)
        assert_same(events(again, 77), events(trace))
    write_trace(trace, tmp_path / "t.parquet.gz")
    with pytest.raises(TraceError, match="a Parquet file is read by its end: decompress it first"):
        read_trace(tmp_path / "t.parquet.gz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_npz(tmp_path: Path, save: object, chunk: int) -> None:
    path = tmp_path / "t.npz"
    addr = np.arange(50, dtype=np.int64) * 8
    save(path, whatever=addr)
    assert events(read_trace(path), chunk).addr.tolist() == addr.tolist()
    save(path, addr=addr, op=np.full(50, 1), size=np.full(50, 4, np.uint8), note=np.array(["x"]))
    trace = read_trace(path)
    got = events(trace, chunk)
    assert (got.addr.tolist(), got.op.tolist(), got.size.tolist()) == (addr.tolist(), [1] * 50, [4] * 50)
    assert (trace.total, trace.progress(), trace.format) == (50, 1.0, "npz")
    path.rename(tmp_path / "unnamed")
    assert_same(events(read_trace(tmp_path / "unnamed"), chunk), got)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.arange(3), "b": np.arange(3)}, "there is no array addr among a.npy, b.npy"),
        ({"addr": np.arange(3), "op": np.arange(2)}, "op.npy has 2 elements where addr has 3"),
        ({"addr": np.arange(3) * 1.5}, "dtype float64"),
        ({"addr": np.arange(3), "size": np.full(3, 300)}, "size 300 is outside 0 to 255"),
        ({"addr": np.array([0, -1])}, "address -1 is outside"),
    ],
)
def test_npz_that_is_no_trace(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(TraceError, match=said):
        list(read_trace(tmp_path / "t.npz").batches())


def test_npz_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, addr=np.arange(5000), op=np.zeros(5000, np.uint8))
    data = path.read_bytes()
    for at in range(60, len(data) - 400, 50):
        path.write_bytes(data[:at] + b"\xff\x00\xff" + data[at + 3 :])
        with pytest.raises(TraceError):
            list(read_trace(path).batches())


# ---- instructions -------------------------------------------------------------------------------------------------


def counted(trace: Trace) -> int:
    return sum(int(batch.instructions_column().sum()) for batch in trace.batches(7))


fetching = st.lists(st.sampled_from([0, 1, 2, 3, 3, 3]), min_size=1, max_size=60)


@settings(max_examples=150)
@given(fetching, st.integers(1, 9))
def test_no_instruction_is_lost_where_fetches_are_left_out(ops: list[int], chunk: int) -> None:
    trace = Trace.from_arrays(np.arange(len(ops)), ops)
    trace.instructions = "fetches"
    data = trace.data_only()
    assert data.instructions == "column"
    batches = list(data.batches(chunk))
    got = concatenate(batches) if batches else None
    kept = [n for n, op in enumerate(ops) if op != 3]
    if not kept:
        assert got is None
        return
    wanted = [ops[last:n].count(3) for last, n in zip([0, *kept], kept, strict=False)]
    wanted[-1] += ops[kept[-1] :].count(3)
    assert got is not None
    assert got.instructions is not None
    assert (got.addr.tolist(), got.instructions.tolist()) == (kept, wanted)


def test_counts_go_through_everything_that_is_made_of_a_trace(tmp_path: Path) -> None:
    ops = np.random.default_rng(1).choice(np.array([0, 1, 3, 3, 3], np.uint8), 500)
    trace = Trace.from_arrays(np.arange(500) * 64, np.append(ops[:-1], 0))
    n = int((ops[:-1] == 3).sum())
    trace.instructions = "fetches"
    data = trace.data_only()
    assert [counted(each) for each in (trace, data, exits_every(data, 3), with_tpr(data, "winxp"))] == [n] * 4
    assert counted(interleave([data, trace], 5)) == counted(interleave([data, data], 5)) == 2 * n
    assert interleave([trace, sample(5, False)], 5).instructions is None
    assert counted(data.head(10)) < n
    for name in ("t.arrow", "t.parquet"):
        for each, kind in ((trace, "fetches"), (data, "column"), (sample(20, False), None)):
            write_trace(each, tmp_path / name)
            again = read_trace(tmp_path / name)
            assert again.instructions == kind
            assert_same(events(again), events(each))
            assert kind is None or counted(again) == n
    write_trace(data, tmp_path / "t.npy")
    again = read_trace(tmp_path / "t.npy")
    assert again.instructions == "column"
    assert_same(events(again), events(data))
    assert counted(again) == n
    rows = np.load(tmp_path / "t.npy")
    np.savez(tmp_path / "one.npz", rows)
    np.savez_compressed(tmp_path / "four.npz", **{name: rows[name] for name in rows.dtype.names})
    np.savez(tmp_path / "three.npz", **{name: rows[name] for name in ("op", "size", "addr")})
    for name, kind in (("one.npz", "column"), ("four.npz", "column"), ("three.npz", None)):
        again = read_trace(tmp_path / name)
        assert again.instructions == kind
        assert kind is None or counted(again) == n
    write_trace(sample(20, False), tmp_path / "t.npy")
    assert np.load(tmp_path / "t.npy").dtype.names == ("op", "size", "addr")
    mmu = fastmmu.simulate(data, fastmmu.Config(mmu="ept"))
    assert mmu.counters["instructions"] == n
    assert mmu.mpki == pytest.approx(1000 * mmu.counters["tlb_misses"] / n)
    assert fastmmu.simulate(np.arange(20), fastmmu.Config()).mpki is None


def test_formats_that_hold_instructions_count_them(tmp_path: Path) -> None:
    (tmp_path / "t.lackey").write_text("I  1000,4\n L 2000,4\nI  1004,4\n")
    (tmp_path / "t.champsim").write_bytes(b"".join(record(0x400000 + n, [5], []) for n in range(3)))
    (tmp_path / "t.cloudsuite").write_bytes(b"".join(cloudsuite(0x400000 + n, [5], []) for n in range(3)))
    (tmp_path / "t.din").write_text("2 a00\n0 b\n")
    for name, n in (("t.lackey", 2), ("t.champsim", 3), ("t.cloudsuite", 3), ("t.din", 1)):
        assert counted(read_trace(tmp_path / name)) == n
        result = fastmmu.simulate(read_trace(tmp_path / name).data_only(), fastmmu.Config())
        assert result.counters["instructions"] == n


# ---- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.din", "t.din.bz2", "t.champsim", "t.champsim.xz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(2)
    op = rng.choice(np.array([0, 1, 3, 3], np.uint8), 3000)
    addr = np.where(op == 3, 0x400000 + rng.integers(0, 999, 3000), rng.integers(1, 2**47, 3000))
    op[0], addr[0] = 3, 0x400000
    trace = Trace.from_arrays(addr, op, np.full(3000, 4))
    write_trace(trace, tmp_path / name)
    got, wanted = events(read_trace(tmp_path / name), 100), events(trace)
    if ".champsim" in name:  # of an instruction reads come first; more than it has room for begin anew
        got, wanted = (Batch(each.op[order], each.size[order], each.addr[order]) for each in (got, wanted)
                       for order in [np.lexsort([each.addr, each.op])])  # fmt: skip
        keep = [each.op != 3 for each in (got, wanted)]
        assert set(got.addr[~keep[0]]) == set(wanted.addr[~keep[1]])
        got, wanted = got.take(keep[0]), wanted.take(keep[1])
    np.testing.assert_array_equal(got.addr, wanted.addr)
    np.testing.assert_array_equal(got.op, wanted.op)
    assert set(got.size) == ({4} if "csv" in name else {1})


def test_an_instruction_of_champsim(tmp_path: Path) -> None:
    rows = [(3, 0x100), (0, 0x10), (2, 0x20), (1, 0x30), (3, 0x104), (3, 0x200), *[(0, 0x40 + n) for n in range(5)]]
    op, addr = zip(*rows, strict=True)
    write_trace(Trace.from_arrays(addr, op, [4] * len(op)), tmp_path / "t.champsim")
    words = np.fromfile(tmp_path / "t.champsim", "<u8").reshape(-1, 8)
    assert words[:, 0].tolist() == [0x100, 0x104, 0x200, 0x200]
    assert words[0].tolist()[2:] == [0x20, 0x30, 0x10, 0x20, 0, 0]
    assert (words[:, 1] & 0xFFFF).tolist() == [0, 0x101, 0, 0]
    assert words[2:, 4:].tolist() == [[0x40, 0x41, 0x42, 0x43], [0x44, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "op", "addr", "said"),
    [
        ("t.csv", [0, 16], [1, 2], "event 1: CSV cannot hold operation 16"),
        ("t.din", [0, 16], [1, 2], "event 1: Dinero's text cannot hold operation 16"),
        ("t.champsim", [3, 16], [1, 2], "event 1: ChampSim's records cannot hold operation 16"),
        ("t.champsim", [3, 0], [1, 0], "event 1: ChampSim's records cannot hold address 0"),
        ("t.champsim", [0], [1], "event 0: ChampSim's records cannot hold an access before a fetch"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path: Path, name: str, op: list[int], addr: list[int], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        write_trace(Trace.from_arrays(addr, op), tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert Op.FETCH == 3

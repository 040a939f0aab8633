"""System traces as files: what they hold, and what a damaged one says."""

from __future__ import annotations

import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Op
from fastmmu.errors import TraceError
from fastmmu.ops import RecordOp
from fastmmu.study import survey
from fastmmu.trace import read_trace
from fastmmu.trace.system import RECORD_DTYPE, SystemTrace
from tests.conformance import systems
from tests.support.system_traces import INITIAL, make, row

SAMPLES = systems.traces(systems.sample_directory())


def read(path: Path, chunk: int = 1000) -> list[Any]:
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    return list(trace.records(chunk))


def test_the_format_is_found_by_content_too(tmp_path: Path) -> None:
    path = make(tmp_path, [row(op=0, size=8, lin=0x1008, val=0x2008)])
    renamed = path.rename(tmp_path / "nameless")
    assert read_trace(renamed).format == "system"


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_chunks_hold_the_same(tmp_path: Path, chunk: int) -> None:
    rows = [row(op=32, aux=i, val=i << 12) for i in range(3)]
    rows += [row(op=1, size=8, flags=1, lin=0x1000 + 8 * i, val=0x2000 + 8 * i) for i in range(20)]
    path = make(tmp_path, rows, data=range(20), pages=[bytes([i]) * 4096 for i in range(3)])
    chunks = read(path, chunk)
    assert [c.first for c in chunks] == list(range(0, len(rows) + 5, chunk))
    assert np.concatenate([c.rows for c in chunks])[5:].tolist() == rows
    assert np.concatenate([c.data for c in chunks]).tolist() == list(range(20))
    assert np.concatenate([c.pages for c in chunks])[:, 7].tolist() == [0, 1, 2]


def test_events(tmp_path: Path) -> None:
    """Accesses, CR3 loads by address space, INVLPG and interrupts; the rest is left out."""
    rows = [
        row(op=0, size=4, lin=0xFFFF_8000_0000_1000, val=0),
        row(op=17, val=0x5000_1000 | 1 << 63),
        row(op=17, val=0x1007),
        row(op=20, lin=0x7000),
        row(op=23, size=236),
        row(op=22, size=14, aux=6, lin=0x8000),
        row(op=3, lin=0x9001, val=0x1),
    ]
    (batch,) = read_trace(make(tmp_path, rows)).batches()
    assert batch.op.tolist() == [Op.READ, Op.SWITCH, Op.SWITCH, Op.INVLPG, Op.INTERRUPT, Op.FETCH]
    assert batch.addr.tolist() == [0xFFFF_8000_0000_1000, 1, 0, 0x7000, 236, 0x9001]
    assert batch.size.tolist() == [4, 0, 0, 0, 0, 1]


BAD = {
    "operation": (row(op=5), "operation 5 does not exist"),
    "privilege": (row(op=0, size=1, cpl=1), "privilege 0 or 3, not 1"),
    "no size": (row(op=1), "1 to 64 bytes, not 0"),
    "large": (row(op=2, size=65), "1 to 64 bytes, not 65"),
    "leaves the page": (row(op=0, size=8, aux=1, lin=0x1FF8), "leave the page"),
    "aux wraps": (row(op=0, size=64, aux=(1 << 32) - 1), "leave the page"),
    "value of a load": (row(op=0, size=8, flags=1), "only a single store"),
    "value of several": (row(op=1, size=4, aux=1, flags=1), "only a single store"),
    "value of a large store": (row(op=1, size=9, flags=1), "only a single store"),
    "value of a fetch": (row(op=3, flags=1), "only a single store"),
    "page": (row(op=32, val=0x123), "0x123 is no address of a page"),
    "order": (row(op=32, aux=1, val=0x1000), "page table number 1 is out of order"),
    "type": (row(op=21, size=4), "not 4 and 0x0"),
    "PCID": (row(op=21, aux=0x1000), "not 0 and 0x1000"),
    "PKRU": (row(op=25, val=1 << 32), "PKRU has 32 bits"),
    "CR3": (row(op=17, val=1 << 52), "reserved bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_records(tmp_path: Path, name: str) -> None:
    bad, says = BAD[name]
    path = make(tmp_path, [row(op=20), bad], data=[0], pages=[bytes(4096)])
    with pytest.raises(TraceError, match=says) as error:
        read(path)
    assert (error.value.path, error.value.where) == (str(path), "record 6")


def test_without_the_registers(tmp_path: Path) -> None:
    path = tmp_path / "t.rec"
    path.write_bytes(np.array([row(op=20)] * 6, RECORD_DTYPE).tobytes())
    with pytest.raises(TraceError, match="record 0: the first 5 records must be cr0, cr3, cr4, efer, pkru"):
        read(path)


def test_cut_at_every_byte(tmp_path: Path) -> None:
    whole = make(tmp_path, [row(op=20)]).read_bytes()
    for n in range(1, len(whole)):
        path = tmp_path / "cut.rec"
        path.write_bytes(whole[:n])
        if n % 24 or n < 24 * 5:
            with pytest.raises(TraceError, match=r"record [0-5]: "):
                read(path)
        else:
            assert sum(len(c) for c in read(path)) == n // 24


STORE, TABLE = row(op=1, size=8, flags=1, lin=0x1000, val=0x1000), row(op=32, val=0x1000)


@pytest.mark.parametrize(
    ("rows", "data", "pages", "says"),
    [
        ([STORE], None, None, "t.wdata.bin is missing, and is needed before record 6"),
        ([TABLE], None, None, "t.tables.bin is missing, and is needed before record 6"),
        ([STORE, STORE], [1], None, "piece 1 of 8 bytes, needed before record 7, is missing"),
        ([TABLE, row(op=32, aux=1, val=0)], None, [bytes(4096)], "piece 1 of 4096 bytes, needed before record 7"),
        ([STORE], [1, 2], None, "data beyond the 1 pieces that the records use"),
        ([TABLE], None, [bytes(4096)] * 2, "data beyond the 1 pieces that the records use"),
    ],
)
def test_companions_that_do_not_fit(tmp_path: Path, rows: Any, data: Any, pages: Any, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        read(make(tmp_path, rows, data=data, pages=pages))


def test_a_head_needs_no_more_than_its_part(tmp_path: Path) -> None:
    trace = read_trace(make(tmp_path, [row(op=20), STORE])).head(6)
    assert isinstance(trace, SystemTrace)
    assert sum(len(c) for c in trace.records()) == 6
    assert trace.final_pages(0) is None
    assert [b.addr.tolist() for b in trace.batches()] == [[0]]
    with pytest.raises(TraceError, match="leave --data-only out"):
        trace.data_only()
    with pytest.raises(TraceError, match="give 1 record or more"):
        trace.head(0)


def test_final_pages_of_another_number(tmp_path: Path) -> None:
    path = make(tmp_path, [TABLE], pages=[bytes(4096)], final=[bytes(4096)] * 2)
    trace = SystemTrace(str(path))
    pages = trace.final_pages(1)
    assert pages is not None
    with pytest.raises(TraceError, match="beyond the 1 pieces"):
        list(pages)
    pages = trace.final_pages(3)
    assert pages is not None
    with pytest.raises(TraceError, match="piece 2 of 4096 bytes, needed, is missing"):
        list(pages)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_hold_what_a_kernel_does(path: Path) -> None:
    found = survey(read_trace(path))
    assert found.processes > 3
    assert min(found.by_op[op] for op in (Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH, Op.SWITCH, Op.INVLPG)) > 20
    ops = np.concatenate([c.rows["op"] for c in read(path, 1 << 18)])
    assert (ops == RecordOp.EXCEPTION).sum() > 100


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = make(tmp_path, [row(op=20)])
    with lzma.open(tmp_path / "long.rec.xz", "wb", preset=0) as out:
        out.write(path.read_bytes()[: 24 * len(INITIAL)])
        for _ in range(60):
            out.write(np.array([row(op=20)] * 50_000, RECORD_DTYPE).tobytes())
    trace = SystemTrace(str(tmp_path / "long.rec.xz"))
    tracemalloc.start()
    assert sum(len(c) for c in trace.records(10_000)) == 3_000_005
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20

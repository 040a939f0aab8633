"""System traces: what a whole machine did, kernel and all, with the physical address of every access.

A trace T is four files, each also compressed (.gz, .xz, .zst):

    T.rec               records of 24 bytes, RECORD_DTYPE
    T.tables.bin        a page of 4096 bytes for each TABLE record, in their order
    T.wdata.bin         a word of 8 bytes for each record with flag 1: the value stored to a page table
    T.tables_final.bin  the same pages at the end of the trace; may be missing

Records are accesses (R, W, RMW, X), writes to CR0, CR3, CR4, EFER and PKRU, INVLPG, INVPCID, exceptions, interrupts
and far transfers. The first five give the registers at the start. Before the first walk that reads a page table stands
a TABLE record with its content; from then on every store to it has its value in wdata. An access over a page boundary
is two records; ``aux`` further elements of an access follow contiguously in its page.

Of several CPUs (fastmmu.trace.system_cpus) each has its own registers and TLB; page tables and memory are shared. A CPU
record says whose the records behind it are; an IPI is a record, and so is a walk that set A and D without an access.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import TraceError
from fastmmu.machine import records as _records
from fastmmu.ops import LAST_ACCESS, Op, RecordOp
from fastmmu.trace.base import Trace, check_chunk
from fastmmu.trace.events import CHUNK, U8, U64, Batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.names import uncompressed
from fastmmu.trace.source import ByteSource
from fastmmu.trace.system_cpus import INITIAL, INITIAL_FLAG, REGISTERS, Order, Spaces, is_start, registers_of

__all__ = ["READER", "RECORD_DTYPE", "Records", "SystemTrace", "looks_like"]

RECORD_DTYPE = np.dtype(
    [("op", "u1"), ("size", "u1"), ("cpl", "u1"), ("flags", "u1"), ("aux", "<u4"), ("lin", "<u8"), ("val", "<u8")]
)
"""One record: ``lin`` linear address, ``val`` physical address, value of a register, or address of a page table."""

_DATA_FLAG = 1
_PAGE = 4096
_SUFFIXES = ("", ".zst", ".xz", ".gz")


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Consecutive records with what belongs to them.

    ``first``: number of the first, counted from 0. ``rows``: (n,) RECORD_DTYPE. ``data``: uint64, a value for each
    record with flag 1. ``pages``: (tables, 4096) uint8, a page for each TABLE record.
    """

    first: int
    rows: npt.NDArray[Any]
    data: U64
    pages: U8

    def __len__(self) -> int:
        return len(self.rows)


class SystemTrace(FileTrace):
    """A system trace; :meth:`batches` gives its accesses, CR3 loads, INVLPGs and interrupts as events."""

    format = "system"
    kind = "system"
    instructions = "column"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._limit: int | None = None

    def head(self, n: int) -> SystemTrace:
        """The first `n` records."""
        if n < 1:
            raise TraceError(f"head({n}): give 1 record or more", path=self.path)
        trace = copy.copy(self)
        trace._limit = n if self._limit is None else min(n, self._limit)
        return trace

    def data_only(self) -> Trace:
        """Refused: what fetches set in the page tables would be missing."""
        raise TraceError("a system trace is replayed with its fetches; leave --data-only out", path=self.path)

    def skip(self, n: int) -> Trace:
        """Refused: the tables and registers of what follows come from what is before."""
        raise TraceError(
            "a system trace is replayed from its start, which makes the page tables; leave --skip out, and count from "
            "an access on with --warm-up N",
            path=self.path,
        )

    @property
    def whole(self) -> bool:
        """Not cut by :meth:`head`."""
        return self._limit is None

    def registers(self) -> dict[str, int]:
        """Registers of CPU 0 at the start: cr0, cr3, cr4, efer, pkru.

        :raises TraceError: the trace does not begin with them.
        """
        return self.cpus()[0]

    def cpus(self) -> tuple[dict[str, int], ...]:
        """Registers at the start of each CPU: cr0, cr3, cr4, efer, pkru.

        :raises TraceError: the trace does not begin with them, or leaves a CPU out.
        """
        found: dict[int, dict[str, int]] = {}
        with ByteSource(self.path) as source:
            rows = _some(source, REGISTERS)
            if not is_start(rows):
                raise self.bad(
                    0, f"the first {REGISTERS} records must be {', '.join(INITIAL.values())} with flags {INITIAL_FLAG}"
                )
            found[0] = registers_of(rows)
            at = REGISTERS
            while True:
                rows = _some(source, 1 + REGISTERS)
                if len(rows) < 2 or rows["op"][0] != RecordOp.CPU or not rows["flags"][1] & INITIAL_FLAG:
                    break
                cpu = int(rows["aux"][0])
                if cpu in found:
                    raise self.bad(at, f"CPU {cpu} has its registers already; each has them once at the start")
                if not is_start(rows[1:]):
                    raise self.bad(
                        at + 1, f"CPU {cpu} needs {', '.join(INITIAL.values())} with flags {INITIAL_FLAG}, each once"
                    )
                found[cpu] = registers_of(rows[1:])
                at += 1 + REGISTERS
        if len(found) > 1 and len(rows) and rows["op"][0] != RecordOp.CPU:
            raise self.bad(
                at, "behind the registers of all CPUs stands a CPU record for the one that runs; record the trace again"
            )
        if max(found) != len(found) - 1:
            left = next(cpu for cpu in range(max(found)) if cpu not in found)
            raise self.bad(at, f"CPU {left} of {max(found) + 1} has no registers at the start; CPUs count from 0")
        return tuple(found[cpu] for cpu in range(len(found)))

    def _order(self) -> Order:
        cpus = len(self.cpus())
        return Order(cpus, REGISTERS + (cpus - 1) * (1 + REGISTERS))

    def records(self, chunk: int = CHUNK) -> Iterator[Records]:
        """All records in order, 1 to `chunk` at a time.

        :raises TraceError: a malformed record, a companion file that is missing, too short or too long, a damaged
            file; names the file and the record.
        """
        check_chunk(chunk)
        return self._records(chunk)

    def _records(self, chunk: int) -> Iterator[Records]:
        order = self._order()
        with ByteSource(self.path) as source:
            self._source = source
            data, pages = _Companion(self, "wdata", 8), _Companion(self, "tables", _PAGE)
            try:
                yield from self._with_companions(source, chunk, order, data, pages)
                if self.whole:
                    data.end()
                    pages.end()
            finally:
                data.close()
                pages.close()

    def _with_companions(
        self, source: ByteSource, chunk: int, order: Order, data: _Companion, pages: _Companion
    ) -> Iterator[Records]:
        first = 0
        for rows in self._rows(source, chunk):
            values, tables = self._scan(rows, first, order)
            if tables:
                at = np.flatnonzero(rows["op"] == RecordOp.TABLE)
                wrong = np.flatnonzero(rows["aux"][at] != pages.done + np.arange(tables))
                if len(wrong):
                    n = int(at[wrong[0]])
                    raise self.bad(first + n, f"page table number {rows['aux'][n]} is out of order")
            last = first + len(rows) - 1
            yield Records(
                first,
                rows,
                data.take(values, last).view("<u8"),
                pages.take(tables, last).reshape(-1, _PAGE),
            )
            first += len(rows)

    def _rows(self, source: ByteSource, chunk: int) -> Iterator[npt.NDArray[Any]]:
        first = 0
        while self._limit is None or first < self._limit:
            rows = np.empty(chunk if self._limit is None else min(chunk, self._limit - first), RECORD_DTYPE)
            got = source.fill(rows.view(np.uint8).data)
            whole, rest = divmod(got, RECORD_DTYPE.itemsize)
            if rest:
                raise self.bad(first + whole, "the file ends within the record: it is cut short; copy it again")
            if whole:
                yield rows[:whole]
            first += whole
            if whole < len(rows):
                return

    def _scan(self, rows: npt.NDArray[Any], first: int, order: Order) -> tuple[int, int]:
        """Stores with a value, and TABLE records."""
        good, fault, values, tables = _records.scan(rows.view(np.uint8))
        if fault:
            row = dict(zip(RECORD_DTYPE.names or (), rows[good].tolist(), strict=True))
            raise self.bad(first + good, _records.FAULTS[fault].format(r=row))
        if misplaced := order.fault(rows, first):
            raise self.bad(*misplaced)
        return values, tables

    def bad(self, record: int, what: str) -> TraceError:
        """An error that names a record."""
        return TraceError(what, path=self.path, where=f"record {record}")

    def final_pages(self, n: int) -> Iterator[U64] | None:
        """Content of the `n` page tables at the end, (some, 512) uint64 at a time; None where it was not recorded.

        :raises TraceError: the file holds another number of pages, or is damaged.
        """
        if not self.whole or _companion(self.path, "tables_final") is None:
            return None
        return self._final_pages(n)

    def _final_pages(self, n: int) -> Iterator[U64]:
        pages = _Companion(self, "tables_final", _PAGE)
        try:
            for start in range(0, n, 64):
                some = min(64, n - start)
                yield pages.take(some, None).view("<u8").reshape(some, -1)
            pages.end()
        finally:
            pages.close()

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        order, spaces, first = self._order(), Spaces([cpu["cr3"] for cpu in self.cpus()]), 0
        for rows in self._rows(source, chunk):
            self._scan(rows, first, order)
            first += len(rows)
            batch = _events(rows, spaces)
            if len(batch):
                yield batch


def _some(source: ByteSource, n: int) -> npt.NDArray[Any]:
    """The next `n` records, fewer at the end."""
    read = source.read(n * RECORD_DTYPE.itemsize)
    return np.frombuffer(read[: len(read) // RECORD_DTYPE.itemsize * RECORD_DTYPE.itemsize], RECORD_DTYPE)


def _events(rows: npt.NDArray[Any], spaces: Spaces) -> Batch:
    """Records as events."""
    op, initial = rows["op"], rows["flags"] & INITIAL_FLAG != 0
    access, switch = op <= LAST_ACCESS, ((op == RecordOp.CR3) | (op == RecordOp.CPU)) & ~initial
    numbers, switches = spaces.switches(rows[switch])
    numbered = np.flatnonzero(switch)
    switch[numbered] = switches
    kept = access | switch | (op == RecordOp.INVLPG) | (op == RecordOp.INTERRUPT)
    size = np.where(op <= RecordOp.MODIFY, rows["size"], access).astype(np.uint8)
    out, addr = op.copy(), rows["lin"].copy()
    addr[numbered] = numbers
    interrupt = op == RecordOp.INTERRUPT
    addr[interrupt] = rows["size"][interrupt]
    for record, event in ((switch, Op.SWITCH), (op == RecordOp.INVLPG, Op.INVLPG), (interrupt, Op.INTERRUPT)):
        out[record] = event
    begun = np.where(op == RecordOp.FETCH, rows["aux"], 0)
    return Batch(out[kept], size[kept], addr[kept], begun[kept].astype(np.uint32))


def looks_like(head: bytes) -> bool:
    """Whether these bytes begin with the records of the registers at the start."""
    whole = REGISTERS * RECORD_DTYPE.itemsize
    return len(head) >= whole and is_start(np.frombuffer(head[:whole], RECORD_DTYPE))


def _companion(path: str, part: str) -> str | None:
    """The file of a trace that holds `part`, or None."""
    stem = uncompressed(path).with_suffix("")
    names = [Path(f"{stem}.{part}.bin{suffix}") for suffix in _SUFFIXES]
    return next((str(name) for name in names if name.exists()), None)


class _Companion:
    """A file beside the records that is read along with them, `itemsize` bytes a piece."""

    def __init__(self, trace: SystemTrace, part: str, itemsize: int) -> None:
        self._trace = trace
        self._part = part
        self._itemsize = itemsize
        self._path = _companion(trace.path, part)
        self._source: ByteSource | None = None
        self.done = 0

    def take(self, n: int, record: int | None) -> U8:
        """The next `n` pieces as bytes; `record`: the last one of those that need them, for the message."""
        out = np.empty(n * self._itemsize, np.uint8)
        if not n:
            return out
        where = "" if record is None else f" before record {record + 1}"
        if self._source is None:
            if self._path is None:
                name = f"{uncompressed(self._trace.path).with_suffix('')}.{self._part}.bin"
                raise TraceError(f"its companion {name} is missing, and is needed{where}", path=self._trace.path)
            self._source = ByteSource(self._path)
        got = self._source.fill(out.data)
        if got < len(out):
            raise TraceError(
                f"the data ends early: piece {self.done + got // self._itemsize} of {self._itemsize} bytes, "
                f"needed{where}, is missing",
                path=self._path,
                where=f"byte {self._source.offset}",
            )
        self.done += n
        return out

    def end(self) -> None:
        """Nothing may be left over."""
        if self._source is not None and self._source.read(1):
            raise TraceError(
                f"there is data beyond the {self.done} pieces that the records use: these are cut short, or it is "
                "another trace's; copy both again",
                path=self._path,
                where=f"byte {self._source.offset - 1}",
            )

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


READER = SystemTrace

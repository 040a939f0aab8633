"""ChampSim's instruction records: 64 bytes each, little-endian, no header.

    byte  0  ip                     8   is_branch, branch_taken      10  destination registers 2 x u8
         12  source registers 4 x u8
         16  destination_memory 2 x u64                              32  source_memory 4 x u64

A record is one instruction: a fetch at ip, then a read at each source and a write at each destination that is not 0.
The records hold no sizes: each access counts as 1 byte.

Nothing in the file names the format, so the content must fit it: in every record ip is not 0 and taken <= is_branch
<= 1; most ips are close to the last; some register is not 0. When a trace is opened its first 4 MiB are judged, while
it is read each batch, before it is handed out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from fastmmu.errors import TraceError
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK, Batch, batch_of
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.source import ByteSource

__all__ = [
    "CHAMPSIM",
    "CLOUDSUITE",
    "READER",
    "ChampsimTrace",
    "Layout",
    "RecordTrace",
    "begins",
    "looks_like",
    "write",
]

_FIRST_BYTES = 1 << 22  # judged when a trace is opened
_SMALL = 1 << 16  # bytes: a file of which that much was looked at may go on
_CLOSE = 1 << 16  # bytes between two ips


class Layout:
    """Where a record has what: register bytes, and the words of its memory operands."""

    def __init__(self, said: str, record: int, registers: slice, writes: range, reads: range) -> None:
        self.said = said
        self.record = record
        self.registers = registers
        self.order = np.array([0, *reads, *writes])  # words of a record in the order of its accesses
        self.ops = np.array([Op.FETCH] + [Op.READ] * len(reads) + [Op.WRITE] * len(writes), dtype=np.uint8)


CHAMPSIM = Layout("ChampSim", 64, slice(10, 16), range(2, 4), range(4, 8))
CLOUDSUITE = Layout("CloudSuite's form of ChampSim", 96, slice(10, 18), range(3, 7), range(7, 11))


class Verdict:
    """What the records of a file that were seen so far say of its format; on the whole once they are `enough`."""

    def __init__(self, layout: Layout, enough: int = 0) -> None:
        self.layout = layout
        self._enough = enough
        self.records = 0
        self._close = 0
        self._registers = False
        self._last: int | None = None

    def against(self, data: npt.NDArray[np.uint8]) -> tuple[str, int] | None:
        """Why `data`, whole records that follow, are not of this format, and the record; None: they can be."""
        rows = data.reshape(-1, self.layout.record)
        ip = rows[:, :8].copy().view("<u8").reshape(-1)
        branch, taken = rows[:, 8], rows[:, 9]
        bad = (ip == 0) | (branch > 1) | (taken > branch)
        if bad.any():
            at = int(bad.argmax())
            said = f"ip {ip[at]:#x}, is_branch {branch[at]}, branch_taken {taken[at]}"
            return f"{said}; an ip is never 0, and taken <= is_branch <= 1", self.records + at
        before = np.concatenate([ip[:1] if self._last is None else np.array([self._last], "<u8"), ip[:-1]])
        apart = np.where(ip > before, ip - before, before - ip)
        self._close += int((apart <= _CLOSE).sum())
        self._registers = self._registers or bool(rows[:, self.layout.registers].any())
        self._last = int(ip[-1])
        self.records += len(ip)
        if self.records < self._enough:
            return None
        if not self._registers:
            return f"no one of {self.records} records names a register", self.records - 1
        if self._close * 2 < self.records:
            return f"only {self._close} of {self.records} ips are within 64 KiB of the last", self.records - 1
        return None


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file can be ChampSim records."""
    return begins(CHAMPSIM, head)


def begins(layout: Layout, head: bytes) -> bool:
    """Whether a file that begins so, all of a small one, can consist of such records."""
    return fits(layout, head) and (len(head) % layout.record == 0 or len(head) >= _SMALL)


def fits(layout: Layout, head: bytes) -> bool:
    """Whether these bytes, as far as they are whole records, can be such."""
    whole = len(head) // layout.record * layout.record
    return whole > 0 and Verdict(layout).against(np.frombuffer(head[:whole], np.uint8)) is None


class RecordTrace(FileTrace):
    """Instruction records of a layout."""

    layout: Layout
    instructions = "fetches"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with ByteSource(path) as source:
            if source.codec is None and source.size % self.layout.record and not self._other(source.read(_FIRST_BYTES)):
                raise self._cut(source.size)
        with ByteSource(path) as source:
            head = np.frombuffer(source.read(_FIRST_BYTES), np.uint8)
        head = head[: len(head) // self.layout.record * self.layout.record]
        if len(head):
            self._judge(Verdict(self.layout), head)

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        order, record = self.layout.order, self.layout.record
        words = np.empty((max(1, chunk // len(order)), record // 8), "<u8")
        data = words.reshape(-1).view(np.uint8)
        verdict = Verdict(self.layout, _FIRST_BYTES // record)
        while got := source.fill(data.data):
            if got % record:
                raise self._cut(source.offset)
            self._judge(verdict, data[:got])
            addr = words[: got // record, order]
            there = addr != 0
            op = np.broadcast_to(self.layout.ops, addr.shape)[there]
            batch = batch_of(addr[there].astype(np.uint64, copy=False), op, np.ones(len(op), np.uint8))
            for first in range(0, len(batch), chunk):
                yield batch[first : first + chunk]

    def _judge(self, verdict: Verdict, data: npt.NDArray[np.uint8]) -> None:
        found = verdict.against(data)
        if found is not None:
            what, record = found
            other = self._other(data.tobytes()) if record < len(data) // self.layout.record else ""
            raise TraceError(
                f"no trace of {self.layout.said}: {what}. {other or _REMEDY}",
                path=self.path,
                where=f"byte {record * self.layout.record}",
            )

    def _other(self, head: bytes) -> str:
        """The remedy where the records are of the other layout, else ""."""
        other, name = (CLOUDSUITE, "cloudsuite") if self.layout is CHAMPSIM else (CHAMPSIM, "champsim")
        if not fits(other, head):
            return ""
        return f"These are the {other.record}-byte records of {other.said}: --format {name} reads them"

    def _cut(self, size: int) -> TraceError:
        return TraceError(
            f"{size} bytes are no whole number of {self.layout.record}-byte records; truncated, or no trace of "
            f"{self.layout.said}",
            path=self.path,
            where=f"byte {size - size % self.layout.record}",
        )


_REMEDY = "Plain binary addresses are read as a .npy file: numpy.save(out, numpy.fromfile(file, '<u8'))"


class ChampsimTrace(RecordTrace):
    """ChampSim records."""

    format = "champsim"
    layout = CHAMPSIM


_READS, _WRITES = 4, 2  # memory operands of a record
_IP_REGISTER = 26  # what ChampSim calls the instruction pointer
_RECORD = struct.Struct("<Q2B6B2Q4Q")


def write(trace: Trace, out: IO[bytes], compression: str | None = None) -> None:
    """Write the events to an open file: a record a fetch, with the accesses up to the next.

    Registers are not known: each record reads the instruction pointer, and one that the next does not follow is a
    branch that is taken and sets it. An instruction with more accesses than a record has room for becomes
    several records of one ip. Sizes are lost.

    :raises TraceError: a trace that does not begin with a fetch, an address 0, or an event that is no access.
    """
    writer = _Writer(out, trace.path)
    for batch in trace.batches(CHUNK):
        writer.events(batch)
    writer.end()


class _Writer:
    """Events to records; the last record waits for the ip of the next."""

    def __init__(self, out: IO[bytes], path: str | None) -> None:
        self._out = out
        self._path = path
        self._done = 0
        self._ip = self._length = 0
        self._reads: list[int] = []
        self._writes: list[int] = []
        self._records: list[bytes] = []

    def events(self, batch: Batch) -> None:
        """Those of a batch."""
        rows = zip(batch.op.tolist(), batch.size.tolist(), batch.addr.tolist(), strict=True)
        for n, (op, size, addr) in enumerate(rows):
            if op > LAST_ACCESS or not addr or not (self._ip or op == Op.FETCH):
                what = (
                    f"operation {op}" if op > LAST_ACCESS else "address 0" if not addr else "an access before a fetch"
                )
                raise TraceError(
                    f"ChampSim's records cannot hold {what}; write .arrow or .npy",
                    path=self._path,
                    where=f"event {self._done + n}",
                )
            if op == Op.FETCH:
                self._record(addr)
                self._ip, self._length = addr, size
                continue
            if op in (Op.READ, Op.MODIFY):
                if len(self._reads) == _READS:
                    self._record(self._ip + self._length)
                self._reads.append(addr)
            if op in (Op.WRITE, Op.MODIFY):
                if len(self._writes) == _WRITES:
                    self._record(self._ip + self._length)
                self._writes.append(addr)
        self._done += len(batch)
        self._out.write(b"".join(self._records))
        self._records = []

    def end(self) -> None:
        """The last record."""
        self._record(self._ip + self._length)
        self._out.write(b"".join(self._records))

    def _record(self, following: int) -> None:
        """That of the current ip, which `following` comes behind."""
        if self._ip:
            taken = following != self._ip + self._length
            registers = [_IP_REGISTER * taken, 0, _IP_REGISTER, 0, 0, 0]
            writes, reads = self._writes + [0] * _WRITES, self._reads + [0] * _READS
            self._records.append(_RECORD.pack(self._ip, taken, taken, *registers, *writes[:_WRITES], *reads[:_READS]))
        self._reads, self._writes = [], []


READER = ChampsimTrace

"""ChampSim's instruction records: 64 bytes each, little-endian, no header.

    byte  0  ip                     8   is_branch, branch_taken      10  destination registers 2 x u8
         12  source registers 4 x u8
         16  destination_memory 2 x u64                              32  source_memory 4 x u64

A record is one instruction: a fetch at ip, then a read at each source and a write at each destination that is not 0.
The records hold no sizes: each access counts as 1 byte.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.trace.events import Batch, batch_of
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.source import ByteSource

__all__ = ["READER", "RECORD_BYTES", "ChampsimTrace", "looks_like"]

RECORD_BYTES = 64
_WORDS = RECORD_BYTES // 8
_ORDER = np.array([0, 4, 5, 6, 7, 2, 3])  # words of a record in the order of its accesses: ip, sources, destinations
_OPS = np.array([Op.FETCH] + [Op.READ] * 4 + [Op.WRITE] * 2, dtype=np.uint8)


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file can be ChampSim records: is_branch and branch_taken are 0 or 1 in each."""
    whole = len(head) // RECORD_BYTES * RECORD_BYTES
    flags = np.frombuffer(head[:whole], np.uint8).reshape(-1, RECORD_BYTES)[:, 8:10]
    return whole > 0 and bool((flags <= 1).all()) and any(head[:8])


class ChampsimTrace(FileTrace):
    """ChampSim records."""

    format = "champsim"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with ByteSource(path) as source:
            if source.codec is None and source.size % RECORD_BYTES:
                raise self._cut(source.size)

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        words = np.empty((max(1, chunk // len(_ORDER)), _WORDS), "<u8")
        view = words.reshape(-1).view(np.uint8).data
        while got := source.fill(view):
            if got % RECORD_BYTES:
                raise self._cut(source.offset)
            addr = words[: got // RECORD_BYTES, _ORDER]
            there = addr != 0
            there[:, 0] = True
            op = np.broadcast_to(_OPS, addr.shape)[there]
            batch = batch_of(addr[there].astype(np.uint64, copy=False), op, np.ones(len(op), np.uint8))
            for first in range(0, len(batch), chunk):
                yield batch[first : first + chunk]

    def _cut(self, size: int) -> TraceError:
        return TraceError(
            f"{size} bytes are no whole number of {RECORD_BYTES}-byte records; truncated, or no ChampSim trace",
            path=self.path,
            where=f"byte {size - size % RECORD_BYTES}",
        )


READER = ChampsimTrace

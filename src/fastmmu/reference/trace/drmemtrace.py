"""drmemtrace's records, those of one thread; what they are: trace/drmemtrace_parse.pyx."""

from __future__ import annotations

from collections.abc import Sequence

from fastmmu.ops import Op

from .gem5 import parts

__all__ = ["INSTRUCTIONS", "Record", "events"]

BUNDLE = 17
INSTRUCTIONS = (10, 11, 12, 13, 14, 15, 16, 30, 31, 48, 49)
Record = tuple[int, int, int]


def events(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """The events of records (type, size, address)."""
    found: list[tuple[int, int, int]] = []
    pc = 0
    for kind, size, addr in records:
        if kind in (0, 1):
            found += parts(int(Op.WRITE if kind else Op.READ), size, addr)
        elif kind in INSTRUCTIONS:
            found += parts(int(Op.FETCH), size, addr)
            pc = addr + size
        elif kind == BUNDLE:
            for length in addr.to_bytes(8, "little")[:size]:
                found.append((int(Op.FETCH), length, pc))
                pc += length
    return found

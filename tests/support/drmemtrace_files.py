"""drmemtrace records for tests, and what they stand for, in plain Python."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from fastmmu.ops import Op

HEADER, THREAD, PID, THREAD_EXIT, FOOTER, MARKER, BUNDLE = 25, 22, 24, 23, 26, 28, 17
TIMESTAMP, VERSION, SPLIT = 2, 12, 8
INSTRUCTIONS = (10, 11, 12, 13, 14, 15, 16, 30, 31, 48, 49)
Record = tuple[int, int, int]


def file(records: Iterable[Record], tid: int = 7, pid: int = 7, *, width: int = 12, version: int = 6) -> bytes:
    """A whole file: header, thread, process, the records, footer."""
    whole = [(HEADER, 0, version), (THREAD, 4, tid), (PID, 4, pid), *records, (THREAD_EXIT, 4, tid), (FOOTER, 0, 0)]
    form = "<HHQ" if width == 12 else "<HHI"
    return b"".join(struct.pack(form, *record) for record in whole)


def plain(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """The events of the records."""
    found: list[tuple[int, int, int]] = []

    def access(op: int, size: int, addr: int) -> None:
        if size <= 255:
            found.append((op, size, addr))
            return
        found.extend((op, min(128, size - at), addr + at) for at in range(0, size, 128))

    pc = 0
    for kind, size, addr in records:
        if kind in (0, 1):
            access(int(Op.WRITE if kind else Op.READ), size, addr)
        elif kind in INSTRUCTIONS:
            access(int(Op.FETCH), size, addr)
            pc = addr + size
        elif kind == BUNDLE:
            for length in addr.to_bytes(8, "little")[:size]:
                found.append((int(Op.FETCH), length, pc))
                pc += length
    return found

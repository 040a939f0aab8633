"""drmemtrace files for tests."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from fastmmu.reference.trace.drmemtrace import Record

HEADER, THREAD, PID, THREAD_EXIT, FOOTER, MARKER, BUNDLE = 25, 22, 24, 23, 26, 28, 17
TIMESTAMP, VERSION, SPLIT = 2, 12, 8


def file(records: Iterable[Record], tid: int = 7, pid: int = 7, *, width: int = 12, version: int = 6) -> bytes:
    """A whole file: header, thread, process, the records, footer."""
    whole = [(HEADER, 0, version), (THREAD, 4, tid), (PID, 4, pid), *records, (THREAD_EXIT, 4, tid), (FOOTER, 0, 0)]
    form = "<HHQ" if width == 12 else "<HHI"
    return b"".join(struct.pack(form, *record) for record in whole)

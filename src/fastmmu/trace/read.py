"""Opening a trace: which format is it?"""

from __future__ import annotations

import os

from fastmmu._checked import checked
from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.formats import FORMATS
from fastmmu.trace.names import format_of_name
from fastmmu.trace.source import ByteSource

__all__ = ["read_trace"]

_HEAD = 4096


@checked
def read_trace(path: str | os.PathLike[str], format: str | None = None) -> Trace:
    """Open a trace file; the events are read by :meth:`Trace.batches`.

    format: "lackey" (Valgrind), "champsim" (64-byte records), "npy" (addresses or events), "arrow" (fastmmu's own)
    or "system" (a whole machine, see :mod:`fastmmu.trace.system`); by default found from the suffix, else from the
    content. Each also compressed: .gz, .xz, .zst.

    Raises TraceError, here or while reading, for a file that is unreadable, empty, malformed, truncated or of an
    unknown format, MissingExtraError where the format needs a package that is not installed.
    """
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise TraceError(f"format {format!r} is not known; there are {', '.join(FORMATS)}", path=name)
    with ByteSource(name) as source:  # so that a bad path or an empty file is an error here and not later
        head = source.read(_HEAD)
    if not head:
        raise TraceError("the compressed file holds nothing", path=name)
    found = format or format_of_name(name) or _format_of_bytes(head)
    if found is None:
        raise TraceError(
            f"neither the name nor the content tells the format; pass one of {', '.join(FORMATS)}", path=name
        )
    return FORMATS[found].open(name)


def _format_of_bytes(head: bytes) -> str | None:
    by_doubt = sorted(FORMATS.values(), key=lambda format: format.doubt)
    return next((format.name for format in by_doubt if format.looks_like(head)), None)

"""Opening a trace: which format is it?"""

from __future__ import annotations

import os
import re

from fastmmu.errors import TraceError
from fastmmu.trace.arrow import MAGIC, ArrowTrace
from fastmmu.trace.base import Trace
from fastmmu.trace.champsim import ChampsimTrace, looks_like_champsim
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.lackey import LackeyTrace
from fastmmu.trace.names import format_of_name
from fastmmu.trace.npy import NpyTrace
from fastmmu.trace.source import ByteSource
from fastmmu.trace.system import SystemTrace, looks_like_system

__all__ = ["FORMATS", "read_trace"]

FORMATS: dict[str, type[FileTrace]] = {
    "lackey": LackeyTrace,
    "champsim": ChampsimTrace,
    "npy": NpyTrace,
    "arrow": ArrowTrace,
    "system": SystemTrace,
}
"""Name of a format → its reader."""

_HEAD = 4096
_LACKEY = re.compile(rb"\s*(==|--|\*\*|[ILSM] +[0-9a-fA-F]{1,16},[0-9])")


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
    return FORMATS[found](name)


def _format_of_bytes(head: bytes) -> str | None:
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(MAGIC):
        return "arrow"
    if looks_like_system(head):
        return "system"
    if _LACKEY.match(head):
        return "lackey"
    return "champsim" if looks_like_champsim(head) else None

"""Opening a trace: which format is it?"""

from __future__ import annotations

import os

from fastmmu._checked import checked
from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.foreign import foreign
from fastmmu.trace.formats import FORMATS, Format
from fastmmu.trace.lackey import LackeyTrace
from fastmmu.trace.names import format_of_name
from fastmmu.trace.source import ByteSource

__all__ = ["read_trace"]

_HEAD = 1 << 16


@checked
def read_trace(path: str | os.PathLike[str], format: str | None = None, *, skip_other_lines: bool = False) -> Trace:
    """Open a trace file; the events are read by :meth:`Trace.batches`.

    format: "lackey" (Valgrind), "champsim" (64-byte records), "cloudsuite" (its 96-byte form), "npy" (addresses or
    events), "arrow" (fastmmu's own) or "system" (a whole machine, see :mod:`fastmmu.trace.system`); by default found
    from the suffix, else from the content. Each also compressed: .gz, .xz, .zst. skip_other_lines: of lackey text,
    lines that the program itself wrote are left out.

    Raises TraceError, here or while reading, for a file that is unreadable, empty, malformed, truncated, of an unknown
    format, or whose first bytes name another one; MissingExtraError where the format needs a package that is not
    installed.
    """
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise TraceError(f"format {format!r} is not known; there are {', '.join(FORMATS)}", path=name)
    with ByteSource(name) as source:  # so that a bad path or an empty file is an error here and not later
        head = source.read(_HEAD)
    if not head:
        raise TraceError("the compressed file holds nothing", path=name)
    trace = _format(name, head, format).open(name)
    if skip_other_lines:
        if not isinstance(trace, LackeyTrace):
            raise TraceError(f"skip_other_lines is for lackey text, this is {trace.format}; leave it out", path=name)
        trace.skip_other_lines = True
    return trace


def _format(name: str, head: bytes, asked: str | None) -> Format:
    chosen = asked or format_of_name(name)
    other = foreign(head)
    if other is not None and (other.sure or chosen is None):
        raise TraceError(f"this is {other.said}, no trace that can be read here. {other.remedy}", path=name)
    found = next((format for format in _by_doubt() if format.looks_like(head)), None)
    if chosen is None:
        if found is None:
            raise TraceError(
                f"neither the name nor the content tells the format; pass one of {', '.join(FORMATS)}", path=name
            )
        return found
    if found is not None and found.doubt == 0 and found.name != chosen:
        way = "leave --format (format=) out" if asked else f"pass --format {found.name}, or name it {found.suffixes[0]}"
        raise TraceError(f"this is {found.said}, not {FORMATS[chosen].said}; {way}", path=name)
    return FORMATS[chosen]


def _by_doubt() -> list[Format]:
    return sorted(FORMATS.values(), key=lambda format: format.doubt)

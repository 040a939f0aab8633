"""Opening a trace: which format is it?"""

from __future__ import annotations

import os
from typing import Literal

from fastmmu._checked import checked
from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.drmemtrace import DrmemtraceTrace, folder_files
from fastmmu.trace.foreign import foreign
from fastmmu.trace.formats import FORMATS, Format
from fastmmu.trace.lackey import LackeyTrace
from fastmmu.trace.names import format_of_name
from fastmmu.trace.npz import is_npz
from fastmmu.trace.source import ByteSource
from fastmmu.trace.text import TextTrace

__all__ = ["read_trace"]

_HEAD = 1 << 16


@checked
def read_trace(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    skip_other_lines: bool = False,
    columns: str | None = None,
    threads: Literal["together", "apart"] = "together",
    v2p: str | os.PathLike[str] | None = None,
) -> Trace:
    """Open a trace file; the events are read by :meth:`Trace.batches`.

    format: a name of :data:`fastmmu.trace.FORMATS`; by default found from the suffix, else from the content. Each also
    compressed: .gz, .xz, .zst, .bz2, .lz4, .sz, .lzma, or alone in a .zip. A folder is one of drmemtrace.

    skip_other_lines: of lackey text, lines that the program itself wrote are left out.

    columns: the file is text with these columns, "op addr:hex size" (:mod:`fastmmu.trace.text`).

    threads: of drmemtrace, "together" interleaves the threads of a process, "apart" makes each a process.

    v2p: of drmemtrace, a v2p.textproto, which says where pages lie in physical memory; "none": as if nothing said so;
    None: that of the folder, else what the trace itself says.

    Raises TraceError, here or while reading, for a file that is unreadable, empty, malformed, truncated, of an unknown
    format, or whose first bytes name another one; MissingExtraError where the format needs a package that is not
    installed.
    """
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise TraceError(f"format {format!r} is not known; there are {', '.join(FORMATS)}", path=name)
    trace = _opened(name, format, columns)
    for asked, kind, given in (
        ("skip_other_lines", LackeyTrace, skip_other_lines or None),
        ("threads", DrmemtraceTrace, None if threads == "together" else threads),
        ("v2p", DrmemtraceTrace, None if v2p is None else os.fsdecode(v2p)),
    ):
        if given is not None:
            if not isinstance(trace, kind):
                raise TraceError(f"{asked} is for {kind.format}, this is {trace.format}; leave it out", path=name)
            setattr(trace, asked, given)
    return trace


def _opened(name: str, format: str | None, columns: str | None) -> Trace:
    if os.path.isdir(name) and format in (None, "drmemtrace") and folder_files(name):
        return FORMATS["drmemtrace"].open(name)
    if columns is None and format in (None, "npz") and is_npz(name):
        return FORMATS["npz"].open(name)
    with ByteSource(name) as source:  # so that a bad path or an empty file is an error here and not later
        head = source.read(_HEAD)
    if not head:
        raise TraceError("the compressed file holds nothing", path=name)
    if columns is None:
        return _format(name, head, format).open(name)
    if format is not None:
        raise TraceError(f"columns say how text is read, format {format!r} otherwise; give one of them", path=name)
    other = foreign(head)
    if other is not None and other.sure:
        raise TraceError(f"this is {other.said}, no text. {other.remedy}", path=name)
    return TextTrace(name, columns)


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

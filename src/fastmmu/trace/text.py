"""Text with an access a line, by a description of its columns.

A description is the words of a line in their order, blanks between them where the text has blanks, commas (or
semicolons) where it has those: "op addr:hex size", "skip,op,addr,size".

    addr        linear address, hexadecimal with 0x in front; addr:hex without as well; addr:dec decimal
    op          R L LD READ LOAD, W S ST WRITE STORE, M RW MODIFY, I F X FETCH INSTR ..., in capitals or not
    op:dinero   0 read, 1 write, 2 fetch
    size        bytes, 1 to 255
    skip        anything
    ...         whatever follows, at the end

Without op all are reads, without size 1 byte. For lines of `perf script` there are `time` (all words up to one like
4264.774732:), `event` (a store where it says so, else a load) and `ip` (an access to it is its own fetch). Lines that
begin with # are comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from fastmmu.errors import TraceError
from fastmmu.trace import text_parse_py as _text
from fastmmu.trace.events import Batch, empty_batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.foreign import whole_lines
from fastmmu.trace.source import ByteSource

__all__ = ["Columns", "TextTrace", "all_lines", "columns_of"]

_BUFFER = 1 << 18  # bytes. No line may be longer.
_KINDS = {  # Column of trace/text_parse.pxd
    "skip": 0, "op": 1, "op:dinero": 2, "addr": 3, "addr:hex": 4, "addr:dec": 5, "size": 6, "time": 7, "event": 8,
    "ip": 9, "...": 10,
}  # fmt: skip
_MOST = 16
_FAULTS = {  # the kinds of bad line
    -1: ("the line has fewer columns than", ""),
    -2: ("the line has more columns than", ""),
    -3: ("the operation is none of R, W, M, I and the like (or 0, 1, 2 in Dinero's form); the columns are", ""),
    -4: ("the address is no number of 64 bits; the columns are", ""),
    -5: (
        "the address has no 0x in front, so it may be hexadecimal or decimal; the columns are",
        "; say which, with addr:hex or addr:dec in --columns",
    ),
    -6: ("the size is not from 1 to 255; the columns are", ""),
    -7: ("the last line is cut short, it has no newline; the columns are", ". If it is whole, add one"),
}


class Columns(NamedTuple):
    """A description, understood: a byte a column, and the code of the separator, 0 for blanks."""

    said: str
    kinds: bytes
    separator: int


def columns_of(description: str, path: str | None = None) -> Columns:
    """What a description of columns means. :raises TraceError: it means nothing."""
    found = [mark for mark in ",;" if mark in description]
    words = re.split(f"[{''.join(found)}]", description) if found else description.split()
    names = [word.strip().lower() for word in words]
    for name in names:
        if name not in _KINDS:
            raise TraceError(f"column {name!r} of {description!r} is none of {', '.join(_KINDS)}", path=path)
    if len(found) > 1 or not 1 <= len(names) <= _MOST:
        raise TraceError(f"columns {description!r}: give 1 to {_MOST}, with one separator", path=path)
    if sum(name.startswith("addr") for name in names) != 1 or "..." in names[:-1]:
        raise TraceError(f"columns {description!r}: one of them is addr, and ... is the last", path=path)
    return Columns(description, bytes(_KINDS[name] for name in names), ord(found[0]) if found else 0)


def all_lines(head: bytes, line: re.Pattern[bytes]) -> bool:
    """Whether the first bytes of a file are lines of this form, comments aside."""
    lines = whole_lines(head)
    told = False
    for text in lines:
        if not text.startswith(b"#"):
            told = line.fullmatch(text) is not None
            if not told:
                break
    return told


class TextTrace(FileTrace):
    """Text, parsed by the kernel layer. Of a subclass ``described`` are the columns."""

    format = "text"
    described = ""

    def __init__(self, path: str, columns: str | None = None) -> None:
        super().__init__(path)
        self.columns = columns_of(columns or self.described, path)

    def _columns(self, head: bytes) -> tuple[Columns, int]:
        """The columns of a file that begins so, and the bytes of a heading."""
        return self.columns, 0

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        stop = source.fill(view)
        ended = stop < _BUFFER
        columns, start = self._columns(bytes(view[:stop]))
        lines = 1 if start else 0
        tail = b""
        batch = empty_batch(chunk)
        n = 0
        while True:
            start, n, seen, fault = _text.parse(
                view, start, stop, ended, columns.kinds, columns.separator, batch.op, batch.size, batch.addr, n
            )
            lines += seen
            if fault:
                raise self._bad_line(fault, columns, lines + 1, buffer[start:stop])
            if n == chunk:
                yield batch
                batch = empty_batch(chunk)
                n = 0
                continue
            if ended:
                break
            tail = bytes(view[max(0, start - 16) : start])
            view[: stop - start] = view[start:stop]
            start, stop = 0, stop - start
            if stop == _BUFFER:
                raise TraceError(f"the line is longer than {_BUFFER} bytes", path=self.path, where=f"line {lines + 1}")
            got = source.readinto(view[stop:])
            stop += got
            ended = got == 0
        self._check_end(tail + bytes(view[max(0, stop - 16) : stop]))
        if n:
            yield batch[:n]

    def _check_end(self, tail: bytes) -> None:
        """The last bytes of the file."""

    def _bad_line(self, fault: int, columns: Columns, line: int, text: bytearray) -> TraceError:
        shown = bytes(text[:60]).split(b"\n", 1)[0].decode("ascii", "backslashreplace")
        what, remedy = _FAULTS[fault]
        return TraceError(f"{what} {columns.said!r}: {shown!r}{remedy}", path=self.path, where=f"line {line}")

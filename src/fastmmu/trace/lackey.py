"""Valgrind lackey text: valgrind --tool=lackey --trace-mem=yes PROGRAM.

    I  04001000,3       instruction fetch, hexadecimal address, decimal bytes
     L 1ffefff8,8       load
     S 1ffefff8,8       store
     M 0421c7cc,4       modify: a load and a store of the same place by one instruction

Valgrind's own lines (== -- **) and empty lines are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from fastmmu.errors import TraceError
from fastmmu.trace import lackey_parse_py as _lackey
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK, Batch, empty_batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.source import ByteSource

__all__ = ["READER", "LackeyTrace", "looks_like", "write"]

_BUFFER = 1 << 18  # bytes; stays in the second-level cache. No line may be longer.

_FAULTS = {  # the kinds of bad line of trace/lackey_parse.pyx
    -1: "not a lackey line ('I  04001000,3', ' L …', ' S …', ' M …' or a line of Valgrind's, '==…')",
    -2: "the address is not hexadecimal",
    -3: "the address has more than 16 hexadecimal digits: it does not fit 64 bits",
    -4: "the size is not a decimal number from 1 to 255",
}


_LINE = re.compile(rb"\s*(==|--|\*\*|[ILSM] +[0-9a-fA-F]{1,16},[0-9])")


def looks_like(head: bytes) -> bool:
    """Whether a file begins with a line of lackey's or of Valgrind's."""
    return _LINE.match(head) is not None


class LackeyTrace(FileTrace):
    """Lackey text, parsed by the kernel layer."""

    format = "lackey"

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        start = stop = lines = 0
        ended = False
        batch = empty_batch(chunk)
        n = 0
        while True:
            start, n, seen, fault = _lackey.parse(view, start, stop, ended, batch.op, batch.size, batch.addr, n)
            lines += seen
            if fault:
                raise self._bad_line(_FAULTS[fault], lines + 1, buffer[start:stop])
            if n == chunk:
                yield batch
                batch = empty_batch(chunk)
                n = 0
                continue
            if ended:
                break
            view[: stop - start] = view[start:stop]
            start, stop = 0, stop - start
            if stop == _BUFFER:
                raise self._bad_line(f"the line is longer than {_BUFFER} bytes", lines + 1, buffer)
            got = source.readinto(view[stop:])
            stop += got
            ended = got == 0
        if n:
            yield batch[:n]

    def _bad_line(self, what: str, line: int, text: bytearray) -> TraceError:
        shown = bytes(text[:60]).split(b"\n", 1)[0].decode("ascii", "backslashreplace")
        return TraceError(f"{what}: {shown!r}", path=self.path, where=f"line {line}")


def write(trace: Trace, out: IO[bytes], compression: str | None = None) -> None:
    """Write the events, accesses only, to an open file."""
    done = 0
    for batch in trace.batches(CHUNK):
        out.write(_lackey.format(batch.op, batch.size, batch.addr, done, trace.path))
        done += len(batch)


READER = LackeyTrace

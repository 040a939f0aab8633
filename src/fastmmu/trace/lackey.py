"""Valgrind lackey text: valgrind --tool=lackey --trace-mem=yes PROGRAM.

    I  04001000,3       instruction fetch, hexadecimal address, decimal bytes
     L 1ffefff8,8       load
     S 1ffefff8,8       store
     M 0421c7cc,4       modify: a load and a store of the same place by one instruction

Valgrind's own lines (== -- **) and empty lines are skipped; they name the process, and a file is of one: accesses carry
no number of theirs. Lines that the program itself wrote in between are refused unless `skip_other_lines` is asked for.
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

_FAULTS = {  # the kinds of bad line of trace/lackey_parse.pyx, and the remedy
    -1: (
        "not a lackey line ('I  04001000,3', ' L …', ' S …', ' M …' or a line of Valgrind's, '==…')",
        "; if the program wrote it, --skip-other-lines (skip_other_lines=True) leaves such lines out",
    ),
    -2: ("the address is not hexadecimal", ""),
    -3: ("the address has more than 16 hexadecimal digits: it does not fit 64 bits", ""),
    -4: ("the size is not a decimal number from 1 to 255", ""),
    -5: (
        "a second process",
        (
            "; accesses carry no number of theirs, so a file can hold one process only. Record a file each: valgrind "
            "--tool=lackey --trace-mem=yes --trace-children=yes --log-file=x.%p.log PROGRAM"
        ),
    ),
    -6: (
        "the last line is cut short, it has no newline",
        "; the trace may not be whole. If the line is, add one",
    ),
}


_LINE = re.compile(rb"\s*((==|--|\*\*)[0-9]+\2|==|[ILSM] +[0-9a-fA-F]{1,16},[0-9])")
_AMONG = re.compile(rb"^(I  | [LSM] )[0-9a-f]{8,16},[0-9]{1,3}\r?$", re.MULTILINE)


def looks_like(head: bytes) -> bool:
    """Whether a file begins with a line of lackey's or of Valgrind's, or has several of lackey's near its begin."""
    return _LINE.match(head) is not None or len(_AMONG.findall(head)) > 2


class LackeyTrace(FileTrace):
    """Lackey text, parsed by the kernel layer.

    ``skip_other_lines``: lines of the program itself are left out; ``skipped_lines``: how many there were in the
    latest pass.
    """

    format = "lackey"
    instructions = "fetches"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.skip_other_lines = False
        self.skipped_lines = 0

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        start = stop = lines = pid = 0
        ended = overlong = False
        self.skipped_lines = 0
        batch = empty_batch(chunk)
        n = 0
        while True:
            start, n, seen, fault, pid, others = _lackey.parse(
                view, start, stop, ended, batch.op, batch.size, batch.addr, n, pid, self.skip_other_lines
            )
            lines += seen
            self.skipped_lines += others
            if fault:
                raise self._bad_line(*_FAULTS[fault], lines + 1, buffer[start:stop])
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
                if not self.skip_other_lines:
                    raise self._bad_line(f"the line is longer than {_BUFFER} bytes", "", lines + 1, buffer)
                stop, overlong = 1, True  # a byte of it stands for the line
            got = source.readinto(view[stop:])
            if overlong and got:
                end = buffer.find(b"\n", stop, stop + got)
                if end < 0:
                    continue
                buffer[0] = ord("?")
                rest = stop + got - end
                view[1 : 1 + rest] = view[end : stop + got]
                stop, overlong = 1 + rest, False
                continue
            stop += got
            ended = got == 0
        if n:
            yield batch[:n]

    def _bad_line(self, what: str, remedy: str, line: int, text: bytearray) -> TraceError:
        shown = bytes(text[:60]).split(b"\n", 1)[0].decode("ascii", "backslashreplace")
        return TraceError(f"{what}: {shown!r}{remedy}", path=self.path, where=f"line {line}")

    def notes(self) -> list[str]:
        if not self.skipped_lines:
            return []
        return [f"skipped {self.skipped_lines:,} line{'s' * (self.skipped_lines != 1)} that the program itself wrote"]

    def _nothing(self) -> TraceError:
        return TraceError("the file holds no events: was --trace-mem=yes given to Valgrind?", path=self.path)


def write(trace: Trace, out: IO[bytes], compression: str | None = None) -> None:
    """Write the events, accesses only, to an open file."""
    done = 0
    for batch in trace.batches(CHUNK):
        out.write(_lackey.format(batch.op, batch.size, batch.addr, done, trace.path))
        done += len(batch)


READER = LackeyTrace

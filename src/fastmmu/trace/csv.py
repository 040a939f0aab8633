"""CSV with a line of names, of which addr (or address, va, vaddr) is one, op and size perhaps others: op,addr,size.

The order is free, further columns are left out. Without names, lines of the form R,0x7fff0010,8 are known by what they
hold. Addresses begin with 0x; others are read with --columns, which says what they are.
"""

from __future__ import annotations

import re
from typing import IO

from fastmmu.errors import TraceError
from fastmmu.ops import LAST_ACCESS
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK
from fastmmu.trace.foreign import whole_lines
from fastmmu.trace.text import Columns, TextTrace, columns_of

__all__ = ["READER", "CsvTrace", "looks_like", "write"]

_NAMES = {
    "op": "op", "operation": "op", "type": "op", "rw": "op", "access": "op", "kind": "op",
    "addr": "addr", "address": "addr", "va": "addr", "vaddr": "addr", "vaddress": "addr", "linear": "addr",
    "size": "size", "bytes": "size", "length": "size", "len": "size",
}  # fmt: skip
_WORD = re.compile(r'"?([A-Za-z_][\w .-]*)"?')
_BARE = re.compile(rb"[RWMIFLSrwmifls],0[xX][0-9a-fA-F]+(,[0-9]+)?")
_OPS = "RWMI"


def _names(line: bytes) -> list[str] | None:
    """The names in a line of names, one of them an address; else None."""
    words = [_WORD.fullmatch(word.strip()) for word in line.decode("latin-1").split(",")]
    if len(words) < 1 or not all(words):
        return None
    names = [_NAMES.get(word[1].lower(), "skip") for word in words if word]
    return names if names.count("addr") == 1 else None


def looks_like(head: bytes) -> bool:
    """Whether a file begins with a line of names and another of as many columns, or with bare lines."""
    lines = whole_lines(head)
    if not lines:
        return False
    names = _names(lines[0])
    if names is not None:
        return len(lines) > 1 and all(line.count(b",") == len(names) - 1 for line in lines)
    return all(map(_BARE.fullmatch, lines))


class CsvTrace(TextTrace):
    """CSV of accesses."""

    format = "csv"
    described = "op,addr,size"

    def _columns(self, head: bytes) -> tuple[Columns, int]:
        first, newline, _ = head.partition(b"\n")
        names = _names(first)
        if names is None:
            if _BARE.fullmatch(first.strip()):
                return columns_of("op,addr,size" if first.count(b",") == 2 else "op,addr", self.path), 0
            shown = first[:60].decode("ascii", "backslashreplace").rstrip()
            raise TraceError(
                f"the first line names no one column addr: {shown!r}; say what the columns are, with --columns",
                path=self.path,
                where="line 1",
            )
        once: list[str] = []
        for name in names:
            once.append("skip" if name in once else name)
        return columns_of(",".join(once), self.path), len(first) + len(newline)


def write(trace: Trace, out: IO[bytes], compression: str | None = None) -> None:
    """Write the events, accesses only, to an open file."""
    out.write(b"op,addr,size\n")
    done = 0
    for batch in trace.batches(CHUNK):
        bad = (batch.op > LAST_ACCESS) | (batch.size == 0)
        if bad.any():
            at = int(bad.argmax())
            raise TraceError(
                f"CSV cannot hold operation {batch.op[at]} with size {batch.size[at]}; write .arrow or .npy",
                path=trace.path,
                where=f"event {done + at}",
            )
        rows = zip(batch.op.tolist(), batch.addr.tolist(), batch.size.tolist(), strict=True)
        out.write("".join([f"{_OPS[op]},{addr:#x},{size}\n" for op, addr, size in rows]).encode())
        done += len(batch)


READER = CsvTrace

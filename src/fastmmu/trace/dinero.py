"""Dinero's din: an access a line, "2 408ed4": 0 read, 1 write or 2 fetch, and its address in hexadecimal.

What follows on a line is left out; each access counts as 1 byte. Written, a modify is a read and a write.
"""

from __future__ import annotations

import re
from typing import IO

from fastmmu.errors import TraceError
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK
from fastmmu.trace.text import TextTrace, all_lines

__all__ = ["READER", "DineroTrace", "looks_like", "write"]

_LINE = re.compile(rb"[012] (0x)?[0-9a-fA-F]{1,16}( .*)?")
_LETTER = re.compile(rb"^[012] (0x|[0-9]*[a-fA-F])", re.MULTILINE)
_WORDS = {Op.READ: "0 {0:x}\n", Op.WRITE: "1 {0:x}\n", Op.MODIFY: "0 {0:x}\n1 {0:x}\n", Op.FETCH: "2 {0:x}\n"}


def looks_like(head: bytes) -> bool:
    """Whether a file begins with lines of Dinero's, some of which can't be decimal numbers."""
    return all_lines(head, _LINE) and _LETTER.search(head) is not None


class DineroTrace(TextTrace):
    """Dinero's text."""

    format = "dinero"
    described = "op:dinero addr:hex ..."
    instructions = "fetches"


def write(trace: Trace, out: IO[bytes], compression: str | None = None) -> None:
    """Write the events, accesses only, to an open file."""
    forms = [_WORDS[Op(op)].format for op in range(LAST_ACCESS + 1)]
    done = 0
    for batch in trace.batches(CHUNK):
        if int(batch.op.max()) > LAST_ACCESS:
            at = int((batch.op > LAST_ACCESS).argmax())
            raise TraceError(
                f"Dinero's text cannot hold operation {batch.op[at]}; write .arrow or .npy",
                path=trace.path,
                where=f"event {done + at}",
            )
        rows = zip(batch.op.tolist(), batch.addr.tolist(), strict=True)
        out.write("".join([forms[op](addr) for op, addr in rows]).encode())
        done += len(batch)


READER = DineroTrace

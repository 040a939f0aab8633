"""What `perf script -F comm,tid,time,event,addr,ip` prints of events with addresses: page-faults (perf record -d),
loads and stores (perf mem record).

    ls 22866  4264.774732: page-faults:     559421a715c0 ffffffff81775b9a

A load, a store where the event's name says so, a fetch where the address is that of the instruction itself.
"""

from __future__ import annotations

import re

from fastmmu.trace.text import TextTrace, all_lines

__all__ = ["READER", "PerfScriptTrace", "looks_like"]

_LINE = re.compile(rb"\s*\S.*\s[0-9]+\.[0-9]+:\s+\S+\s+[0-9a-f]+\s+[0-9a-f]+(\s.*)?")


def looks_like(head: bytes) -> bool:
    """Whether a file begins with such lines."""
    return all_lines(head, _LINE)


class PerfScriptTrace(TextTrace):
    """perf's lines."""

    format = "perf"
    described = "time event addr:hex ip ..."


READER = PerfScriptTrace

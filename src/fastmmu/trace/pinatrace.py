"""The text of Pin's pinatrace: "0x401535: R 0x1fff000770", the instruction, R or W, the address; "#eof" ends it."""

from __future__ import annotations

import re

from fastmmu.errors import TraceError
from fastmmu.trace.text import TextTrace, all_lines

__all__ = ["READER", "PinatraceTrace", "looks_like"]

_LINE = re.compile(rb"0x[0-9a-fA-F]+:\s+[RW]\s+0x[0-9a-fA-F]+(\s.*)?")


def looks_like(head: bytes) -> bool:
    """Whether a file begins with lines of pinatrace's."""
    return all_lines(head, _LINE)


class PinatraceTrace(TextTrace):
    """pinatrace's text; instructions are no events, as most of them are not in it."""

    format = "pinatrace"
    described = "skip op addr:hex ..."

    def _check_end(self, tail: bytes) -> None:
        if not tail.rstrip().endswith(b"#eof"):
            raise TraceError("the line #eof is missing at the end: the file was cut short", path=self.path)


READER = PinatraceTrace

"""Text of addresses alone, one a line, hexadecimal with 0x in front; each is a read of 1 byte."""

from __future__ import annotations

import re

from fastmmu.trace.text import TextTrace, all_lines

__all__ = ["READER", "HexLinesTrace", "looks_like"]

_LINE = re.compile(rb"0[xX][0-9a-fA-F]{1,16}")


def looks_like(head: bytes) -> bool:
    """Whether a file begins with such lines."""
    return all_lines(head, _LINE)


class HexLinesTrace(TextTrace):
    """An address a line."""

    format = "hexlines"
    described = "addr"


READER = HexLinesTrace

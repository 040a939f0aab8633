"""Lackey's text, by regular expressions; the lines: trace/lackey_parse.pyx."""

from __future__ import annotations

import re

from fastmmu.ops import Op

__all__ = ["Event", "parse"]

EVENT = re.compile(rb" *([ILSM]) +([0-9a-fA-F]{1,16}),([0-9]{1,3}) *\r?")
PROCESS = re.compile(rb"(==|--|\*\*)(0*[0-9]{1,9})\1")
SKIP = re.compile(rb"(==|--|\*\*).*|\r?", re.DOTALL)
OPS = {b"I": Op.FETCH, b"L": Op.READ, b"S": Op.WRITE, b"M": Op.MODIFY}

Event = tuple[int, int, int]


def parse(text: bytes, skip: bool = False) -> tuple[list[Event], int | None, int]:
    """Events, the number of the first bad line or None, and how many lines were left out."""
    events: list[Event] = []
    process, left_out = None, 0
    *lines, rest = text.split(b"\n")
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        whole = number <= len(lines)
        if SKIP.fullmatch(line):
            named = PROCESS.match(line)
            if named and int(named[2]) and process not in (None, int(named[2])):
                return events, number, left_out
            process = int(named[2]) or process if named else process
        elif whole and (match := EVENT.fullmatch(line)) and 1 <= int(match[3]) <= 255:
            events.append((int(OPS[match[1]]), int(match[3]), int(match[2], 16)))
        elif skip:
            left_out += 1
        else:
            return events, number, left_out
    return events, None, left_out

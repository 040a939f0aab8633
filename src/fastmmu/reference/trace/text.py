"""Text by a description of its columns, by regular expressions; the columns: trace/text_parse.pxd."""

from __future__ import annotations

import re

from fastmmu.ops import Op

__all__ = ["Event", "parse"]

OPS = {
    Op.READ: "r l ld read load", Op.WRITE: "w s st write store", Op.MODIFY: "m rw rmw modify",
    Op.FETCH: "i f x fetch ifetch inst instr exec",
}  # fmt: skip
WORDS = {word.encode(): op for op, words in OPS.items() for word in words.split()}
SKIP, OP, DINERO, ADDR, HEX, DEC, SIZE, TIME, EVENT, IP, REST = range(11)
Event = tuple[int, int, int]


class Bad(Exception):
    """A line that is none."""


def number(word: bytes, base: int) -> int:
    """A word of 64 bits."""
    digits = rb"[0-9a-fA-F]+" if base == 16 else rb"[0-9]+"
    if not re.fullmatch(digits, word) or int(word, base) >= 1 << 64:
        raise Bad
    return int(word, base)


def zero_x(word: bytes) -> bytes | None:
    """What follows 0x."""
    return word[2:] if len(word) > 2 and word[:2].lower() == b"0x" else None


def words_of(line: bytes, separator: int) -> list[bytes]:
    """The columns of a line."""
    if not separator:
        return [word for word in re.split(rb"[ \t]+", line) if word]
    fields = [field.strip(b" \t") for field in line.split(bytes([separator]))]
    return [field[1:-1] if len(field) > 1 and field[:1] == field[-1:] == b'"' else field for field in fields]


def line_event(line: bytes, columns: bytes, separator: int) -> Event | None:
    """The event of a line; None: it has none."""
    line = re.sub(rb"[ \t\r]+$", b"", line).lstrip(b" \t")
    if not line or line.startswith(b"#"):
        return None
    kinds = list(columns)
    op, size, addr, ip = int(Op.READ), 1, 0, -1
    for word in words_of(line, separator):
        if not kinds:
            raise Bad
        if kinds[0] == TIME:
            if re.fullmatch(rb"(?=.{4,})[0-9]*\.[0-9]*:", word):
                kinds.pop(0)
            continue
        kind = kinds.pop(0)
        if kind == REST:
            break
        word = word.removesuffix(b":")
        if kind == OP:
            if word.lower() not in WORDS:
                raise Bad
            op = int(WORDS[word.lower()])
        elif kind == DINERO:
            if word not in (b"0", b"1", b"2"):
                raise Bad
            op = int((Op.READ, Op.WRITE, Op.FETCH)[int(word)])
        elif kind == ADDR:
            addr = number(zero_x(word) or b"", 16)
        elif kind == HEX:
            addr = number(zero_x(word) or word, 16)
        elif kind == DEC:
            addr = number(word, 10)
        elif kind == SIZE:
            digits = zero_x(word)
            size = number(word, 10) if digits is None else number(digits, 16)
            if not 1 <= size <= 255:
                raise Bad
        elif kind == EVENT:
            op = int(Op.WRITE if b"store" in word.lower() else Op.READ)
        elif kind == IP:
            ip = number(zero_x(word) or word, 16)
    if kinds not in ([], [REST]):
        raise Bad
    return int(Op.FETCH) if ip == addr else op, size, addr


def parse(text: bytes, columns: bytes, separator: int) -> tuple[list[Event], int | None]:
    """Events, and the number of the first bad line or None.

    :param columns: a byte each, of those above. :param separator: a character's code, 0: blanks.
    """
    found: list[Event] = []
    *lines, rest = text.split(b"\n")
    for count, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            event = line_event(line, columns, separator)
        except Bad:
            return found, count
        if event is not None:
            if count > len(lines):  # without a newline
                return found, count
            found.append(event)
    return found, None

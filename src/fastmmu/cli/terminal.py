"""The standard streams: what the terminal can do, and writing to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from fastmmu.cli import interruption
from fastmmu.report.table import prose

__all__ = ["STDOUT", "binary", "colour", "complain", "drop", "flush", "hold", "put", "say", "width"]

STDOUT = "standard output"

_ASCII = str.maketrans(
    {"─": "-", "│": "|", "╭": "+", "╯": "+", "×": "x", "−": "-", "→": ">", "▸": ">", "✗": "!", "…": "...", "·": "-"}
)


def width() -> int:
    """Characters of a line: the terminal's, or $COLUMNS; 120 where the output is no terminal."""
    return shutil.get_terminal_size((120, 24)).columns


def colour(stream: TextIO | None = None) -> bool:
    """Whether to write colours: on a terminal, unless NO_COLOR is set or it is a dumb one."""
    out = sys.stdout if stream is None else stream
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Print to standard output, with ASCII in place of what its encoding has not.

    Lines too long for a terminal are split between words.

    :raises OSError: that cannot be written to; it is its ``filename``.
    """
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        text = "\n".join(part for line in text.split("\n") for part in prose(line, width()))
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    put(text + "\n")


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    with interruption.printing():
        try:
            yield
        except OSError as error:
            raise type(error)(error.errno, error.strerror, STDOUT) from error


def put(text: str) -> None:
    """Write a text to standard output as it is; errors as of :func:`say`."""
    with _writing():
        sys.stdout.write(text)


@contextlib.contextmanager
def binary() -> Iterator[BinaryIO]:
    """Standard output for bytes; errors as of :func:`say`."""
    with _writing():
        yield sys.stdout.buffer
        sys.stdout.flush()


def flush() -> None:
    """Everything that was printed is written; errors as of :func:`say`."""
    with _writing():
        sys.stdout.flush()


def complain(text: str) -> None:
    """A line on standard error, where that can be written to."""
    with interruption.printing():
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Nobody reads this stream, or its disk is full: what is still to be written to it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def hold() -> bool:
    """Keep the descriptors 0 to 2, should they be closed, from becoming files of ours; whether standard output is open.

    What is written to a standard error that is closed goes nowhere.
    """
    is_open = [_is_open(number) for number in range(3)]
    for number in range(3):
        if not is_open[number]:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the program
    return sys.stdout is not None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

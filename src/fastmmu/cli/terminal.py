"""What the terminal can do, and writing to it."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TextIO

__all__ = ["colour", "say", "width"]

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
    """Print to standard output, with ASCII in place of what its encoding has not."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    print(text)

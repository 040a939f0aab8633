"""Plain-text tables: right-aligned numbers, headings in groups, colour only where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Cell", "Column", "number", "paint", "render", "width_of"]

_ANSI = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_GAP = "  "
_UNITS = (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))


class Cell(NamedTuple):
    """What stands in a table: a text and the name of a style ("" = none)."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column; neighbours with the same `group` share a heading above. `align` is "<" or ">"."""

    title: str
    group: str = ""
    align: str = ">"


def number(n: float) -> str:
    """A count in at most five characters: 99999, 123k, 1.23M, 45.6G."""
    if n < 100_000:
        return str(int(n))
    value, unit = next(((n / scale, unit) for unit, scale in _UNITS if n / scale < 999.5), (n / 1e12, "T"))
    digits = 0 if unit == "k" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def paint(text: str, style: str, colour: bool) -> str:
    """`text` in a style, by ANSI escapes, if `colour`."""
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m" if colour and style and text else text


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None]) -> list[int]:
    widths = [max([len(column.title), *(len(row[i].text) for row in rows if row)]) for i, column in enumerate(columns)]
    for first, last in _groups(columns):
        span = sum(widths[first:last]) + len(_GAP) * (last - first - 1)
        widths[first] += max(0, len(_heading(columns[first].group, last - first)) - span)
    return widths


def _groups(columns: Sequence[Column]) -> list[tuple[int, int]]:
    """[first, last) of each run of columns that share a heading."""
    runs: list[tuple[int, int]] = []
    for i, column in enumerate(columns):
        if column.group and runs and runs[-1][1] == i and columns[i - 1].group == column.group:
            runs[-1] = (runs[-1][0], i + 1)
        elif column.group:
            runs.append((i, i + 1))
    return runs


def _heading(group: str, columns: int) -> str:
    return f" {group} " if columns > 1 else group


def width_of(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None]) -> int:
    """Characters that a line of the table takes."""
    widths = _widths(columns, rows)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def render(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None], *, colour: bool = False) -> list[str]:
    """The lines of a table; a row None is an empty line."""
    widths = _widths(columns, rows)
    starts = [sum(widths[:i]) + len(_GAP) * i for i in range(len(widths))]
    lines = []
    if groups := _groups(columns):
        heading = ""
        for first, last in groups:
            span = starts[last - 1] + widths[last - 1] - starts[first]
            text = _heading(columns[first].group, last - first)
            line = "─" if last - first > 1 and span >= len(text) + 4 else " "
            heading = heading.ljust(starts[first]) + (text.center(span, line) if last - first > 1 else text.rjust(span))
        lines.append(paint(heading.rstrip(), "dim", colour))
    titles = [f"{column.title:{column.align}{width}}" for column, width in zip(columns, widths, strict=True)]
    lines.append(paint(_GAP.join(titles).rstrip(), "bold", colour))
    lines.append(paint("─" * (starts[-1] + widths[-1]), "dim", colour))
    for row in rows:
        cells = zip(row or (), columns, widths, strict=True) if row else ()
        padded = [paint(f"{cell.text:{column.align}{width}}", cell.style, colour) for cell, column, width in cells]
        lines.append(_GAP.join(padded).rstrip())
    return lines

"""Plain-text tables: right-aligned numbers, headings in groups, colour only where asked for.

A table that is wider than the line is folded: some of its columns below the others, each part with the first column.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Cell", "Column", "number", "paint", "prose", "render", "width_of"]

_ANSI = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_ESCAPE = re.compile("\x1b\\[[0-9;]*m")
_GAP = "  "
_NARROW = 24  # characters that a column of words has at least
_UNITS = (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))


class Cell(NamedTuple):
    """What stands in a table: a text and the name of a style ("" = none)."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column; neighbours with the same `group` share a heading above. `align` is "<" or ">".

    `words`: its cells may take several lines, where there is no room for one.
    """

    title: str
    group: str = ""
    align: str = ">"
    words: bool = False


Row = Sequence[Cell] | None


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


def _widths(columns: Sequence[Column], rows: Sequence[Row]) -> list[int]:
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


def width_of(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    """Characters that a line of the table takes."""
    widths = _widths(columns, rows)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def prose(text: str, width: int) -> list[str]:
    """A line as the lines that it takes, split between words; further ones are indented. Escapes have no width."""
    if len(text) <= width or _length(text) <= width:
        return [text]
    indent = " " * min(len(text) - len(text.lstrip()) + 2, width // 3)
    lines = [""]
    for word in re.findall(r"\s*\S+", text):
        if lines[-1].strip() and _length(lines[-1] + word) > width:
            lines.append(indent + word.lstrip())
        else:
            lines[-1] += word
    return lines


def _length(text: str) -> int:
    return len(_ESCAPE.sub("", text))


def render(
    columns: Sequence[Column], rows: Sequence[Row], *, width: int | None = None, keep: int = 1, colour: bool = False
) -> list[str]:
    """The lines of a table; a row None is an empty line.

    :param width: characters of a line; None: as many as it takes. :param keep: so many columns begin each part.
    """
    lines: list[str] = []
    for chosen in [range(len(columns))] if width is None else _parts(columns, rows, width, keep):
        part = [columns[i] for i in chosen]
        cells: list[Row] = [row and [row[i] for i in chosen] for row in rows]
        if width is not None:
            part, cells = _narrowed(part, cells, width, keep)
        lines += [*([""] if lines else []), *_lines(part, cells, colour)]
    return lines


def _parts(columns: Sequence[Column], rows: Sequence[Row], width: int, keep: int) -> list[list[int]]:
    """Which columns stand side by side: as many as fit, those of a group together where these fit."""
    first = list(range(keep))
    parts: list[list[int]] = []
    left = list(range(keep, len(columns)))
    while left:
        fitting = [n for n in range(1, len(left) + 1) if _least(columns, rows, first + left[:n]) <= width]
        n = max(fitting, default=1)
        if n < len(left) and columns[left[n]].group and columns[left[n]].group == columns[left[n - 1]].group:
            start = next(i for i in range(n) if columns[left[i]].group == columns[left[n]].group)
            n = start or n  # the group begins the next part
        parts.append(first + left[:n])
        left = left[n:]
    return parts or [first]


def _least(columns: Sequence[Column], rows: Sequence[Row], chosen: Sequence[int]) -> int:
    """Characters that these columns take side by side, those of words at their narrowest."""
    part = [columns[i] for i in chosen]
    cells: list[Row] = [
        row and [Cell(row[i].text[:_NARROW]) if columns[i].words else row[i] for i in chosen] for row in rows
    ]
    return width_of(part, cells)


def _narrowed(part: list[Column], rows: list[Row], width: int, keep: int) -> tuple[list[Column], list[Row]]:
    """The columns and rows as they fit: words on several lines; where nothing else helps, first cells are cut."""
    over = width_of(part, rows) - width
    for i, column in enumerate(part):
        if over > 0 and column.words:
            widest = max(len(row[i].text) for row in rows if row)
            rows = _wrapped(rows, i, max(_NARROW, widest - over))
            over = width_of(part, rows) - width
    if over > 0 and keep:
        widest = max([len(part[0].title), *(len(row[0].text) for row in rows if row)])
        room = max(_NARROW // 2, widest - over)
        part = [replace(part[0], title=_cut(part[0].title, room)), *part[1:]]
        rows = [row and [row[0]._replace(text=_cut(row[0].text, room)), *row[1:]] for row in rows]
    return part, rows


def _wrapped(rows: list[Row], i: int, room: int) -> list[Row]:
    found: list[Row] = []
    for row in rows:
        if not row:
            found.append(row)
            continue
        for n, line in enumerate(textwrap.wrap(row[i].text, room, break_on_hyphens=False) or [""]):
            rest = row if n == 0 else [Cell("")] * len(row)
            found.append([*rest[:i], row[i]._replace(text=line), *rest[i + 1 :]])
    return found


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _lines(columns: Sequence[Column], rows: Sequence[Row], colour: bool) -> list[str]:
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

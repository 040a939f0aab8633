"""Two files of results side by side: which figures differ, whatever made the files and however long it took."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmmu.errors import ConfigError
from fastmmu.machine.wholly import read_whole
from fastmmu.report.files import arrow, parquet_table

__all__ = ["LEFT_OUT", "differences", "read_rows"]

LEFT_OUT = ("seconds", "path", "command", "fastmmu")
"""Columns in which two runs of the same thing differ: wall time, and what named them."""

Row = dict[str, str]


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file that a command or :func:`fastmmu.report.save` wrote, as text; nested values: keys with dots.

    :raises ConfigError: it is none. :raises OSError: it cannot be read.
    """
    name, suffix = os.fspath(path), Path(path).suffix
    if suffix == ".parquet":
        pyarrow = arrow()
        try:
            found = parquet_table(read_whole(path)).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ConfigError(f"{name}: no Parquet file: {error}") from error
        return [_flat(row) for row in found]
    text = read_whole(path).decode("utf-8", "backslashreplace")
    if suffix != ".json":
        reader = csv.DictReader(text.splitlines())
        rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise ConfigError(f"{name}: lines with more or fewer values than names; give a file of results")
        return rows
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}: no JSON: {error}") from error
    lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else []
    if len(lists) != 1 or not all(isinstance(row, dict) for row in lists[0]):
        raise ConfigError(f"{name}: no file of results: it has no list of them")
    return [_flat(row) for row in lists[0]]


def _flat(row: dict[str, Any], before: str = "") -> Row:
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = "" if value is None else str(value)
    return flat


def differences(first: Sequence[Row], second: Sequence[Row], leave_out: Sequence[str] = LEFT_OUT) -> list[str]:
    """A line for each value that differs, with both; none: they are equal.

    Rows go together by their texts (trace, scheme, ...), those of the same texts in their order.
    """
    lines = []
    columns = dict.fromkeys(key for row in (*first, *second) for key in row if key not in leave_out)
    texts = [key for key in columns if not all(_is_number(row.get(key, "")) for row in (*first, *second))]
    left, right = _by_texts(first, texts), _by_texts(second, texts)
    for key in dict.fromkeys([*left, *right]):
        ours, theirs = left.get(key, []), right.get(key, [])
        said = [value for text, value in zip(texts, key, strict=True) if text != "content"]
        name = ", ".join(dict.fromkeys(value for value in said[:4] if value)) or "row"
        for a, b in zip(ours, theirs, strict=False):
            differing = [column for column in columns if not _equal(a.get(column), b.get(column))]
            lines += [f"{name}: {column} {_pair(a.get(column), b.get(column))}" for column in differing]
        for rows, where in ((ours[len(theirs) :], "first"), (theirs[len(ours) :], "second")):
            lines += [f"{name}: only in the {where} file"] * len(rows)
    return lines


def _by_texts(rows: Sequence[Row], texts: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(text, "") for text in texts), []).append(row)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _equal(a: str | None, b: str | None) -> bool:
    """As numbers where they are; a counter that a file lacks was 0 in it."""
    if a is None or b is None:
        return not (a or b) or (_is_number(a or b or "") and float(a or b or 0) == 0)
    return a == b or (bool(a and b) and _is_number(a) and _is_number(b) and float(a) == float(b))


def _pair(a: str | None, b: str | None) -> str:
    if a is None or b is None:
        return f"is in the {'second' if a is None else 'first'} file alone"
    more = f" ({float(b) / float(a) - 1:+.2%})" if _is_number(a) and _is_number(b) and float(a or 0) else ""
    return f"{a or 'none'} -> {b or 'none'}{more}"

"""Results in files: JSON, CSV, Parquet. A file appears under its name only when it is complete."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.machine.result import Result
from fastmmu.report.rows import rows, slowdowns
from fastmmu.trace.whole import whole_file

__all__ = [
    "FORMATS", "arrow", "check_target", "encode", "encode_rows", "made_by", "parquet_table", "save", "whole_file",
    "write_whole",
]  # fmt: skip

FORMATS = ("json", "csv", "parquet")
_json = msgspec.json.Encoder(enc_hook=lambda number: number.item()).encode  # of NumPy


@checked
def save(
    results: Sequence[Result], path: str | os.PathLike[str], format: str | None = None, *, command: str = ""
) -> None:
    """Write results to a file, in place of one that is there.

    :param format: "json" (everything, nested), "csv" or "parquet" (a row a run, see :func:`rows`, and ``fastmmu``, the
        version, and ``command``); None: by suffix. :param command: what made them, for the file.
    :raises ConfigError: the format is none of these. :raises MissingExtraError: Parquet without pyarrow.
    :raises OSError: the file cannot be written; one that is there stays as it was.
    """
    chosen = format or Path(path).suffix.removeprefix(".")
    write_whole(path, encode(results, chosen, command))


def encode(results: Sequence[Result], format: str, command: str = "") -> bytes:
    """Results as the bytes of a file, see :func:`save`."""
    if format == "json":
        every = [{**result.to_dict(), "slowdown": of} for result, of in zip(results, slowdowns(results), strict=True)]
        return (json.dumps({**made_by(command), "results": every}, indent=2) + "\n").encode()
    return encode_rows(rows(results), format, command=command)


def encode_rows(table: Sequence[dict[str, Any]], format: str, key: str = "rows", command: str = "") -> bytes:
    """Flat rows, all with the same keys, as the bytes of a file; JSON has them under `key`.

    The file says which version of fastmmu made it, and by which command line: JSON once, others in each row.
    """
    if format == "json":
        made = b"".join(b"  %b: %b,\n" % (_json(name), _json(value)) for name, value in made_by(command).items())
        lines = b",\n    ".join(map(_json, table))
        return b"{\n%b  %b: %b\n}\n" % (made, _json(key), b"[\n    %b\n  ]" % lines if table else b"[]")
    stamped = [{**row, **made_by(command)} for row in table]
    if format == "csv":
        return _csv(stamped).encode()
    if format == "parquet":
        return _parquet(stamped)
    raise ConfigError(f"no format {format!r} of results; there are {', '.join(FORMATS)}")


def made_by(command: str) -> dict[str, str]:
    """What a file says of how it was made: version and command line."""
    from fastmmu import __version__

    text = command.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # names may be no text
    return {"fastmmu": __version__, "command": text}


def check_target(path: str | os.PathLike[str], format: str) -> None:
    """Find out before a long run, and not after it, that a file cannot be written.

    :raises OSError: what writing it would raise. :raises MissingExtraError: Parquet without pyarrow.
    """
    if format == "parquet":
        arrow()
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(21, "is a directory; name a file in it", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"there is no directory {target.parent}; make it first", str(path))
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise PermissionError(13, "no permission to write", str(path))


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that is complete or is not there; a link is followed, a device or pipe is written to."""
    with whole_file(path) as file:
        file.write(data)


def _csv(table: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    if table:
        keys = list(table[0])
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(keys)
        writer.writerows([row[key] for key in keys] for row in table)
    return text.getvalue()


def arrow() -> Any:
    """The module pyarrow, with its part for Parquet.

    :raises MissingExtraError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("a Parquet file", "arrow") from error
    return pyarrow


def parquet_table(data: bytes) -> Any:
    """The pyarrow.Table of a Parquet file, read in this thread: threads of Arrow's that a process has when it ends can
    abort it (std::terminate).

    :raises pyarrow.ArrowInvalid: it is none.
    """
    pyarrow = arrow()
    return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False).read(use_threads=False)


def _parquet(table: Sequence[dict[str, Any]]) -> bytes:
    pyarrow = arrow()
    columns = {key: [row[key] for row in table] for key in table[0]} if table else {}
    types = {key: _arrow_type(pyarrow, key, column) for key, column in columns.items()}
    data_table = pyarrow.table({key: pyarrow.array(column, types[key]) for key, column in columns.items()})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(data_table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _arrow_type(pyarrow: Any, key: str, column: Sequence[Any]) -> Any:
    """The same type whatever the values of this table are, so that files of several runs go together."""
    kinds = {type(value) for value in column if value is not None}
    if key == "slowdown" or float in kinds:
        return pyarrow.float64()
    if bool in kinds:
        return pyarrow.bool_()
    return pyarrow.int64() if int in kinds else pyarrow.string()

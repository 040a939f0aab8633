"""The log of VM exits in files, written as the exits come: a row an exit, or a line as tracers of Linux print them.

.arrow, .feather   Arrow IPC      .parquet   Parquet      .csv
.txt               as `trace-cmd report` prints kvm:kvm_exit
.perf              as `perf script` does
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.errors import ConfigError, MissingExtraError, StateError
from fastmmu.exits import N_REASONS, REASON_NAMES, FaultClass
from fastmmu.machine.exit_log import KINDS, ExitLog
from fastmmu.report.files import check_target, made_by
from fastmmu.report.tracepoint import exit_lines
from fastmmu.trace.whole import whole_file

__all__ = ["COLUMNS", "EXIT_FORMATS", "ExitFile", "check_exits", "save_exits"]

Rows = npt.NDArray[np.void]

EXIT_FORMATS = ("arrow", "feather", "parquet", "csv", "txt", "perf")
COLUMNS = ("trace", "vcpu", "time", "reason", "class", "qualification", "gpa", "gla", "rip", "intr_info", "error_code",
           "kind", "cycles")  # fmt: skip
"""Of the rows: ``trace``, the name of what was run, then the fields of ``fastmmu.dtypes.EXIT_DTYPE``, reason, class and
kind by their names. In CSV addresses, qualifications and codes are hexadecimal."""

_NAMES = {
    "reason": REASON_NAMES,
    "class": tuple(each.name.lower() for each in FaultClass),
    "kind": KINDS,
}
_HEXADECIMAL = ("qualification", "gpa", "gla", "rip", "intr_info", "error_code")
_AT_ONCE = 1 << 15  # records that are written together


def check_exits(path: str | os.PathLike[str]) -> str:
    """Find out before a long run that a log cannot be written; its format.

    :raises ConfigError: the suffix is none of EXIT_FORMATS. :raises OSError: what writing it would raise.
    :raises MissingExtraError: Arrow or Parquet without pyarrow.
    """
    format = Path(path).suffix.removeprefix(".").lower()
    if format not in EXIT_FORMATS:
        raise ConfigError(f"{os.fspath(path)}: a log of exits is one of {', '.join(EXIT_FORMATS)}; name the file so")
    if format in ("arrow", "feather", "parquet"):
        _arrow()
    check_target(path, format)
    return format


class ExitFile:
    """A file that exits are written to as they come; it appears when the block ends, whole, and not if that fails.

    >>> with ExitFile("exits.arrow") as file:
    ...     fastmmu.simulate(trace, config, exits=file.write)

    :param path: of a file, whose suffix says what it is: one of ``EXIT_FORMATS``. :param command: what made it, for the
        file. :param vendor: whose names and codes a tracer would print: "intel", or "amd".
    :raises ConfigError, OSError, MissingExtraError: as :func:`check_exits`.
    """

    @checked
    def __init__(
        self, path: str | os.PathLike[str], *, command: str = "", vendor: Literal["intel", "amd"] = "intel"
    ) -> None:
        self.format, self.path = check_exits(path), path
        self._made, self._vendor = made_by(command), vendor
        self._stack = contextlib.ExitStack()
        self._writer: _Writer | None = None
        self._waiting: list[tuple[str, Rows]] = []
        self._last: Rows | None = None
        self._writing = self._kept = False

    def __enter__(self) -> ExitFile:
        file = self._stack.enter_context(whole_file(self.path))
        self._writer = _WRITERS[self.format](file, self._made, self._vendor)
        return self

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is not None and not self._kept:
            self._drop()
            self._stack.__exit__(*failure)
            return
        with self._stack:
            try:
                self.keep()
            except BaseException:
                self._drop()
                raise

    @checked
    def write(self, records: npt.NDArray[np.void], trace: str = "") -> None:
        """Add exits, an array of ``fastmmu.dtypes.EXIT_DTYPE``; the same array twice in a row is written once.

        :raises StateError: no exits; the file is not open, or a write before was interrupted.
        """
        if records.dtype != EXIT_DTYPE or records.ndim != 1:
            raise StateError(f"records of dtype {records.dtype} are no exits; give a 1-D array of EXIT_DTYPE")
        if self._writer is None or self._kept:
            raise StateError("this log of exits is not open; write in the block of a `with`")
        if records is self._last:
            return
        self._waiting, self._last = [*self._waiting, (trace, records)], records  # at once, whenever a signal comes
        if sum(len(part) for _, part in self._waiting) >= _AT_ONCE:
            self._flush()

    def keep(self) -> None:
        """The file is whole as it is, whatever ends the block."""
        if self._writer is None or self._kept:
            return
        self._flush()
        self._writer.end()
        self._kept = True

    def _drop(self) -> None:
        """There is no file: what writes it ends while it can."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.end()

    def _flush(self) -> None:
        assert self._writer is not None
        if self._writing:
            raise StateError("the log of exits was interrupted while it was written; there is no file")
        self._writing = True
        for trace in dict.fromkeys(trace for trace, _ in self._waiting):
            self._writer.write(np.concatenate([part for of, part in self._waiting if of == trace]), trace)
        self._waiting = []
        self._writing = False


@checked
def save_exits(
    log: ExitLog,
    path: str | os.PathLike[str],
    *,
    trace: str = "",
    command: str = "",
    vendor: Literal["intel", "amd"] = "intel",
) -> None:
    """Write a log of exits to a file, in place of one that is there: the parameters of :class:`ExitFile`.

    :param trace: name of what was run, for the file.
    :raises ConfigError, OSError, MissingExtraError: as :func:`check_exits`; a file that is there stays as it was.
    """
    with ExitFile(path, command=command, vendor=vendor) as file:
        file.write(log.records, trace)


# ---- one class a kind of file -------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, file: BinaryIO, made: dict[str, str], vendor: str) -> None:
        self.file, self.made, self.vendor = file, made, vendor
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError

    def write(self, records: Rows, trace: str) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Nothing follows the last record."""


class _Csv(_Writer):
    def begin(self) -> None:
        self.file.write((",".join(COLUMNS) + "\n").encode())

    def write(self, records: Rows, trace: str) -> None:
        columns = [self._column(name, records, trace) for name in COLUMNS]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
        self.file.write(text.getvalue().encode("utf-8", "surrogateescape"))

    def _column(self, name: str, records: Rows, trace: str) -> list[Any]:
        if name == "trace":
            return [trace] * len(records)
        values = records[name].tolist()
        if name in _NAMES:
            names = _NAMES[name]
            return [names[value] for value in values]
        return [f"{value:#x}" for value in values] if name in _HEXADECIMAL else values


class _Text(_Writer):
    form = "trace-cmd"

    def begin(self) -> None:
        made = f"fastmmu {self.made['fastmmu']}" + (f": {self.made['command']}" if self.made["command"] else "")
        self.file.write(f"# {made}\n# time stamps: accesses of the trace, as microseconds\n".encode())

    def write(self, records: Rows, trace: str) -> None:
        lines = exit_lines(records, trace, form=self.form, vendor=self.vendor)
        self.file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


class _Perf(_Text):
    form = "perf"


class _Arrow(_Writer):
    def begin(self) -> None:
        self.pa = _arrow()
        types = [self.type_of(name) for name in COLUMNS]
        metadata = {**self.made, "time": "accesses of the trace begun until then"}
        self.schema = self.pa.schema(list(zip(COLUMNS, types, strict=True)), metadata=metadata)
        self.out = self.open(self.schema)

    def open(self, schema: Any) -> Any:
        return self.pa.ipc.new_file(self.pa.PythonFile(self.file, mode="w"), schema)

    def type_of(self, name: str) -> Any:
        if name == "trace":
            return self.pa.string()
        if name in _NAMES:
            return self.pa.dictionary(self.pa.uint8(), self.pa.string())
        return self.pa.from_numpy_dtype(EXIT_DTYPE[name])

    def write(self, records: Rows, trace: str) -> None:
        for first in range(0, len(records), 4 * _AT_ONCE):
            part = records[first : first + 4 * _AT_ONCE]
            columns = [self.column(name, part, trace) for name in COLUMNS]
            self.out.write_batch(self.pa.record_batch(columns, schema=self.schema))

    def column(self, name: str, records: Rows, trace: str) -> Any:
        if name == "trace":
            known = trace.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # it may be no text
            return self.pa.repeat(known, len(records))
        values = np.ascontiguousarray(records[name])
        if name in _NAMES:
            return self.pa.DictionaryArray.from_arrays(values.astype(np.uint8), self.pa.array(_NAMES[name]))
        return self.pa.array(values)

    def end(self) -> None:
        self.out.close()


class _Parquet(_Arrow):
    def open(self, schema: Any) -> Any:
        return self.pa.parquet.ParquetWriter(self.pa.PythonFile(self.file, mode="w"), schema)


_WRITERS: dict[str, Callable[[BinaryIO, dict[str, str], str], _Writer]] = {
    "arrow": _Arrow,
    "feather": _Arrow,
    "parquet": _Parquet,
    "csv": _Csv,
    "txt": _Text,
    "perf": _Perf,
}
assert tuple(_WRITERS) == EXIT_FORMATS
assert len(REASON_NAMES) == N_REASONS


def _arrow() -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("a log of exits in Arrow or Parquet", "arrow") from error
    return pyarrow

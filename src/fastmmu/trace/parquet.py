"""Apache Parquet; the columns: `table`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any

from fastmmu.errors import TraceError
from fastmmu.trace.arrow import rows_of, schema_of
from fastmmu.trace.base import Trace
from fastmmu.trace.codecs import codec_of_bytes
from fastmmu.trace.events import CHUNK, Batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.table import Table, pyarrow

__all__ = ["READER", "ParquetTrace", "looks_like", "write"]

_MAGIC = b"PAR1"
_ROWS = 1 << 16  # of a batch that is decoded
_GROUP = 1 << 20  # rows of a group that is written


def looks_like(head: bytes) -> bool:
    """Whether a file begins as Parquet."""
    return head.startswith(_MAGIC)


def _parquet() -> Any:
    pyarrow("a Parquet trace")
    from pyarrow import parquet

    return parquet


class ParquetTrace(FileTrace):
    """A Parquet file of events, which is read a group of rows at a time."""

    format = "parquet"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._done = 0
        with self._open() as file:
            self.total = int(file.metadata.num_rows)
            table = Table(file.schema_arrow, path)
            counted = (file.schema_arrow.metadata or {}).get(b"fastmmu.instructions", b"").decode("latin-1")
            self.instructions = "column" if "instructions" in table.columns else counted or None

    def progress(self) -> float | None:
        return self._done / self.total if self.total else None

    def _open(self) -> Any:
        parquet = _parquet()
        with open(self.path, "rb") as file:
            head = file.read(16)
        if (codec := codec_of_bytes(head)) is not None:
            raise TraceError(f"a Parquet file is read by its end: decompress it first (.{codec})", path=self.path)
        try:
            # a name of a file, never a URL
            return parquet.ParquetFile(pyarrow("a Parquet trace").OSFile(os.fsencode(self.path)), pre_buffer=False)
        except Exception as error:
            raise self._broken(error) from error

    def _pass(self, chunk: int) -> Iterator[Batch]:
        self._done = 0
        with self._open() as file:
            table = Table(file.schema_arrow, self.path)
            found = file.iter_batches(batch_size=min(chunk, _ROWS), columns=list(table.columns.values()))
            while True:
                try:
                    rows = next(found, None)
                except Exception as error:
                    raise self._broken(error) from error
                if rows is None:
                    break
                if rows.num_rows:
                    batch = table.batch(rows, self._done)
                    self._done += len(batch)
                    yield batch
        if self._done != self.total:
            raise TraceError(f"the file promises {self.total} events, there are {self._done}", path=self.path)
        if not self._done:
            raise self._nothing()

    def _broken(self, error: Exception) -> TraceError:
        said = " ".join(str(error).split()) or type(error).__name__
        return TraceError(f"the Parquet data is malformed or truncated: {said}", path=self.path)


def write(trace: Trace, out: IO[bytes], compression: str | None) -> None:
    """Write the events to an open file; `compression` of the pages: None, "lz4" or "zstd"."""
    parquet = _parquet()
    pa = pyarrow("a Parquet trace")
    metadata = {} if trace.instructions is None else {"fastmmu.instructions": trace.instructions}
    schema = schema_of(pa, trace.instructions, metadata)
    with parquet.ParquetWriter(pa.PythonFile(out, mode="w"), schema, compression=compression or "none") as file:
        for batch in trace.batches(CHUNK):
            file.write_batch(rows_of(pa, batch, schema), row_group_size=_GROUP)


READER = ParquetTrace

"""fastmmu's own file: an Apache Arrow IPC file with the columns op (uint8), size (uint8) and addr (uint64).

Any Arrow implementation reads it; buffers may be lz4- or zstd-compressed. The schema's metadata holds
``fastmmu.trace`` (version of this convention, "1") and, where known, ``fastmmu.events``.

An IPC file is an IPC stream between two magic words, followed by an index, so one pass needs no seeking and
memory for one record batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from fastmmu.errors import MissingExtraError, TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK, Batch, check_events
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.source import ByteSource

__all__ = ["READER", "ArrowTrace", "looks_like", "write"]

MAGIC = b"ARROW1"
_VERSION = b"1"
_COLUMNS = ("op", "size", "addr")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError("an .arrow trace", "arrow") from error
    return pyarrow


def looks_like(head: bytes) -> bool:
    """Whether a file begins as an Arrow IPC file."""
    return head.startswith(MAGIC)


class ArrowTrace(FileTrace):
    """An Arrow IPC file of events."""

    format = "arrow"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with ByteSource(path) as source:
            self._open(source)

    def _open(self, source: ByteSource) -> Any:
        """A stream reader whose schema is right; sets `total`."""
        pa = _pyarrow()
        if source.read(8) != MAGIC + b"\0\0":
            raise TraceError("not an Arrow IPC file", path=self.path, where="byte 0")
        try:
            reader = pa.ipc.open_stream(pa.PythonFile(_Readable(source), mode="r"))
            self._check_columns(reader.schema)
            self.total = self._promised(reader.schema.metadata or {})
        except Exception as error:
            raise self._broken(error, source) from error
        return reader

    def _check_columns(self, schema: Any) -> None:
        pa = _pyarrow()
        for column, dtype in zip(_COLUMNS, (pa.uint8(), pa.uint8(), pa.uint64()), strict=True):
            found = schema.get_all_field_indices(column)
            if len(found) != 1 or schema.field(found[0]).type != dtype:
                have = ", ".join(f"{field.name}: {field.type}" for field in schema)
                raise TraceError(f"there is no one column {column} of type {dtype} in ({have})", path=self.path)

    def _promised(self, metadata: dict[bytes, bytes]) -> int | None:
        version = metadata.get(b"fastmmu.trace", _VERSION)
        if version != _VERSION:
            raise TraceError(f"version {version!r} of the trace convention is not known, only 1", path=self.path)
        events = metadata.get(b"fastmmu.events")
        if events is not None and not (events.isdigit() and len(events) < 20):
            raise TraceError(f"the metadata promises {events!r} events", path=self.path)
        return None if events is None else int(events)

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        reader = self._open(source)
        first = 0
        while True:
            try:
                rows = reader.read_next_batch()
                rows.validate(full=True)
            except StopIteration:
                break
            except Exception as error:
                raise self._broken(error, source) from error
            columns = [rows.column(column) for column in _COLUMNS]
            if any(column.null_count for column in columns):
                raise TraceError("a column has nulls", path=self.path, where=f"after event {first}")
            batch = Batch(*(column.to_numpy(zero_copy_only=True) for column in columns))
            check_events(batch, first=first, path=self.path)
            first += len(batch)
            for start in range(0, len(batch), chunk):
                yield batch[start : start + chunk]
        self._check_end(source)
        if self.total not in (None, first):
            raise TraceError(f"the metadata promises {self.total} events, there are {first}", path=self.path)

    def _check_end(self, source: ByteSource) -> None:
        """The index and the closing magic word follow the stream: a file without them was cut."""
        tail = b""
        while piece := source.read(1 << 16):
            tail = (tail + piece)[-len(MAGIC) :]
        if tail != MAGIC:
            raise TraceError(
                "the end of the Arrow file is missing; it is truncated", path=self.path, where=f"byte {source.offset}"
            )

    def _broken(self, error: Exception, source: ByteSource) -> TraceError:
        if isinstance(error, TraceError):
            return error
        said = " ".join(str(error).split()) or type(error).__name__
        return TraceError(
            f"the Arrow data is malformed or truncated: {said}", path=self.path, where=f"near byte {source.offset}"
        )


class _Readable:
    """A ByteSource as the file object that pyarrow asks for."""

    closed = False

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def read(self, n: int) -> bytes:
        return self._source.read(n)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """The source is closed by whoever opened it."""


def write(trace: Trace, out: IO[bytes], compression: str | None) -> None:
    """Write the events to an open file; `compression` of the buffers: None, "lz4" or "zstd"."""
    pa = _pyarrow()
    metadata = {"fastmmu.trace": _VERSION}
    if trace.total is not None:
        metadata["fastmmu.events"] = str(trace.total).encode()
    types = (pa.uint8(), pa.uint8(), pa.uint64())
    schema = pa.schema(
        [pa.field(name, dtype, nullable=False) for name, dtype in zip(_COLUMNS, types, strict=True)], metadata=metadata
    )
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(pa.PythonFile(out, mode="w"), schema, options=options) as writer:
        for batch in trace.batches(CHUNK):
            arrays = [pa.array(np.ascontiguousarray(column)) for column in (batch.op, batch.size, batch.addr)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


READER = ArrowTrace

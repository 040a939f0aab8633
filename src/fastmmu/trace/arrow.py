"""fastmmu's own file: an Apache Arrow IPC file with the columns op (uint8), size (uint8) and addr (uint64), and, where
instructions are counted apart from fetches, instructions (uint32). Columns of other files: `table`.

Any Arrow implementation reads it; buffers may be lz4- or zstd-compressed. The schema's metadata holds
``fastmmu.trace`` (version of this convention, "1"), where known ``fastmmu.events``, and ``fastmmu.instructions``: where
they are counted, see :class:`fastmmu.trace.Trace`. A last batch, without rows, may have ``fastmmu.ended`` in its
metadata: why these are not all events that there were.

An IPC file is an IPC stream between two magic words, followed by an index, so one pass needs no seeking and
memory for one record batch; the stream alone is read, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK, Batch, empty_batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.names import printable
from fastmmu.trace.source import ByteSource
from fastmmu.trace.table import Table, pyarrow

__all__ = ["READER", "ArrowTrace", "Writer", "looks_like", "rows_of", "schema_of", "write"]

MAGIC = b"ARROW1"
_VERSION = b"1"
_MARK = b"\xff" * 4
_ENDED = b"fastmmu.ended"
_INSTRUCTIONS = (None, b"fetches", b"column")


def looks_like(head: bytes) -> bool:
    """Whether a file begins as an Arrow IPC file or stream."""
    return head.startswith(MAGIC) or _is_stream(head)


def _is_stream(head: bytes) -> bool:
    """A message of metadata begins with this mark, its length and the root of a table."""
    length = int.from_bytes(head[4:8], "little")
    return head[:4] == _MARK and 16 <= length < 1 << 24 and length % 8 == 0 and head[9:12] == bytes(3)


class ArrowTrace(FileTrace):
    """An Arrow IPC file, or stream, of events."""

    format = "arrow"
    _stream = False

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._ended = b""
        with ByteSource(path) as source:
            self._open(source)

    def _open(self, source: ByteSource) -> tuple[Any, _Readable]:
        """A stream reader whose schema is right, and the file that it reads; sets `total`."""
        pa = pyarrow("an .arrow trace")
        head = source.read(8)
        self._stream = head[:4] == _MARK
        if head != MAGIC + b"\0\0" and not self._stream:
            raise TraceError("not an Arrow IPC file", path=self.path, where="byte 0")
        try:
            file = _Readable(source, head if self._stream else b"")
            reader = pa.ipc.open_stream(pa.PythonFile(file, mode="r"))
            self._table = Table(reader.schema, self.path)
            self.total = self._promised(reader.schema.metadata or {})
        except Exception as error:
            raise self._broken(error, source) from error
        return reader, file

    def _promised(self, metadata: dict[bytes, bytes]) -> int | None:
        version = metadata.get(b"fastmmu.trace", _VERSION)
        if version != _VERSION:
            raise TraceError(f"version {version!r} of the trace convention is not known, only 1", path=self.path)
        events = metadata.get(b"fastmmu.events")
        if events is not None and not (events.isdigit() and len(events) < 20):
            raise TraceError(f"the metadata promises {events!r} events", path=self.path)
        counted = metadata.get(b"fastmmu.instructions")
        if counted not in _INSTRUCTIONS:
            raise TraceError(f"the metadata counts instructions in {counted!r}", path=self.path)
        self.instructions = counted.decode() if counted else None
        if "instructions" in self._table.columns:
            self.instructions = "column"
        return None if events is None else int(events)

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        reader, file = self._open(source)
        first = 0
        self._ended = b""
        while True:
            try:
                rows, said = reader.read_next_batch_with_custom_metadata()
                rows.validate(full=True)
            except StopIteration:
                break
            except Exception as error:
                raise self._broken(error, source) from error
            self._ended = (said or {}).get(_ENDED, self._ended)
            batch = self._table.batch(rows, first)
            first += len(batch)
            for start in range(0, len(batch), chunk):
                yield batch[start : start + chunk]
        self._check_end(source, file)
        if self.total not in (None, first):
            raise TraceError(f"the metadata promises {self.total} events, there are {first}", path=self.path)

    def notes(self) -> list[str]:
        if not self._ended:
            return []
        return [f"the recording was {printable(self._ended.decode('utf-8', 'backslashreplace'))}: more would have come"]

    def _check_end(self, source: ByteSource, file: _Readable) -> None:
        """The index and the closing magic word follow the stream: a file without them was cut."""
        if self._stream:
            if not file.tail.endswith(_MARK + bytes(4)):
                raise TraceError(
                    "the end of the Arrow stream is missing; it is truncated",
                    path=self.path,
                    where=f"byte {source.offset}",
                )
            return
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

    def __init__(self, source: ByteSource, head: bytes) -> None:
        self._source = source
        self._head = head
        self.tail = b""

    def read(self, n: int) -> bytes:
        data = self._head[:n]
        self._head = self._head[n:]
        data += self._source.read(n - len(data))
        self.tail = (self.tail + data[-8:])[-8:]
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """The source is closed by whoever opened it."""


class Writer:
    """Writes a trace batch by batch, in a `with` block; `compression` of the buffers: None, "lz4" or "zstd".

    ``instructions``, ``total``: see :class:`fastmmu.trace.Trace`.
    """

    def __init__(
        self,
        out: IO[bytes],
        *,
        instructions: str | None = None,
        total: int | None = None,
        compression: str | None = None,
    ) -> None:
        self._pa = pyarrow("an .arrow trace")
        metadata = {"fastmmu.trace": _VERSION}
        if instructions is not None:
            metadata["fastmmu.instructions"] = instructions.encode()
        if total is not None:
            metadata["fastmmu.events"] = str(total).encode()
        self._schema = schema_of(self._pa, instructions, metadata)
        options = self._pa.ipc.IpcWriteOptions(compression=compression)
        self._file = self._pa.ipc.new_file(self._pa.PythonFile(out, mode="w"), self._schema, options=options)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file; after an error there is nothing to complete."""
        self._file.__exit__(*error)

    def write(self, batch: Batch) -> None:
        """The next events."""
        self._file.write_batch(rows_of(self._pa, batch, self._schema))

    def mark(self, ended: str) -> None:
        """Say in the file, behind its events, why they are not all that there were."""
        rows = rows_of(self._pa, empty_batch(0), self._schema)
        self._file.write_batch(rows, custom_metadata={_ENDED: ended.encode()})


def write(trace: Trace, out: IO[bytes], compression: str | None) -> None:
    """Write the events to an open file; `compression` of the buffers: None, "lz4" or "zstd"."""
    with Writer(out, instructions=trace.instructions, total=trace.total, compression=compression) as writer:
        for batch in trace.batches(CHUNK):
            writer.write(batch)


def schema_of(pa: Any, instructions: str | None, metadata: dict[str, Any]) -> Any:
    """The columns of a trace that is written."""
    types = {"op": pa.uint8(), "size": pa.uint8(), "addr": pa.uint64()}
    if instructions == "column":
        types["instructions"] = pa.uint32()
    return pa.schema([pa.field(name, dtype, nullable=False) for name, dtype in types.items()], metadata=metadata)


def rows_of(pa: Any, batch: Batch, schema: Any) -> Any:
    """A batch as a record batch of this schema."""
    columns = [batch.op, batch.size, batch.addr]
    if len(schema) > len(columns):
        columns.append(batch.instructions_column())
    return pa.record_batch([pa.array(np.ascontiguousarray(column)) for column in columns], schema=schema)


READER = ArrowTrace

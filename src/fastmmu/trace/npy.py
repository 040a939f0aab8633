"""NumPy's .npy: a plain array of linear addresses, each a 1-byte read, or a structured one of whole events.

These may have a field `instructions`, those begun since the event before.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.events import CHUNK, EVENT_DTYPE, Batch, batch_of, check_events, first_outside
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.source import ByteSource

__all__ = ["READER", "NpyTrace", "looks_like", "write"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # bytes, as numpy.load
_MAX_RECORD = 64  # bytes; a record of op, size and addr has at most 24


def looks_like(head: bytes) -> bool:
    """Whether a file begins as a .npy file."""
    return head.startswith(_MAGIC)


class NpyTrace(FileTrace):
    """(n,) integers = linear addresses read, or (n,) records with op, addr, and, where there are, size, instructions.

    The data is streamed, so a trace larger than memory is fine and a file that shrinks meanwhile is an error.
    """

    format = "npy"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._look()

    def _look(self) -> None:
        """Read and check the header; sets `total`."""
        with ByteSource(self.path) as source:
            dtype, self.total = self._header(source)
            if "instructions" in (dtype.names or ()):
                self.instructions = "column"
            expected = source.offset + self.total * dtype.itemsize
            if source.codec is None and source.size != expected:
                raise TraceError(
                    f"the header promises {expected} bytes, the file has {source.size}",
                    path=self.path,
                    where=f"byte {min(expected, source.size)}",
                )

    def _header(self, source: Any) -> tuple[np.dtype[Any], int]:
        """dtype and length, checked; the source stands at the data afterwards."""
        intro = source.read(8)
        wide = 2 if intro[6:7] == b"\x01" else 4
        intro += source.read(wide)
        length = int.from_bytes(intro[8:], "little")
        if intro[:6] != _MAGIC or len(intro) < 8 + wide or length > _MAX_HEADER:
            raise TraceError("not a .npy file", path=self.path, where="byte 0")
        header = io.BytesIO(intro + source.read(length))
        try:
            version = npy_format.read_magic(header)
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, _, dtype = read(header)
        except Exception as error:  # whatever Python's own parser says
            raise TraceError(f"the .npy header is malformed: {error}", path=self.path, where="byte 0") from error
        return self._checked(shape, dtype)

    def _checked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
        if len(shape) != 1:
            raise TraceError(f"the array has shape {shape}; a trace is one-dimensional", path=self.path)
        if shape[0] < 1:
            raise TraceError("the array is empty", path=self.path)
        if dtype.names is None:
            if dtype.kind not in "ui":
                raise TraceError(f"the array has dtype {dtype}; give integer addresses", path=self.path)
        else:
            fields = {name: dtype[name] for name in dtype.names}
            good = {"op", "addr"} <= set(fields) <= {"op", "size", "addr", "instructions"}
            if not good or any(field.kind not in "ui" or field.shape for field in fields.values()):
                raise TraceError(
                    f"the records have the fields {dtype.descr}; give integers op, size, addr, instructions",
                    path=self.path,
                )
            if dtype.itemsize > _MAX_RECORD:
                raise TraceError(f"a record has {dtype.itemsize} bytes, more than {_MAX_RECORD}", path=self.path)
        return dtype, shape[0]

    def _from(self, first: int, chunk: int) -> Iterator[Batch]:
        with ByteSource(self.path) as source:
            if source.codec is None:
                yield from self._events(source, chunk, first)
                return
        yield from super()._from(first, chunk)

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        return self._events(source, chunk, 0)

    def _events(self, source: ByteSource, chunk: int, begin: int) -> Iterator[Batch]:
        dtype, total = self._header(source)
        start = source.offset
        if begin:
            source.skip(min(begin, total) * dtype.itemsize)
        for first in range(begin, total, chunk):
            rows = np.empty(min(chunk, total - first), dtype)
            got = source.fill(rows.view(np.uint8).data)
            if got < rows.nbytes:
                raise TraceError(
                    f"the data ends early: the header promises {start + total * dtype.itemsize} bytes",
                    path=self.path,
                    where=f"byte {source.offset}",
                )
            batch = self._batch(rows, first, start + first * dtype.itemsize)
            check_events(batch, first=first, path=self.path)
            yield batch
        if source.read(1):
            raise TraceError(
                "there is data beyond what the header promises", path=self.path, where=f"byte {source.offset - 1}"
            )

    def _batch(self, rows: npt.NDArray[Any], first: int, offset: int) -> Batch:
        if rows.dtype.names is None:
            return batch_of(self._column(rows, "address", np.uint64, offset))
        op = self._column(rows["op"], "op", np.uint8, offset)
        size = self._column(rows["size"], "size", np.uint8, offset) if "size" in rows.dtype.names else None
        batch = batch_of(self._column(rows["addr"], "address", np.uint64, offset), op, size)
        if "instructions" not in rows.dtype.names:
            return batch
        begun = self._column(rows["instructions"], "instructions", np.uint32, offset)
        return Batch(batch.op, batch.size, batch.addr, begun)

    def _column(
        self, values: npt.NDArray[Any], what: str, to: type[np.unsignedinteger], offset: int
    ) -> npt.NDArray[Any]:
        """`values` as `to`, refused where that would change one; `offset` is where they begin in the file."""
        bad = first_outside(values, to)
        if bad is not None:
            raise TraceError(
                f"{what} {values[bad]} is outside 0 to {np.iinfo(to).max}",
                path=self.path,
                where=f"byte {offset + bad * values.strides[0]}",
            )
        return np.ascontiguousarray(values, dtype=to)


_COUNTED = np.dtype([*EVENT_DTYPE.descr, ("instructions", "<u4")])
"""An event where instructions are counted apart from fetches."""


def _npy_header(n: int, dtype: np.dtype[Any]) -> bytes:
    """Header of a .npy file of `n` events."""
    out = io.BytesIO()
    fields = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
    npy_format.write_array_header_1_0(out, fields)
    return out.getvalue()


def write(trace: Trace, out: IO[bytes], compression: str | None = None) -> None:
    """Write the events, whole records of EVENT_DTYPE, to an open file.

    Where instructions are counted apart from fetches there is a field ``instructions``, uint32. That each fetch is one
    has no place in the file.
    """
    dtype = _COUNTED if trace.instructions == "column" else EVENT_DTYPE
    total = trace.total
    if total is None:  # the header comes first: count in a pass of its own
        total = sum(len(batch) for batch in trace.batches(CHUNK))
    out.write(_npy_header(total, dtype))
    done = 0
    for batch in trace.batches(CHUNK):
        rows = np.empty(len(batch), dtype)
        rows["op"], rows["size"], rows["addr"] = batch.op, batch.size, batch.addr
        if dtype is _COUNTED:
            rows["instructions"] = batch.instructions_column()
        out.write(rows.tobytes())
        done += len(batch)
    if done != total:
        raise TraceError(f"the trace has {done} events where {total} were promised", path=trace.path)


READER = NpyTrace

"""NumPy's .npz: an array alone is read as a .npy file is; of several, addr are linear addresses, op codes of
fastmmu.Op, size bytes, instructions those begun since the event before, of one length. Others are left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import TraceError
from fastmmu.trace import archive
from fastmmu.trace.events import Batch, batch_of, check_events
from fastmmu.trace.npy import NpyTrace

__all__ = ["READER", "NpzTrace", "is_npz", "looks_like"]

_TYPES: dict[str, type[np.unsignedinteger]] = {
    "addr": np.uint64, "op": np.uint8, "size": np.uint8, "instructions": np.uint32,
}  # fmt: skip


def looks_like(head: bytes) -> bool:
    """Never: what is in a .zip, its directory at the end tells. See :func:`is_npz`."""
    return False


def is_npz(path: str) -> bool:
    """Whether a file is a .zip of .npy files."""
    found = archive.names(path)
    return bool(found) and all(name.endswith(".npy") for name in found)


class NpzTrace(NpyTrace):
    """Arrays of one length, streamed side by side."""

    format = "npz"

    def __init__(self, path: str) -> None:
        self._names = {}
        found = archive.names(path)
        if len(found) == 1:
            self._names = {"addr": found[0]}
        else:
            self._names = {what: f"{what}.npy" for what in _TYPES if f"{what}.npy" in found}
        if "addr" not in self._names:
            raise TraceError(f"there is no array addr among {', '.join(found) or 'nothing'}", path=path)
        super().__init__(path)
        self._done = 0

    def _look(self) -> None:
        with ExitStack() as stack:
            arrays = self._open(stack)
        names = arrays["addr"][1].names or ()
        if "instructions" in (*arrays, *names):
            self.instructions = "column"

    def progress(self) -> float | None:
        return self._done / self.total if self.total else None

    def _open(self, stack: ExitStack) -> dict[str, tuple[_Member, np.dtype[Any]]]:
        """Each array and its dtype; sets `total`."""
        found = {}
        try:
            zipped = stack.enter_context(zipfile.ZipFile(self.path))
            for what, name in self._names.items():
                file = stack.enter_context(open(self.path, "rb"))  # noqa: SIM115 - closed by the stack
                member = _Member(archive.opened(zipped, file, zipped.getinfo(name)), self.path)
                dtype, n = self._header(member)
                if dtype.names is not None and len(self._names) > 1:
                    raise TraceError(f"{name} holds records; give integers", path=self.path)
                if what != "addr" and n != self.total:
                    raise TraceError(f"{name} has {n} elements where addr has {self.total}", path=self.path)
                self.total = n
                found[what] = member, dtype
        except archive.BROKEN as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"the .npz file cannot be read: {error}", path=self.path) from error
        return found

    def _pass(self, chunk: int) -> Iterator[Batch]:
        self._done = 0
        with ExitStack() as stack:
            arrays = self._open(stack)
            total = self.total or 0
            while self._done < total:
                n = min(chunk, total - self._done)
                rows = {what: member.rows(dtype, n) for what, (member, dtype) in arrays.items()}
                if len(arrays) == 1:
                    batch = self._batch(rows["addr"], self._done, arrays["addr"][0].offset - rows["addr"].nbytes)
                else:
                    columns: dict[str, npt.NDArray[Any]] = {}
                    for what, values in rows.items():
                        columns[what] = self._column(values, what, _TYPES[what], arrays[what][0].offset - values.nbytes)
                    batch = batch_of(columns["addr"], columns.get("op"), columns.get("size"))
                    if "instructions" in columns:
                        batch = Batch(batch.op, batch.size, batch.addr, columns["instructions"])
                check_events(batch, first=self._done, path=self.path)
                self._done += n
                yield batch
            for member, _ in arrays.values():
                if member.read(1):
                    raise TraceError("there is data beyond what the header promises", path=self.path)


class _Member:
    """An array in the archive, as the bytes of its file."""

    def __init__(self, file: archive.Member, path: str) -> None:
        self._file = file
        self._path = path
        self.offset = 0

    def read(self, n: int) -> bytes:
        data = bytearray()
        try:
            while len(data) < n and (piece := self._file.read(n - len(data))):
                data += piece
        except archive.BROKEN as error:
            raise TraceError(f"the .npz file cannot be read: {error}", path=self._path) from error
        self.offset += len(data)
        return bytes(data)

    def rows(self, dtype: np.dtype[Any], n: int) -> npt.NDArray[Any]:
        """The next `n` elements."""
        data = self.read(n * dtype.itemsize)
        if len(data) < n * dtype.itemsize:
            raise TraceError("the data ends early", path=self._path, where=f"byte {self.offset} of an array")
        return np.frombuffer(data, dtype)


READER = NpzTrace

"""Columns of Arrow data as events: which is which, and what they may hold.

    addr            linear address: integers (also address, va, vaddr, linear)
    op              codes of fastmmu.Op, integers; or is_write (also write, store): booleans, or 0 and 1
    size            bytes, integers 0 to 255
    instructions    begun since the event before, integers

All but the address may be missing: then all are reads, of 1 byte. Other columns are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import MissingExtraError, TraceError
from fastmmu.trace.events import Batch, batch_of, check_events, first_outside

__all__ = ["Table", "pyarrow"]

_NAMES = {
    "addr": ("addr", "address", "va", "vaddr", "linear"),
    "op": ("op",),
    "is_write": ("is_write", "write", "store"),
    "size": ("size",),
    "instructions": ("instructions",),
}


def pyarrow(what: str) -> Any:
    """The package. :raises MissingExtraError: it is not installed; `what` needs it."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError(what, "arrow") from error
    return pyarrow


class Table:
    """What the columns of a schema are. ``columns``: what an event needs and the name of its column."""

    def __init__(self, schema: Any, path: str) -> None:
        self._path = path
        self.columns: dict[str, str] = {}
        for what, names in _NAMES.items():
            found = [field for field in schema if field.name.lower() in names]
            if len(found) == 1 and self._good(found[0].type, boolean=what == "is_write"):
                self.columns[what] = found[0].name
            elif found or what == "addr":
                kind = "booleans" if what == "is_write" else "integers"
                have = ", ".join(f"{field.name}: {field.type}" for field in schema)
                raise TraceError(f"there is no one column {what} of {kind} in ({have})", path=path)
        if "op" in self.columns:
            self.columns.pop("is_write", None)

    @staticmethod
    def _good(dtype: Any, *, boolean: bool) -> bool:
        import pyarrow

        return bool(pyarrow.types.is_integer(dtype) or (boolean and pyarrow.types.is_boolean(dtype)))

    def batch(self, rows: Any, first: int) -> Batch:
        """The events of a record batch; `first`: number of the first of them."""
        addr = self._column(rows, "addr", np.uint64, first)
        assert addr is not None
        op = self._column(rows, "op", np.uint8, first)
        if op is None and (write := self._column(rows, "is_write", np.uint8, first)) is not None:
            if len(write) and int(write.max()) > 1:
                at = int((write > 1).argmax())
                raise TraceError(
                    f"is_write {write[at]} is neither 0 nor 1", path=self._path, where=f"event {first + at}"
                )
            op = write
        size = self._column(rows, "size", np.uint8, first)
        batch = batch_of(addr, op, size)
        instructions = self._column(rows, "instructions", np.uint32, first)
        if instructions is not None:
            batch = Batch(batch.op, batch.size, batch.addr, instructions)
        check_events(batch, first=first, path=self._path)
        return batch

    def _column(self, rows: Any, what: str, to: type[np.unsignedinteger], first: int) -> npt.NDArray[Any] | None:
        if what not in self.columns:
            return None
        column = rows.column(rows.schema.get_field_index(self.columns[what]))
        if column.null_count:
            raise TraceError(f"column {what} has nulls", path=self._path, where=f"after event {first}")
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype == np.bool_:
            values = values.astype(np.uint8)
        bad = first_outside(values, to)
        if bad is not None:
            raise TraceError(
                f"{what} {values[bad]} is outside 0 to {np.iinfo(to).max}",
                path=self._path,
                where=f"event {first + bad}",
            )
        return np.ascontiguousarray(values, dtype=to)

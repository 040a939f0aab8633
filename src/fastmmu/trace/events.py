"""Batches of events: the form in which traces go to the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmmu.errors import TraceError, WrongTypeError
from fastmmu.exits import VMX_REASONS
from fastmmu.ops import LAST_ACCESS, Op

__all__ = [
    "CHUNK",
    "EVENT_DTYPE",
    "U8",
    "U32",
    "U64",
    "Batch",
    "batch_of",
    "check_events",
    "concatenate",
    "empty_batch",
    "first_outside",
    "inserted",
]

U8: TypeAlias = npt.NDArray[np.uint8]
U32: TypeAlias = npt.NDArray[np.uint32]
U64: TypeAlias = npt.NDArray[np.uint64]

CHUNK = 1 << 18
"""Events of a batch unless the caller says otherwise."""

EVENT_DTYPE = np.dtype([("op", "u1"), ("size", "u1"), ("addr", "<u8")])
"""One event in a .npy file of whole events: 10 bytes, packed."""

_IS_OP = np.zeros(256, dtype=np.bool_)
_IS_OP[[int(op) for op in Op]] = True
_LIMITS = (
    (Op.EXIT, VMX_REASONS, "exit reason"),
    (Op.INTERRUPT, 256, "interrupt vector"),
    (Op.DEVICE_INTERRUPT, 512, "device interrupt"),
    (Op.INTERRUPT_FLAG, 2, "interrupt flag"),
)
"""Operations whose operand has few values: it is below the limit."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive events as three equally long, C-contiguous, possibly read-only columns.

    ``op`` uint8, codes of :class:`fastmmu.ops.Op`; ``size`` uint8, bytes; ``addr`` uint64, linear address or what
    the system event says; ``instructions`` uint32, those begun since the event before, None where the trace has no
    such column. ``len()`` is the number of events.

    Threads: columns are not written; share it.
    """

    op: U8
    size: U8
    addr: U64
    instructions: U32 | None = None

    def __len__(self) -> int:
        return len(self.addr)

    def __getitem__(self, rows: slice) -> Batch:
        """The same events as views; the slice may not skip or reverse."""
        if not isinstance(rows, slice):
            raise WrongTypeError(f"a batch is cut by a slice, batch[2:5], not by a {type(rows).__name__}")
        return self._of(rows)

    def take(self, rows: npt.NDArray[np.bool_]) -> Batch:
        """Copies of the events where `rows` (bool, one per event) is true."""
        if not isinstance(rows, np.ndarray) or rows.dtype != np.bool_ or rows.shape != self.addr.shape:
            raise WrongTypeError(f"rows must be an array of {len(self)} bools, one per event")
        return self._of(rows)

    def _of(self, rows: Any) -> Batch:
        counted = None if self.instructions is None else self.instructions[rows]
        return Batch(self.op[rows], self.size[rows], self.addr[rows], counted)

    def instructions_column(self) -> U32:
        """Instructions begun since the event before: where no column says so, each fetch is one."""
        return (self.op == Op.FETCH).astype(np.uint32) if self.instructions is None else self.instructions

    @property
    def accesses(self) -> int:
        """Number of reads, writes, modifies and fetches."""
        return int(np.count_nonzero(self.op <= LAST_ACCESS))


def empty_batch(n: int) -> Batch:
    """Room for `n` events, contents undefined."""
    return Batch(np.empty(n, np.uint8), np.empty(n, np.uint8), np.empty(n, np.uint64))


def batch_of(addr: U64, op: U8 | None = None, size: U8 | None = None) -> Batch:
    """Columns to a batch; without `op` all are reads, without `size` accesses are 1 byte and system events 0."""
    if op is None:
        op = np.zeros(len(addr), np.uint8)
    if size is None:
        size = (op <= LAST_ACCESS).astype(np.uint8)
    return Batch(np.ascontiguousarray(op), np.ascontiguousarray(size), np.ascontiguousarray(addr))


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch that holds the events of all of them, in order."""
    if not batches:
        return empty_batch(0)
    return Batch(
        np.concatenate([batch.op for batch in batches]),
        np.concatenate([batch.size for batch in batches]),
        np.concatenate([batch.addr for batch in batches]),
        None
        if any(batch.instructions is None for batch in batches)
        else np.concatenate([batch.instructions_column() for batch in batches]),
    )


def inserted(batch: Batch, before: npt.NDArray[np.intp], op: U8 | int, addr: U64 | int) -> Batch:
    """A batch with system events before these rows; they begin no instruction."""
    counted = None if batch.instructions is None else np.insert(batch.instructions, before, np.uint32(0))
    return Batch(
        np.insert(batch.op, before, np.asarray(op, np.uint8)),
        np.insert(batch.size, before, np.uint8(0)),
        np.insert(batch.addr, before, np.asarray(addr, np.uint64)),
        counted,
    )


def first_outside(values: npt.NDArray[Any], dtype: type[np.unsignedinteger]) -> int | None:
    """Index of the first of `values` (integers) that `dtype` cannot hold, or None."""
    if not len(values) or values.dtype == dtype:
        return None
    low, high = int(values.min()), int(values.max())
    limit = int(np.iinfo(dtype).max)
    if low >= 0 and high <= limit:
        return None
    return int(((values < 0) | (values > limit)).argmax())


def check_events(batch: Batch, *, first: int, path: str | None) -> None:
    """Raise TraceError at an operation that does not exist, or one whose operand does not.

    `first` is the position of the batch's first event in the trace, for the message.
    """
    op, addr = batch.op, batch.addr
    if not len(op) or int(op.max()) <= LAST_ACCESS:
        return
    bad = ~_IS_OP[op]
    if bad.any():
        at = int(bad.argmax())
        known = ", ".join(f"{int(known)} {known.name}" for known in Op)
        raise TraceError(
            f"operation {op[at]} does not exist; there are {known}", path=path, where=f"event {first + at}"
        )
    for code, limit, what in _LIMITS:
        bad = (op == code) & (addr >= limit)
        if bad.any():
            at = int(bad.argmax())
            raise TraceError(f"{what} {addr[at]} is not below {limit}", path=path, where=f"event {first + at}")

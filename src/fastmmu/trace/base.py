"""What a trace is: a re-iterable stream of events of any length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import OutOfMemoryError, TraceError
from fastmmu.ops import Op
from fastmmu.trace.events import CHUNK, Batch, batch_of, check_events, concatenate, first_outside

__all__ = ["ArrayTrace", "DataOnly", "Derived", "Head", "Skip", "Trace", "check_chunk"]


class Trace(ABC):
    """A stream of events, read anew by each call of :meth:`batches`.

    Memory does not grow with the length of the trace. Of iterations that run at the same time, :meth:`progress`
    reports the one started last.

    Attributes: ``name`` for tables, ``kind`` "program" (events on user addresses) or "system" (records of a whole
    machine), ``format`` ("lackey", "npy", ...), ``path`` of the file or None, ``total`` number of events or None where
    it is not known beforehand, ``in_memory`` whether a pass decodes and copies nothing.

    Threads: may be shared; each iteration is a pass of its own, of one thread. :meth:`progress` is of the one started
    last.
    """

    name: str
    kind: str = "program"
    format: str
    path: str | None = None
    total: int | None = None
    in_memory: bool = False
    instructions: str | None = None

    @abstractmethod
    def batches(self, chunk: int = CHUNK) -> Iterator[Batch]:
        """All events in order, in batches of 1 to `chunk` events.

        Raises TraceError (file and line or byte offset) where the trace is malformed.
        """

    def progress(self) -> float | None:
        """Fraction read by the latest iteration, 0 to 1; None where unknown. For files: of the compressed bytes."""
        return None

    def notes(self) -> list[str]:
        """What the latest pass left out or took in its own way, a sentence each; most traces have none."""
        return []

    def data_only(self) -> Trace:
        """This trace without instruction fetches."""
        return DataOnly(self)

    @checked
    def events_from(self, first: int, chunk: int = CHUNK) -> Iterator[Batch]:
        """All events from number `first` on, counted from 0, in batches of up to `chunk`: a .npy file that is not
        compressed is read from there, others from their start.

        :raises TraceError: `first` is below 0; as :meth:`batches`.
        """
        check_chunk(chunk)
        if first < 0:
            raise TraceError(f"events_from({first}): events are counted from 0")
        return self._from(first, chunk)

    def _from(self, first: int, chunk: int) -> Iterator[Batch]:
        at = 0
        for batch in self.batches(chunk):
            at += len(batch)
            if at > first:
                yield batch[max(0, first - at + len(batch)) :]

    @checked
    def head(self, n: int) -> Trace:
        """The first `n` events."""
        return Head(self, n)

    @checked
    def skip(self, n: int) -> Trace:
        """What follows the first `n` events; of these it keeps which process runs, and where pages lie (PLACE).

        :raises TraceError: there are no more, which a pass may find out.
        """
        return Skip(self, n) if n else self

    @staticmethod
    def from_arrays(
        addr: npt.ArrayLike, op: npt.ArrayLike | None = None, size: npt.ArrayLike | None = None, name: str = "arrays"
    ) -> Trace:
        """A trace over arrays in memory (not copied where they have the right dtype and are contiguous).

        addr: (n,) integers 0 .. 2**64-1; op: (n,) codes of fastmmu.Op, default all reads; size: (n,) bytes 0 .. 255,
        default 1. Raises TraceError for wrong shapes, dtypes or values.
        """
        return ArrayTrace(addr, op, size, name)

    def __repr__(self) -> str:
        events = "" if self.total is None else f", {self.total} events"
        return f"<Trace {self.name!r}: {self.format}{events}>"


class ArrayTrace(Trace):
    """A trace that lies in memory."""

    format = "arrays"

    @checked
    def __init__(self, addr: npt.ArrayLike, op: npt.ArrayLike | None, size: npt.ArrayLike | None, name: str) -> None:
        columns = _column(addr, "addr", np.uint64)
        self._batch = batch_of(
            columns,
            None if op is None else _column(op, "op", np.uint8, len(columns)),
            None if size is None else _column(size, "size", np.uint8, len(columns)),
        )
        check_events(self._batch, first=0, path=None)
        self.name = name
        self.total = len(self._batch)
        self.in_memory = True
        self._done = 0

    @checked
    def batches(self, chunk: int = CHUNK) -> Iterator[Batch]:
        check_chunk(chunk)
        return self._slices(chunk)

    def _slices(self, chunk: int) -> Iterator[Batch]:
        self._done = 0
        for start in range(0, len(self._batch), chunk):
            batch = self._batch[start : start + chunk]
            self._done = start + len(batch)
            yield batch

    def progress(self) -> float | None:
        return self._done / len(self._batch) if len(self._batch) else None


class Derived(Trace):
    """A trace made of one other."""

    def __init__(self, inner: Trace) -> None:
        self.inner = inner
        self.name = inner.name
        self.format = inner.format
        self.path = inner.path
        self.instructions = inner.instructions

    @checked
    def batches(self, chunk: int = CHUNK) -> Iterator[Batch]:
        check_chunk(chunk)
        return self._pass(chunk)

    def _pass(self, chunk: int) -> Iterator[Batch]:
        raise NotImplementedError

    def progress(self) -> float | None:
        return self.inner.progress()

    def notes(self) -> list[str]:
        return self.inner.notes()


class DataOnly(Derived):
    """Without instruction fetches; where instructions are counted, those that are left out count with the event behind
    them, at the end with the last."""

    def __init__(self, inner: Trace) -> None:
        super().__init__(inner)
        self.instructions = inner.instructions and "column"

    def _pass(self, chunk: int) -> Iterator[Batch]:
        held: Batch | None = None
        passed = 0  # instructions since the last event that was kept
        for batch in self.inner.batches(chunk):
            kept = batch.op != Op.FETCH
            if self.instructions is None:
                if kept.all():
                    yield batch
                elif kept.any():
                    yield batch.take(kept)
                continue
            begun = np.cumsum(batch.instructions_column(), dtype=np.uint64)
            upto = begun[kept]
            if len(upto):
                if held is not None:
                    yield held
                counted = np.diff(upto, prepend=np.uint64(0)).astype(np.uint32)
                counted[0] += passed
                held = Batch(batch.op[kept], batch.size[kept], batch.addr[kept], counted)
                passed = 0
            passed += int(begun[-1]) - (int(upto[-1]) if len(upto) else 0)
        if held is not None:
            assert held.instructions is not None
            held.instructions[-1] += passed
            yield held


class Head(Derived):
    """The first n events."""

    def __init__(self, inner: Trace, n: int) -> None:
        if n < 0:
            raise TraceError(f"head({n}): give 0 events or more")
        super().__init__(inner)
        self._n = n
        self._done = 0
        self.in_memory = inner.in_memory
        self.total = None if inner.total is None else min(n, inner.total)

    def _pass(self, chunk: int) -> Iterator[Batch]:
        self._done = 0
        if self._n == 0:
            return
        for batch in self.inner.batches(min(chunk, self._n)):
            part = batch[: self._n - self._done]
            self._done += len(part)
            yield part
            if self._done == self._n:
                return

    def progress(self) -> float | None:
        of_head = self._done / self._n if self._n else 1.0
        return max(of_head, self.inner.progress() or 0.0)


class Skip(Derived):
    """What follows the first n events. Of these it keeps which process runs, and where pages lie."""

    def __init__(self, inner: Trace, n: int) -> None:
        if n < 0:
            raise TraceError(f"skip({n}): give 0 events or more")
        super().__init__(inner)
        self._n = n
        self.in_memory = inner.in_memory
        if inner.total is not None and inner.total <= n:
            raise TraceError(self._none(inner.total), path=inner.path)

    def _none(self, there: int) -> str:
        return f"{there} events are there, and {self._n} of them skipped; skip fewer"

    def _pass(self, chunk: int) -> Iterator[Batch]:
        kept: list[Batch] = []
        done = 0
        for batch in self.inner.batches(chunk):
            begin = min(max(self._n - done, 0), len(batch))
            done += len(batch)
            if begin:
                op = batch.op[:begin]
                kept.append(batch[:begin].take((op == Op.SWITCH) | (op == Op.PLACE)))
            if begin < len(batch):
                if kept:
                    yield from _cut(_who_and_where(concatenate(kept)), chunk)
                    kept = []
                yield batch[begin:] if begin else batch
        if done <= self._n:
            raise TraceError(self._none(done), path=self.path)


def _who_and_where(batch: Batch) -> Batch:
    """Without switches to processes of which nothing is told before the next switch; no instructions."""
    last = np.append(batch.op[1:] != Op.SWITCH, True)
    found = batch.take((batch.op != Op.SWITCH) | last)
    counted = None if found.instructions is None else np.zeros_like(found.instructions)
    return Batch(found.op, found.size, found.addr, counted)


def _cut(batch: Batch, chunk: int) -> Iterator[Batch]:
    for start in range(0, len(batch), chunk):
        yield batch[start : start + chunk]


def check_chunk(chunk: int) -> None:
    """Raise TraceError unless `chunk` is a usable batch length."""
    if chunk < 1:
        raise TraceError(f"chunk={chunk}: a batch holds at least 1 event")


def _column(values: npt.ArrayLike, what: str, dtype: type[np.unsignedinteger], n: int = -1) -> npt.NDArray[Any]:
    """`values` as a contiguous (n,) array of `dtype`, refused where that would change a value."""
    try:
        array = np.asarray(values)
    except (OverflowError, ValueError) as error:
        raise TraceError(f"{what} is not an array of integers: {error}") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"no memory for {what} as an array; give a trace in parts") from error
    if array.ndim != 1:
        raise TraceError(f"{what} has {array.ndim} dimensions; give one")
    if n not in (-1, len(array)):
        raise TraceError(f"{what} has {len(array)} elements where addr has {n}")
    if array.dtype.kind not in "ui" and len(array):
        raise TraceError(f"{what} has dtype {array.dtype}; give integers")
    bad = first_outside(array, dtype)
    if bad is not None:
        raise TraceError(f"{what} {array[bad]} is outside 0 to {np.iinfo(dtype).max}", where=f"event {bad}")
    return np.ascontiguousarray(array, dtype=dtype)

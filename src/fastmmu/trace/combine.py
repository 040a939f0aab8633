"""Traces made of traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import TraceError
from fastmmu.exits import VMX_REASONS, ExitReason
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace.base import Derived, Trace, check_chunk
from fastmmu.trace.events import CHUNK, Batch, empty_batch, inserted

__all__ = ["Interleaved", "Told", "WithExits", "exits_every", "interleave", "told"]


@checked
def interleave(traces: Sequence[Trace], switch_every: int) -> Trace:
    """The traces as processes of one processor that take turns, each for `switch_every` accesses.

    A SWITCH event with the number of the process (its place in `traces`) stands before every slice, also where the
    same process goes on because it is the only one left. Ends when all have ended.
    """
    return Interleaved(traces, switch_every)


@checked
def exits_every(trace: Trace, n: int, reason: int = ExitReason.CPUID) -> Trace:
    """`trace` with an EXIT event (basic exit reason `reason`) after each `n` accesses."""
    return WithExits(trace, n, reason)


def told(trace: Trace, progress: Callable[[int], None]) -> Trace:
    """`trace`, which tells after each batch how many events of this pass were read."""
    return Told(trace, progress)


class Told(Derived):
    """The same, and how far it is."""

    def __init__(self, inner: Trace, progress: Callable[[int], None]) -> None:
        super().__init__(inner)
        self.total = inner.total
        self._progress = progress

    def _pass(self, chunk: int) -> Iterator[Batch]:
        done = 0
        for batch in self.inner.batches(chunk):
            yield batch
            done += len(batch)
            self._progress(done)


class WithExits(Derived):
    """With an EXIT after each n accesses."""

    def __init__(self, inner: Trace, n: int, reason: int) -> None:
        if n < 1:
            raise TraceError(f"an exit after each {n} accesses: give 1 or more")
        if not 0 <= reason < VMX_REASONS:
            raise TraceError(f"exit reason {reason} is not between 0 and {VMX_REASONS - 1}")
        super().__init__(inner)
        self._n = n
        self._reason = reason

    def _pass(self, chunk: int) -> Iterator[Batch]:
        due = self._n  # accesses until the next exit
        for batch in self.inner.batches(chunk):
            is_access = batch.op <= LAST_ACCESS
            places = None if is_access.all() else np.flatnonzero(is_access)
            count = len(batch) if places is None else len(places)
            nth = np.arange(due - 1, count, self._n)  # the accesses of this batch that an exit follows
            due += len(nth) * self._n - count
            if not len(nth):
                yield batch
                continue
            after = (nth if places is None else places[nth]) + 1  # row before which each exit is put
            out = inserted(batch, after, Op.EXIT, self._reason)
            for first in range(0, len(out), chunk):
                yield out[first : first + chunk]


class Interleaved(Trace):
    """Several processes in turn."""

    format = "interleaved"

    def __init__(self, traces: Sequence[Trace], switch_every: int) -> None:
        if not traces:
            raise TraceError("interleave needs at least one trace")
        if switch_every < 1:
            raise TraceError(f"a switch after each {switch_every} accesses: give 1 or more")
        self._traces = list(traces)
        self._slice = switch_every
        self.name = "+".join(trace.name for trace in traces)
        if all(trace.path for trace in traces):
            self.path = " + ".join(str(trace.path) for trace in traces)
        counted = {trace.instructions for trace in traces}
        self.instructions = None if None in counted else "column" if "column" in counted else "fetches"

    def notes(self) -> list[str]:
        return [note for trace in self._traces for note in trace.notes()]

    @checked
    def batches(self, chunk: int = CHUNK) -> Iterator[Batch]:
        check_chunk(chunk)
        return self._pass(chunk)

    def progress(self) -> float | None:
        known = [fraction for trace in self._traces if (fraction := trace.progress()) is not None]
        return sum(known) / len(self._traces) if known else None

    def _pass(self, chunk: int) -> Iterator[Batch]:
        running = [_Cursor(trace, process, chunk) for process, trace in enumerate(self._traces)]
        out = self._room(chunk)
        n = 0
        while running := [cursor for cursor in running if cursor.ready()]:
            for cursor in running:
                if not cursor.ready():
                    continue
                out.op[n], out.size[n], out.addr[n] = Op.SWITCH, 0, cursor.process
                if out.instructions is not None:
                    out.instructions[n] = 0
                n += 1
                left = self._slice
                while left > 0 and cursor.ready():
                    if n == chunk:
                        yield out
                        out, n = self._room(chunk), 0
                    part, accesses = cursor.take(left, chunk - n)
                    end = n + len(part)
                    out.op[n:end], out.size[n:end], out.addr[n:end] = part.op, part.size, part.addr
                    if out.instructions is not None:
                        out.instructions[n:end] = part.instructions_column()
                    left -= accesses
                    n = end
                if n == chunk:
                    yield out
                    out, n = self._room(chunk), 0
        if n:
            yield out[:n]

    def _room(self, n: int) -> Batch:
        """A batch to fill, with the columns of this trace."""
        batch = empty_batch(n)
        if self.instructions != "column":
            return batch
        return Batch(batch.op, batch.size, batch.addr, np.empty(n, np.uint32))


class _Cursor:
    """A place in one trace."""

    def __init__(self, trace: Trace, process: int, chunk: int) -> None:
        self.process = process
        self._name = trace.name
        self._batches = trace.batches(chunk)
        self._batch = empty_batch(0)
        self._at = 0
        self._only_accesses = True

    def ready(self) -> bool:
        """Whether an event is left."""
        while self._at == len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._batch, self._at = batch, 0
            self._only_accesses = bool((batch.op <= LAST_ACCESS).all())
            if not self._only_accesses and (batch.op == Op.SWITCH).any():
                raise TraceError(f"{self._name} holds CR3 switches itself; only traces of one process interleave")
        return True

    def take(self, accesses: int, room: int) -> tuple[Batch, int]:
        """The next events, at most `room` and up to `accesses` accesses, and how many of them are accesses."""
        part = self._batch[self._at : self._at + min(room, accesses)]
        count = len(part)
        if not self._only_accesses:
            part = self._batch[self._at : self._at + room]
            counts = np.cumsum(part.op <= LAST_ACCESS)
            part = part[: int(np.searchsorted(counts, accesses)) + 1]
            count = int(counts[len(part) - 1])
        self._at += len(part)
        return part, count

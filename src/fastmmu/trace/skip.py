"""A trace without its first events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.trace.base import Derived, Trace
from fastmmu.trace.events import Batch, concatenate

__all__ = ["Skip"]


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
                    yield from _cut(_state(concatenate(kept)), chunk)
                    kept = []
                yield batch[begin:] if begin else batch
        if done <= self._n:
            raise TraceError(self._none(done), path=self.path)


def _state(batch: Batch) -> Batch:
    """Without switches to processes of which nothing is told before the next switch; no instructions."""
    last = np.append(batch.op[1:] != Op.SWITCH, True)
    found = batch.take((batch.op != Op.SWITCH) | last)
    counted = None if found.instructions is None else np.zeros_like(found.instructions)
    return Batch(found.op, found.size, found.addr, counted)


def _cut(batch: Batch, chunk: int) -> Iterator[Batch]:
    for start in range(0, len(batch), chunk):
        yield batch[start : start + chunk]

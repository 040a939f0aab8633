"""A program's trace with events between its accesses, dealt out in batches of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastmmu import Op
from fastmmu.trace import Batch, Trace
from fastmmu.trace.base import Derived
from tests.support.event_lists import program, with_events

SHELL = Path(__file__).parents[1] / "data/systems/shell.rec.xz"
EVENTS = ((Op.EXIT, 10), (Op.SWITCH, 1), (Op.UNMAP, 0x5555_5555_5000), (Op.INTERRUPT, 32), (Op.SWITCH, 0))
MIXED = with_events(program(4000, 3), 50, *EVENTS)
ACCESSES = sum(batch.accesses for batch in MIXED.batches())


class Chunked(Derived):
    """The same events in batches of another length."""

    def __init__(self, inner: Trace, chunk: int) -> None:
        super().__init__(inner)
        self.chunk = chunk

    def _pass(self, chunk: int) -> Iterator[Batch]:
        return self.inner.batches(self.chunk)

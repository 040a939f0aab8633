"""One walk in progress: memory as it sees it, the steps it made, the changes it left, and how it ends early."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from ...dtypes import StepKind
from .memory import Memory, Overlay, holds
from .outcome import Bus, Change, Outcome, Step

__all__ = ["Ended", "Log", "Run", "conclude"]

Result = TypeVar("Result", bound=Outcome)


class Ended(Exception):
    """Carries the outcome out of however many levels the walk is in."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Log:
    """Page-modification log in use: base address and index, which runs downward (ept.md §7)."""

    def __init__(self, base: int, index: int) -> None:
        self.base, self.index = base, index

    @property
    def full(self) -> bool:
        return not 0 <= self.index <= 511

    @property
    def slot(self) -> int:
        return self.base + 8 * self.index


class Run:
    """Memory accesses of a walk go through here, so that each is bounds-checked and recorded once."""

    def __init__(self, mem: Memory, pml: tuple[int, int] | None = None) -> None:
        self.mem = Overlay(mem)
        self.log = None if pml is None else Log(*pml)
        self.steps: list[Step] = []
        self.changes: list[Change] = []

    def within(self, hpa: int) -> None:
        """End as a bus outcome unless the qword around `hpa` exists."""
        if not holds(self.mem, hpa & ~7):
            raise Ended(Bus(hpa=hpa))

    def _peek(self, hpa: int, size: int) -> int:
        qword = self.mem.read64(hpa & ~7)
        return qword if size == 8 else qword >> (8 * (hpa & 4)) & 0xFFFF_FFFF

    def read(self, hpa: int, size: int, *, gpa: int, kind: int, level: int, guest_level: int) -> int:
        """An entry of 4 or 8 bytes."""
        self.within(hpa)
        entry = self._peek(hpa, size)
        self.steps.append(Step(hpa, gpa, entry, kind, level, guest_level))
        return entry

    def set_bits(self, hpa: int, size: int, flags: int, *, gpa: int, kind: int, level: int, guest_level: int) -> int:
        """Locked read-modify-write that sets flags; writes only if one of them was clear. Returns the entry."""
        entry = self._peek(hpa, size)
        if entry & flags != flags:
            entry |= flags
            self.write64(hpa & ~7, self.mem.read64(hpa & ~7) | flags << (8 * (hpa & 4)))
            self.steps.append(Step(hpa, gpa, entry, kind, level, guest_level))
        return entry

    def lacks(self, hpa: int, size: int, flags: int) -> bool:
        """Is one of these flags clear in the entry as memory holds it now?"""
        return self._peek(hpa, size) & flags != flags

    def write64(self, hpa: int, value: int) -> None:
        self.mem.write64(hpa, value)
        self.changes.append(Change(hpa, value))

    def append_to_log(self, log: Log, gpa: int) -> None:
        """The 4 KB frame of `gpa`; after slot 0 the index wraps to FFFFH, which is full."""
        self.write64(log.slot, gpa & ~0xFFF)
        log.index = (log.index - 1) & 0xFFFF

    def data(self, hpa: int, gpa: int) -> None:
        """The access itself, which may lie outside the memory given."""
        self.steps.append(Step(hpa, gpa, 0, StepKind.DATA, 0, 0))


def conclude(run: Run, body: Callable[[], Outcome], *, write: bool) -> Outcome:
    """Run `body` to its outcome, attach the trace, and let the changes reach memory if `write`."""
    try:
        outcome = body()
    except Ended as ended:
        outcome = ended.outcome
    if write:
        run.mem.commit()
    return dataclasses.replace(
        outcome, steps=tuple(run.steps), changes=tuple(run.changes), pml_index=run.log.index if run.log else None
    )

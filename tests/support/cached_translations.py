"""Everything that a processor may have cached of a guest's tables (tlb.md §3, paging.md §7)."""

from __future__ import annotations

from typing import NamedTuple

from fastmmu import reference
from fastmmu.dtypes import StepKind
from tests.support.guest_layouts import FRAME, A, P, Regime, ends_walk

__all__ = ["Cached", "Entry"]


class Entry(NamedTuple):
    """A TLB entry: the page of linear addresses, where it leads, the rights gathered by its walk."""

    base: int
    size: int
    gpa: int
    us: int
    rw: int
    xd: int
    dirty: int
    global_page: int

    def covers(self, la: int) -> bool:
        return self.base <= la < self.base + self.size


class Cached:
    """Everything that a processor may have cached, where it caches all and forgets only what it must.

    That a #PF forgets what denied is nothing to rely on: it may be cached again at once, and in shadow tables it stays.
    """

    def __init__(self, regime: Regime) -> None:
        self.regime = regime
        self.tlb: set[Entry] = set()
        self.upper: dict[tuple[int, int], set[tuple[int, ...]]] = {}  # (level, prefix) -> (table, us, rw, xd)
        self.now = 0
        self.changed: dict[int, int] = {}  # address of an entry that may have been fetched before its use -> when
        self.flushed = 0
        self.invalidated: dict[int, int] = {}  # page number -> when

    def allows(self, entry: Entry, access: str, user: bool) -> bool:
        r = self.regime
        if user and not entry.us:
            return False
        if access == "x":
            return not entry.xd and not (r.smep and not user and entry.us)
        if not user and entry.us and r.smap and not r.ac:
            return False
        return access == "r" or bool(entry.dirty and (entry.rw or not (user or r.wp)))

    def levels(self, la: int) -> dict[int, tuple[int, int]]:
        """Keys of what paging-structure caches hold for la: by level, those of entries in memory above level 1."""
        shifts = self.regime.layout.shifts
        return {n: (n, la >> shift) for n, shift in enumerate(shifts, 1) if n > 1 and (n < 3 or len(shifts) > 3)}

    def upper_of(self, la: int, outcome: reference.Outcome) -> dict[tuple[int, int], tuple[int, ...]]:
        """What the walk may leave in the paging-structure caches."""
        found = {}
        us, rw, xd = 1, 1, 0
        keys, state = self.levels(la), self.regime.state(0)
        for step in outcome.steps:
            if step.kind != StepKind.GUEST or step.level == 1 or not step.entry & P:
                continue
            if ends_walk(state, step.entry, step.level):
                break
            us, rw, xd = us & step.entry >> 2, rw & step.entry >> 1, xd | step.entry >> 63
            found[keys[step.level]] = (step.entry & FRAME, us, rw, xd)
        return found

    def stale(self, la: int, access: str, user: bool, outcome: reference.Outcome) -> bool:
        """Does anything cached make this access come out differently from the walk `outcome`?"""
        for entry in self.tlb:
            if entry.covers(la) and self.allows(entry, access, user):
                same = isinstance(outcome, reference.Mapped) and outcome.gpa == entry.gpa + la - entry.base
                if not same or outcome.changes:
                    return True
        for step in outcome.steps:
            since = max(self.flushed, self.invalidated.get(la >> 12, 0))
            if step.kind == StepKind.GUEST and step.level == 1 and self.changed.get(step.gpa, 0) > since:
                return True
        now = self.upper_of(la, outcome)
        for key in self.levels(la).values():
            for then in self.upper.get(key, ()):
                if now.get(key) != then or outcome.changes:
                    return True
        return False

    def walked(self, la: int, outcome: reference.Outcome) -> None:
        for key, value in self.upper_of(la, outcome).items():
            self.upper.setdefault(key, set()).add(value)
        if isinstance(outcome, reference.Mapped) and outcome.guest_size:
            size = outcome.guest_size
            self.tlb.add(
                Entry(la & -size, size, outcome.gpa & -size, outcome.us, outcome.rw, outcome.xd, outcome.dirty,
                      outcome.global_page)
            )  # fmt: skip

    def stored(self, gpa: int, size: int, before: reference.SparseMemory, after: int) -> None:
        """A processor may fetch ahead what an entry with A=1 maps, and KVM does (PTE_PREFETCH_NUM)."""
        layout = self.regime.layout
        old = before.read64(gpa & ~7)
        self.now += 1
        for at in range(gpa & -layout.size, gpa + size, layout.size):
            was = layout.read({at & ~7: old}, at)
            if was & P and was & A and was != layout.read({at & ~7: after}, at):
                self.changed[at] = self.now

    def invlpg(self, la: int) -> None:
        self.invalidated[la >> 12] = self.now
        self.tlb = {e for e in self.tlb if not e.covers(la)}
        self.upper.clear()

    def mov_cr3(self) -> None:
        self.flushed = self.now
        self.tlb = {e for e in self.tlb if e.global_page}
        self.upper.clear()

"""The walk of agile paging (agile.md §1-§3): shadow tables from the root down, and from an entry that switches on the
guest's own tables, over EPT. J. Gandhi, M. D. Hill, M. M. Swift: Agile paging, ISCA 2016.

What a processor caches on the way changes no outcome, and is left out here.
"""

from __future__ import annotations

from dataclasses import replace

from ...dtypes import StepKind
from ...ops import Op
from . import guest
from .ept import READ, WRITE, Ept, GpaLeaf, GpaReference, structure_access
from .memory import Memory
from .outcome import Outcome
from .run import Run, conclude
from .state import State
from .walk import _Entry, _Walk, access_of

__all__ = ["SWITCH", "references", "walk_agile"]

SWITCH = 1 << 52
"""Of a shadow entry that is no leaf: its frame is the guest's table of the next level, in host memory."""


def references(levels: int, nested: int, ept_levels: int) -> int:
    """References of a walk to a 4 KB page, nothing cached, of which the lowest `nested` levels are the guest's own; of
    those each but the first is found by the EPT, and so is the data. nested > levels: the root is translated, too."""
    if not nested:
        return levels
    translated = min(nested, levels) - 1 + (nested > levels) + 1
    return levels + ept_levels * translated


class _Agile(_Walk):
    """`state`: the registers of the shadow part, then the guest's. root: the guest's root table in host memory, None:
    the walk begins in the shadow tables."""

    def __init__(
        self, run: Run, hardware: State, state: State, la: int, access: Op, ept: Ept, root: int | None
    ) -> None:
        super().__init__(run, hardware, la, access, None)
        self.below, self.over, self.root, self.nested = state, ept, root, 0

    def descend(self) -> None:
        table = guest.root_table(self.state) if self.root is None else self.root
        level = self.state.levels
        switched = self.root is not None
        while not switched:
            at = table + 8 * guest.index_of(self.state, self.la, level)
            value = self.read(at, at, level, None)
            if guest.is_leaf(self.state, value, level):
                return
            self.set_flags(self.used[-1], guest.ACCESSED)
            table, switched, level = guest.table_of(self.state, value), bool(value & SWITCH), level - 1
        self.state, self.ept, self.nested = self.below, self.over, level
        while True:
            gpa = table + 8 * guest.index_of(self.state, self.la, level)
            leaf = GpaLeaf(gpa, 1, READ | WRITE, 0, 1)  # the VMM has the guest's table writable there
            if level < self.nested:
                leaf = self.second(gpa, GpaReference.of_structure(self.over, self.la, level))
            structure_access(self.over, gpa, leaf.hpa)
            value = self.read(leaf.hpa, gpa, level, leaf)
            if guest.is_leaf(self.state, value, level):
                return
            if self.state.upper_a == "eager":
                self.set_flags(self.used[-1], guest.ACCESSED)
            table, level = guest.table_of(self.state, value), level - 1

    def read(self, hpa: int, gpa: int, level: int, leaf: GpaLeaf | None) -> int:
        """An entry, present and well-formed by the registers of its part; its rights are gathered."""
        value = self.run.read(hpa, 8, gpa=gpa, kind=StepKind.GUEST, level=level, guest_level=level)
        if not value & guest.PRESENT:
            raise self.fault(present=False)
        if value & guest.reserved_bits(self.state, value, level):
            raise self.fault(present=True, reserved=True)
        self.rights.add(self.state, value)
        self.used.append(_Entry(gpa, hpa, value, level, leaf))
        return value


def walk_agile(
    mem: Memory,
    hardware: State,
    state: State,
    la: int,
    access: str | Op,
    *,
    ept: Ept,
    root: int | None = None,
    write: bool = True,
) -> tuple[Outcome, int]:
    """Translate `la`: the outcome, and how many levels of the guest's own tables were walked.

    hardware: the registers that the shadow tables are walked by; state: the guest's. Both have 4 levels, or 5. The
    privilege and the keys' registers are those of `hardware`. root: the guest's root table in host memory, in the place
    of a shadow root.
    """
    state = replace(
        state, cpl=hardware.cpl, implicit=hardware.implicit, ac=hardware.ac, pkru=hardware.pkru, pkrs=hardware.pkrs
    )
    run = Run(mem, ept.pml)
    made: list[_Agile] = []

    def body() -> Outcome:
        made.append(_Agile(run, hardware, state, la, access_of(access), ept, root))
        return made[-1].outcome()

    return conclude(run, body, write=write), made[-1].nested

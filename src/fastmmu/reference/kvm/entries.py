"""Executable specification of an EPT by page: what `fastmmu.mmu.Mmu` of a VMM's own maps, looks up and takes away.

Leaves and marks stand in a dict by (level, first gfn), table pages in a set of the same keys: what level a walk ends at
follows from which tables there are. Bits of an entry: ept.md §2, kvm_policy.md §3.3, §4.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["EntryMap", "Found"]

R, W, X = 1, 2, 4
IPAT, LARGE, A, D, PRESENT = 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 11
HOST_WRITE, MAY_WRITE = 1 << 57, 1 << 58
WRITE_BACK = 6 << 3 | IPAT
FRAME = 0x000F_FFFF_FFFF_F000
LEVELS = 4


class Found(NamedTuple):
    """As a row of ``fastmmu.dtypes.SPTE_DTYPE``."""

    entry: int
    hpa: int
    level: int
    rights: int
    mapped: bool
    mmio: bool
    accessed: bool
    dirty: bool


def first_of(gfn: int, level: int) -> int:
    """The first gfn of what an entry of this level maps."""
    return gfn >> 9 * (level - 1) << 9 * (level - 1)


@dataclass
class EntryMap:
    """slots: (gpa, bytes, hpa). ad: the processor sets A and D. generation: of the layout of slots."""

    slots: tuple[tuple[int, int, int], ...]
    ad: bool = True
    generation: int = 0
    entries: dict[tuple[int, int], int] = field(default_factory=dict)
    tables: set[tuple[int, int]] = field(default_factory=lambda: {(LEVELS, 0)})
    flush: bool = False

    def __post_init__(self) -> None:
        self.generation = len(self.slots)

    # ---- where a walk ends ---------------------------------------------------------------------------------------

    def place(self, gfn: int) -> tuple[int, int]:
        """Level and first gfn of the entry at which the walk of a gfn ends."""
        level = LEVELS
        while level > 1 and (level - 1, first_of(gfn, level)) in self.tables:
            level -= 1
        return level, first_of(gfn, level)

    def leaf(self, gfn: int) -> tuple[int, int] | None:
        """That place, where it maps the page."""
        place = self.place(gfn)
        return place if self.entries.get(place, 0) & PRESENT else None

    def lookup(self, gfn: int) -> Found:
        level, first = self.place(gfn)
        entry = self.entries.get((level, first), 0)
        if not entry & PRESENT:
            return Found(entry, 0, level, 0, False, entry != 0, False, False)
        hpa = (entry & FRAME) + (gfn - first << 12)
        return Found(entry, hpa, level, entry & 7, True, False, bool(entry & A), bool(entry & D))

    # ---- making ------------------------------------------------------------------------------------------------

    def memory(self, gfn: int, level: int) -> int | None:
        """Host-physical address behind a gfn; None: no slot has it, or not as one page of this size."""
        size = 1 << 9 * level + 3
        for gpa, nbytes, hpa in self.slots:
            if gpa <= gfn << 12 < gpa + nbytes:
                at = hpa + (gfn << 12) - gpa
                return at if at % size == 0 and (gfn << 12) + size <= gpa + nbytes else None
        return None

    def table(self, gfn: int, level: int) -> None:
        """Table pages from the root down to that of this level; what a large entry maps stays mapped."""
        for at in range(LEVELS - 1, level - 1, -1):
            key = at, first_of(gfn, at + 1)
            if key in self.tables:
                continue
            self.tables.add(key)
            large = self.entries.pop((at + 1, key[1]), 0)
            if large:
                self.flush = True
                for i in range(512):
                    self.entries[1, key[1] + i] = (large & ~LARGE) + (i << 12)

    def put(self, gfn: int, level: int, entry: int) -> None:
        if self.entries.get((level, gfn), 0) & PRESENT and loses(self.entries[level, gfn], entry):
            self.flush = True
        if (level - 1, gfn) in self.tables and level == 2:
            self.tables.discard((1, gfn))
            for i in range(512):
                self.entries.pop((1, gfn + i), None)
            self.flush = True
        self.entries[level, gfn] = entry

    def map(
        self, gfn: int, pfn: int | None = None, level: int = 1, rights: int = 7, memory_type: int = WRITE_BACK
    ) -> bool:
        """memory_type: bits 6:3."""
        hpa = self.memory(gfn, level) if pfn is None else pfn << 12
        if hpa is None:
            return False
        self.table(gfn, level)
        entry = hpa | PRESENT | HOST_WRITE | rights | memory_type | (LARGE if level == 2 else 0)
        self.put(gfn, level, entry | (MAY_WRITE if rights & W else 0))
        return True

    def mark_mmio(self, gfn: int) -> None:
        self.table(gfn, 1)
        gen = self.generation
        self.put(gfn, 1, gfn << 12 | (gen & 0xFF) << 3 | gen >> 8 << 52 | W | X)

    # ---- taking away -------------------------------------------------------------------------------------------

    def zap(self, gfns: Iterable[int]) -> list[bool]:
        gfns = list(gfns)
        found = [self.leaf(gfn) is not None for gfn in gfns]
        for gfn in gfns:
            self.entries.pop(self.place(gfn), None)
        self.flush |= any(found)
        return found

    def lose(self, gfns: Iterable[int], shown: int, bits: int) -> list[bool]:
        gfns = list(gfns)
        leaves = [self.leaf(gfn) for gfn in gfns]
        found = [leaf is not None and bool(self.entries[leaf] & shown) for leaf in leaves]
        for leaf in leaves:
            if leaf is not None:
                self.entries[leaf] &= ~bits
        self.flush |= any(found)
        return found

    def write_protect(self, gfns: Iterable[int], restorable: bool = True) -> list[bool]:
        return self.lose(gfns, W, W if restorable else W | MAY_WRITE)

    def clear_dirty(self, gfns: Iterable[int]) -> list[bool]:
        return self.lose(gfns, D, D)

    def zap_all(self) -> None:
        self.entries.clear()
        self.tables = {(LEVELS, 0)}
        self.flush = True

    # ---- the processor -----------------------------------------------------------------------------------------

    def access(self, gfn: int, need: int) -> int | None:
        """An access that needs a right, R, W or X: where it leads, host-physical; None: it exits. Sets A and D."""
        leaf = self.leaf(gfn)
        if leaf is None or not self.entries[leaf] & need:
            return None
        if self.ad:
            self.entries[leaf] |= A | (D if need == W else 0)
        return self.lookup(gfn).hpa


def loses(old: int, new: int) -> bool:
    """What is cached of the old entry allows what the new one does not, or hides that D is to be set."""
    place = FRAME | PRESENT | LARGE
    return bool((old & ~new & (R | W | X | D)) | ((old ^ new) & place))

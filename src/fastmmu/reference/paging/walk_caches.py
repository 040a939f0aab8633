"""Executable specification of what walks cache and use: tables reached, and guest-physical mappings (tlb.md §1.1, §2).

R1, R2, R6 of tlb.md: an entry comes of present, well-formed, non-leaf entries whose A flags are set in memory. Where a
walk that used something cached fails, memory decides: it is made again from the root. If that one fails, too, it leaves
the caches alone (what the fault invalidates is another matter); else what it found takes the place of what lookups of
the same addresses would find.
"""

from __future__ import annotations

from collections.abc import Callable

from ..tlb.invalidations import Tlb
from .ept import EXECUTE, EXECUTE_USER, IPAT, READ, WRITE, Ept, GpaLeaf, GpaReference, allowed
from .guest import Rights
from .npt import Npt
from .state import bits

__all__ = ["Caching", "TableFound"]

FRAME = bits(51, 12)
MARK = 1 << 63


class TableFound:
    """What a paging-structure entry says: the next table and the rights until there."""

    def __init__(self, level: int, value: int) -> None:
        self.level = level
        self.table = value & FRAME
        self.writable = bool(value & 1 << 6)
        self.rights = Rights()
        self.rights.us, self.rights.rw, self.rights.xd = value >> 2 & 1, value >> 1 & 1, value >> 63


class Caching:
    """The caches of one walk. `look`: they may be used; `used`: they were. Without `look` nothing changes until
    `replace`."""

    def __init__(self, tlb: Tlb) -> None:
        self.tlb = tlb
        self.look = True
        self.used = False
        self.later: list[Callable[[], None]] = []

    def change(self, by: Callable[[], None]) -> None:
        if self.look:
            by()
        else:
            self.later.append(by)

    def replace(self) -> None:
        """A walk from memory succeeded."""
        for by in self.later:
            by()

    # ---- the guest's tables -----------------------------------------------------------------------------------

    def find_table(self, la: int, levels: int) -> TableFound | None:
        """The longest prefix that is cached."""
        if not self.look:
            self.change(lambda: self.tlb.psc_drop(la))
            return None
        level, value = self.tlb.psc(la, levels + 1)
        if not level:
            return None
        self.used = True
        return TableFound(level - 1, value)

    def keep_table(self, la: int, level: int, table: int, rights: tuple[int, int, int], writable: bool) -> None:
        """An entry of `level` was used; `table`: host-physical address of the next one."""
        us, rw, xd = rights
        value = table & FRAME | us << 2 | rw << 1 | xd << 63 | int(writable) << 6 | 1
        self.change(lambda: self.tlb.psc_fill(la, level, value))

    # ---- EPT --------------------------------------------------------------------------------------------------

    def find_mapping(self, ept: Ept | Npt, gpa: int, why: GpaReference) -> GpaLeaf | None:
        """A guest-physical mapping that suffices; one that does not goes."""
        if not self.look:
            self.change(lambda: self.tlb.gpm_drop(gpa))
            self.change(lambda: self.tlb.epsc_drop(gpa))
            return None
        value = self.tlb.gpm(gpa)
        if not value:
            return None
        rights = READ * (value >> 2 & 1) | WRITE * (value >> 4 & 1) | EXECUTE * (value >> 5 & 1)
        rights |= EXECUTE_USER * (value & 1)
        dirty = value >> 6 & 1
        if not allowed(ept, why, rights) or (why.wr and not dirty):
            self.tlb.gpm_drop(gpa)
            return None
        self.used = True
        held = bits(11 + 9 * (value >> 8 & 3), 0)
        entry = (value >> 56 & 7) << 3 | IPAT * (value >> 52 & 1)
        return GpaLeaf(value & FRAME & ~held | gpa & held, (value >> 10 & 3) + 1, rights, entry, dirty)

    def find_ept_table(self, ept: Ept | Npt, gpa: int) -> tuple[int, int, int] | None:
        """(level, next table, rights until there) of the longest prefix that is cached."""
        if not self.look:
            return None
        level, value = self.tlb.epsc(gpa, ept.levels + 1)
        if not level:
            return None
        self.used = True
        return level - 1, value & FRAME, value & (READ | WRITE | EXECUTE | EXECUTE_USER)

    def keep_ept_table(self, gpa: int, level: int, entry: int, rights: int) -> None:
        """A non-leaf EPT entry was used; `rights`: ANDed until there."""
        value = entry & FRAME | rights & (READ | WRITE | EXECUTE | EXECUTE_USER) | MARK
        self.change(lambda: self.tlb.epsc_fill(gpa, level, value))

    def keep_mapping(self, gpa: int, leaf: GpaLeaf) -> None:
        """A guest-physical address was translated."""
        rights = leaf.rights
        flags = (rights & 1) << 2 | (rights >> 1 & 1) << 4 | (rights >> 2 & 1) << 5 | (rights >> 10 & 1)
        size = leaf.level - 1
        value = leaf.hpa & FRAME & ~bits(11 + 9 * size, 0) | flags | leaf.dirty << 6 | size << 8 | size << 10
        value |= leaf.mt << 56 | leaf.ipat << 52
        self.change(lambda: self.tlb.gpm_fill(gpa, value))

"""Host memory as the processor sees it: the guest's pages, and KVM's tables as entries of 64 bits (kvm_policy.md §3.3).

A frame of the guest's has its own number; table page n lies at `TABLES` + 4096 n.
"""

from __future__ import annotations

from dataclasses import replace

from ..paging.memory import SparseMemory
from .tables import Entry, Leaf, Link, Mark, Switch, TablePage, Tables, U, W, X

__all__ = ["LOG", "SECOND", "TABLES", "HostMemory"]

TABLES = 1 << 45
SECOND = TABLES + (1 << 44)  # of agile paging: table pages of the EPT beside the shadow tables
LOG = TABLES - 0x1000  # page-modification log


class HostMemory:
    """The processor reads entries of the tables here, and sets their A and D flags."""

    def __init__(self, guest: SparseMemory, tables: Tables, *, ept: bool, second: Tables | None = None) -> None:
        self.guest, self.tables, self.ept, self.second = guest, tables, ept, second
        self.nbytes = 1 << 46
        self.log: dict[int, int] = {}

    @staticmethod
    def address(page: TablePage) -> int:
        return TABLES + (page.number << 12)

    def _entry(self, hpa: int) -> tuple[TablePage, int]:
        if self.second is not None and hpa >= SECOND:
            return self.second.by_number[hpa - SECOND >> 12], hpa >> 3 & 511
        return self.tables.by_number[hpa - TABLES >> 12], hpa >> 3 & 511

    def _is_ept(self, hpa: int) -> bool:
        return self.ept or (self.second is not None and hpa >= SECOND)

    def read64(self, hpa: int) -> int:
        if hpa < LOG:
            return self.guest.read64(hpa)
        if hpa < TABLES:
            return self.log.get(hpa, 0)
        page, index = self._entry(hpa)
        entry = page.entries.get(index)
        if entry is None:
            return 0
        return self.ept_entry(entry) if self._is_ept(hpa) else self.paging_entry(entry)

    def write64(self, hpa: int, value: int) -> None:
        if hpa < LOG:
            self.guest.write64(hpa, value)
        elif hpa < TABLES:
            self.log[hpa] = value
        else:
            page, index = self._entry(hpa)
            entry = page.entries[index]
            a, d = (1 << 8, 1 << 9) if self._is_ept(hpa) else (1 << 5, 1 << 6)
            if isinstance(entry, Leaf):  # no rights go: whoever caches the entry loses nothing
                page.entries[index] = replace(entry, accessed=bool(value & a), dirty=bool(value & d))

    def ept_entry(self, entry: Entry) -> int:
        """Write-back memory, the guest's PAT ignored; MMIO is write-execute, which is malformed (ept.md §3)."""
        if isinstance(entry, Link):
            return self.address(entry.page) + (0 if self.ept else SECOND - TABLES) | 0x107
        if isinstance(entry, Mark):
            return entry.gfn << 12 | 6
        assert isinstance(entry, Leaf)
        rights = 0 if entry.tracked else 1 | (entry.access & W) | (entry.access & X) << 2
        flags = (entry.level > 1) << 7 | entry.accessed << 8 | entry.dirty << 9
        return entry.gfn << 12 | flags | 6 << 3 | 1 << 6 | rights

    def paging_entry(self, entry: Entry) -> int:
        """MMIO has a reserved bit (kvm_policy.md §4.4)."""
        if isinstance(entry, Link):
            return self.address(entry.page) | 0x27
        if isinstance(entry, Mark):
            return entry.gfn << 12 | 1 << 51 | 1
        if isinstance(entry, Switch):
            upper = (entry.access & W) | (entry.access & U) | (0 if entry.access & X else 1 << 63)
            return entry.gfn << 12 | 1 << 52 | 1 << 5 | 1 | upper
        rights = 1 | (entry.access & W) | (entry.access & U) | (0 if entry.access & X else 1 << 63)
        return entry.gfn << 12 | rights | entry.accessed << 5 | entry.dirty << 6 | (entry.level > 1) << 7

"""Memory types: PAT, MTRRs, EPT type, and how they combine (paging.md §8, ept.md §8)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = [
    "PAT_RESET",
    "MemType",
    "Mtrrs",
    "combine",
    "ept_access_type",
    "guest_access_type",
    "npt_access_type",
    "pat_type",
]

PAT_RESET = 0x0007_0406_0007_0406


class MemType(enum.IntEnum):
    """Encodings shared by PAT, MTRR and EPT; UC- exists in the PAT only."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7


_COLUMNS = (MemType.UC, MemType.UC_MINUS, MemType.WC, MemType.WT, MemType.WB, MemType.WP)
# Rows: MTRR (or EPT) type; columns: PAT type in the order of _COLUMNS.
_TABLE = {
    MemType.UC: "UC UC WC UC UC UC",
    MemType.WC: "UC WC WC UC WC UC",
    MemType.WT: "UC UC WC WT WT WP",
    MemType.WB: "UC UC WC WT WB WP",
    MemType.WP: "UC WC WC WT WP WP",
}
_COMBINED = {
    (row, column): MemType[name]
    for row, names in _TABLE.items()
    for column, name in zip(_COLUMNS, names.split(), strict=True)
}


def combine(below: int, pat: int) -> MemType:
    """Effective type of MTRR (or EPT) type `below` and PAT type `pat`."""
    return _COMBINED[MemType(below), MemType(pat)]


def pat_type(pat: int, index: int) -> MemType:
    """Entry `index` of IA32_PAT; 2, 3 and 8 up cannot be there (WRMSR refuses them)."""
    return MemType(pat >> (8 * index) & 0xFF)


@dataclass(frozen=True, kw_only=True)
class Mtrrs:
    """IA32_MTRR_DEF_TYPE, the eleven fixed-range registers in the order of their numbers (250H, 258H, 259H,
    268H..26FH), and (PHYSBASE, PHYSMASK) pairs. The default is: enabled, all memory write-back."""

    def_type: int = 0x806
    fixed: tuple[int, ...] = (0,) * 11
    variable: tuple[tuple[int, int], ...] = ()

    def type_at(self, pa: int) -> MemType:
        """Type of the byte at `pa`; a large page takes the type of the byte accessed."""
        if not self.def_type >> 11 & 1:
            return MemType.UC
        if pa < 0x10_0000 and self.def_type >> 10 & 1:
            return MemType(self.fixed[self._fixed_slot(pa) >> 3] >> (8 * (self._fixed_slot(pa) & 7)) & 0xFF)
        hits = {
            MemType(base & 0xFF)
            for base, mask in self.variable
            if mask >> 11 & 1 and (pa & mask & ~0xFFF) == (base & mask & ~0xFFF)
        }
        if not hits:
            return MemType(self.def_type & 0xFF)
        if len(hits) == 1:
            return next(iter(hits))
        # UC wins; WT with WB is WT; every other overlap is undefined and taken as UC.
        return MemType.WT if hits == {MemType.WT, MemType.WB} else MemType.UC

    @staticmethod
    def _fixed_slot(pa: int) -> int:
        """Which of the 88 fixed ranges: 8 of 64K, 16 of 16K from 80000H, 64 of 4K from C0000H."""
        if pa < 0x8_0000:
            return pa >> 16
        if pa < 0xC_0000:
            return 8 + ((pa - 0x8_0000) >> 14)
        return 24 + ((pa - 0xC_0000) >> 12)


def guest_access_type(pat: int, mtrrs: Mtrrs, pa: int, *, index: int | None, cd: bool) -> MemType:
    """Type of an access without EPT. `index` is the PAT index, None with paging off (then PAT counts as WB)."""
    if cd:
        return MemType.UC
    return combine(mtrrs.type_at(pa), MemType.WB if index is None else pat_type(pat, index))


# Rows: type of the guest's PAT; columns: that of the host's, in the order of _COLUMNS (npt.md §6).
_NESTED = {
    MemType.UC: "UC UC UC UC UC UC",
    MemType.UC_MINUS: "UC UC_MINUS WC UC UC UC",
    MemType.WC: "WC WC WC WC WC WC",
    MemType.WT: "UC UC_MINUS WC WT WT UC",
    MemType.WB: "UC UC_MINUS WC WT WB WP",
    MemType.WP: "UC UC_MINUS WC UC WP WP",
}


def npt_access_type(pat: int, host: int, *, index: int | None, cd: bool) -> MemType:
    """Type of an access through a nested page table whose leaf has type `host` in the host's PAT.

    `index` None: the guest's PAT counts as WB. The host's MTRRs are taken as write-back, under which UC- is UC.
    """
    if cd:
        return MemType.UC
    row = MemType.WB if index is None else pat_type(pat, index)
    kind = MemType[_NESTED[row].split()[_COLUMNS.index(MemType(host))]]
    return MemType.UC if kind is MemType.UC_MINUS else kind


def ept_access_type(pat: int, mt: int, ipat: int, *, index: int | None, cd: bool) -> MemType:
    """Type of an access through an EPT leaf of type `mt`; MTRRs play no part.

    `index` None: PAT counts as WB (paging off, or a load of PAE PDPTEs).
    """
    if cd:
        return MemType.UC
    if ipat:
        return MemType(mt)
    return combine(mt, MemType.WB if index is None else pat_type(pat, index))

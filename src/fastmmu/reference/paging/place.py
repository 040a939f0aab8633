"""Where an address leads, rights left aside: the walk of one address that neither rights nor flags stop.

What :func:`~fastmmu.reference.paging.mappings.mappings` lists, asked of one address; and why there is nothing. Memory
is not written.
"""

from __future__ import annotations

from typing import Any

from ...dtypes import Fault
from . import ept as second
from . import guest, npt
from .ept import Ept, GpaReference
from .memory import Memory, holds
from .npt import Npt
from .outcome import GpaMapped
from .state import Mode, State, bits

__all__ = ["place_of"]


def _entry(mem: Memory, hpa: int, size: int) -> int | None:
    if not holds(mem, hpa & ~7):
        return None
    return mem.read64(hpa & ~7) >> 8 * (hpa & 7) & bits(8 * size - 1, 0)


def _table(mem: Memory, ept: Ept | Npt | None, gpa: int) -> int | Fault:
    """Where a guest entry lies: the page walker must be able to read there, with EPT A/D flags to write (ept.md §4)."""
    if ept is None:
        return gpa
    why = GpaReference(rd=True, wr=ept.ad)
    if isinstance(ept, Npt):
        found = npt.translate_gpa(mem, ept, gpa, why, write=False)
    else:
        found = second.translate_gpa(mem, ept.quiet, gpa, why, write=False)
    return found.hpa if isinstance(found, GpaMapped) else found.fault


def _data(mem: Memory, ept: Ept | Npt | None, gpa: int) -> tuple[Fault, int | None]:
    """The EPT's word on the address itself: any page that is there will do."""
    if ept is None:
        return Fault.NONE, gpa
    absent, malformed = Fault.EPT_VIOLATION, Fault.EPT_MISCONFIG
    stage: Any = second
    if isinstance(ept, Npt):
        absent = malformed = Fault.NESTED_PAGE_FAULT
        stage = npt
    if ept.levels == 4 and gpa >> 48:
        return absent, None
    table = ept.root
    for level in range(ept.levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        entry = _entry(mem, table + 8 * (gpa >> shift & 511), 8)
        if entry is None:
            return Fault.BUS, None
        if not stage.present(ept, entry):
            return absent, None
        if stage.misconfigured(ept, entry, level):
            return malformed, None
        if stage.is_leaf(entry, level):
            offset = bits(shift - 1, 0)
            return Fault.NONE, entry & ept.frame & ~offset | gpa & offset
        table = entry & ept.frame
    raise AssertionError("entries of level 1 are leaves")


def place_of(mem: Memory, state: State, la: int, ept: Ept | Npt | None = None) -> tuple[Fault, int | None]:
    """The fault, and the host-physical address where there is none; it may lie outside memory."""
    la = state.linear(la)
    if not state.canonical(la):
        return Fault.GENERAL_PROTECTION, None
    if state.mode is Mode.NONE:
        return _data(mem, ept, la)
    if state.mode is Mode.PAE:
        register = state.pdpte[la >> 30]
        if isinstance(ept, Npt):
            place = _table(mem, ept, (state.cr3 & bits(31, 5)) + 8 * (la >> 30))
            if isinstance(place, Fault):
                return place, None
            found = _entry(mem, place, 8)
            if found is None:
                return Fault.BUS, None
            register = found
            if register & state.pdpte_reserved:
                return Fault.PAGE_FAULT, None
        if not register & guest.PRESENT:
            return Fault.PAGE_FAULT, None
        table = register & state.frame
    else:
        table = guest.root_table(state)
    size = guest.entry_size(state)
    for level in range(state.levels, 0, -1):
        place = _table(mem, ept, table + size * guest.index_of(state, la, level))
        if isinstance(place, Fault):
            return place, None
        entry = _entry(mem, place, size)
        if entry is None:
            return Fault.BUS, None
        if not entry & guest.PRESENT or entry & guest.reserved_bits(state, entry, level):
            return Fault.PAGE_FAULT, None
        if guest.is_leaf(state, entry, level):
            offset = bits(guest.page_shift(state, level) - 1, 0)
            return _data(mem, ept, guest.frame_of(state, entry, level) | la & offset)
        table = guest.table_of(state, entry)
    raise AssertionError("entries of level 1 are leaves")

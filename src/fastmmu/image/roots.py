"""Roots of address spaces: whether one is empty."""

from __future__ import annotations

from collections.abc import Iterator

from fastmmu._checked import checked
from fastmmu._walk import walk_ept
from fastmmu.dtypes import Fault
from fastmmu.errors import BusError
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import Eptp, GuestState, Mode, Npt, SecondLevel

__all__ = ["empty_root"]

_FRAME = 0xF_FFFF_FFFF_F000
_PRESENT_EPT = 0x7  # R, W, X; with mode-based execute control bit 10 too
_ENTRIES = {Mode.BITS_32: (4096, 1), Mode.PAE: (32, 1), Mode.LEVEL_4: (4096, 1), Mode.LEVEL_5: (4096, 1)}


@checked
def empty_root(memory: PhysicalMemory, state: GuestState, eptp: int | SecondLevel | None = None) -> str:
    """Which root table has no present entry, in words; "" where each has one, or lies outside memory.

    The root of the EPT first, then the table that CR3 points to (SDM vol. 3, "CR3", "PDPTE Registers").
    """
    if eptp is not None:
        pointer = eptp if isinstance(eptp, SecondLevel) else Eptp(eptp)
        nested = isinstance(pointer, Npt)
        wanted = 1 if nested else _PRESENT_EPT | (1 << 10 if pointer.options["mbec"] else 0)
        if not any(word & wanted for word in _words(memory, pointer.value & _FRAME, 4096)):
            return f"the root of the {'NPT' if nested else 'EPT'} at {pointer.value & _FRAME:x}"
    registers = state.pdptes is not None and any(state.pdptes) and not isinstance(eptp, Npt)
    if state.mode not in _ENTRIES or (state.mode is Mode.PAE and registers):
        return ""
    nbytes, present = _ENTRIES[state.mode]
    root = state.cr3 & {Mode.PAE: 0xFFFF_FFE0, Mode.BITS_32: 0xFFFF_F000}.get(state.mode, _FRAME)
    where = f"the root table at {root:x}"
    if eptp is not None:
        found = walk_ept(memory, eptp, root & _FRAME, gla=0, paging_structure=True)
        if found.fault != Fault.NONE:
            return ""
        where += f" (guest-physical; {found.pa | root & 0xFFF:x} in the file's memory)"
        root = found.pa | root & 0xFFF
    if state.mode is Mode.BITS_32:
        present |= 1 << 32
    return "" if any(word & present for word in _words(memory, root, nbytes)) else where


def _words(memory: PhysicalMemory, address: int, nbytes: int) -> Iterator[int]:
    # an address outside memory is another matter: it counts as present
    for at in range(address, address + nbytes, 8):
        try:
            yield memory.read64(at)
        except BusError:
            yield (1 << 64) - 1

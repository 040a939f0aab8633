"""The memory of a guest: what an EPT, or AMD's nested page tables, make of host memory."""

from __future__ import annotations

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.paging.mappings import ept_mappings
from fastmmu.paging.memory import FETCHED, PhysicalMemory
from fastmmu.paging.state import SecondLevel

__all__ = ["guest_memory"]

_MOST = 1 << 46
_PAGE = 4096


@checked
def guest_memory(memory: PhysicalMemory, eptp: int | SecondLevel) -> PhysicalMemory:
    """Guest-physical memory as a memory of its own, whose holes are what the EPT does not map to memory.

    :param eptp: EPT pointer (int or :class:`Eptp`), or :class:`Npt`.

    Its pages are those of ``memory``, read when they are asked for: so what looks at memory can look at a guest's,
    :func:`find_roots` among it. Rights of the EPT are left aside. The EPT is that of now, and it is read-only.

    :raises StateError: an EPTP that is none. :raises BusError: its table lies outside memory.
    :raises ConfigError: it maps no page of memory.
    """
    rows = ept_mappings(memory, eptp)
    rows = rows[rows.gpa < _MOST]
    ranges = memory.ranges
    behind = np.searchsorted(ranges[:, 1], rows.hpa, side="right").clip(max=len(ranges) - 1)
    ends = np.minimum(rows.hpa + rows["size"], ranges[behind, 1])  # of a large page, the part in the range it begins in
    held = (ranges[behind, 0] <= rows.hpa) & (rows.hpa < ends)
    gpa, hpa, size = rows.gpa[held], rows.hpa[held], (ends - rows.hpa)[held]
    if not len(gpa):
        raise ConfigError("this EPT maps no page of memory: is it the right pointer, and is all of memory there?")
    follows = (gpa[1:] == gpa[:-1] + size[:-1]) & (hpa[1:] == hpa[:-1] + size[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    start, place = gpa[first], hpa[first]
    length = np.add.reduceat(size, first)

    def fetch(at: int) -> bytes:
        i = int(np.searchsorted(start, at, side="right")) - 1
        page = bytearray(_PAGE)
        memory.read_into(int(place[i]) + at - int(start[i]), page)
        return bytes(page)

    return PhysicalMemory.from_segments(
        np.ascontiguousarray(start), length, np.full(len(first), FETCHED, np.int64), fetch=fetch
    )

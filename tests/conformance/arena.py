"""Recorded cases in one buffer from address 0, as the kernels' memory is.

They use addresses of up to 52 bits. A sparse mapping of 2**46 bytes holds most of them where they were recorded; host
tables above it are moved down first, see :func:`lowered`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
from collections.abc import Callable

import numpy as np

import fastmmu
from fastmmu.dtypes import StepKind

from .cases import EptpCase, GpaCase, Observed, PdpteCase, WalkCase
from .spec import SpecAdapter

__all__ = ["Arena", "MemoryCase", "lowered"]

ARENA_BITS = (46, 42)  # the first that the operating system grants
ARENA_CASES = 500  # after so many cases the arena is replaced, so that touched pages do not pile up
MAP_NORESERVE = 0x4000
MemoryCase = WalkCase | GpaCase | PdpteCase


class Arena:
    """A huge address space of which only touched pages exist; every qword reads 0 unless a case put it there."""

    def __init__(self) -> None:
        self.memory: fastmmu.PhysicalMemory | None = None
        self.cases_left = 0
        self.bits = 0

    def fresh(self) -> fastmmu.PhysicalMemory:
        """The memory, all zero (who used it before has put the zeros back)."""
        if self.memory is None or self.cases_left == 0:
            self.memory = None  # unmapped before the next is mapped: two do not fit
            self.memory = self._map()
            self.cases_left = ARENA_CASES
        self.cases_left -= 1
        return self.memory

    def _map(self) -> fastmmu.PhysicalMemory:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        for bits in ARENA_BITS:
            with contextlib.suppress(OSError):
                space = mmap.mmap(-1, 1 << bits, flags=flags)
                self.bits = bits
                return fastmmu.PhysicalMemory.from_array(np.frombuffer(space, dtype="<u8"))
        raise MemoryError(f"no sparse mapping of 2**{ARENA_BITS[-1]} bytes to be had")

    @property
    def stop(self) -> int:
        """First address outside, a power of two."""
        self.fresh()
        return 1 << self.bits


def _width(case: MemoryCase) -> int:
    if isinstance(case, WalkCase):
        return case.state.maxphyaddr
    return case.ept.maxphyaddr if isinstance(case, GpaCase) else case.maxphyaddr


def lowered(case: MemoryCase, stop: int) -> tuple[MemoryCase, Callable[[Observed], Observed]] | str:
    """The case with every host table below `stop`, a power of two, and the way back for what is then seen.

    In the pointers on the path, address bits from `stop` up to MAXPHYADDR are folded onto as many bits below (by
    exclusive or, so that alignment and difference are kept); no reserved or ignored bit is touched. Which qwords are
    pointers to host tables is what the specification reads on the way.
    """
    assert not isinstance(case, EptpCase)
    surplus = _width(case) - (stop.bit_length() - 1)
    if surplus <= 0:
        return case, lambda seen: seen
    high = (1 << _width(case)) - stop

    def fold(hpa: int) -> int:
        return hpa & ~high ^ (hpa & high) >> surplus

    spec = SpecAdapter().run(case)
    assert not isinstance(spec, str)
    kind = StepKind.EPT if case.ept else StepKind.GUEST
    pointers = [step[3] for step in spec["steps"] if step[0] == kind]
    used = case.mem.keys() | {step[3] & ~7 for step in spec["steps"] if step[1]} | spec["ch"].keys()
    if max(used, default=0) < stop:
        return case, lambda seen: seen
    back = {fold(hpa): hpa for hpa in used}
    if len(back) != len(used):
        return "two tables at one address after moving them below the end of the arena"
    delta = {hpa: case.mem.get(hpa, 0) ^ fold(case.mem.get(hpa, 0)) for hpa in pointers}

    def restore(seen: Observed) -> Observed:
        seen["ch"] = {back.get(hpa, hpa): value ^ delta.get(back.get(hpa, hpa), 0) for hpa, value in seen["ch"].items()}
        if "pa" in seen and pointers:
            seen["pa"] ^= delta[pointers[-1]]
        return {**seen, "moved": True}

    mem = {fold(hpa): value ^ delta.get(hpa, 0) for hpa, value in case.mem.items()}
    if case.ept:
        pml = case.ept.pml and (fold(case.ept.pml[0]), case.ept.pml[1])
        ept = dataclasses.replace(case.ept, eptp=fold(case.ept.eptp), pml=pml)
        return dataclasses.replace(case, mem=mem, ept=ept), restore
    if isinstance(case, WalkCase):
        first, second, third, fourth = map(fold, case.state.pdpte)
        state = dataclasses.replace(case.state, cr3=fold(case.state.cr3), pdpte=(first, second, third, fourth))
        return dataclasses.replace(case, mem=mem, state=state), restore
    return dataclasses.replace(case, mem=mem), restore

"""The compiled kernels as an implementation under test, by way of `fastmmu.walk`.

Their memory is one buffer from address 0. Recorded cases use addresses of up to 52 bits: a sparse mapping of 2**46
bytes holds most of them as they are, and tables above it are moved down first (see :func:`_lowered`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu import reference as ref
from fastmmu._state import eptp_fault
from fastmmu.dtypes import Fault, StepKind
from fastmmu.exits import Qualification

from .cases import Case, EptpCase, GpaCase, Observed, PdpteCase, WalkCase

__all__ = ["KernelAdapter", "kernel_eptp", "kernel_state", "observed"]

ARENA_BITS = (46, 42)  # the first that the operating system grants
ARENA_CASES = 500  # after so many cases the arena is replaced, so that touched pages do not pile up
MAP_NORESERVE = 0x4000
WORDS = {
    Fault.NONE: "ok",
    Fault.PAGE_FAULT: "pf",
    Fault.GENERAL_PROTECTION: "gp",
    Fault.EPT_VIOLATION: "ev",
    Fault.EPT_MISCONFIG: "em",
    Fault.BUS: "bus",
    Fault.PML_FULL: "pml",
}
MODELLED_CAPS = ref.EptCap.EXECUTE_ONLY | ref.EptCap.PAGE_1G | ref.EptCap.ADVANCED_INFO


def kernel_state(state: ref.State, **changes: Any) -> fastmmu.GuestState:
    """The same registers."""
    registers: dict[str, Any] = {
        name: getattr(state, name) for name in ("cr0", "cr3", "cr4", "efer", "cpl", "ac", "pkru", "pkrs", "maxphyaddr")
    }
    registers |= {"implicit": bool(state.implicit), "page1gb": bool(state.gb_pages), "pse36": state.pse36_bits}
    registers |= {"upper_a": state.upper_a, "pdptes": state.pdpte if state.mode is ref.Mode.PAE else None}
    return fastmmu.GuestState(**{**registers, **changes})


def kernel_eptp(ept: ref.Ept) -> fastmmu.Eptp:
    """The same EPTP and capabilities."""
    return fastmmu.Eptp(
        ept.eptp,
        maxphyaddr=ept.maxphyaddr,
        execute_only=bool(ept.caps & ref.EptCap.EXECUTE_ONLY),
        mbec=bool(ept.mbec),
        page1gb=bool(ept.caps & ref.EptCap.PAGE_1G),
        advanced_info=bool(ept.caps & ref.EptCap.ADVANCED_INFO),
        ad_before_final=ept.guest_ad_before_final_ept,
    )


def observed(result: fastmmu.WalkResult) -> Observed:
    """A result of `fastmmu.walk` in the words of `cases`; memory is the caller's to look at."""
    seen: Observed = {
        "k": WORDS[result.fault],
        "steps": [
            tuple(int(step[name]) for name in ("kind", "level", "guest_level", "hpa", "gpa", "entry"))
            for step in result.steps
        ],
    }
    if result.fault is Fault.NONE:
        us, rw, xd = result.rights
        seen |= {"pa": result.pa, "gpa": result.gpa, "us": int(us), "rw": int(rw), "xd": int(xd)}
        seen |= {"gps": result.page_size or 0, "eps": result.ept_page_size or 0}
    elif result.fault is Fault.PAGE_FAULT:
        seen |= {"ec": result.error_code, "cr2": result.la}
    elif result.fault is Fault.EPT_VIOLATION:
        assert result.qualification is not None
        seen |= {"q": int(result.qualification), "gpa": result.gpa}
        seen |= {"gla": result.la} if result.qualification & Qualification.GLA_VALID else {}
    elif result.fault is Fault.EPT_MISCONFIG:
        seen["gpa"] = result.gpa
    return seen


# ---- recorded cases in one buffer ----------------------------------------------------------------------------


class _Arena:
    """A huge address space of which only touched pages exist; every qword reads 0 unless a case put it there."""

    def __init__(self) -> None:
        self.memory: fastmmu.PhysicalMemory | None = None
        self.cases_left = 0
        self.bits = 0

    def fresh(self) -> fastmmu.PhysicalMemory:
        """The memory, all zero."""
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
        self.fresh()
        return 1 << self.bits


_ARENA = _Arena()


def _lowered(case: WalkCase, stop: int) -> tuple[WalkCase, Callable[[Observed], Observed]] | str:
    """The case with every host table below `stop`, a power of two, and the way back for what is then seen.

    In the pointers on the path, address bits from `stop` up to MAXPHYADDR are folded onto as many bits below (by
    exclusive or, so that alignment and difference are kept); no reserved or ignored bit is touched. Which qwords are
    pointers to host tables is what the specification reads on the way.
    """
    surplus = case.state.maxphyaddr - (stop.bit_length() - 1)
    if surplus <= 0:
        return case, lambda seen: seen
    high = (1 << case.state.maxphyaddr) - stop

    def fold(hpa: int) -> int:
        return hpa & ~high ^ (hpa & high) >> surplus

    spec = ref.walk(ref.SparseMemory(case.mem), case.state, case.la, case.access, ept=case.ept, write=False)
    pointers = [step.hpa for step in spec.steps if step.kind == (StepKind.EPT if case.ept else StepKind.GUEST)]
    used = case.mem.keys() | {step.hpa & ~7 for step in spec.steps if step.level}
    if max(used, default=0) < stop:
        return case, lambda seen: seen
    if len({fold(hpa) for hpa in used}) != len(used):
        return "two tables at one address after moving them below the end of the arena"
    delta = {hpa: case.mem.get(hpa, 0) ^ fold(case.mem.get(hpa, 0)) for hpa in pointers}
    back = {fold(hpa): hpa for hpa in used}

    def restore(seen: Observed) -> Observed:
        seen["ch"] = {back[hpa]: value ^ delta.get(back[hpa], 0) for hpa, value in seen["ch"].items()}
        if "pa" in seen and pointers:
            seen["pa"] ^= delta[pointers[-1]]
        return seen

    ept, state = case.ept, case.state
    if ept:
        ept = dataclasses.replace(ept, eptp=fold(ept.eptp))
    else:
        first, second, third, fourth = map(fold, state.pdpte)
        state = dataclasses.replace(state, cr3=fold(state.cr3), pdpte=(first, second, third, fourth))
    mem = {fold(hpa): value ^ delta.get(hpa, 0) for hpa, value in case.mem.items()}
    return dataclasses.replace(case, mem=mem, ept=ept, state=state), restore


# ---- the adapter ---------------------------------------------------------------------------------------------


class KernelAdapter:
    name = "kernel"
    unreported = frozenset({"emt", "hpa", "ipat", "mt", "pdpte", "pmli"})

    def run(self, case: Case) -> Observed | str:
        if isinstance(case, EptpCase):
            return self._eptp(case)
        if isinstance(case, GpaCase):
            return "no translation of a bare guest-physical address"
        if isinstance(case, PdpteCase):
            return self._pdptes(case)
        if case.ept and (reason := self._beyond(case.ept)):
            return reason
        if case.nbytes <= 1 << 24:
            return self._dense(case)
        lowered = _lowered(case, _ARENA.stop)
        if isinstance(lowered, str):
            return lowered
        low, restore = lowered
        return restore(self._sparse(low))

    @staticmethod
    def _beyond(ept: ref.Ept) -> str | None:
        if ept.pml is not None:
            return "no page-modification log"
        if ept.spptp is not None:
            return "no sub-page permissions"
        if ept.caps | MODELLED_CAPS != ref.EptCap.ALL | MODELLED_CAPS:
            return "a fixed EPT capability is absent"
        return None

    @staticmethod
    def _walk(memory: fastmmu.PhysicalMemory, case: WalkCase) -> Observed:
        ept = kernel_eptp(case.ept) if case.ept else None
        state = kernel_state(case.state)
        return observed(fastmmu.walk(memory, state, case.la, access=case.access, eptp=ept, set_ad=case.write))

    def _dense(self, case: WalkCase) -> Observed:
        array: npt.NDArray[np.uint64] = np.zeros(case.nbytes // 8, dtype="<u8")
        for hpa, value in case.mem.items():
            array[hpa >> 3] = value
        before = array.copy()
        seen = self._walk(fastmmu.PhysicalMemory.from_array(array), case)
        changed = np.flatnonzero(array != before)
        return {**seen, "ch": {8 * int(i): int(array[i]) for i in changed}}

    def _sparse(self, case: WalkCase) -> Observed:
        memory = _ARENA.fresh()
        for hpa, value in case.mem.items():
            memory.u64[hpa >> 3] = value
        seen = self._walk(memory, case)
        touched = set(case.mem) | {hpa & ~7 for _, level, _, hpa, _, _ in seen["steps"] if level}
        after = {hpa: int(memory.u64[hpa >> 3]) for hpa in touched}
        for hpa in touched:
            memory.u64[hpa >> 3] = 0
        return {**seen, "ch": {hpa: value for hpa, value in after.items() if value != case.mem.get(hpa, 0)}}

    def _pdptes(self, case: PdpteCase) -> Observed | str:
        """A walk with PAE paging and no PDPTE registers given loads them; it ends at once on one that is absent."""
        values = [case.mem.get((case.cr3 & 0xFFFF_FFE0) + 8 * i, 0) for i in range(4)]
        if case.ept:
            reason = self._beyond(case.ept)
            return reason or "the load cannot be told from the walk that follows"
        absent = next((i for i, value in enumerate(values) if not value & 1), None)
        memory = _ARENA.fresh()
        for hpa, value in case.mem.items():
            memory.u64[hpa >> 3] = value
        registers = ref.State(cr0=0x8001_0031, cr3=case.cr3, cr4=0x20, efer=0x800, maxphyaddr=case.maxphyaddr)
        result = fastmmu.walk(memory, kernel_state(registers, pdptes=None), (absent or 0) << 30)
        for hpa in case.mem:
            memory.u64[hpa >> 3] = 0
        return {"k": "gp" if result.fault is Fault.GENERAL_PROTECTION else "ok", "ch": {}}

    @staticmethod
    def _eptp(case: EptpCase) -> Observed | str:
        if case.eptp >> 3 & 7 == 4 and not case.caps & ref.EptCap.WALK5:
            return "five-level EPT is always supported"
        supported = bool(case.caps & ref.EptCap.AD)
        return {"valid": int(not eptp_fault(case.eptp, case.maxphyaddr, supported))}

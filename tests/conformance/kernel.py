"""The compiled kernels as an implementation under test, by way of `walk`, `walk_ept` and `load_pdpte_registers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu import reference as ref
from fastmmu._walk import load_pdpte_registers, walk_ept
from fastmmu.dtypes import ALL_ONES, Fault
from fastmmu.exits import Qualification
from fastmmu.paging.state import Pml, eptp_fault

from .arena import Arena, MemoryCase, lowered
from .cases import Case, EptpCase, GpaCase, Observed, PdpteCase, WalkCase
from .spec import SpecAdapter

__all__ = ["WORDS", "BatchAdapter", "KernelAdapter", "kernel_eptp", "kernel_state", "observed"]

WORDS = {
    Fault.NONE: "ok",
    Fault.PAGE_FAULT: "pf",
    Fault.GENERAL_PROTECTION: "gp",
    Fault.EPT_VIOLATION: "ev",
    Fault.EPT_MISCONFIG: "em",
    Fault.BUS: "bus",
    Fault.PML_FULL: "pml",
    Fault.SPP_EVENT: "spp",
    Fault.APIC_ACCESS: "apic",
    Fault.NESTED_PAGE_FAULT: "npf",
}
MODELLED_CAPS = ref.EptCap.EXECUTE_ONLY | ref.EptCap.PAGE_1G | ref.EptCap.ADVANCED_INFO
SAME_NAME = ("cr0", "cr3", "cr4", "efer", "cpl", "ac", "pkru", "pkrs", "maxphyaddr", "upper_a", "pat")
_ARENA = Arena()  # one for all: a second would not fit into the address space


def kernel_state(state: ref.State) -> fastmmu.GuestState:
    """The same registers."""
    registers: dict[str, Any] = {name: getattr(state, name) for name in SAME_NAME}
    registers |= {"implicit": bool(state.implicit), "page1gb": bool(state.gb_pages), "pse36": state.pse36_bits}
    registers |= {"pdptes": state.pdpte if state.mode is ref.Mode.PAE else None}
    mtrrs = fastmmu.Mtrrs(state.mtrrs.def_type, state.mtrrs.fixed, state.mtrrs.variable)
    return fastmmu.GuestState(mtrrs=mtrrs, **registers)


def kernel_eptp(ept: ref.Ept | ref.Npt) -> fastmmu.Eptp | fastmmu.Npt:
    """The same EPTP, capabilities and controls; or the same nCR3."""
    if isinstance(ept, ref.Npt):
        return fastmmu.Npt(
            ept.ncr3,
            levels=ept.levels,
            maxphyaddr=ept.maxphyaddr,
            nxe=bool(ept.nxe),
            page1gb=bool(ept.gb_pages),
            pat=ept.pat,
            ad_before_final=ept.guest_ad_before_final_ept,
        )
    return fastmmu.Eptp(
        ept.eptp,
        maxphyaddr=ept.maxphyaddr,
        execute_only=bool(ept.caps & ref.EptCap.EXECUTE_ONLY),
        mbec=bool(ept.mbec),
        page1gb=bool(ept.caps & ref.EptCap.PAGE_1G),
        advanced_info=bool(ept.caps & ref.EptCap.ADVANCED_INFO),
        ad_before_final=ept.guest_ad_before_final_ept,
        guest_ad_checked=ept.guest_ad_checked,
        pml=Pml(*ept.pml) if ept.pml else None,
        spptp=ept.spptp,
        apic_access=ept.apic_access,
    )


def observed(result: fastmmu.WalkResult) -> Observed:
    """A result of a kernel in the words of `cases`; memory is the caller's to look at."""
    seen: Observed = {
        "k": WORDS[result.fault],
        "steps": [
            (kind, level, guest_level, hpa, gpa, entry)
            for hpa, gpa, entry, kind, level, guest_level, _ in result.steps.tolist()
        ],
    }
    if result.fault is Fault.NONE:
        us, rw, xd = result.rights
        seen |= {"pa": result.pa, "gpa": result.gpa, "us": int(us), "rw": int(rw), "xd": int(xd)}
        seen |= {"gps": result.page_size or 0, "eps": result.ept_page_size or 0}
        emt, ipat = result.ept_memory_type or (0, False)
        assert result.memory_type is not None
        seen |= {"mt": int(result.memory_type), "emt": int(emt), "ipat": int(ipat)}
    elif result.fault is Fault.PAGE_FAULT:
        seen |= {"ec": result.error_code, "cr2": result.cr2}
    elif result.fault is Fault.EPT_VIOLATION:
        assert result.qualification is not None
        seen |= {"q": int(result.qualification), "gpa": result.gpa, "sve": int(result.suppress_ve)}
        seen |= {"gla": result.gla} if result.qualification & Qualification.GLA_VALID else {}
    elif result.fault is Fault.EPT_MISCONFIG:
        seen["gpa"] = result.gpa
    elif result.fault in (Fault.APIC_ACCESS, Fault.NESTED_PAGE_FAULT):
        seen |= {"q": result.exit_qualification, "gpa": result.gpa}
    elif result.fault in (Fault.PML_FULL, Fault.SPP_EVENT):
        seen["q"] = result.exit_qualification
    return seen


class KernelAdapter:
    """One walk at a time."""

    name = "kernel"
    unreported = frozenset({"hpa"})

    def run(self, case: Case) -> Observed | str:
        if isinstance(case, EptpCase):
            return self._eptp(case)
        if isinstance(case.ept, ref.Ept) and case.ept.caps | MODELLED_CAPS != ref.EptCap.ALL | MODELLED_CAPS:
            return "a fixed EPT capability is absent"
        if case.nbytes <= 1 << 24:
            return self._dense(case)
        low = lowered(case, _ARENA.stop)
        return low if isinstance(low, str) else low[1](self._sparse(low[0]))

    def _ask(self, memory: fastmmu.PhysicalMemory, case: MemoryCase) -> Observed:
        ept = kernel_eptp(case.ept) if case.ept else None
        if isinstance(case, WalkCase):
            state = kernel_state(case.state)
            seen = observed(fastmmu.walk(memory, state, case.la, access=case.access, eptp=ept, set_ad=case.write))
        elif isinstance(case, GpaCase):
            assert ept is not None
            seen = observed(self.ask_gpa(memory, case, ept))
        else:
            seen = self._pdptes(memory, case, ept)
        if ept is not None and ept.pml is not None:
            seen["pmli"] = ept.pml.index
        return seen

    @staticmethod
    def ask_gpa(memory: fastmmu.PhysicalMemory, case: GpaCase, ept: fastmmu.Eptp | fastmmu.Npt) -> fastmmu.WalkResult:
        """The reference as an access."""
        why = case.why
        data = {(True, False, False): "r", (False, True, False): "w", (True, True, False): "rw"}
        # A reference to a paging structure always reads; written, it is an update of its flags.
        structure = why.gla is not None and not why.translated
        access = ("w" if why.wr else "r") if structure else data.get((why.rd, why.wr, why.fe), "x")
        return walk_ept(
            memory,
            ept,
            case.gpa,
            access=access,
            gla=why.gla,
            paging_structure=structure,
            user=bool(why.us),
            writable=bool(why.rw),
            nx=bool(why.xd),
            set_ad=True,
        )

    @staticmethod
    def _pdptes(memory: fastmmu.PhysicalMemory, case: PdpteCase, ept: fastmmu.Eptp | fastmmu.Npt | None) -> Observed:
        registers = ref.State(cr0=0x8001_0031, cr3=case.cr3, cr4=0x20, efer=0x800, maxphyaddr=case.maxphyaddr)
        loaded = load_pdpte_registers(memory, kernel_state(registers), eptp=ept, set_ad=True)
        if isinstance(loaded, fastmmu.GuestState):
            return {"k": "ok", "pdpte": loaded.pdptes, "unreported": {"steps"}}
        return observed(loaded)

    def _dense(self, case: MemoryCase) -> Observed:
        array: npt.NDArray[np.uint64] = np.zeros(case.nbytes // 8, dtype="<u8")
        for hpa, value in case.mem.items():
            array[hpa >> 3] = value
        before = array.copy()
        seen = self._ask(fastmmu.PhysicalMemory.from_array(array), case)
        changed = np.flatnonzero(array != before)
        return {**seen, "ch": {8 * int(i): int(array[i]) for i in changed}}

    def _sparse(self, case: MemoryCase) -> Observed:
        """Looks for changes where the case has qwords, where steps were and where the log may be written."""
        memory = _ARENA.fresh()
        for hpa, value in case.mem.items():
            memory.u64[hpa >> 3] = value
        seen = self._ask(memory, case)
        touched = set(case.mem) | {hpa & ~7 for _, level, _, hpa, _, _ in seen.get("steps", ()) if level}
        if case.ept and case.ept.pml:
            touched |= {case.ept.pml[0] + 8 * i for i in range(512)}
        touched = {hpa for hpa in touched if hpa < memory.nbytes}
        after = {hpa: int(memory.u64[hpa >> 3]) for hpa in touched}
        for hpa in touched:
            memory.u64[hpa >> 3] = 0
        return {**seen, "ch": {hpa: value for hpa, value in after.items() if value != case.mem.get(hpa, 0)}}

    @staticmethod
    def _eptp(case: EptpCase) -> Observed | str:
        if case.caps | ref.EptCap.AD | ref.EptCap.WALK5 | MODELLED_CAPS != ref.EptCap.ALL | MODELLED_CAPS:
            return "a fixed EPT capability is absent"
        ad, five_levels = bool(case.caps & ref.EptCap.AD), bool(case.caps & ref.EptCap.WALK5)
        return {"valid": int(not eptp_fault(case.eptp, case.maxphyaddr, ad, five_levels))}


class BatchAdapter(KernelAdapter):
    """`translate`, which asks and does not write: where an access goes, or what kind of fault stops it."""

    name = "batch kernel"
    unreported = frozenset(
        {
            "ch",
            "cr2",
            "ec",
            "emt",
            "eps",
            "gla",
            "gpa",
            "gps",
            "hpa",
            "ipat",
            "mt",
            "pmli",
            "q",
            "rd",
            "rw",
            "sve",
            "us",
            "xd",
        }
    )

    def run(self, case: Case) -> Observed | str:
        if not isinstance(case, WalkCase):
            return "not an access to a linear address"
        if case.ept and case.ept.pml and SpecAdapter().run(case)["k"] == "pml":  # type: ignore[index]
            return "a full log stops an access, not a translation"
        return super().run(case)

    def _ask(self, memory: fastmmu.PhysicalMemory, case: MemoryCase) -> Observed:
        assert isinstance(case, WalkCase)
        ept = kernel_eptp(case.ept) if case.ept else None
        state, las = kernel_state(case.state), np.array([case.la], dtype="<u8")
        result = fastmmu.translate(memory, state, las, access=case.access, eptp=ept)
        fault, pa = Fault(int(result.fault[0])), int(result.pa[0])
        assert (pa == int(ALL_ONES)) is (fault is not Fault.NONE)
        return {"k": WORDS[fault], "steps": [], **({} if fault else {"pa": pa})}

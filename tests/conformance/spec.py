"""The executable specification as an implementation under test."""

from __future__ import annotations

from fastmmu import reference as ref
from fastmmu.reference.paging import npt

from .cases import Case, EptpCase, GpaCase, Observed, PdpteCase, WalkCase

__all__ = ["SpecAdapter", "observed"]


def observed(outcome: ref.Outcome) -> Observed:
    """An outcome of the specification in the words of `cases`."""
    seen: Observed = {
        "ch": {change.hpa: change.value for change in outcome.changes},
        "steps": [(s.kind, s.level, s.guest_level, s.hpa, s.gpa, s.entry) for s in outcome.steps],
    }
    if outcome.pml_index is not None:
        seen["pmli"] = outcome.pml_index
    match outcome:
        case ref.Mapped():
            seen |= {"k": "ok", "pa": outcome.pa, "gpa": outcome.gpa, "gps": outcome.guest_size}
            seen |= {"us": outcome.us, "rw": outcome.rw, "xd": outcome.xd, "mt": outcome.memory_type}
            seen |= {"eps": outcome.ept_size, "emt": outcome.ept_mt, "ipat": outcome.ept_ipat}
        case ref.GpaMapped():
            seen |= {"k": "ok", "pa": outcome.hpa, "eps": outcome.size, "emt": outcome.mt, "ipat": outcome.ipat}
        case ref.PdptesLoaded():
            seen |= {"k": "ok", "pdpte": outcome.pdpte}
        case ref.PageFault():
            seen |= {"k": "pf", "ec": outcome.error_code, "cr2": outcome.cr2}
        case ref.GeneralProtection():
            seen |= {"k": "gp"}
        case ref.EptViolation():
            seen |= {"k": "ev", "q": outcome.qualification, "gpa": outcome.gpa}
            seen |= {"sve": 1 if outcome.entry is None else outcome.entry >> 63}
            seen |= {} if outcome.gla is None else {"gla": outcome.gla}
        case ref.NestedPageFault():
            seen |= {"k": "npf", "q": outcome.error_code, "gpa": outcome.gpa}
        case ref.EptMisconfig():
            seen |= {"k": "em", "gpa": outcome.gpa}
        case ref.SppEvent():
            seen |= {"k": "spp", "q": outcome.qualification}
        case ref.ApicAccess():
            seen |= {"k": "apic", "q": outcome.qualification, "gpa": outcome.gpa}
        case ref.PmlFull():
            seen |= {"k": "pml", "q": outcome.qualification}
        case ref.Bus():
            seen |= {"k": "bus", "hpa": outcome.hpa}
        case _:
            raise AssertionError(f"an outcome without a word: {outcome}")
    return seen


class SpecAdapter:
    name = "executable specification"
    unreported: frozenset[str] = frozenset()

    def run(self, case: Case) -> Observed | str:
        if isinstance(case, EptpCase):
            return {"valid": int(ref.eptp_valid(case.eptp, caps=case.caps, maxphyaddr=case.maxphyaddr))}
        mem = ref.SparseMemory(case.mem, case.nbytes)
        if isinstance(case, GpaCase):
            if isinstance(case.ept, ref.Npt):
                return observed(npt.translate_gpa(mem, case.ept, case.gpa, case.why))
            return observed(ref.translate_gpa(mem, case.ept, case.gpa, case.why))
        if isinstance(case, PdpteCase):
            return observed(ref.load_pdptes(mem, case.cr3, maxphyaddr=case.maxphyaddr, ept=case.ept))
        assert isinstance(case, WalkCase)
        seen = observed(ref.walk(mem, case.state, case.la, case.access, ept=case.ept, write=case.write))
        # A write may leave the value that was there (a log slot): what counts is what differs.
        seen["ch"] = {hpa: value for hpa, value in seen["ch"].items() if case.mem.get(hpa, 0) != value}
        after = {hpa: value for hpa, value in mem.qwords.items() if case.mem.get(hpa, 0) != value}
        assert after == (seen["ch"] if case.write else {}), "the changes listed are those that memory shows"
        return seen

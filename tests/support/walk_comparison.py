"""A walk by the kernels beside the same walk by the specification: outcome, addresses, codes, steps, memory."""

from __future__ import annotations

from fastmmu import reference as ref
from fastmmu.dtypes import StepKind
from tests.conformance.cases import WalkCase
from tests.conformance.differences import differences
from tests.conformance.kernel import KernelAdapter
from tests.conformance.spec import SpecAdapter

__all__ = ["KERNEL", "SPEC", "Steps", "disagreements", "tables_overlap"]

SPEC, KERNEL = SpecAdapter(), KernelAdapter()
FLAG_WRITES = (StepKind.GUEST_AD, StepKind.EPT_AD)
Steps = list[tuple[int, ...]]


# ---- where the two may differ, and why -----------------------------------------------------------------------


def tables_overlap(steps: Steps) -> bool:
    """A guest entry is used in two roles: what the access writes in one it reads in the other.

    A query, which writes nothing, cannot then foresee everything that the access would do.
    """
    guest_reads = [step[3] & ~7 for step in steps if step[0] == StepKind.GUEST]
    ept_reads = {step[3] for step in steps if step[0] == StepKind.EPT}
    return len(set(guest_reads)) < len(guest_reads) or not ept_reads.isdisjoint(guest_reads)


def without_flags(steps: Steps, npt: bool) -> Steps:
    """Steps of a query: no flag is written, and none that the access would have set before is seen set."""
    flags = {StepKind.GUEST: 0x60, StepKind.EPT: 0x60 if npt else 0x300}
    return [(*step[:5], step[5] & ~flags.get(StepKind(step[0]), 0)) for step in steps if step[0] not in FLAG_WRITES]


# ---- comparison ----------------------------------------------------------------------------------------------


def disagreements(case: WalkCase) -> list[str]:
    """What the kernel says otherwise than the specification, in words; nothing where it cannot take the case."""
    want, got = SPEC.run(case), KERNEL.run(case)
    if isinstance(got, str):
        return []
    assert isinstance(want, dict)
    if not case.write and tables_overlap(want["steps"]):
        assert got["ch"] == {}
        return []
    if not case.write:
        npt = isinstance(case.ept, ref.Npt)
        want |= {"ch": {}, "steps": without_flags(want["steps"], npt)}
        if case.ept and case.ept.pml is not None:
            want["pmli"] = case.ept.pml[1]
        got["steps"] = without_flags(got["steps"], npt)
    return differences(want, got, KERNEL.unreported, ("specification", "kernel"))

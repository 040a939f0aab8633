"""What a walk ends in: one frozen class per outcome, each with its own data, and the trace of how it came about.

An outcome is a sum, never a sentinel: :class:`Mapped` | :class:`PageFault` | :class:`GeneralProtection` |
:class:`EptViolation` | :class:`EptMisconfig` | :class:`NestedPageFault` | :class:`SppEvent` | :class:`PmlFull` |
:class:`ApicAccess` | :class:`Bus` for an access, :class:`GpaMapped` for a bare guest-physical translation,
:class:`PdptesLoaded` for a load of the PDPTE registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import Fault, StepKind
from ...exits import ExitReason

__all__ = [
    "ApicAccess",
    "Bus",
    "Change",
    "EptMisconfig",
    "EptViolation",
    "GeneralProtection",
    "GpaMapped",
    "Mapped",
    "NestedPageFault",
    "Outcome",
    "PageFault",
    "PdptesLoaded",
    "PmlFull",
    "SppEvent",
    "Step",
]


@dataclass(frozen=True, slots=True)
class Step:
    """One memory reference. Fields as in ``STEP_DTYPE``; `guest_level` of a guest reference is its own level."""

    hpa: int  # host physical address of the reference
    gpa: int  # its guest-physical address (= hpa without EPT); of an EPT reference: the gpa being translated
    entry: int  # the value read, or written; 0 for the data access
    kind: int  # StepKind
    level: int  # of this entry, 5..1; 0 for data
    guest_level: int  # guest level being served, 5..1; 0 = the data access


@dataclass(frozen=True, slots=True)
class Change:
    """One write to memory, as the aligned qword that results (32-bit entries are halves of a qword)."""

    hpa: int
    value: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it came about. In query mode `changes` and `pml_index` are what the access would have left behind."""

    fault = Fault.NONE

    steps: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()
    pml_index: int | None = None  # PML index afterwards; None where PML is off

    @property
    def references(self) -> int:
        """Paging-structure entries read, guest and EPT, without the data access (ept.md §5)."""
        return sum(step.kind in (StepKind.GUEST, StepKind.EPT) for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class Mapped(Outcome):
    """The access proceeds. `pa` is byte-exact and may lie outside the memory given."""

    pa: int
    gpa: int  # = pa without EPT
    guest_size: int  # bytes; 0 with paging off
    us: int  # AND of U/S over the levels
    rw: int  # AND of R/W
    xd: int  # OR of XD
    leaf: int  # guest leaf entry as it stands after the access; 0 with paging off
    dirty: int  # D of that entry; 1 with paging off
    global_page: int  # G and CR4.PGE
    pkey: int
    pat: int  # index into IA32_PAT
    ept_size: int = 0  # bytes; 0 without EPT
    ept_rights: int = 0  # R=1 W=2 X=4 XU=8, ANDed over the EPT levels of the final translation
    ept_mt: int = 0
    ept_ipat: int = 0
    ept_dirty: int = 1  # D of the EPT leaf after the access; 1 where EPT A/D flags are off
    memory_type: int = 6  # effective type of the access: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB


@dataclass(frozen=True, kw_only=True)
class GpaMapped(Outcome):
    """A bare guest-physical translation succeeded."""

    hpa: int
    size: int
    rights: int  # R=1 W=2 X=4 XU=8
    mt: int
    ipat: int
    dirty: int
    entry: int  # the leaf as read, before A and D were set


@dataclass(frozen=True, kw_only=True)
class PdptesLoaded(Outcome):
    """All four PDPTE registers were acceptable; these are their new values."""

    pdpte: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class PageFault(Outcome):
    """#PF with its error code (paging.md §5) and the linear address for CR2."""

    fault = Fault.PAGE_FAULT

    error_code: int
    cr2: int


@dataclass(frozen=True, kw_only=True)
class GeneralProtection(Outcome):
    """#GP(0) ( #SS(0) for a stack reference): non-canonical address, or a reserved bit in a present PDPTE."""

    fault = Fault.GENERAL_PROTECTION

    reason: str


@dataclass(frozen=True, kw_only=True)
class EptViolation(Outcome):
    """Exit 48. `gla` is None where qualification bit 7 is 0.

    `entry` is the entry that decided (bit 63 of it governs the conversion to #VE, ept.md §9): the not-present one,
    else the leaf; None where no entry was looked at.
    """

    fault = Fault.EPT_VIOLATION
    exit_reason = ExitReason.EPT_VIOLATION

    qualification: int
    gpa: int
    gla: int | None
    entry: int | None


@dataclass(frozen=True, kw_only=True)
class EptMisconfig(Outcome):
    """Exit 49. Qualification and guest-linear address are undefined and therefore absent."""

    fault = Fault.EPT_MISCONFIG
    exit_reason = ExitReason.EPT_MISCONFIG

    gpa: int


@dataclass(frozen=True, kw_only=True)
class NestedPageFault(Outcome):
    """#VMEXIT(NPF) of AMD (npt.md §4). `error_code` is EXITINFO1, `gpa` EXITINFO2."""

    fault = Fault.NESTED_PAGE_FAULT
    exit_reason = ExitReason.NPF

    error_code: int
    gpa: int


@dataclass(frozen=True, kw_only=True)
class SppEvent(Outcome):
    """Exit 66: the sub-page permission table has no valid entry (bit 11 = 1) or a malformed one (bit 11 = 0)."""

    fault = Fault.SPP_EVENT
    exit_reason = ExitReason.SPP_EVENT

    qualification: int
    gpa: int
    gla: int | None


@dataclass(frozen=True, kw_only=True)
class PmlFull(Outcome):
    """Exit 62: an EPT A or D flag had to be set while the PML index was outside 0..511."""

    fault = Fault.PML_FULL
    exit_reason = ExitReason.PML_FULL

    qualification: int
    gpa: int


@dataclass(frozen=True, kw_only=True)
class ApicAccess(Outcome):
    """Exit 44: a guest-physical access, to a paging structure of the guest, meets the APIC-access page."""

    fault = Fault.APIC_ACCESS
    exit_reason = ExitReason.APIC_ACCESS

    qualification: int
    gpa: int


@dataclass(frozen=True, kw_only=True)
class Bus(Outcome):
    """A table entry (or PML slot) that had to be read or written lies outside the memory given."""

    fault = Fault.BUS

    hpa: int

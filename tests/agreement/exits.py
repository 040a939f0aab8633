"""What the exits of a phase say beside their reasons: exit qualifications, error codes of #PF and of nested faults.

Recorded are histograms: of Intel by reason (exit_info1), with the vector that was being delivered where there was one;
of AMD the error codes of all faults. Compared are EPT violations, exceptions, and accesses to control registers. Of
these three details are no mechanism of the MMU and stay out: bits 11:8 of the latter, the general register; bits 11:9
of an EPT violation on processors without advanced exit information; bit 0 of a violation by an access to a guest's
paging structure where Bochs was the processor (the deviation ad_qual_bit0 of the vectors' FORMAT.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from fastmmu import Exit, Machine, Policy
from fastmmu.exits import Action, ExitReason, Qualification

from .recorded import Recording

__all__ = ["Noted", "Recorder", "advanced", "difference", "of_violation"]

ADVANCED = Qualification.USER_PAGE | Qualification.WRITABLE_PAGE | Qualification.NX_PAGE
GENERAL_REGISTER = 0xF00
RESERVED = 8
VECTORING = " vectoring=0x80000b0e"
COMPARED = (ExitReason.EPT_VIOLATION.name, ExitReason.EXCEPTION_NMI.name, ExitReason.CR_ACCESS.name)


class Noted(NamedTuple):
    """An exit. access: the guest's, "r", "w" or "x". vectoring: a #PF was being delivered."""

    reason: ExitReason
    qualification: int
    error_code: int
    access: str
    vectoring: bool


class Recorder(Policy):
    """Notes every exit, and leaves it to the default."""

    def __init__(self) -> None:
        self.note: Callable[[Exit], None] = lambda exit: None


def _handler(self: Recorder, machine: Machine, exit: Exit) -> Action:
    self.note(exit)
    return machine.default()


for _reason in ExitReason:
    setattr(Recorder, f"on_{_reason.name.lower()}", _handler)


def advanced(recording: Recording, configuration: str) -> bool:
    """Has the processor advanced exit information for EPT violations?"""
    violations = (
        phase.get("exit_info1", {}).get(ExitReason.EPT_VIOLATION.name, {})
        for phase in recording.results[configuration].values()
    )
    return any(int(detail.split()[0], 16) & ADVANCED for found in violations for detail in found)


def of_violation(qualification: int, recording: Recording, has_advanced: bool) -> int:
    """Our exit qualification of an EPT violation, as the recorded processor tells it."""
    structure = qualification & Qualification.GLA_VALID and not qualification & Qualification.TRANSLATED
    if recording.emulator == "bochs" and structure and qualification & Qualification.WRITE:
        qualification &= ~int(Qualification.READ)
    return qualification if has_advanced else qualification & ~int(ADVANCED)


def difference(
    recording: Recording, name: str, real: dict[str, Any], noted: Counter[Noted]
) -> dict[str, tuple[int, int]]:
    """{detail: (times that KVM saw it, times here)} of those that differ; of a sample without details nothing."""
    if "exit_info1" in real:
        theirs = _of_intel(real["exit_info1"])
        ours = _as_intel(noted, recording, advanced(recording, name))
        if not recording.vectoring:
            theirs, ours = _without_vectoring(theirs), _without_vectoring(ours)
    elif recording.vendor == "amd" and "page_fault_error_codes" in real:
        theirs = Counter(real["page_fault_error_codes"])
        ours = _as_amd(noted, recording)
    else:
        return {}
    return {detail: (theirs[detail], ours[detail]) for detail in theirs | ours if theirs[detail] != ours[detail]}


def _of_intel(info: dict[str, dict[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for reason in COMPARED:
        for detail, count in info.get(reason, {}).items():
            text = detail
            if reason == ExitReason.CR_ACCESS.name:
                text = f"{int(detail, 16) & ~GENERAL_REGISTER:#x}"
            found[f"{reason} {text}"] += count
    return found


def _as_intel(noted: Counter[Noted], recording: Recording, has_advanced: bool) -> Counter[str]:
    found: Counter[str] = Counter()
    for exit, count in noted.items():
        if exit.reason.name not in COMPARED:
            continue
        if exit.reason == ExitReason.EXCEPTION_NMI:
            text = f"vec=14 err={exit.error_code:#x}"
        elif exit.reason == ExitReason.CR_ACCESS:
            text = f"{exit.qualification & ~GENERAL_REGISTER:#x}"
        else:
            text = f"{of_violation(exit.qualification, recording, has_advanced):#x}"
        found[f"{exit.reason.name} {text}{VECTORING * exit.vectoring}"] += count
    return found


def _without_vectoring(found: Counter[str]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for text, count in found.items():
        merged[text.removesuffix(VECTORING)] += count
    return merged


def _as_amd(noted: Counter[Noted], recording: Recording) -> Counter[str]:
    """Error codes: of a nested page fault EXITINFO1. QEMU leaves bit 0 out of faults by reserved bits (npt.md §4)."""
    found: Counter[str] = Counter()
    for exit, count in noted.items():
        if exit.reason == ExitReason.NPF:
            code = exit.qualification
        elif exit.reason == ExitReason.EXCEPTION_NMI:
            code = exit.error_code
        else:
            continue
        if recording.emulator == "qemu" and code & RESERVED:
            code &= ~1
        found[f"{int(code):#x}"] += count
    return found

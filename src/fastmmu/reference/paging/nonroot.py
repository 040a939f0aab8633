"""What VMX non-root operation makes of EPT without an exit: #VE and EPTP switching by VMFUNC (ept.md §9)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ...exits import ExitReason
from .ept import SUPPRESS_VE, Ept, eptp_valid
from .memory import Memory, holds
from .outcome import Bus, EptViolation

__all__ = [
    "EptpSwitched",
    "InvalidOpcode",
    "VirtualizationException",
    "VmfuncExit",
    "convertible",
    "deliver_ve",
    "vmfunc",
]

VE_AREA_BUSY = 0xFFFF_FFFF
EPTP_LIST_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class VirtualizationException:
    """#VE (vector 20, a fault without error code): the 34 bytes written to the information area."""

    information: bytes


def convertible(violation: EptViolation) -> bool:
    """Bit 63 of the deciding entry is 0. Without a deciding entry (a gpa beyond 4-level EPT) it stays an exit [C]."""
    return violation.entry is not None and not violation.entry & SUPPRESS_VE


def deliver_ve(
    mem: Memory,
    violation: EptViolation,
    *,
    area: int,
    eptp_index: int = 0,
    pe: bool = True,
    delivering_event: bool = False,
) -> VirtualizationException | EptViolation | Bus:
    """With "EPT-violation #VE" on: the exception if all its conditions hold, else the violation, an exit as before.

    `area` is the virtualization-exception information address. GLA is stored as 0 where it is not valid [C].
    """
    if not (convertible(violation) and pe and not delivering_event):
        return violation
    if not holds(mem, area, 40):
        return Bus(hpa=area)
    if mem.read64(area) >> 32:
        return violation
    words = (
        int(ExitReason.EPT_VIOLATION) | VE_AREA_BUSY << 32,
        violation.qualification,
        violation.gla or 0,
        violation.gpa,
    )
    for i, word in enumerate(words):
        mem.write64(area + 8 * i, word)
    mem.write64(area + 32, mem.read64(area + 32) & ~0xFFFF | eptp_index & 0xFFFF)
    image = b"".join(mem.read64(area + 8 * i).to_bytes(8, "little") for i in range(5))
    return VirtualizationException(information=image[:34])


@dataclass(frozen=True, kw_only=True)
class EptpSwitched:
    """VMFUNC 0 succeeded: the EPT now in force and the EPTP index."""

    ept: Ept
    eptp_index: int


@dataclass(frozen=True, kw_only=True)
class VmfuncExit:
    """Exit 59."""

    exit_reason = ExitReason.VMFUNC


@dataclass(frozen=True, kw_only=True)
class InvalidOpcode:
    """#UD."""


def vmfunc(
    mem: Memory,
    ept: Ept,
    *,
    eax: int,
    ecx: int,
    enabled: bool = True,
    functions: int = 1,
    eptp_list: int = 0,
) -> EptpSwitched | VmfuncExit | InvalidOpcode | Bus:
    """VMFUNC in non-root operation with EPT on. `enabled`: secondary bit 13 is in force; `functions`: the
    VM-function controls; `eptp_list`: address of the list of 512 EPTPs.

    Only EAX=0, EPTP switching, exists: other functions that the controls allow do not, and exit too [C].
    Registers, flags and PDPTE registers stay as they are; the new EPTP must have the walk length of the current one.
    """
    eax, ecx = eax & 0xFFFF_FFFF, ecx & 0xFFFF_FFFF
    if not enabled or eax > 63:
        return InvalidOpcode()
    if not functions >> eax & 1 or eax != 0 or ecx >= EPTP_LIST_LENGTH:
        return VmfuncExit()
    slot = eptp_list + 8 * ecx
    if not holds(mem, slot):
        return Bus(hpa=slot)
    eptp = mem.read64(slot)
    if not eptp_valid(eptp, caps=ept.caps, maxphyaddr=ept.maxphyaddr) or eptp >> 3 & 7 != ept.eptp >> 3 & 7:
        return VmfuncExit()
    return EptpSwitched(ept=dataclasses.replace(ept, eptp=eptp), eptp_index=ecx & 0xFFFF)

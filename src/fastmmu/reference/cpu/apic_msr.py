"""MOV to CR8, RDMSR and WRMSR of a local APIC: what there is in which mode, what is refused with #GP (apic.md §1.1).

Written register by register, as the SDM's tables have it ("x2APIC Register Address Space", "Reserved Bit Checking",
"x2APIC State Transitions"). A processor does so, and what KVM emulates comes to the same here.
"""

from __future__ import annotations

from fastmmu.errors import StateError

from .apic import (
    CURRENT_COUNT,
    DIVIDE,
    EN,
    EOI,
    ESR,
    EXTD,
    ICR_LOW,
    ID,
    INITIAL_COUNT,
    IRR,
    ISR,
    LDR,
    LVT_CMCI,
    LVT_ERROR,
    LVT_TIMER,
    PPR,
    SELF_IPI,
    SVR,
    TMR,
    TPR,
    VERSION,
    Ipi,
    LocalApic,
    put_word,
    word,
)

__all__ = ["APIC_BASE", "TSC_DEADLINE", "accesses", "move_to_cr8", "rdmsr", "wrmsr"]

APIC_BASE, TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST = 0x1B, 0x6E0, 0x800, 0x8FF
VECTOR, STATUS, MASK = 0xFF, 1 << 12, 1 << 16
DELIVERY, POLARITY, REMOTE_IRR, TRIGGER, TIMER_MODE = 7 << 8, 1 << 13, 1 << 14, 1 << 15, 3 << 17

READ_ONLY = {ID, VERSION, PPR, LDR, CURRENT_COUNT}
READ_ONLY |= {base + 16 * index for base in (ISR, TMR, IRR) for index in range(8)}
WRITE_ONLY = {EOI, SELF_IPI}
BITS = {  # of what can be written: those that may be 1
    TPR: 0xFF,
    EOI: 0,
    SVR: VECTOR | 1 << 8,
    ESR: 0,
    LVT_CMCI: VECTOR | DELIVERY | STATUS | MASK,
    ICR_LOW: 0xFFFF_FFFF << 32 | 3 << 18 | 3 << 14 | STATUS | 0xFFF,
    LVT_TIMER: VECTOR | STATUS | MASK | TIMER_MODE,
    0x330: VECTOR | DELIVERY | STATUS | MASK,
    0x340: VECTOR | DELIVERY | STATUS | MASK,
    0x350: VECTOR | DELIVERY | STATUS | POLARITY | REMOTE_IRR | TRIGGER | MASK,
    0x360: VECTOR | DELIVERY | STATUS | POLARITY | REMOTE_IRR | TRIGGER | MASK,
    LVT_ERROR: VECTOR | STATUS | MASK,
    INITIAL_COUNT: 0xFFFF_FFFF,
    DIVIDE: 0b1011,
    SELF_IPI: VECTOR,
}


def accesses(msr: int) -> str:
    """What x2APIC mode lets software do with one of 800H to 8FFH: "rw", "r", "w", or "" where there is none."""
    offset = (msr - X2APIC_FIRST) * 16
    if offset in READ_ONLY:
        return "r"
    return "w" if offset in WRITE_ONLY else "rw" if offset in BITS else ""


def refuse(what: str) -> StateError:
    return StateError(f"#GP(0): {what}")


def rdmsr(apic: LocalApic, msr: int) -> int:
    """RDMSR. :raises StateError: #GP(0)."""
    if msr == APIC_BASE:
        return apic.base
    if msr == TSC_DEADLINE:
        return apic.deadline if apic.present else 0
    offset = (msr - X2APIC_FIRST) * 16
    if not apic.x2apic:
        raise refuse(f"RDMSR of {msr:#x} outside x2APIC mode; set bits 11 and 10 of 0x1b before")
    if "r" not in accesses(msr):
        raise refuse(f"RDMSR of {msr:#x}, which x2APIC mode does not have, or to write alone; leave it")
    high = word(apic.page, ICR_LOW + 4) << 32 if offset == ICR_LOW else 0
    return apic.read(offset) | high


def wrmsr(apic: LocalApic, msr: int, value: int, *, tsc: int = 0, maxphyaddr: int = 52) -> Ipi | None:
    """WRMSR, at a time; what it sends. :raises StateError: #GP(0)."""
    what = f"WRMSR of {msr:#x} with {value:#x}"
    if msr == TSC_DEADLINE:
        apic.set_deadline(value, tsc)
        return None
    if msr == APIC_BASE:
        if value >> maxphyaddr or value & 0x2FF:
            raise refuse(f"{what}: bits 7:0, 9 and those from {maxphyaddr} on are reserved; leave them 0")
        match value & EN, value & EXTD:
            case 0, extended if extended:
                raise refuse(f"{what}: x2APIC mode of a disabled APIC; set bit 11, too")
            case enabled, 0 if enabled and apic.x2apic:
                raise refuse(f"{what}: from x2APIC to xAPIC mode at once; clear bits 11 and 10 before")
            case enabled, extended if enabled and extended and not apic.present:
                raise refuse(f"{what}: from disabled to x2APIC mode at once; set bit 11 alone before")
        apic.set_base(value)
        return None
    if not apic.x2apic:
        raise refuse(f"{what} outside x2APIC mode; set bits 11 and 10 of 0x1b before")
    if "w" not in accesses(msr):
        raise refuse(f"{what}: x2APIC mode does not have it, or to read alone; leave it")
    offset = (msr - X2APIC_FIRST) * 16
    if value & ~BITS[offset]:
        raise refuse(f"{what}: bits {value & ~BITS[offset]:#x} are reserved; leave them 0")
    if offset == ICR_LOW:
        put_word(apic.page, ICR_LOW + 4, value >> 32)
        return apic.send(value)
    return apic.write(offset, value)


def move_to_cr8(apic: LocalApic, value: int) -> None:
    """MOV to CR8, in any mode. :raises StateError: #GP(0)."""
    if value >> 4:
        raise refuse(f"cr8={value:#x} has bits above 3; give 0 to 15")
    apic.write(TPR, value << 4)

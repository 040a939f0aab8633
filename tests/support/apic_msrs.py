"""The APIC's model-specific registers: tables of the documents, literally, and what they make of every access.

SDM volume 3, "x2APIC Register Address Space" (which there are, and how they are accessed), the figures of each register
(reserved bits), "x2APIC State Transitions". Where a bit is reserved in them the processor raises #GP; so it is KVM's
`kvm_x2apic_msr_write` that is laxer for the TPR, EOI, SVR, divisor and LVT.
"""

from __future__ import annotations

__all__ = ["MODES", "MSRS", "PATHS", "VALUES", "base_refused", "refused"]

APIC_BASE, TSC_DEADLINE = 0x1B, 0x6E0
MSRS = (APIC_BASE, TSC_DEADLINE, *range(0x800, 0x900))

X2APIC = """802 R; 803 R; 808 RW; 80A R; 80B W; 80D R; 80F RW; 810-817 R; 818-81F R; 820-827 R; 828 RW; 82F RW; 830 RW
832 RW; 833 RW; 834 RW; 835 RW; 836 RW; 837 RW; 838 RW; 839 R; 83E RW; 83F W"""

WRITTEN = """808 7-0
80B
80F 8-0
828
82F 16 12 10-0
830 63-32 19-18 15-14 12-0
832 18-16 12 7-0
833 16 12 10-0
834 16 12 10-0
835 16-12 10-0
836 16-12 10-0
837 16 12 7-0
838 31-0
83E 3 1-0
83F 7-0"""
"""Bits that are not reserved. Bit 12 of the ICR is the delivery status of xAPIC mode; both ignore it."""

MODES = {"disabled": 0, "xAPIC": 0x800, "x2APIC": 0xC00}
PATHS = {("disabled", "disabled"), ("disabled", "xAPIC"), ("xAPIC", "disabled"), ("xAPIC", "xAPIC")}
PATHS |= {("xAPIC", "x2APIC"), ("x2APIC", "x2APIC"), ("x2APIC", "disabled")}
"""Changes of mode that one write may make."""

VALUES = [0, *(1 << bit for bit in range(64)), 0xFF, 0x100FF, 0x1FF, 0xFFFF_FFFF, 0xFFFF_FFFF << 32, (1 << 64) - 1]
VALUES += [0xFEE0_0000 | mode | 0x100 for mode in (0, 0x400, 0x800, 0xC00)]
VALUES += [0xFEE0_0000 | mode for mode in (0x800, 0xA00, 0xC01, 0xC80)]


def _span(text: str, base: int) -> range:
    ends = [int(end, base) for end in text.split("-")]
    return range(min(ends), max(ends) + 1)


def _accesses() -> dict[int, str]:
    rows = [row.split() for row in X2APIC.replace("\n", ";").split(";")]
    return {msr: kind for span, kind in rows for msr in _span(span, 16)}


def _bits(spans: list[str]) -> int:
    return sum(1 << bit for span in spans for bit in _span(span, 10))


ACCESSES = _accesses()
BITS = {int(row.split()[0], 16): _bits(row.split()[1:]) for row in WRITTEN.splitlines()}


def base_refused(mode: str, value: int, maxphyaddr: int) -> bool:
    """Is a value of IA32_APIC_BASE #GP in a mode?"""
    names = {bits: name for name, bits in MODES.items()}
    if value >> maxphyaddr or value & 0b10_1111_1111:
        return True
    return (mode, names.get(value & 0xC00, "none")) not in PATHS


def refused(mode: str, msr: int, value: int | None, maxphyaddr: int = 52) -> bool:
    """Is RDMSR (`value` None) or WRMSR #GP?"""
    if msr == APIC_BASE:
        return value is not None and base_refused(mode, value, maxphyaddr)
    if msr == TSC_DEADLINE:
        return False
    if mode != "x2APIC":
        return True
    kind = ACCESSES.get(msr, "")
    if value is None:
        return "R" not in kind
    return "W" not in kind or value & ~BITS[msr] != 0

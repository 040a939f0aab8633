"""The APIC's model-specific registers: which there are in which mode, and what they refuse with #GP (apic.md §1.1).

    RDMSR, WRMSR ──► taken? ──no──► #GP(0)
                       └──► read, write

The same for the processor and for KVM's emulation of it, so that no way of handling the TPR shows.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.msr cimport MSR_APIC_BASE, MSR_TSC_DEADLINE, X2_ICR, msr_of_x2apic
from fastmmu.cpu.apic cimport (
    APIC_DISABLED, APIC_DIVIDE, APIC_EOI, APIC_ESR, APIC_ICR_LOW, APIC_LVT_CMCI, APIC_LVT_ERROR, APIC_LVT_TIMER,
    APIC_SELF_IPI, APIC_SVR, APIC_TPR, APIC_X2APIC, APIC_XAPIC, Apic, Ipi, apic_mode, apic_put, apic_read, apic_send,
    apic_word, apic_write,
)

cdef extern from *:
    """
    #define FM_SLOT(offset) (1ULL << ((offset) >> 4))
    #define FM_SLOTS(first, last) ((FM_SLOT(last) << 1) - FM_SLOT(first))
    #define FM_X2_BOTH (FM_SLOT(0x80) | FM_SLOT(0xF0) | FM_SLOT(0x280) | FM_SLOTS(0x2F0, 0x300) \
        | FM_SLOTS(0x320, 0x380) | FM_SLOT(0x3E0))
    #define FM_X2_READABLE (FM_X2_BOTH | FM_SLOT(0x20) | FM_SLOT(0x30) | FM_SLOT(0xA0) | FM_SLOT(0xD0) \
        | FM_SLOTS(0x100, 0x270) | FM_SLOT(0x390))
    #define FM_X2_WRITABLE (FM_X2_BOTH | FM_SLOT(0xB0) | FM_SLOT(0x3F0))
    """
    const uint64_t READABLE "FM_X2_READABLE"
    const uint64_t WRITABLE "FM_X2_WRITABLE"

cdef enum:
    LVT_THERMAL = 0x330
    LVT_PERFORMANCE = 0x340
    LVT_LINT0 = 0x350
    LVT_LINT1 = 0x360


cdef inline uint32_t offset_of(uint32_t msr) noexcept nogil:
    return (msr & 0xFF) << 4


cdef bint x2apic_msr(uint32_t msr) noexcept nogil:
    return msr == MSR_APIC_BASE or msr == MSR_TSC_DEADLINE or msr_of_x2apic(msr)


cdef bint x2apic_readable(uint32_t msr) noexcept nogil:
    return msr & 0xFF < 64 and READABLE >> (msr & 0xFF) & 1


cdef bint x2apic_writable(uint32_t msr) noexcept nogil:
    return msr & 0xFF < 64 and WRITABLE >> (msr & 0xFF) & 1


cdef uint64_t x2apic_reserved(uint32_t msr, int maxphyaddr) noexcept nogil:
    # Bits that a write must leave 0. KVM's emulation ignores those below bit 32 of the TPR, EOI, SVR, divisor and LVT,
    # where the processor raises #GP; this does as the processor.
    cdef uint32_t offset = offset_of(msr)
    cdef uint64_t used = 0xFFFFFFFF
    if msr == MSR_TSC_DEADLINE:
        return 0
    if msr == MSR_APIC_BASE:
        return ~((1ULL << maxphyaddr) - 1) | 0x2FF
    if msr == X2_ICR:           # bit 12, the delivery status of xAPIC mode, is ignored
        return 0xFFF32000
    if offset == APIC_TPR or offset == APIC_SELF_IPI:
        used = 0xFF
    elif offset == APIC_EOI or offset == APIC_ESR:
        used = 0
    elif offset == APIC_SVR:    # neither focus checking (9) nor suppression of EOI broadcasts (12): see APIC_VERSION
        used = 0x1FF
    elif offset == APIC_DIVIDE:
        used = 0xB
    elif offset == APIC_LVT_TIMER:
        used = 0x710FF
    elif offset == LVT_LINT0 or offset == LVT_LINT1:
        used = 0x1F7FF
    elif offset == APIC_LVT_CMCI or offset == LVT_THERMAL or offset == LVT_PERFORMANCE:
        used = 0x117FF
    elif offset == APIC_LVT_ERROR:
        used = 0x110FF
    return ~used


cdef bint base_taken(const Apic *a, uint64_t value) noexcept nogil:
    # From disabled to x2APIC mode it goes by way of xAPIC mode, from there to xAPIC mode by way of disabled.
    cdef int new = value >> 10 & 3, old = apic_mode(a)
    if new == APIC_X2APIC:
        return old != APIC_DISABLED
    return new == APIC_DISABLED or (new == APIC_XAPIC and old != APIC_X2APIC)


cdef bint x2apic_read_taken(const Apic *a, uint32_t msr) noexcept nogil:
    return not msr_of_x2apic(msr) or (apic_mode(a) == APIC_X2APIC and x2apic_readable(msr))


cdef bint x2apic_write_taken(const Apic *a, uint32_t msr, uint64_t value, int maxphyaddr) noexcept nogil:
    if msr_of_x2apic(msr) and (apic_mode(a) != APIC_X2APIC or not x2apic_writable(msr)):
        return False
    if value & x2apic_reserved(msr, maxphyaddr):
        return False
    return msr != MSR_APIC_BASE or base_taken(a, value)


cdef uint64_t x2apic_read(Apic *a, uint32_t msr) noexcept nogil:
    # of 800H-8FFH, one that is taken; the ICR is one register of 64 bits
    if msr == X2_ICR:
        return apic_word(a.page, APIC_ICR_LOW) | <uint64_t> apic_word(a.page, APIC_ICR_LOW + 4) << 32
    return apic_read(a, offset_of(msr))


cdef Ipi x2apic_write(Apic *a, uint32_t msr, uint64_t value) noexcept nogil:
    if msr == X2_ICR:
        apic_put(a.page, APIC_ICR_LOW + 4, value >> 32)
        return apic_send(a, value, value >> 32)
    return apic_write(a, offset_of(msr), value)

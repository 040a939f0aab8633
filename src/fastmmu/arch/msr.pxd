# Numbers of model-specific registers.

from libc.stdint cimport uint64_t

cdef enum Msr:
    MSR_APIC_BASE = 0x1B
    MSR_TSC_DEADLINE = 0x6E0
    MSR_PAT = 0x277
    MSR_EFER = 0xC0000080
    X2_TPR = 0x808              # of the x2APIC: the register at offset (number & FFH) << 4 of the page
    X2_EOI = 0x80B
    X2_ICR = 0x830
    X2_CURRENT_COUNT = 0x839
    X2_SELF_IPI = 0x83F

cdef enum:
    X2_FIRST = 0x800


cdef inline bint msr_of_x2apic(uint64_t msr) noexcept nogil:
    return msr >> 8 == X2_FIRST >> 8

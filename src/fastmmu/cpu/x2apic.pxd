# The APIC's model-specific registers: IA32_APIC_BASE, IA32_TSC_DEADLINE, and 800H-8FFH, the registers in x2APIC mode;
# which there are in which mode, and what they refuse with #GP (apic.md §1.1).
#
#     RDMSR, WRMSR ──► taken? ──no──► #GP(0)
#                        └──► read, write
#
# The same for the processor and for KVM's emulation of it, so that no way of handling the TPR shows.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.msr cimport MSR_APIC_BASE, MSR_TSC_DEADLINE, X2_ICR, msr_of_x2apic
from fastmmu.cpu.apic cimport (
    APIC_DISABLED, APIC_ICR_LOW, APIC_X2APIC, APIC_XAPIC, Apic, Ipi, apic_mode, apic_put, apic_read, apic_send,
    apic_word, apic_write, apic_x2apic,
)

# Bits that a write may set, by MSR - 800H; bits 63:32 are the ICR's alone. KVM's emulation ignores the others below bit
# 32 in the TPR, EOI, SVR, divisor and LVT, where the processor raises #GP; this does as the processor.
cdef extern from *:
    """
    #define FM_REG(msr) (1ULL << ((msr) - 0x800))
    #define FM_REGS(first, last) ((FM_REG(last) << 1) - FM_REG(first))
    #define FM_X2_BOTH (FM_REG(0x808) | FM_REG(0x80F) | FM_REG(0x828) | FM_REGS(0x82F, 0x830) \
        | FM_REGS(0x832, 0x838) | FM_REG(0x83E))
    #define FM_X2_READABLE (FM_X2_BOTH | FM_REG(0x802) | FM_REG(0x803) | FM_REG(0x80A) | FM_REG(0x80D) \
        | FM_REGS(0x810, 0x827) | FM_REG(0x839))
    #define FM_X2_WRITABLE (FM_X2_BOTH | FM_REG(0x80B) | FM_REG(0x83F))
    static const unsigned long long fm_x2_used[64] = {
        [0x08] = 0xFF,              /* TPR */
        [0x0F] = 0x1FF,             /* SVR: neither focus checking (9) nor suppression of EOI broadcasts (12) */
        [0x2F] = 0x117FF,           /* LVT CMCI */
        [0x30] = ~0xFFF32000ULL,    /* ICR; bit 12, the delivery status of xAPIC mode, is ignored */
        [0x32] = 0x710FF,           /* LVT timer */
        [0x33] = 0x117FF, [0x34] = 0x117FF, [0x35] = 0x1F7FF, [0x36] = 0x1F7FF, [0x37] = 0x110FF,
        [0x38] = 0xFFFFFFFF,        /* initial count */
        [0x3E] = 0xB,               /* divisor */
        [0x3F] = 0xFF,              /* self-IPI */
    };
    """
    const uint64_t X2_READABLE "FM_X2_READABLE"
    const uint64_t X2_WRITABLE "FM_X2_WRITABLE"
    const uint64_t X2_USED "fm_x2_used"[64]


cdef inline bint x2apic_msr(uint32_t msr) noexcept nogil:
    # one of these, in any mode
    return msr == MSR_APIC_BASE or msr == MSR_TSC_DEADLINE or msr_of_x2apic(msr)


cdef inline bint x2apic_readable(uint32_t msr) noexcept nogil:
    # of 800H-8FFH, in x2APIC mode
    return msr & 0xFF < 64 and X2_READABLE >> (msr & 0x3F) & 1


cdef inline bint x2apic_writable(uint32_t msr) noexcept nogil:
    return msr & 0xFF < 64 and X2_WRITABLE >> (msr & 0x3F) & 1


cdef inline uint64_t x2apic_reserved(uint32_t msr, int maxphyaddr) noexcept nogil:
    # of one that can be written
    if msr == MSR_TSC_DEADLINE:
        return 0
    if msr == MSR_APIC_BASE:
        return ~((1ULL << maxphyaddr) - 1) | 0x2FF
    return ~X2_USED[msr & 0x3F]


cdef inline bint x2apic_read_taken(const Apic *a, uint32_t msr) noexcept nogil:
    return not msr_of_x2apic(msr) or (apic_x2apic(a) and x2apic_readable(msr))


cdef inline bint x2apic_write_taken(const Apic *a, uint32_t msr, uint64_t value, int maxphyaddr) noexcept nogil:
    # From disabled to x2APIC mode it goes by way of xAPIC mode, from there to xAPIC mode by way of disabled.
    cdef int new, old = apic_mode(a)
    if msr_of_x2apic(msr) and (old != APIC_X2APIC or not x2apic_writable(msr)):
        return False
    if value & x2apic_reserved(msr, maxphyaddr):
        return False
    if msr != MSR_APIC_BASE:
        return True
    new = value >> 10 & 3
    if new == APIC_X2APIC:
        return old != APIC_DISABLED
    return new == APIC_DISABLED or (new == APIC_XAPIC and old != APIC_X2APIC)


cdef inline uint64_t x2apic_read(Apic *a, uint32_t msr) noexcept nogil:
    # of 800H-8FFH, one that is taken; the ICR is one register of 64 bits
    if msr == X2_ICR:
        return apic_word(a.page, APIC_ICR_LOW) | <uint64_t> apic_word(a.page, APIC_ICR_LOW + 4) << 32
    return apic_read(a, (msr & 0xFF) << 4)


cdef inline Ipi x2apic_write(Apic *a, uint32_t msr, uint64_t value) noexcept nogil:
    if msr == X2_ICR:
        apic_put(a.page, APIC_ICR_LOW + 4, value >> 32)
        return apic_send(a, value, value >> 32)
    return apic_write(a, (msr & 0xFF) << 4, value)

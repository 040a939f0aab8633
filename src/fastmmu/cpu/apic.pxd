# The local APIC over its register page: 32 bits every 16 bytes (apic.md §1). The page may be the virtual-APIC page of
# a VMCS, so that a VMM that emulates the APIC and the processor that virtualizes it see the same state.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum ApicOffset:
    APIC_ID = 0x20
    APIC_VERSION = 0x30
    APIC_TPR = 0x80
    APIC_PPR = 0xA0
    APIC_EOI = 0xB0
    APIC_LDR = 0xD0
    APIC_DFR = 0xE0
    APIC_SVR = 0xF0
    APIC_ISR = 0x100
    APIC_TMR = 0x180
    APIC_IRR = 0x200
    APIC_ESR = 0x280
    APIC_LVT_CMCI = 0x2F0
    APIC_ICR_LOW = 0x300
    APIC_ICR_HIGH = 0x310
    APIC_LVT_TIMER = 0x320
    APIC_LVT_ERROR = 0x370
    APIC_INITIAL_COUNT = 0x380
    APIC_CURRENT_COUNT = 0x390
    APIC_DIVIDE = 0x3E0
    APIC_SELF_IPI = 0x3F0

cdef enum:
    APIC_NONE = -1              # no vector
    APIC_ENABLED = 1 << 8       # in SVR
    APIC_BASE_BSP = 1 << 8      # in IA32_APIC_BASE
    APIC_BASE_EXTD = 1 << 10
    APIC_BASE_EN = 1 << 11
    APIC_SHORTHAND_SELF = 1
    LVT_MASKED = 1 << 16
    MODE_LOWEST = 1             # delivery modes of the ICR: 0 fixed, 1 lowest priority end as a vector

cdef extern from *:
    """
    #define FM_APIC_BASE 0xFEE00000ULL
    """
    const uint64_t APIC_BASE "FM_APIC_BASE"     # guest-physical

cdef enum ApicMode:             # EN and EXTD of IA32_APIC_BASE; EXTD alone is none
    APIC_DISABLED = 0
    APIC_XAPIC = 2
    APIC_X2APIC = 3

cdef struct Apic:
    uint8_t *page               # 4096 bytes
    uint64_t base               # IA32_APIC_BASE
    uint64_t ticks_left         # of the timer, in bus clocks; 0: stopped
    uint64_t deadline           # IA32_TSC_DEADLINE; 0: not armed
    uint32_t mode               # of the timer, LVT bits 18:17, and its divisor's logarithm, both as last accepted: the
    uint32_t shift              # processor may write the page before the VMM sees the write
    uint32_t id

cdef struct Ipi:                # what a write to the ICR sends
    bint valid
    uint32_t sender
    uint32_t vector
    uint32_t mode
    uint32_t shorthand          # 0 none, 1 self, 2 all, 3 all but self
    uint32_t destination
    bint logical


cdef inline int apic_mode(const Apic *a) noexcept nogil:
    return a.base >> 10 & 3


cdef inline bint apic_on(const Apic *a) noexcept nogil:
    # not disabled as a whole, by IA32_APIC_BASE
    return a.base & <uint64_t> APIC_BASE_EN != 0


cdef inline bint apic_x2apic(const Apic *a) noexcept nogil:
    return apic_mode(a) == APIC_X2APIC


cdef inline bint apic_mapped(const Apic *a) noexcept nogil:
    # are the registers in the page at APIC_BASE?
    return apic_mode(a) == APIC_XAPIC and a.base >> 12 == APIC_BASE >> 12


cdef inline uint32_t apic_word(const uint8_t *page, uint32_t offset) noexcept nogil:
    return (<const uint32_t *> (page + offset))[0]


cdef inline void apic_put(uint8_t *page, uint32_t offset, uint32_t value) noexcept nogil:
    (<uint32_t *> (page + offset))[0] = value


cdef inline bint apic_bit(const uint8_t *page, uint32_t base, uint8_t vector) noexcept nogil:
    return apic_word(page, base + 16 * (vector >> 5)) >> (vector & 31) & 1


cdef inline void apic_set(uint8_t *page, uint32_t base, uint8_t vector) noexcept nogil:
    (<uint32_t *> (page + base + 16 * (vector >> 5)))[0] |= 1U << (vector & 31)


cdef inline void apic_clear(uint8_t *page, uint32_t base, uint8_t vector) noexcept nogil:
    (<uint32_t *> (page + base + 16 * (vector >> 5)))[0] &= ~(1U << (vector & 31))


cdef inline int apic_highest(const uint8_t *page, uint32_t base) noexcept nogil:
    # highest vector set in IRR, ISR or TMR; APIC_NONE where there is none
    cdef int word, bit
    cdef uint32_t bits
    for word in range(7, -1, -1):
        bits = apic_word(page, base + 16 * word)
        if bits:
            for bit in range(31, -1, -1):
                if bits >> bit & 1:
                    return 32 * word + bit
    return APIC_NONE


cdef inline uint8_t apic_priority(uint8_t tpr, int in_service) noexcept nogil:
    # PPR; where the classes are equal, the TPR
    if in_service < 0:
        in_service = 0
    return tpr if tpr >> 4 >= in_service >> 4 else in_service & 0xF0


cdef inline uint8_t apic_update_ppr(uint8_t *page) noexcept nogil:
    cdef uint8_t ppr = apic_priority(page[<int> APIC_TPR], apic_highest(page, APIC_ISR))
    apic_put(page, APIC_PPR, ppr)
    return ppr


cdef inline int apic_deliverable(const Apic *a) noexcept nogil:
    # The vector that the processor gets next if it takes interrupts, or APIC_NONE. An APIC that software disables
    # accepts nothing more; what waits in IRR is delivered.
    cdef int vector = apic_highest(a.page, APIC_IRR)
    if vector < 0 or not apic_on(a):
        return APIC_NONE
    if vector >> 4 <= apic_priority(a.page[<int> APIC_TPR], apic_highest(a.page, APIC_ISR)) >> 4:
        return APIC_NONE
    return vector


cdef void apic_reset(Apic *a, uint8_t *page, uint32_t id) noexcept nogil
cdef void apic_reset_timer(Apic *a) noexcept nogil
cdef bint apic_receives(Apic *a, uint8_t vector) noexcept nogil
cdef bint apic_request(Apic *a, uint8_t vector, bint level) noexcept nogil
cdef int apic_acknowledge(Apic *a) noexcept nogil
cdef int apic_end(uint8_t *page) noexcept nogil
cdef uint32_t apic_read(Apic *a, uint32_t offset) noexcept nogil
cdef Ipi apic_write(Apic *a, uint32_t offset, uint32_t value) noexcept nogil
cdef Ipi apic_send(Apic *a, uint32_t low, uint32_t destination) noexcept nogil
cdef void apic_set_base(Apic *a, uint64_t value) noexcept nogil
cdef bint apic_set_deadline(Apic *a, uint64_t value, uint64_t tsc) noexcept nogil
cdef uint64_t apic_elapse(Apic *a, uint64_t ticks) noexcept nogil
cdef bint apic_addressed(const Apic *a, const Ipi *ipi) noexcept nogil

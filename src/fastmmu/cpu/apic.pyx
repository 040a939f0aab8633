"""The local APIC: acceptance, end of interrupt, registers, interprocessor interrupts, timer (apic.md §1)."""

from importlib import import_module

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    #define FM_SLOT(offset) (1ULL << ((offset) >> 4))
    #define FM_SLOTS(first, last) ((FM_SLOT(last) << 1) - FM_SLOT(first))
    #define FM_APIC_READABLE (FM_SLOT(0x20) | FM_SLOT(0x30) | FM_SLOT(0x80) | FM_SLOT(0x90) | FM_SLOT(0xA0) \
        | FM_SLOTS(0xD0, 0xF0) | FM_SLOTS(0x100, 0x280) | FM_SLOTS(0x2F0, 0x390) | FM_SLOT(0x3E0))
    #define FM_APIC_LVTS (FM_SLOT(0x2F0) | FM_SLOTS(0x320, 0x370))
    """
    const uint64_t READABLE "FM_APIC_READABLE"
    const uint64_t LVTS "FM_APIC_LVTS"

cdef enum:
    SEND_ILLEGAL = 1 << 5       # in ESR
    RECEIVE_ILLEGAL = 1 << 6
    ILLEGAL_REGISTER = 1 << 7
    BUSY = 1 << 12              # delivery status in the ICR
    PERIODIC = 1                # modes of the LVT timer; 0 one-shot
    TSC_DEADLINE = 2


cdef inline bint in_slots(uint64_t slots, uint32_t offset) noexcept nogil:
    return offset & 15 == 0 and offset < 0x400 and slots >> (offset >> 4) & 1


cdef inline void error(uint8_t *page, uint32_t bits) noexcept nogil:
    apic_put(page, APIC_ESR, apic_word(page, APIC_ESR) | bits)


cdef void mask_lvts(uint8_t *page) noexcept nogil:
    cdef uint32_t slot
    for slot in range(64):
        if LVTS >> slot & 1:
            apic_put(page, slot << 4, apic_word(page, slot << 4) | <uint32_t> LVT_MASKED)


cdef inline uint32_t divisor_shift(const uint8_t *page) noexcept nogil:
    cdef uint32_t divide = apic_word(page, APIC_DIVIDE)
    return ((divide & 3) | (divide >> 1 & 4)) + 1 & 7


cdef void apic_reset(Apic *a, uint8_t *page, uint32_t id) noexcept nogil:
    # `page`: 4096 bytes, all zero
    a.page = page
    a.id = id
    a.base = APIC_BASE | <uint64_t> APIC_BASE_EN
    if not id:                  # the bootstrap processor
        a.base |= <uint64_t> APIC_BASE_BSP
    apic_put(page, APIC_ID, id << 24)
    apic_put(page, APIC_VERSION, 0x00060015)
    apic_put(page, APIC_DFR, 0xFFFFFFFFU)
    apic_put(page, APIC_SVR, 0xFF)
    mask_lvts(page)
    apic_reset_timer(a)


cdef void apic_reset_timer(Apic *a) noexcept nogil:
    # it stands still; mode and divisor as its registers have them
    a.ticks_left = a.deadline = 0
    a.mode = apic_word(a.page, APIC_LVT_TIMER) >> 17 & 3
    a.shift = divisor_shift(a.page)


cdef bint apic_receives(Apic *a, uint8_t vector) noexcept nogil:
    # is an interrupt that arrives accepted? Not by an APIC that is disabled, by software or as a whole, nor one of an
    # illegal vector
    if not apic_on(a) or not apic_word(a.page, APIC_SVR) & <uint32_t> APIC_ENABLED:
        return False
    if vector < 16:
        error(a.page, RECEIVE_ILLEGAL)
        return False
    return True


cdef bint apic_request(Apic *a, uint8_t vector, bint level) noexcept nogil:
    # an interrupt arrives; False where it is not accepted
    if not apic_receives(a, vector):
        return False
    apic_set(a.page, APIC_IRR, vector)
    if level:
        apic_set(a.page, APIC_TMR, vector)
    else:
        apic_clear(a.page, APIC_TMR, vector)
    return True


cdef int apic_acknowledge(Apic *a) noexcept nogil:
    # the processor takes the deliverable vector: from IRR to ISR
    cdef int vector = apic_deliverable(a)
    if vector >= 0:
        apic_clear(a.page, APIC_IRR, vector)
        apic_set(a.page, APIC_ISR, vector)
        apic_update_ppr(a.page)
    return vector


cdef int apic_end(uint8_t *page) noexcept nogil:
    # end of the highest interrupt in service; its vector where it was level-triggered
    cdef int vector = apic_highest(page, APIC_ISR)
    if vector < 0:
        return APIC_NONE
    apic_clear(page, APIC_ISR, vector)
    apic_update_ppr(page)
    return vector if apic_bit(page, APIC_TMR, vector) else <int> APIC_NONE


cdef uint32_t apic_read(Apic *a, uint32_t offset) noexcept nogil:
    if not in_slots(READABLE, offset):
        if offset != APIC_EOI:
            error(a.page, ILLEGAL_REGISTER)
        return 0
    if offset == APIC_PPR:
        return apic_update_ppr(a.page)
    if offset == APIC_CURRENT_COUNT:
        return 0 if a.mode == TSC_DEADLINE else (a.ticks_left + (1ULL << a.shift) - 1) >> a.shift
    return apic_word(a.page, offset)


cdef Ipi apic_send(Apic *a, uint32_t low, uint32_t destination) noexcept nogil:
    # the ICR is written: what it sends, valid only where it sends. destination: 8 bits, 32 in x2APIC mode
    apic_put(a.page, APIC_ICR_LOW, low & ~<uint32_t> BUSY)
    return message(a, low, destination)


cdef Ipi message(Apic *a, uint32_t low, uint32_t destination) noexcept nogil:
    cdef Ipi ipi
    memset(&ipi, 0, sizeof(Ipi))
    ipi.vector = low & 0xFF
    ipi.mode = low >> 8 & 7
    ipi.logical = low >> 11 & 1
    ipi.shorthand = low >> 18 & 3
    ipi.sender = a.id
    ipi.destination = destination
    if ipi.mode <= MODE_LOWEST and ipi.vector < 16:
        error(a.page, SEND_ILLEGAL)
    else:
        ipi.valid = True
    return ipi


cdef void set_lvt(Apic *a, uint32_t offset, uint32_t value) noexcept nogil:
    # to and from TSC-deadline mode the timer is disarmed (SDM; KVM's apic_update_lvtt)
    cdef uint32_t before = a.mode
    value &= 0x717FF
    if not apic_word(a.page, APIC_SVR) & <uint32_t> APIC_ENABLED:
        value |= <uint32_t> LVT_MASKED
    apic_put(a.page, offset, value)
    if offset == APIC_LVT_TIMER:
        a.mode = value >> 17 & 3
        if (before == TSC_DEADLINE) != (a.mode == TSC_DEADLINE):
            a.ticks_left = a.deadline = 0
            apic_put(a.page, APIC_INITIAL_COUNT, 0)


cdef void set_divide(Apic *a, uint32_t value) noexcept nogil:
    # what is left of the count stays, at the new rate
    cdef uint32_t before = a.shift
    apic_put(a.page, APIC_DIVIDE, value & 0xB)
    a.shift = divisor_shift(a.page)
    if a.mode != TSC_DEADLINE:
        a.ticks_left = ((a.ticks_left << a.shift) + (1ULL << before) - 1) >> before


cdef Ipi apic_write(Apic *a, uint32_t offset, uint32_t value) noexcept nogil:
    # what it sends, valid only where it is a write to the ICR that sends
    cdef Ipi ipi
    cdef uint8_t *page = a.page
    memset(&ipi, 0, sizeof(Ipi))
    if offset == APIC_TPR:
        apic_put(page, APIC_TPR, value & 0xFF)
        apic_update_ppr(page)
    elif offset == APIC_EOI:
        apic_end(page)
    elif offset == APIC_ESR:
        apic_put(page, APIC_ESR, 0)
    elif offset == APIC_ICR_LOW:
        return apic_send(a, value, apic_word(page, APIC_ICR_HIGH) >> 24)
    elif offset == APIC_SELF_IPI and apic_x2apic(a):
        return message(a, <uint32_t> APIC_SHORTHAND_SELF << 18 | (value & 0xFF), 0)
    elif in_slots(LVTS, offset):
        set_lvt(a, offset, value)
    elif offset == APIC_SVR:
        apic_put(page, APIC_SVR, value & 0x13FF)
        if not value & <uint32_t> APIC_ENABLED:
            mask_lvts(page)
    elif offset == APIC_ID or offset == APIC_LDR or offset == APIC_ICR_HIGH:
        apic_put(page, offset, value & 0xFF000000U)
    elif offset == APIC_DFR:
        apic_put(page, APIC_DFR, (value & 0xF0000000U) | 0x0FFFFFFF)
    elif offset == APIC_DIVIDE:
        set_divide(a, value)
    elif offset == APIC_INITIAL_COUNT:
        if a.mode == TSC_DEADLINE:              # ignored
            value = 0
        else:
            a.ticks_left = <uint64_t> value << a.shift
        apic_put(page, APIC_INITIAL_COUNT, value)
    else:
        error(page, ILLEGAL_REGISTER)
    return ipi


cdef void apic_set_base(Apic *a, uint64_t value) noexcept nogil:
    # IA32_APIC_BASE takes a value that x2apic_write_taken allows (KVM's __kvm_apic_set_base). The ID register is as
    # wide as the mode has it; in x2APIC mode the LDR follows from it, cluster and bit.
    cdef uint64_t changed = a.base ^ value
    a.base = value
    if changed & <uint64_t> (APIC_BASE_EN | APIC_BASE_EXTD) == 0:
        return
    apic_put(a.page, APIC_ID, a.id if apic_x2apic(a) else a.id << 24)
    if changed & <uint64_t> APIC_BASE_EXTD:
        apic_put(a.page, APIC_LDR, (a.id >> 4) << 16 | 1U << (a.id & 15) if apic_x2apic(a) else 0)


cdef bint apic_set_deadline(Apic *a, uint64_t value, uint64_t tsc) noexcept nogil:
    # WRMSR of IA32_TSC_DEADLINE: does the timer run out at once? In the timer's other modes, and while the APIC is
    # disabled, the MSR is 0 and takes nothing.
    if a.mode != TSC_DEADLINE or not apic_on(a):
        return False
    a.deadline = value if value > tsc else 0
    a.ticks_left = value - tsc if value > tsc else 0
    return value != 0 and value <= tsc


cdef uint64_t apic_elapse(Apic *a, uint64_t ticks) noexcept nogil:
    # bus clocks pass, which are those of the TSC as well; how often the timer ran out
    cdef uint64_t period = <uint64_t> apic_word(a.page, APIC_INITIAL_COUNT) << a.shift
    cdef uint64_t fired = 1
    if not a.ticks_left:
        return 0
    if ticks < a.ticks_left:
        a.ticks_left -= ticks
        return 0
    ticks -= a.ticks_left
    a.ticks_left = a.deadline = 0
    if a.mode == PERIODIC and period:
        fired += ticks // period
        a.ticks_left = period - ticks % period
    return fired


cdef bint apic_addressed(const Apic *a, const Ipi *ipi) noexcept nogil:
    # Does the interprocessor interrupt go to this APIC (kvm_apic_match_dest, apic.md §1.2)? Each compares by its own
    # mode, whatever the sender's: the broadcast is FFH in xAPIC mode, FFFFFFFFH in x2APIC mode, where FFH is an id,
    # or the logical destination of ids 0 to 7.
    cdef uint32_t ldr = apic_word(a.page, APIC_LDR), dfr = apic_word(a.page, APIC_DFR), to = ipi.destination
    if not apic_on(a):
        return False
    if ipi.shorthand:
        return ipi.shorthand == 2 or (a.id == ipi.sender) == (ipi.shorthand == APIC_SHORTHAND_SELF)
    if apic_x2apic(a):
        if to == 0xFFFFFFFFU:
            return True
        if not ipi.logical:
            return to == a.id
        return to >> 16 == ldr >> 16 and to & ldr & 0xFFFF != 0
    if to == 0xFF:
        return True
    if not ipi.logical:         # the guest can change its id of 8 bits
        return to == apic_word(a.page, APIC_ID) >> 24
    ldr >>= 24
    if dfr == 0xFFFFFFFFU:      # flat model
        return ldr & to != 0
    return dfr == 0x0FFFFFFF and to >> 4 == ldr >> 4 and ldr & to & 0xF != 0


# ---- Python's names of the APIC stand in apic_py, which is made of this ---------------------------------------

def __getattr__(name):
    if name not in ("InterprocessorInterrupt", "LocalApic", "route"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}_py"), name)

"""The local APIC: acceptance, end of interrupt, registers, interprocessor interrupts, timer (apic.md §1)."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.errors import StateError

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
    MASKED = 1 << 16            # in an LVT
    SEND_ILLEGAL = 1 << 5       # in ESR
    RECEIVE_ILLEGAL = 1 << 6
    ILLEGAL_REGISTER = 1 << 7
    MODE_LOWEST = 1             # delivery modes of the ICR: 0 fixed, 1 lowest priority end as a vector


cdef inline bint in_slots(uint64_t slots, uint32_t offset) noexcept nogil:
    return offset & 15 == 0 and offset < 0x400 and slots >> (offset >> 4) & 1


cdef inline void error(uint8_t *page, uint32_t bits) noexcept nogil:
    apic_put(page, APIC_ESR, apic_word(page, APIC_ESR) | bits)


cdef void mask_lvts(uint8_t *page) noexcept nogil:
    cdef uint32_t slot
    for slot in range(64):
        if LVTS >> slot & 1:
            apic_put(page, slot << 4, apic_word(page, slot << 4) | <uint32_t> MASKED)


cdef void apic_reset(Apic *a, uint8_t *page, uint32_t id) noexcept nogil:
    # `page`: 4096 bytes, all zero
    a.page = page
    a.id = id
    a.ticks_left = 0
    apic_put(page, APIC_ID, id << 24)
    apic_put(page, APIC_VERSION, 0x00060015)
    apic_put(page, APIC_DFR, 0xFFFFFFFFU)
    apic_put(page, APIC_SVR, 0xFF)
    mask_lvts(page)


cdef bint apic_request(uint8_t *page, uint8_t vector, bint level) noexcept nogil:
    # an interrupt arrives; False where it is not accepted
    if not apic_word(page, APIC_SVR) & <uint32_t> APIC_ENABLED:
        return False
    if vector < 16:
        error(page, RECEIVE_ILLEGAL)
        return False
    apic_set(page, APIC_IRR, vector)
    if level:
        apic_set(page, APIC_TMR, vector)
    else:
        apic_clear(page, APIC_TMR, vector)
    return True


cdef int apic_acknowledge(uint8_t *page) noexcept nogil:
    # the processor takes the deliverable vector: from IRR to ISR
    cdef int vector = apic_deliverable(page)
    if vector >= 0:
        apic_clear(page, APIC_IRR, vector)
        apic_set(page, APIC_ISR, vector)
        apic_update_ppr(page)
    return vector


cdef int apic_end(uint8_t *page) noexcept nogil:
    # end of the highest interrupt in service; its vector where it was level-triggered
    cdef int vector = apic_highest(page, APIC_ISR)
    if vector < 0:
        return APIC_NONE
    apic_clear(page, APIC_ISR, vector)
    apic_update_ppr(page)
    return vector if apic_bit(page, APIC_TMR, vector) else <int> APIC_NONE


cdef inline uint32_t divisor_shift(const uint8_t *page) noexcept nogil:
    cdef uint32_t divide = apic_word(page, APIC_DIVIDE)
    return ((divide & 3) | (divide >> 1 & 4)) + 1 & 7


cdef uint32_t apic_read(Apic *a, uint32_t offset) noexcept nogil:
    cdef uint32_t shift
    if not in_slots(READABLE, offset):
        if offset != APIC_EOI:
            error(a.page, ILLEGAL_REGISTER)
        return 0
    if offset == APIC_PPR:
        return apic_update_ppr(a.page)
    if offset == APIC_CURRENT_COUNT:
        shift = divisor_shift(a.page)
        return (a.ticks_left + (1ULL << shift) - 1) >> shift
    return apic_word(a.page, offset)


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
        apic_put(page, APIC_ICR_LOW, value & ~(1U << 12))
        ipi.vector = value & 0xFF
        ipi.mode = value >> 8 & 7
        ipi.logical = value >> 11 & 1
        ipi.shorthand = value >> 18 & 3
        ipi.sender = a.id
        ipi.destination = apic_word(page, APIC_ICR_HIGH) >> 24
        if ipi.mode <= MODE_LOWEST and ipi.vector < 16:
            error(page, SEND_ILLEGAL)
        else:
            ipi.valid = True
    elif in_slots(LVTS, offset):
        value &= 0x717FF
        if not apic_word(page, APIC_SVR) & <uint32_t> APIC_ENABLED:
            value |= <uint32_t> MASKED
        apic_put(page, offset, value)
    elif offset == APIC_SVR:
        apic_put(page, APIC_SVR, value & 0x13FF)
        if not value & <uint32_t> APIC_ENABLED:
            mask_lvts(page)
    elif offset == APIC_ID or offset == APIC_LDR or offset == APIC_ICR_HIGH:
        apic_put(page, offset, value & 0xFF000000U)
    elif offset == APIC_DFR:
        apic_put(page, APIC_DFR, (value & 0xF0000000U) | 0x0FFFFFFF)
    elif offset == APIC_DIVIDE:
        apic_put(page, APIC_DIVIDE, value & 0xB)
    elif offset == APIC_INITIAL_COUNT:
        apic_put(page, APIC_INITIAL_COUNT, value)
        a.ticks_left = <uint64_t> value << divisor_shift(page)
    else:
        error(page, ILLEGAL_REGISTER)
    return ipi


cdef uint64_t apic_advance(Apic *a, uint64_t ticks) noexcept nogil:
    # bus clocks pass; how often the timer ran out. Its vector is asked for once, whatever the number.
    cdef uint32_t lvt = apic_word(a.page, APIC_LVT_TIMER)
    cdef uint64_t period = <uint64_t> apic_word(a.page, APIC_INITIAL_COUNT) << divisor_shift(a.page)
    cdef uint64_t fired = 1
    if not a.ticks_left:
        return 0
    if ticks < a.ticks_left:
        a.ticks_left -= ticks
        return 0
    ticks -= a.ticks_left
    a.ticks_left = 0
    if lvt >> 17 & 3 == 1 and period:
        fired += ticks // period
        a.ticks_left = period - ticks % period
    if not lvt & <uint32_t> MASKED:
        apic_request(a.page, lvt & 0xFF, False)
    return fired


cdef bint apic_addressed(const Apic *a, const Ipi *ipi) noexcept nogil:
    # does the interprocessor interrupt go to this APIC? Logical destinations in flat or cluster model.
    cdef uint32_t mine = apic_word(a.page, APIC_LDR) >> 24
    if ipi.shorthand:
        return ipi.shorthand == 2 or (a.id == ipi.sender) == (ipi.shorthand == APIC_SHORTHAND_SELF)
    if not ipi.logical:
        return ipi.destination == a.id or ipi.destination == 0xFF
    if apic_word(a.page, APIC_DFR) >> 28 == 0xF:
        return mine & ipi.destination != 0
    return (ipi.destination >> 4 == mine >> 4 or ipi.destination >> 4 == 0xF) and mine & ipi.destination & 0xF != 0


# ---- for Python -------------------------------------------------------------------------------------------

class InterprocessorInterrupt(NamedTuple):
    """What a write to the ICR sends. `shorthand`: 0 none, 1 self, 2 all, 3 all but self."""

    sender: int
    vector: int
    mode: int
    shorthand: int
    destination: int
    logical: bool


cdef class LocalApic:
    """One local APIC in xAPIC mode.

    :param id: APIC id, 0 to 255. :param page: 4096 writable bytes that hold the registers; default: its own.
    :raises StateError: an id or a page outside these.
    """

    cdef Apic apic
    cdef readonly object page
    cdef uint8_t[::1] view

    def __init__(self, unsigned int id=0, page=None):
        if id > 255:
            raise StateError(f"APIC id {id} has more than 8 bits")
        self.page = bytearray(4096) if page is None else page
        self.view = self.page
        if self.view.shape[0] != 4096:
            raise StateError(f"a register page has 4096 bytes, not {self.view.shape[0]}")
        apic_reset(&self.apic, &self.view[0], id)

    @property
    def id(self):
        return self.apic.id

    @property
    def ticks_left(self):
        """Bus clocks until the timer runs out; 0: it does not run."""
        return self.apic.ticks_left

    @property
    def enabled(self):
        """Bit 8 of SVR."""
        return bool(apic_word(self.apic.page, APIC_SVR) & <uint32_t> APIC_ENABLED)

    @property
    def ppr(self):
        """Processor priority: the TPR, or the class of the highest vector in service where that is greater."""
        return apic_priority(self.apic.page[<int> APIC_TPR], apic_highest(self.apic.page, APIC_ISR))

    def deliverable(self):
        """The vector that the processor gets next if it takes interrupts, or None."""
        vector = apic_deliverable(self.apic.page)
        return None if vector < 0 else vector

    def request(self, uint8_t vector, *, bint level=False):
        """An interrupt arrives; is it accepted?"""
        return apic_request(self.apic.page, vector, level)

    def acknowledge(self):
        """The processor takes the deliverable vector, which moves from IRR to ISR; None where there is none."""
        vector = apic_acknowledge(self.apic.page)
        return None if vector < 0 else vector

    def end_of_interrupt(self):
        """The highest vector in service ends; its number where it was level-triggered, else None."""
        vector = apic_end(self.apic.page)
        return None if vector < 0 else vector

    def read(self, unsigned int offset):
        """A 32-bit read of the register at `offset`."""
        return apic_read(&self.apic, offset)

    def write(self, unsigned int offset, uint32_t value):
        """A 32-bit write; the :class:`InterprocessorInterrupt` that it sends, or None."""
        ipi = apic_write(&self.apic, offset, value)
        if not ipi.valid:
            return None
        return InterprocessorInterrupt(ipi.sender, ipi.vector, ipi.mode, ipi.shorthand, ipi.destination, ipi.logical)

    def advance(self, uint64_t ticks):
        """Let bus clocks pass; how often the timer ran out."""
        return apic_advance(&self.apic, ticks)


def route(apics, ipi):
    """Deliver an interprocessor interrupt that is a vector; ids of the APICs that accepted it.

    :param apics: the :class:`LocalApic` of every processor. :param ipi: what :meth:`LocalApic.write` returned.
    """
    cdef Ipi sent
    cdef LocalApic apic
    if ipi.mode > MODE_LOWEST:
        return []
    sent.valid, sent.sender, sent.vector, sent.mode = True, ipi.sender, ipi.vector, ipi.mode
    sent.shorthand, sent.destination, sent.logical = ipi.shorthand, ipi.destination, ipi.logical
    found = []
    for apic in apics:
        if apic_addressed(&apic.apic, &sent) and (ipi.mode != MODE_LOWEST or apic.enabled):
            found.append(apic)
    if ipi.mode == MODE_LOWEST and found:
        found = [min(found, key=_priority)]
    return [apic.id for apic in found if apic.request(ipi.vector)]


def _priority(apic):
    return apic.ppr

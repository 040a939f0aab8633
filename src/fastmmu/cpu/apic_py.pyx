"""One local APIC, for Python: `LocalApic`, and where its interprocessor interrupts go."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.cpu.apic cimport (
    APIC_ENABLED, APIC_ISR, APIC_LVT_TIMER, APIC_SVR, APIC_TPR, LVT_MASKED, MODE_LOWEST, Apic, Ipi, apic_acknowledge,
    apic_addressed, apic_deliverable, apic_elapse, apic_end, apic_highest, apic_priority, apic_read, apic_request,
    apic_reset, apic_send, apic_set_deadline, apic_set_x2apic, apic_word, apic_write,
)

from fastmmu.errors import StateError


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
        return _sent(apic_write(&self.apic, offset, value))

    def send(self, uint64_t value):
        """A write of the ICR as x2APIC mode has it, 64 bits with the destination in bits 63:32; as :meth:`write`."""
        return _sent(apic_send(&self.apic, value, value >> 32))

    @property
    def x2apic(self):
        """In x2APIC mode; may be set."""
        return bool(self.apic.x2apic)

    @x2apic.setter
    def x2apic(self, bint on):
        apic_set_x2apic(&self.apic, on)

    @property
    def deadline(self):
        """IA32_TSC_DEADLINE; 0: not armed."""
        return self.apic.deadline

    def set_deadline(self, uint64_t value, uint64_t tsc):
        """WRMSR of IA32_TSC_DEADLINE while the time-stamp counter is `tsc`; does the timer run out at once?"""
        cdef bint due = apic_set_deadline(&self.apic, value, tsc)
        self._expired(due)
        return due

    def advance(self, uint64_t ticks):
        """Let bus clocks pass, at the rate of the time-stamp counter; how often the timer ran out.

        Its vector is asked for once, whatever the number, unless the LVT masks it.
        """
        fired = apic_elapse(&self.apic, ticks)
        self._expired(fired != 0)
        return fired

    cdef _expired(self, bint fired):
        cdef uint32_t lvt = apic_word(self.apic.page, APIC_LVT_TIMER)
        if fired and not lvt & <uint32_t> LVT_MASKED:
            apic_request(self.apic.page, lvt & 0xFF, False)


cdef _sent(Ipi ipi):
    if not ipi.valid:
        return None
    return InterprocessorInterrupt(ipi.sender, ipi.vector, ipi.mode, ipi.shorthand, ipi.destination, ipi.logical)


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

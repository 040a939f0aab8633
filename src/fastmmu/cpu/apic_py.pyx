"""One local APIC, for Python: `LocalApic`, where its interprocessor interrupts go, why a register refuses a value."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.cpu.apic cimport (
    APIC_BASE_EN, APIC_BASE_EXTD, APIC_ENABLED, APIC_ISR, APIC_LVT_TIMER, APIC_SVR, APIC_TPR, LVT_MASKED, MODE_LOWEST,
    Apic, Ipi, apic_acknowledge, apic_addressed, apic_deliverable, apic_elapse, apic_end, apic_highest, apic_on,
    apic_priority, apic_read, apic_request, apic_reset, apic_send, apic_set_base, apic_set_deadline, apic_word,
    apic_write, apic_x2apic,
)
from fastmmu.arch.msr cimport MSR_APIC_BASE, MSR_TSC_DEADLINE, msr_of_x2apic
from fastmmu.cpu.x2apic cimport (
    x2apic_msr, x2apic_read, x2apic_read_taken, x2apic_readable, x2apic_reserved, x2apic_writable, x2apic_write,
    x2apic_write_taken,
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
    """One local APIC, in xAPIC mode after its reset.

    :meth:`read` and :meth:`write` reach a register in any mode; instructions, which the mode refuses or not, are
    :meth:`rdmsr`, :meth:`wrmsr`, :meth:`read_cr8`, :meth:`write_cr8`.

    :param id: APIC id, 0 to 255; 0 is the bootstrap processor's. :param page: 4096 writable bytes that hold the
        registers; default: its own.
    :raises StateError: an id or a page outside these; #GP, a value that a register refuses.
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
        vector = apic_deliverable(&self.apic)
        return None if vector < 0 else vector

    def request(self, uint8_t vector, *, bint level=False):
        """An interrupt arrives; is it accepted?"""
        return apic_request(&self.apic, vector, level)

    def acknowledge(self):
        """The processor takes the deliverable vector, which moves from IRR to ISR; None where there is none."""
        vector = apic_acknowledge(&self.apic)
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
    def base(self):
        """IA32_APIC_BASE: bit 11 enabled, bit 10 in x2APIC mode, bit 8 of the bootstrap processor."""
        return self.apic.base

    @property
    def x2apic(self):
        """In x2APIC mode; may be set, from any mode."""
        return apic_x2apic(&self.apic)

    @x2apic.setter
    def x2apic(self, bint on):
        base = self.apic.base | <uint64_t> APIC_BASE_EN
        apic_set_base(&self.apic, base | <uint64_t> APIC_BASE_EXTD if on else base & ~(<uint64_t> APIC_BASE_EXTD))

    def rdmsr(self, uint32_t msr):
        """RDMSR of 1BH (IA32_APIC_BASE), 6E0H (IA32_TSC_DEADLINE) or 800H to 8FFH.

        :raises StateError: #GP: of 800H to 8FFH outside x2APIC mode, or one that is none or cannot be read. Rule: SDM
            volume 3, "x2APIC Register Address Space"; KVM: kvm_x2apic_msr_read.
        """
        of_the_apic(msr)
        if not x2apic_read_taken(&self.apic, msr):
            raise StateError(refusal(msr, None, self.apic.base))
        if msr == MSR_APIC_BASE:
            return self.apic.base
        return self.deadline if msr == MSR_TSC_DEADLINE else x2apic_read(&self.apic, msr)

    def wrmsr(self, uint32_t msr, uint64_t value, *, uint64_t tsc=0, unsigned int maxphyaddr=52):
        """WRMSR of 1BH, 6E0H (while the time-stamp counter is `tsc`) or 800H to 8FFH; what it sends, as :meth:`write`.

        :param maxphyaddr: width of physical addresses, 32 to 52: higher bits of IA32_APIC_BASE are reserved.
        :raises StateError: #GP: as :meth:`rdmsr`, a reserved bit, or a change of mode that is none. Rule: SDM volume 3,
            "x2APIC State Transitions", "Reserved Bit Checking"; KVM: kvm_apic_set_base, kvm_x2apic_msr_write.
        """
        of_the_apic(msr)
        if not 32 <= maxphyaddr <= 52:
            raise StateError(f"maxphyaddr={maxphyaddr} is outside 32..52")
        if not x2apic_write_taken(&self.apic, msr, value, maxphyaddr):
            raise StateError(refusal(msr, value, self.apic.base, maxphyaddr))
        if msr == MSR_APIC_BASE:
            apic_set_base(&self.apic, value)
        elif msr == MSR_TSC_DEADLINE:
            self.set_deadline(value, tsc)
        else:
            return _sent(x2apic_write(&self.apic, msr, value))

    def read_cr8(self):
        """MOV from CR8: bits 7:4 of the TPR, in every mode."""
        return self.apic.page[<int> APIC_TPR] >> 4

    def write_cr8(self, uint64_t value):
        """MOV to CR8. :raises StateError: #GP, bits 63:4 are not 0."""
        if value >> 4:
            raise StateError(cr8_refusal(value))
        apic_write(&self.apic, APIC_TPR, value << 4)

    @property
    def deadline(self):
        """IA32_TSC_DEADLINE; 0: not armed, or the APIC is disabled."""
        return self.apic.deadline if apic_on(&self.apic) else 0

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
            apic_request(&self.apic, lvt & 0xFF, False)


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


def of_the_apic(uint32_t msr):
    """:raises StateError: an MSR that is none of the APIC's."""
    if not x2apic_msr(msr):
        raise StateError(f"MSR {msr:#x} is none of the APIC's; give 0x1b, 0x6e0 or 0x800 to 0x8ff")


def cr8_refusal(value):
    """Why CR8 refuses a value."""
    return f"#GP(0): cr8={value:#x} has bits above 3; give 0 to 15, bits 7:4 of the TPR"


def refusal(uint32_t msr, value, uint64_t base, unsigned int maxphyaddr=52):
    """Why RDMSR (`value` None) or WRMSR is #GP(0), and what to do: for an APIC whose IA32_APIC_BASE is `base`."""
    read, mode = value is None, base >> 10 & 3
    what = f"#GP(0): RDMSR of {msr:#x}" if read else f"#GP(0): WRMSR of {msr:#x} with {value:#x}"
    if msr_of_x2apic(msr):
        if mode != 3:
            return (f"{what}: the APIC is {'in xAPIC mode' if mode else 'disabled'}, and MSRs 0x800 to 0x8ff are "
                    "x2APIC mode's; set bits 11 and 10 of 0x1b before")
        if not x2apic_readable(msr) and not x2apic_writable(msr):
            return f"{what}: x2APIC mode has no such register; see the SDM's table of them"
        if not (x2apic_readable(msr) if read else x2apic_writable(msr)):
            return f"{what}: the register can only be {'written' if read else 'read'}"
    reserved = value & x2apic_reserved(msr, maxphyaddr) if not read and x2apic_msr(msr) else 0
    if reserved:
        return f"{what}: bits {reserved:#x} are reserved; leave them 0"
    if msr == MSR_APIC_BASE and not read:
        if value >> 10 & 3 == 1:
            return f"{what}: x2APIC mode (bit 10) of a disabled APIC (bit 11 is 0); set both or neither"
        if mode == 3 and value >> 10 & 3 == 2:
            return f"{what}: x2APIC mode is left for xAPIC mode by way of disabled; clear bits 11 and 10 before"
        if not mode and value >> 10 & 3 == 3:
            return f"{what}: a disabled APIC gets into x2APIC mode by way of xAPIC mode; set bit 11 alone before"
    return f"{what}: the VMM injects it"

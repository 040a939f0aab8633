"""One local APIC, for Python: `LocalApic`, where its interprocessor interrupts go, why a register refuses a value."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu._arguments cimport aligned, bytes_out, flag, instance, many, within, word
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

    Threads: each call is one step; who needs several to belong together locks them.
    """

    cdef Apic apic
    cdef readonly object page
    cdef uint8_t[::1] view

    def __cinit__(self, id=0, page=None):
        cdef uint32_t number = within("APIC id", id, 0, 255)
        self.page = bytearray(4096) if page is None else page
        self.view = bytes_out("page", self.page)
        if self.view.shape[0] != 4096:
            raise StateError(f"a register page has 4096 bytes, not {self.view.shape[0]}")
        aligned("page", &self.view[0], StateError)
        apic_reset(&self.apic, &self.view[0], number)

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

    def request(self, vector, *, level=False):
        """An interrupt arrives; is it accepted?"""
        cdef uint8_t number = within("vector", vector, 0, 255)
        return apic_request(&self.apic, number, flag("level", level))

    def acknowledge(self):
        """The processor takes the deliverable vector, which moves from IRR to ISR; None where there is none."""
        vector = apic_acknowledge(&self.apic)
        return None if vector < 0 else vector

    def end_of_interrupt(self):
        """The highest vector in service ends; its number where it was level-triggered, else None."""
        vector = apic_end(self.apic.page)
        return None if vector < 0 else vector

    def read(self, offset):
        """A 32-bit read of the register at `offset`, 0..4095."""
        return apic_read(&self.apic, within("offset", offset, 0, 0xFFF))

    def write(self, offset, value):
        """A 32-bit write; the :class:`InterprocessorInterrupt` that it sends, or None."""
        cdef uint32_t at = within("offset", offset, 0, 0xFFF)
        return _sent(apic_write(&self.apic, at, within("value", value, 0, 0xFFFFFFFF)))

    def send(self, value):
        """A write of the ICR as x2APIC mode has it, 64 bits with the destination in bits 63:32; as :meth:`write`."""
        cdef uint64_t icr = word("value", value)
        return _sent(apic_send(&self.apic, icr, icr >> 32))

    @property
    def base(self):
        """IA32_APIC_BASE: bit 11 enabled, bit 10 in x2APIC mode, bit 8 of the bootstrap processor."""
        return self.apic.base

    @property
    def x2apic(self):
        """In x2APIC mode; may be set, from any mode."""
        return apic_x2apic(&self.apic)

    @x2apic.setter
    def x2apic(self, on):
        cdef bint wanted = flag("x2apic", on)
        base = self.apic.base | <uint64_t> APIC_BASE_EN
        apic_set_base(&self.apic, base | <uint64_t> APIC_BASE_EXTD if wanted else base & ~(<uint64_t> APIC_BASE_EXTD))

    def rdmsr(self, msr):
        """RDMSR of 1BH (IA32_APIC_BASE), 6E0H (IA32_TSC_DEADLINE) or 800H to 8FFH.

        :raises StateError: #GP: of 800H to 8FFH outside x2APIC mode, or one that is none or cannot be read. Rule: SDM
            volume 3, "x2APIC Register Address Space"; KVM: kvm_x2apic_msr_read.
        """
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        of_the_apic(number)
        if not x2apic_read_taken(&self.apic, number):
            raise StateError(refusal(number, None, self.apic.base))
        if number == MSR_APIC_BASE:
            return self.apic.base
        return self.deadline if number == MSR_TSC_DEADLINE else x2apic_read(&self.apic, number)

    def wrmsr(self, msr, value, *, tsc=0, maxphyaddr=52):
        """WRMSR of 1BH, 6E0H (while the time-stamp counter is `tsc`) or 800H to 8FFH; what it sends, as :meth:`write`.

        :param maxphyaddr: width of physical addresses, 32 to 52: higher bits of IA32_APIC_BASE are reserved.
        :raises StateError: #GP: as :meth:`rdmsr`, a reserved bit, or a change of mode that is none. Rule: SDM volume 3,
            "x2APIC State Transitions", "Reserved Bit Checking"; KVM: kvm_apic_set_base, kvm_x2apic_msr_write.
        """
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        cdef uint64_t new = word("value", value), now = word("tsc", tsc)
        cdef uint32_t m = within("maxphyaddr", maxphyaddr, 32, 52)
        of_the_apic(number)
        if not x2apic_write_taken(&self.apic, number, new, m):
            raise StateError(refusal(number, new, self.apic.base, m))
        if number == MSR_APIC_BASE:
            apic_set_base(&self.apic, new)
        elif number == MSR_TSC_DEADLINE:
            self.set_deadline(new, now)
        else:
            return _sent(x2apic_write(&self.apic, number, new))

    def read_cr8(self):
        """MOV from CR8: bits 7:4 of the TPR, in every mode."""
        return self.apic.page[<int> APIC_TPR] >> 4

    def write_cr8(self, value):
        """MOV to CR8. :raises StateError: #GP, bits 63:4 are not 0."""
        cdef uint64_t new = word("cr8", value)
        if new >> 4:
            raise StateError(cr8_refusal(new))
        apic_write(&self.apic, APIC_TPR, new << 4)

    @property
    def deadline(self):
        """IA32_TSC_DEADLINE; 0: not armed, or the APIC is disabled."""
        return self.apic.deadline if apic_on(&self.apic) else 0

    def set_deadline(self, value, tsc):
        """WRMSR of IA32_TSC_DEADLINE while the time-stamp counter is `tsc`; does the timer run out at once?"""
        cdef uint64_t new = word("value", value)
        cdef bint due = apic_set_deadline(&self.apic, new, word("tsc", tsc))
        self._expired(due)
        return due

    def advance(self, ticks):
        """Let bus clocks pass, at the rate of the time-stamp counter; how often the timer ran out.

        Its vector is asked for once, whatever the number, unless the LVT masks it.
        """
        fired = apic_elapse(&self.apic, word("ticks", ticks))
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
    instance("ipi", ipi, InterprocessorInterrupt)
    sent.valid, sent.sender = True, within("ipi.sender", ipi.sender, 0, 0xFFFFFFFF)
    sent.vector, sent.mode = within("ipi.vector", ipi.vector, 0, 255), within("ipi.mode", ipi.mode, 0, 7)
    sent.shorthand = within("ipi.shorthand", ipi.shorthand, 0, 3)
    sent.destination = within("ipi.destination", ipi.destination, 0, 0xFFFFFFFF)
    sent.logical = flag("ipi.logical", ipi.logical)
    found = []
    everyone = [instance("one of apics", each, LocalApic) for each in many("apics", apics)]
    if sent.mode > MODE_LOWEST:
        return []
    for apic in everyone:
        if apic_addressed(&apic.apic, &sent) and (ipi.mode != MODE_LOWEST or apic.enabled):
            found.append(apic)
    if ipi.mode == MODE_LOWEST and found:
        found = [min(found, key=_priority)]
    return [apic.id for apic in found if apic.request(ipi.vector)]


def _priority(apic):
    return apic.ppr


def of_the_apic(msr):
    """:raises StateError: an MSR that is none of the APIC's."""
    cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
    if not x2apic_msr(number):
        raise StateError(f"MSR {number:#x} is none of the APIC's; give 0x1b, 0x6e0 or 0x800 to 0x8ff")


def cr8_refusal(value):
    """Why CR8 refuses a value."""
    return f"#GP(0): cr8={word('cr8', value):#x} has bits above 3; give 0 to 15, bits 7:4 of the TPR"


def refusal(msr, value, base, maxphyaddr=52):
    """Why RDMSR (`value` None) or WRMSR is #GP(0), and what to do: for an APIC whose IA32_APIC_BASE is `base`."""
    cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF), m = within("maxphyaddr", maxphyaddr, 32, 52)
    cdef uint64_t new = 0 if value is None else word("value", value)
    read, mode = value is None, word("base", base) >> 10 & 3
    what = f"#GP(0): RDMSR of {number:#x}" if read else f"#GP(0): WRMSR of {number:#x} with {new:#x}"
    if msr_of_x2apic(number):
        if mode != 3:
            return (f"{what}: the APIC is {'in xAPIC mode' if mode else 'disabled'}, and MSRs 0x800 to 0x8ff are "
                    "x2APIC mode's; set bits 11 and 10 of 0x1b before")
        if not x2apic_readable(number) and not x2apic_writable(number):
            return f"{what}: x2APIC mode has no such register; see the SDM's table of them"
        if not (x2apic_readable(number) if read else x2apic_writable(number)):
            return f"{what}: the register can only be {'written' if read else 'read'}"
    reserved = new & x2apic_reserved(number, m) if not read and x2apic_msr(number) else 0
    if reserved:
        return f"{what}: bits {reserved:#x} are reserved; leave them 0"
    if number == MSR_APIC_BASE and not read:
        if new >> 10 & 3 == 1:
            return f"{what}: x2APIC mode (bit 10) of a disabled APIC (bit 11 is 0); set both or neither"
        if mode == 3 and new >> 10 & 3 == 2:
            return f"{what}: x2APIC mode is left for xAPIC mode by way of disabled; clear bits 11 and 10 before"
        if not mode and new >> 10 & 3 == 3:
            return f"{what}: a disabled APIC gets into x2APIC mode by way of xAPIC mode; set bit 11 alone before"
    return f"{what}: the VMM injects it"

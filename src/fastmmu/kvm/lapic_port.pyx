"""The local APIC of a vCPU in the hands of a VMM in Python: what `fastmmu.kvm.policy` does at the exits of the APIC.

KVM's model of the registers, whose page is the virtual-APIC page too; time and interrupts that reach it; the access
that exited. What VM entry loads is the base class's (`kvm.apic_entry_port`).
"""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu._arguments cimport flag, instance, within, word
from fastmmu.arch.msr cimport msr_of_x2apic
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, Walk
from fastmmu.cpu.apic cimport (
    APIC_ENABLED, APIC_IRR, APIC_ISR, APIC_NONE, APIC_SVR, APIC_TMR, APIC_TPR, Ipi, apic_acknowledge, apic_addressed,
    apic_deliverable, apic_highest, apic_mapped, apic_on, apic_put, apic_read, apic_receives, apic_request,
    apic_reset_timer, apic_set_base, apic_update_ppr, apic_word, apic_write, apic_x2apic,
)
from fastmmu.cpu.apic_msr cimport irq_msr_taken
from fastmmu.cpu.interrupts cimport Interrupts, irq_accept, irq_deadline, irq_elapse, irq_sent
from fastmmu.cpu.vcpu cimport ABORT_APIC_TABLE, ACC_PDPTES, ACT_INJECT_PF, Vcpu, vcpu_abort
from fastmmu.cpu.x2apic cimport x2apic_msr, x2apic_read, x2apic_write
from fastmmu.kvm.vm_port cimport VmPort, word_of_board
from fastmmu.paging.guest cimport page_fault
from fastmmu.paging.memory cimport mem_holds, mem_read64

from fastmmu.cpu.apic_py import InterprocessorInterrupt, refusal
from fastmmu.errors import BusError, StateError

cdef object _new = tuple.__new__


class RegisterAccess(NamedTuple):
    """The access that exited, as the VMM decodes it: does it read, does it write, its bytes, the value that it writes
    (of a read-modify-write that changes nothing 0)."""

    reads: bool
    writes: bool
    size: int
    value: int


cdef Lapic lapic_of(VmPort vm, Interrupts *irq):
    """Of a vCPU."""
    cdef Lapic apic = Lapic.__new__(Lapic, word_of_board())
    apic.vm, apic.irq = vm, irq
    return apic


cdef object sent(const Ipi *ipi):
    if not ipi.valid:
        return None
    return _new(InterprocessorInterrupt, (ipi.sender, ipi.vector, ipi.mode, ipi.shorthand, ipi.destination,
                                          bool(ipi.logical)))


cdef Ipi message(ipi):
    # checked: a tuple checks nothing
    cdef Ipi found
    if len(instance("ipi", ipi, InterprocessorInterrupt)) != 6:
        raise StateError(f"an InterprocessorInterrupt has 6 fields, not {len(ipi)}")
    sender, vector, mode, shorthand, destination, logical = ipi
    found.valid = True
    found.sender = within("InterprocessorInterrupt sender", sender, 0, 0xFFFFFFFF)
    found.vector = within("InterprocessorInterrupt vector", vector, 0, 0xFF)
    found.mode = within("InterprocessorInterrupt mode", mode, 0, 7)
    found.shorthand = within("InterprocessorInterrupt shorthand", shorthand, 0, 3)
    found.destination = within("InterprocessorInterrupt destination", destination, 0, 0xFFFFFFFF)
    found.logical = flag("InterprocessorInterrupt logical", logical)
    return found


cdef class Lapic(ApicEntry):
    """The local APIC of a vCPU in the hands of its VMM, from :attr:`fastmmu.kvm.port.VirtualCpu.apic`.

    Vectors are 0 to 255, -1 where there is none; offsets are bytes in the page of registers (apic.md §1).

    :raises PolicyError: every call while no VM exit is handled by a :class:`fastmmu.Kvm`.

    Threads: as of :class:`fastmmu.kvm.port.VirtualMachine`.
    """

    # ---- registers ------------------------------------------------------------------------------------------------

    @property
    def on(self):
        """Enabled as a whole, by IA32_APIC_BASE."""
        self.vm.inside()
        return bool(apic_on(&self.irq.apic))

    @property
    def x2apic(self):
        """In x2APIC mode."""
        self.vm.inside()
        return bool(apic_x2apic(&self.irq.apic))

    @property
    def mapped(self):
        """Its registers are in the page at FEE00000H: in xAPIC mode, not moved."""
        self.vm.inside()
        return bool(apic_mapped(&self.irq.apic))

    @property
    def software_enabled(self):
        """Bit 8 of SVR."""
        self.vm.inside()
        return apic_word(self.irq.apic.page, APIC_SVR) & <uint32_t> APIC_ENABLED != 0

    @property
    def base(self):
        """IA32_APIC_BASE; may be set to what WRMSR takes. :raises StateError: #GP, and why."""
        self.vm.inside()
        return self.irq.apic.base

    @base.setter
    def base(self, value):
        self.vm.inside()
        cdef uint64_t new = word("base", value)
        self.take(0x1B, True, new)
        apic_set_base(&self.irq.apic, new)

    cdef int take(self, uint32_t msr, bint write, uint64_t value) except -1:
        if not x2apic_msr(msr):
            raise StateError(f"MSR {msr:#x} is none of the APIC's; give 0x1b, 0x6e0 or 0x800 to 0x8ff")
        if not irq_msr_taken(self.irq, msr, write, value):
            raise StateError(refusal(msr, value if write else None, self.irq.apic.base, self.irq.v.r.maxphyaddr))
        return 0

    def msr_taken(self, msr, value=None):
        """Whether RDMSR (`value` None) or WRMSR of an MSR is no #GP, in the mode as it is (kvm_x2apic_msr_read,
        kvm_x2apic_msr_write, kvm_set_apic_base; apic.md §1.1). None: the MSR is not the APIC's."""
        self.vm.inside()
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        cdef uint64_t new = 0 if value is None else word("value", value)
        if not x2apic_msr(number):
            return None
        return bool(irq_msr_taken(self.irq, number, value is not None, new))

    def word(self, offset):
        """Four bytes of the page, as they are; `offset`: 0 to FFCH, a multiple of 4."""
        self.vm.inside()
        return apic_word(self.irq.apic.page, within("offset", offset, 0, 0xFFF) & 0xFFC)

    def put(self, offset, value):
        """Set four bytes of the page, as they are (kvm_lapic_set_reg): nothing follows from it.

        :param offset: 0 to FFCH. :raises StateError: no multiple of 4.
        """
        self.vm.inside()
        cdef uint32_t at = within("offset", offset, 0, 0xFFC), new = within("value", value, 0, 0xFFFFFFFF)
        if at & 3:
            raise StateError(f"offset={at:#x} is no multiple of 4")
        apic_put(self.irq.apic.page, at, new)

    def read(self, offset):
        """A register of 32 bits, as software reads it; 0 and ESR[7] where there is none (kvm_lapic_reg_read)."""
        self.vm.inside()
        return apic_read(&self.irq.apic, within("offset", offset, 0, 0xFFF))

    def write(self, offset, value):
        """Write a register of 32 bits; the :class:`InterprocessorInterrupt` that it sends, or None
        (kvm_lapic_reg_write)."""
        self.vm.inside()
        cdef uint32_t at = within("offset", offset, 0, 0xFFF)
        cdef Ipi ipi = apic_write(&self.irq.apic, at, within("value", value, 0, 0xFFFFFFFF))
        return sent(&ipi)

    def read_msr(self, msr):
        """One of 800H to 8FFH, as RDMSR reads it. :raises StateError: #GP, and why."""
        self.vm.inside()
        cdef uint32_t number = self.register(msr)
        self.take(number, False, 0)
        return x2apic_read(&self.irq.apic, number)

    def write_msr(self, msr, value):
        """One of 800H to 8FFH, as WRMSR writes it; the :class:`InterprocessorInterrupt` that it sends, or None.

        :raises StateError: #GP, and why.
        """
        self.vm.inside()
        cdef uint32_t number = self.register(msr)
        cdef uint64_t new = word("value", value)
        cdef Ipi ipi
        self.take(number, True, new)
        ipi = x2apic_write(&self.irq.apic, number, new)
        return sent(&ipi)

    cdef uint32_t register(self, msr) except? 0xBAD:
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        if not msr_of_x2apic(number):
            raise StateError(f"MSR {number:#x} is no register of the x2APIC; give 0x800 to 0x8ff")
        return number

    @property
    def tpr(self):
        """Task priority, 8 bits; may be set, which looks at nothing else."""
        self.vm.inside()
        return self.irq.apic.page[<int> APIC_TPR]

    @tpr.setter
    def tpr(self, value):
        self.vm.inside()
        self.irq.apic.page[<int> APIC_TPR] = <uint8_t> within("tpr", value, 0, 0xFF)

    def update_ppr(self):
        """The processor priority anew, from TPR and ISR, and its value (apic_update_ppr)."""
        self.vm.inside()
        return apic_update_ppr(self.irq.apic.page)

    @property
    def irr(self):
        """Highest vector requested, or -1 (apic_find_highest_irr)."""
        self.vm.inside()
        return apic_highest(self.irq.apic.page, APIC_IRR)

    @property
    def isr(self):
        """Highest vector in service, or -1 (apic_find_highest_isr)."""
        self.vm.inside()
        return apic_highest(self.irq.apic.page, APIC_ISR)

    @property
    def tmr(self):
        """The level-triggered vectors, four words of 64 bits."""
        self.vm.inside()
        page = self.irq.apic.page
        return tuple([apic_word(page, APIC_TMR + 32 * i) | <uint64_t> apic_word(page, APIC_TMR + 32 * i + 16) << 32
                      for i in range(4)])

    def deliverable(self):
        """The vector that priorities let through, or -1 (kvm_apic_has_interrupt)."""
        self.vm.inside()
        return apic_deliverable(&self.irq.apic)

    def acknowledge(self):
        """The deliverable vector, which moves from IRR to ISR, or -1 (kvm_get_apic_interrupt)."""
        self.vm.inside()
        return apic_acknowledge(&self.irq.apic)

    def accept(self, vector, *, level=False):
        """An interrupt reaches the registers: into IRR, where the APIC receives it, and an event is requested
        (apic_set_irr, KVM_REQ_EVENT). Counts ``requested``."""
        self.vm.inside()
        cdef uint8_t number = within("vector", vector, 0, 0xFF)
        irq_accept(self.irq, number, flag("level", level))

    # ---- time, arrival --------------------------------------------------------------------------------------------

    @property
    def now(self):
        """Accesses of the trace so far: the bus clock, and the time-stamp counter."""
        self.vm.inside()
        return self.irq.now

    def elapse(self):
        """The timer counts up to now. Where it runs out, its vector arrives before the next VM entry
        (:meth:`accept_arrived`)."""
        self.vm.inside()
        irq_elapse(self.irq)

    def reset_timer(self):
        """The timer stands still, no deadline is armed; mode and divisor are those of its registers (hrtimer_cancel,
        apic_update_lvtt, update_divide_count)."""
        self.vm.inside()
        apic_reset_timer(&self.irq.apic)

    @property
    def deadline(self):
        """IA32_TSC_DEADLINE; 0: not armed, or the APIC is disabled."""
        self.vm.inside()
        return self.irq.apic.deadline if apic_on(&self.irq.apic) else 0

    def set_deadline(self, value):
        """Write IA32_TSC_DEADLINE; True: its time has come, and the timer's vector is due
        (kvm_set_lapic_tscdeadline_msr)."""
        self.vm.inside()
        return bool(irq_deadline(self.irq, word("value", value)))

    def accept_arrived(self):
        """What arrived with the exit reaches the registers: of a device, or of the timer."""
        self.vm.inside()
        cdef Interrupts *irq = self.irq
        if irq.arriving < 0:
            return
        irq_accept(irq, irq.arriving, irq.arriving_level)
        if irq.arrived:
            irq.arrival[irq.arriving] = irq.arrived
            irq.arrived = 0
        irq.arriving = APIC_NONE

    # ---- interprocessor interrupts --------------------------------------------------------------------------------

    def send_alone(self, ipi):
        """An interprocessor interrupt of a vCPU that is the only one, or one that is no vector (NMI, INIT, ...), which
        is counted and that is all: to itself, where it is addressed."""
        self.vm.inside()
        cdef Ipi found = message(ipi)
        irq_sent(self.irq, &found)

    def addressed(self, ipi):
        """Does an :class:`InterprocessorInterrupt` go to this APIC (kvm_apic_match_dest; apic.md §1.2)?"""
        self.vm.inside()
        cdef Ipi found = message(ipi)
        return bool(apic_addressed(&self.irq.apic, &found))

    def arrives(self, vector, at):
        """Another vCPU sends a vector at the time `at`, as its :attr:`now`: is it received, by an APIC that is on and
        enabled? Counts ``requested``."""
        self.vm.inside()
        cdef uint8_t number = within("vector", vector, 0, 0xFF)
        cdef uint64_t when = word("at", at)
        self.irq.c.requested += 1
        self.irq.arrival[number] = when
        return bool(apic_receives(&self.irq.apic, number))

    def request(self, vector):
        """Into IRR, edge-triggered (kvm_lapic_set_irr)."""
        self.vm.inside()
        apic_request(&self.irq.apic, within("vector", vector, 0, 0xFF), False)

    # ---- the exit under way ---------------------------------------------------------------------------------------

    @property
    def access(self):
        """The access to memory that exited, a :class:`RegisterAccess`."""
        self.vm.inside()
        cdef const Vcpu *v = self.irq.v
        return _new(RegisterAccess, (v.access == ACC_R or v.access == ACC_RW, v.access == ACC_W or v.access == ACC_RW,
                                     v.access_bytes if v.access_bytes else v.store_bytes if v.store_bytes else 4,
                                     v.store_value if v.store_bytes else 0))

    @property
    def msr_value(self):
        """EDX:EAX of the WRMSR that exited, 64 bits."""
        self.vm.inside()
        return self.irq.v.store_value

    def give(self, value):
        """What the instruction that exited reads: MOV from CR8, RDMSR, a load from the page."""
        self.vm.inside()
        self.irq.value = word("value", value)

    def complete_load(self, value):
        """As :meth:`give`, of a load from memory: `value`, 64 bits, whatever it takes of them."""
        self.vm.inside()
        cdef Vcpu *v = self.irq.v
        self.irq.value = v.load_value = word("value", value)
        v.loaded = 8

    @property
    def emulated(self):
        """Guest-physical address of the access that the VMM completed; all 64 bits 1: none is known. May be set."""
        self.vm.inside()
        return self.irq.v.emulated

    @emulated.setter
    def emulated(self, value):
        self.vm.inside()
        self.irq.v.emulated = word("emulated", value)

    @property
    def walked(self):
        """The access that exited belongs to the load of the PDPTE registers, and is none to data."""
        self.vm.inside()
        return self.irq.v.access == ACC_PDPTES

    def structure(self, offset):
        """Eight bytes behind the APIC-access page, where the guest has a paging structure.

        :raises BusError: the VMCS names no memory.
        """
        self.vm.inside()
        cdef uint32_t at = within("offset", offset, 0, 0xFFF)
        cdef uint64_t page = self.irq.v.vmcs.apic_access_address
        if not mem_holds(self.irq.v.mem, page, 4096):
            raise BusError(f"the APIC-access page at {page:#x} lies outside the host's memory")
        return mem_read64(self.irq.v.mem, page + (at & 0xFF8)) >> 8 * (at & 7)

    def inject_not_present(self):
        """The access that exited ends in a #PF of a page that is not present; the action to return."""
        self.vm.inside()
        cdef Vcpu *v = self.irq.v
        cdef Walk w
        page_fault(&v.hw, &w, v.access, 0)
        v.cr2 = v.access_la
        v.error_code = w.error_code
        return ACT_INJECT_PF

    def abort_structure(self):
        """The simulation stops: the VMM would have to read a paging structure from the APIC-access page."""
        self.vm.inside()
        vcpu_abort(self.irq.v, ABORT_APIC_TABLE, self.irq.v.access_la)

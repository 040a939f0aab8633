"""The local APIC of a machine's guest: what the guest does with it, and the interrupts that arrive."""

from typing import NamedTuple

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport flag, linear_address, within, word
from fastmmu.cpu.apic_access cimport irq_arrive, irq_cr8, irq_flag, irq_mmio, irq_msr, irq_wait
from fastmmu.cpu.interrupts cimport irq_accept, irq_left
from fastmmu.cpu.vcpu cimport DONE_GP, DONE_OK, DONE_PF
from fastmmu.machine.board cimport Board
from fastmmu.machine.stops cimport refused
from fastmmu.threads.turns cimport CHUNK_MOST, Pace, Turn, pace_begin, this_thread

from fastmmu.cpu.apic_py import of_the_apic
from fastmmu.errors import StateError
from fastmmu.exits import N_REASONS, ExitReason


cdef extern from *:
    const uint64_t MOST_WAIT "0x4000000000000000ULL"    # Config.exit_every's


class Delivered(NamedTuple):
    """One interrupt that the guest's handler got: its vector, and the accesses of the trace until then."""

    vector: int
    at: int


cdef class GuestApic:
    """The local APIC of the guest of a :class:`fastmmu.Machine`, from ``machine.apic``.

    Each method is an instruction of the guest, or an event, and all that follows from it: VM exits, the VMM's handling
    of them, interrupts delivered at the next instruction boundary and the guest's handler, which ends the interrupt.
    Loads and stores through the page are :meth:`Machine.load` and :meth:`Machine.store`, too.

    :raises PolicyError: an instruction while a VM exit is handled; :meth:`interrupt` alone can be called then.

    Threads: as of :class:`Guest`; what only reads can be read at any time.
    """

    def __cinit__(self, Board board not None):
        if board.vcpu.irq == NULL:
            raise StateError("the guest has no local APIC; make the Machine with Config(tpr=)")
        self.board = board

    cdef _done(self, int outcome):
        if outcome == DONE_OK:
            return
        if outcome == DONE_GP:
            raise StateError(refused(self.board.vcpu.irq))
        if outcome == DONE_PF:
            v = self.board.vcpu.irq.v
            raise StateError(f"#PF at {v.cr2:#x}, error code {v.error_code:#x}: the guest does not map its APIC there")
        self.board._raise(0)

    @property
    def address(self):
        """Linear address at which the guest sees the page of its APIC; may be set."""
        cdef Turn _turn = self.board.take()
        return self.board.vcpu.irq.la

    @address.setter
    def address(self, la):
        cdef uint64_t page = linear_address("address", la)
        if page & 0xFFF:
            raise StateError(f"the APIC's page at {page:#x} is not aligned to 4096")
        cdef Turn _turn = self.board.turns.apart()
        self.board.made()
        self.board.vcpu.irq.la = page

    def read(self, offset, size=4):
        """A read of a register through the page; its value."""
        cdef uint32_t at = within("offset", offset, 0, 0xFFF), length = within("size", size, 1, 16)
        cdef Turn _turn = self.board._guest_runs()
        self._done(irq_mmio(self.board.vcpu.irq, at, length, False, 0))
        return self.board.vcpu.irq.value

    def write(self, offset, value, size=4):
        """A write of a register through the page."""
        cdef uint32_t at = within("offset", offset, 0, 0xFFF), length = within("size", size, 1, 16)
        cdef uint64_t new = word("value", value)
        cdef Turn _turn = self.board._guest_runs()
        self._done(irq_mmio(self.board.vcpu.irq, at, length, True, new))

    def read_cr8(self):
        """MOV from CR8."""
        cdef Turn _turn = self.board._guest_runs()
        self._done(irq_cr8(self.board.vcpu.irq, False, 0))
        return self.board.vcpu.irq.value

    def write_cr8(self, value):
        """MOV to CR8. :raises StateError: #GP, bits 63:4 are not 0."""
        cdef uint64_t new = word("cr8", value)
        cdef Turn _turn = self.board._guest_runs()
        self._done(irq_cr8(self.board.vcpu.irq, True, new))

    def rdmsr(self, msr):
        """RDMSR of 1BH (IA32_APIC_BASE), 6E0H (IA32_TSC_DEADLINE) or 800H to 8FFH, the registers in x2APIC mode.

        :raises StateError: #GP: of 800H to 8FFH outside x2APIC mode, or one that is none or cannot be read; or an MSR
            that is not the APIC's. Rule: SDM volume 3, "x2APIC Register Address Space"; KVM: kvm_x2apic_msr_read.
        """
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        cdef Turn _turn = self.board._guest_runs()
        of_the_apic(number)
        self._done(irq_msr(self.board.vcpu.irq, number, False, 0))
        return self.board.vcpu.irq.value

    def wrmsr(self, msr, value):
        """WRMSR of 1BH (bit 11 enables the APIC, bit 10 chooses x2APIC mode), 6E0H or 800H to 8FFH.

        In x2APIC mode, and while the APIC is disabled, nothing is in its page: KVM lets reads have all bits 1 and drops
        writes; with ``tpr="flexpriority"`` and ``"apicv"`` the page is memory of the VMM's then. An APIC that is moved
        from FEE00000H has no page here.

        :raises StateError: #GP: as :meth:`rdmsr`, a reserved bit, or a change of mode that is none. Rule: SDM volume 3,
            "x2APIC State Transitions", "Reserved Bit Checking"; KVM: kvm_apic_set_base, kvm_x2apic_msr_write.
        """
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        cdef uint64_t new = word("value", value)
        cdef Turn _turn = self.board._guest_runs()
        of_the_apic(number)
        self._done(irq_msr(self.board.vcpu.irq, number, True, new))

    def set_interrupts(self, on):
        """CLI, or STI and the instruction after it."""
        cdef bint enabled = flag("on", on)
        cdef Turn _turn = self.board._guest_runs()
        self._done(irq_flag(self.board.vcpu.irq, enabled))

    def interrupt(self, vector, *, level=False, reason=ExitReason.EXTERNAL_INTERRUPT):
        """A device asks for an interrupt; `reason`: of the exit by which the VMM learns of it unless it is posted.

        From the handler of a VM exit, as a device model of the VMM does it, there is no other exit: the interrupt goes
        into the registers and is delivered after the next VM entry.
        """
        cdef uint32_t number = within("vector", vector, 0, 255), why = within("reason", reason, 0, N_REASONS - 1)
        cdef bint stays = flag("level", level)
        cdef Turn _turn = self.board.take()
        if self.board.handling == this_thread():
            irq_accept(self.board.vcpu.irq, number, stays)
            return
        _turn = self.board._guest_runs()
        self._done(irq_arrive(self.board.vcpu.irq, number, stays, why))

    @property
    def now(self):
        """The bus clock and the time-stamp counter: accesses of the trace so far, those of all vCPUs of the machine."""
        cdef Turn _turn = self.board.take()
        return self.board.vcpu.irq.now

    def wait(self, accesses):
        """Time passes as if the trace had so many accesses more: the timer counts, handlers return."""
        cdef uint64_t rest = within("accesses", accesses, 0, MOST_WAIT), left, step
        cdef int outcome = DONE_OK
        cdef Pace pace
        self.board.turns.begin("GuestApic.wait()")
        try:
            self.board._on_cpu()
            self.board._ready()
            with nogil:
                pace_begin(&pace)
                while rest and outcome == DONE_OK:
                    left = irq_left(self.board.vcpu.irq)        # to what is due next
                    step = min(rest, left * pace.chunk) if left and left < MOST_WAIT // CHUNK_MOST else rest
                    outcome = irq_wait(self.board.vcpu.irq, step)
                    rest -= step
                    if rest and self.board.turns.between(&pace):
                        break
            self._done(outcome)
            self.board.turns.signals()
        finally:
            self.board.turns.end()

    @property
    def deliveries(self):
        """Every interrupt delivered so far, in order, as :class:`Delivered`."""
        cdef Turn _turn = self.board.take()
        irq = self.board.vcpu.irq
        return [Delivered(irq.log[i].vector, irq.log[i].at) for i in range(irq.log_n)]

    @property
    def page(self):
        """The registers as 4096 bytes, a copy: of the virtual-APIC page, or of the physical APIC without a VMM."""
        cdef Turn _turn = self.board.take()
        return bytes(self.board.vcpu.irq.apic.page[:4096])

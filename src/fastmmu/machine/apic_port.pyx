"""The local APIC of a machine's guest: what the guest does with it, and the interrupts that arrive."""

from typing import NamedTuple

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport flag, linear_address, within, word
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport ACC_R, Paging, Walk
from fastmmu.arch.vmx cimport EXIT_IO_INSTRUCTION
from fastmmu.cpu.apic_access cimport (
    irq_arrive, irq_cr8, irq_fetch_site, irq_flag, irq_mmio, irq_msr, irq_run_site, irq_wait,
)
from fastmmu.cpu.interrupts cimport WAY_PATCH, Interrupts, irq_accept, irq_left
from fastmmu.cpu.tpr_patch cimport SITE_BYTES, Site, patch_use_rom, patch_writes
from fastmmu.cpu.vcpu cimport DONE_EMULATED, DONE_GP, DONE_OK, DONE_PF
from fastmmu.kvm.modes cimport modes_own_cr3
from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport exit_instruction as run_exit_instruction
from fastmmu.machine.stops cimport refused
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, slot_hpa
from fastmmu.paging.walk cimport walk_silent
from fastmmu.threads.turns cimport CHUNK_MOST, Pace, Turn, pace_begin, this_thread

from fastmmu.cpu.apic_py import of_the_apic
from fastmmu.errors import StateError
from fastmmu.exits import N_REASONS, ExitReason


cdef extern from *:
    const uint64_t MOST_WAIT "0x4000000000000000ULL"    # Config.exit_every's


cdef uint64_t linear_to_host(Board b, uint64_t la) noexcept:
    # of a page, as the VMM finds it, whose walk sets no flag and asks for no right; all ones: not in memory, read-only
    cdef Paging guest = b.vcpu.guest if b.kvm.shadow else b.v.hw
    cdef Walk w
    cdef Memslot *slot
    w.gpa = la
    guest.write_ad = guest.user = guest.implicit = guest.smap = 0
    guest.pkr_user = guest.pkr_super = 0
    if b.kvm.shadow or modes_own_cr3(b.vcpu):
        if walk_silent(&b.guest_mem, &guest, NULL, la, ACC_R, &w):
            return ONES
    slot = gfn_to_memslot(&b.kvm.mmu.slots, w.gpa >> 12)
    if slot == NULL or slot.readonly:
        return ONES
    return slot_hpa(slot, w.gpa >> 12)


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

    cdef _done(self, int outcome, str what="its APIC"):
        if outcome == DONE_OK:
            return
        if outcome == DONE_EMULATED:
            raise StateError(f"there is no memory behind {what}; map it to some")
        if outcome == DONE_GP:
            raise StateError(refused(self.board.vcpu.irq))
        if outcome == DONE_PF:
            v = self.board.vcpu.irq.v
            raise StateError(f"#PF at {v.cr2:#x}, error code {v.error_code:#x}: the guest does not map {what} there")
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

    def enable_vapic(self, rom):
        """The option ROM of a bare guest tells the VMM where it is (QEMU's kvmvapic: OUT 7EH, then KVM_SET_VAPIC_ADDR).

        From then on, with ``Config(tpr="patch")``, an instruction that accesses the TPR (:meth:`tpr_instruction`) is
        replaced by a call at its first exit. The guest kernel of fastmmu has its own ROM.

        :param rom: linear address, as the guest has it mapped now, of a page below 4 GB: 12 routines of 32 bytes, of
            which nothing is read, and from 800H on a record of 128 bytes for each vCPU, which the VMM and the
            replacements write (apic.md §2.2).
        :raises StateError: another way to handle the TPR, a guest with fastmmu's kernel, no such page in memory.
        """
        cdef uint64_t la = within("rom", rom, 0, 0xFFFFFFFF), hpa
        cdef Turn _turn = self.board._guest_runs()
        cdef Board b = self.board
        cdef uint32_t i
        if la & 0xFFF or not la:
            raise StateError(f"rom={la:#x}: the option ROM begins a page, which is not that at 0")
        if b.vcpu.irq.way != WAY_PATCH or not b.v.guest:
            raise StateError("nothing is replaced here, and no ROM called; make the Machine with mmu='ept' or 'shadow' "
                             "and tpr='patch'")
        if b.loop.kernel != NULL:
            raise StateError("the guest kernel has an option ROM; make the Machine with guest_kernel=False for another")
        hpa = linear_to_host(b, la)
        if hpa == ONES:
            raise StateError(f"rom={la:#x}: the guest maps no memory there, or none that can be written; map the ROM "
                             "first")
        if run_exit_instruction(b.loop, EXIT_IO_INSTRUCTION) != DONE_OK:
            b._raise(0)
        b.rom_la, b.rom_hpa = la, hpa
        for i in range(b.kvm.n_vcpus):
            patch_use_rom(&b.kvm.vcpu[i].irq.patch, &b.memory.mem, la, hpa)

    def tpr_instruction(self, ip, value=None):
        """Run the instruction at linear address `ip`, of 32-bit code, that reads or writes the TPR: one of those that
        kvmvapic knows (apic.md §2.2: A1, A3, 89, 8B, FF /6, C7 with the address of the TPR), or the call in its place.

        Bytes are fetched through the guest's tables. Where it accesses the APIC's page it exits, or is virtualized, by
        ``Config.tpr``; with "patch", and a ROM (:meth:`enable_vapic`), an instruction at 8xxxxxxxH or ExxxxxxxH, as
        those of Windows are, is replaced then, and exits no more but where an interrupt becomes deliverable.

        :param value: what the register holds that it stores; None where the instruction has the value, or reads.
        :returns: what it reads, or None. :raises StateError: no such instruction, a value that is missing or too many,
            a #PF.
        """
        cdef uint64_t at = within("ip", ip, 0, 0xFFFFFFFF), stored = 0
        cdef Site found
        cdef bint write = False
        stored = 0 if value is None else within("value", value, 0, 0xFFFFFFFF)
        cdef Turn _turn = self.board._guest_runs()
        cdef Interrupts *irq = self.board.vcpu.irq
        if at & 0xFFF > 0x1000 - SITE_BYTES:
            raise StateError(f"ip={at:#x}: 16 bytes are decoded, which end in another page; place the code before it")
        self._done(irq_fetch_site(irq, at, &found), f"the instruction at {at:#x}")
        if not patch_writes(&irq.patch, &found, &write):
            raise StateError(f"the instruction at {at:#x}, opcode {int(found.opcode):#x}, accesses no TPR: the operand "
                             "ends in 080H, ESP is no register of it, and a call is to a routine of the option ROM")
        if found.immediate:
            stored = found.value
        if (value is None) is (write and not found.immediate):
            raise StateError(f"the instruction at {at:#x} " + (
                "stores a register; give its value" if value is None else "takes no value from a register; give none"))
        self._done(irq_run_site(irq, &found, write, stored), "its APIC, or the option ROM,")
        return None if write else irq.value

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

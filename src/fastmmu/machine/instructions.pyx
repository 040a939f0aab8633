"""Instructions of a bare guest: accesses, invalidations, control registers, those that exit whatever they do."""

from typing import NamedTuple

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastmmu._arguments cimport counted, flag, shown, whole, word
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.registers cimport (
    CR3_NO_FLUSH, CR4_PCIDE, RULE_CR3_RESERVED, RULE_INJECTED, Registers, long_mode, pae_paging,
)
from fastmmu.arch.types cimport ACC_R, ACC_W
from fastmmu.arch.vmx cimport EXIT_CR_ACCESS, PRIMARY_CR3_LOAD, PRIMARY_CR3_STORE
from fastmmu.cpu.access cimport Data, data_access, data_begin, data_size
from fastmmu.cpu.apic_access cimport irq_data
from fastmmu.cpu.control cimport (
    vcpu_clts, vcpu_invlpg, vcpu_lmsw, vcpu_mov_cr0, vcpu_mov_cr3, vcpu_mov_cr4, vcpu_mov_from_cr, vcpu_rdmsr_efer,
    vcpu_wrmsr_efer,
)
from fastmmu.cpu.vcpu cimport DONE_ABORT, DONE_EMULATED, DONE_GP, DONE_OK, DONE_PF, Vcpu
from fastmmu.kvm.modes cimport modes_own_cr3
from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport exit_instruction as run_exit_instruction
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.paging.guest cimport reachable
from fastmmu.paging.state cimport access_code
from fastmmu.threads.turns cimport Turn

from fastmmu.arch.registers import RULES
from fastmmu.errors import StateError


class Access(NamedTuple):
    """What one access of a bare guest came to.

    gpa: guest-physical address, None where it faulted, or where a Python policy completed it. error_code, cr2: of the
    #PF, or None.
    """

    gpa: int | None
    error_code: int | None
    cr2: int | None


class Load(NamedTuple):
    """What a load of a bare guest came to: as :class:`Access`, and the value.

    value: what it read; None where it faulted, and where nothing is known of what stands there.
    """

    gpa: int | None
    error_code: int | None
    cr2: int | None
    value: int | None


cdef unsigned int width(size) except 0:
    # of an access, in bytes
    number = whole("size", size)
    if not 0 < number <= 16 or not data_size(number):
        raise StateError(f"an access of {counted(number)} bytes; give 1, 2, 4, 8 or 16")
    return number


cdef class Guest:
    """A bare guest of a :class:`fastmmu.Machine`, from ``machine.guest``: each method is an instruction of it.

    All of them are methods of the machine, too. A write to a control register that the architecture refuses raises
    StateError with the rule (paging.md §1.2) and changes nothing. Code segments are not modelled: the guest is where
    the manual wants it to be when it turns paging on or off.

    :raises PolicyError: while a VM exit is handled; while another thread runs the machine.

    Threads: calls take turns; refused while the machine runs in another thread, and while a VM exit is handled
    (PolicyError). ``state`` and ``hardware`` can be read at any time.
    """

    def __cinit__(self, Board board not None):
        self.board = board

    def access(self, la, access="r", *, user=False, size=1):
        """One access of a bare guest: :class:`Access`, with the guest-physical address or the #PF.

        :param access: "r", "w", "rw" (read-modify-write) or "x" (fetch). No data move, as in :meth:`load`
            and :meth:`store`, but the registers of the APIC react: to a write of 0, to a read-modify-write that puts
            back what it read, to a fetch with a VM exit (``Config.tpr``).
        :param size: bytes, 1, 2, 4, 8 or 16; where they cross into the next page both are accessed.
        :raises StateError: an access or size that is none, an address that is not canonical.
        """
        return self._access(la, access, user, size)

    cdef _access(self, la, access, user, size):
        cdef Data d
        cdef Turn _turn
        data_begin(&d, word("la", la), access_code(access), flag("user", user), width(size))
        _turn = self._begin(&d)
        self.board.v.c.ops[d.acc] += 1
        return self._came(&d)

    def load(self, la, size=8, *, user=False):
        """A load of `size` bytes, 1, 2, 4, 8 or 16: :class:`Load`.

        From memory, from a register of the APIC (``Config.tpr``), whoever emulates it, or from a device of a
        :class:`fastmmu.Bus`. Of other addresses without memory no value is known. Errors: as :meth:`access`.
        """
        return self._load(la, size, user)

    cdef _load(self, la, size, user):
        cdef Data d
        cdef Turn _turn
        data_begin(&d, word("la", la), ACC_R, flag("user", user), width(size))
        d.moves = True
        _turn = self._begin(&d)
        self.board.v.c.kernel_accesses += 1
        gpa, error_code, cr2 = self._came(&d)
        value = None
        if error_code is None and d.known:
            value = int.from_bytes((<const char *> d.bytes)[:d.size], "little")
        return Load(gpa, error_code, cr2, value)

    def store(self, la, value, size=8, *, user=False):
        """A store of `size` bytes, 1, 2, 4, 8 or 16: :class:`Access`. Page tables are edited this way.

        :raises StateError: a value that they do not hold; else as :meth:`access`.
        """
        return self._store(la, value, size, user)

    cdef _store(self, la, value, size, user):
        cdef Data d
        cdef Turn _turn
        cdef bytes stored
        data_begin(&d, word("la", la), ACC_W, flag("user", user), width(size))
        d.moves = True
        value = whole("value", value)
        if value < 0 or value >> 8 * d.size:
            raise StateError(f"{shown(value)} does not fit a store of {d.size} bytes")
        stored = value.to_bytes(d.size, "little")
        _turn = self._begin(&d)
        memcpy(&d.bytes[0], <const char *> stored, d.size)
        self.board.v.c.kernel_accesses += 1
        return self._came(&d)

    cdef Turn _begin(self, Data *d):
        cdef Turn turn = self.board._guest_runs()
        self._canonical(d.la)
        self._canonical(d.la + d.size - 1)
        return turn

    cdef _came(self, Data *d):
        cdef int outcome
        with nogil:
            outcome = data_access(self.board.v, d) if self.board.vcpu.irq == NULL else irq_data(self.board.vcpu.irq, d)
        if outcome == DONE_OK:
            return Access(self._gpa(d.hpa), None, None)
        if outcome == DONE_EMULATED:
            return Access(None if d.emulated == ONES else int(d.emulated), None, None)
        if outcome == DONE_PF:
            return Access(None, self.board.v.error_code, self.board.v.cr2)
        if outcome == DONE_ABORT:
            self.board._raise(0)
        raise StateError(f"the access to {d.la:#x}: #GP(0), {RULES[RULE_INJECTED]}")     # it is canonical: _begin()

    cdef _gpa(self, uint64_t hpa):
        cdef int i
        cdef Memslot *slot
        for i in range(self.board.kvm.mmu.slots.n):
            slot = &self.board.kvm.mmu.slots.slot[i]
            if hpa - slot.hpa < slot.npages << 12:
                return int((slot.base_gfn << 12) + (hpa - slot.hpa))
        return int(hpa - self.board.loop.guest_base)

    cdef _canonical(self, uint64_t la):
        # the TLB looks at bits 56:12 only: what is not canonical must not reach it
        if not reachable(la, self.board.v.hw.la_bits):
            raise StateError(f"linear address {la:#x} is not canonical" if self.board.v.hw.la_bits > 32 else
                             f"linear address {la:#x} does not fit the 32 bits of this paging mode")

    cpdef exit_instruction(self, reason):
        """An instruction that exits unconditionally, such as CPUID (10) or OUT (30); `reason`: basic exit reason."""
        cdef Turn _turn = self.board._guest_runs()
        if run_exit_instruction(self.board.loop, word("reason", reason)) != DONE_OK:
            self.board._raise(0)

    cpdef invlpg(self, la):
        """INVLPG by the guest."""
        cdef int outcome
        cdef Turn _turn = self.board._guest_runs()
        outcome = vcpu_invlpg(self.board.v, word("la", la))
        self._written(outcome, "invlpg", la)

    # ---- control registers -----------------------------------------------------------------------------------

    cdef _written(self, int outcome, str name, value):
        if outcome == DONE_OK:
            return
        if outcome == DONE_GP:
            raise StateError(f"{name}={shown(value)}: #GP(0), {RULES[self.board.v.rule]} (paging.md §1.2)")
        self.board._raise(0)

    cpdef mov_cr0(self, value):
        """MOV to CR0 by the guest. Bits that no CR0 has are ignored, ET reads 1. Setting PG with EFER.LME = 1 enters
        long mode; PG and PE go off one by one or together.

        :raises StateError: #GP, naming the rule; CR0, EFER.LMA and the PDPTE registers are as before.
        """
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_mov_cr0(self.board.v, word("cr0", value)), "cr0", value)

    def lmsw(self, source, *, memory=False):
        """LMSW by the guest: bits 3:0 of CR0; it cannot clear PE. `memory`: the operand is in memory."""
        self._lmsw(source, memory)

    cdef _lmsw(self, source, memory):
        cdef bint operand = flag("memory", memory)
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_lmsw(self.board.v, word("lmsw", source), operand), "lmsw", source)

    cpdef clts(self):
        """CLTS by the guest."""
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_clts(self.board.v), "clts", 0)

    cpdef mov_cr3(self, value):
        """MOV to CR3 by the guest; bit 63 keeps the PCID's translations (CR4.PCIDE = 1). With PAE paging it loads the
        PDPTE registers.

        :raises StateError: reserved bits are set, in the value or in a PDPTE (#GP).
        """
        cdef int outcome
        cdef Registers r
        value = whole("cr3", value)
        cdef Turn _turn = self.board._guest_runs()
        outcome = vcpu_mov_cr3(self.board.v, word("cr3", value))
        if outcome == DONE_GP and self.board.v.rule == RULE_CR3_RESERVED:
            self._registers(&r)
            reserved = value >> (r.maxphyaddr if long_mode(&r) else 32) << (r.maxphyaddr if long_mode(&r) else 32)
            if r.cr4 & CR4_PCIDE:
                reserved &= ~CR3_NO_FLUSH
            raise StateError(f"cr3={value:#x} has reserved bits {reserved:#x}")
        self._written(outcome, "cr3", value)

    cpdef mov_cr4(self, value):
        """MOV to CR4 by the guest.

        :raises StateError: #GP, naming the rule; CR4 and the PDPTE registers are as before.
        """
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_mov_cr4(self.board.v, word("cr4", value)), "cr4", value)

    cpdef wrmsr_efer(self, value):
        """WRMSR of IA32_EFER by the guest; LMA is not written, it follows LME and CR0.PG.

        :raises StateError: #GP, naming the rule.
        """
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_wrmsr_efer(self.board.v, word("efer", value)), "efer", value)

    cpdef mov_from_cr0(self):
        """The guest reads CR0."""
        cdef uint64_t value = 0
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_mov_from_cr(self.board.v, 0, &value), "cr0", 0)
        return value

    cpdef mov_from_cr3(self):
        """The guest reads CR3: its own, whatever the hardware has."""
        cdef uint64_t value = 0
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_mov_from_cr(self.board.v, 3, &value), "cr3", 0)
        return value

    cpdef mov_from_cr4(self):
        """The guest reads CR4; AMD's KVM intercepts that."""
        cdef uint64_t value = 0
        cdef Turn _turn = self.board._guest_runs()
        if self.board.config.vendor == "amd":
            self.exit_instruction(EXIT_CR_ACCESS)
        self._written(vcpu_mov_from_cr(self.board.v, 4, &value), "cr4", 0)
        return value

    cpdef rdmsr_efer(self):
        """RDMSR of IA32_EFER by the guest."""
        cdef uint64_t value = 0
        cdef Turn _turn = self.board._guest_runs()
        self._written(vcpu_rdmsr_efer(self.board.v, &value), "efer", 0)
        return value

    cdef void _registers(self, Registers *r):
        # the guest's own, wherever they are kept
        cdef const Vcpu *v = self.board.v
        if not v.guest:
            r[0] = v.r
            r.cr3 = v.hw.cr3
            memcpy(r.pdpte, v.hw.pdpte, sizeof(r.pdpte))
            return
        r[0] = self.board.vcpu.arch
        r.pkru = v.r.pkru
        r.cr0 = (r.cr0 & v.vmcs.cr0_mask) | (v.r.cr0 & ~v.vmcs.cr0_mask)
        r.cr4 = (r.cr4 & v.vmcs.cr4_mask) | (v.r.cr4 & ~v.vmcs.cr4_mask)
        if modes_own_cr3(self.board.vcpu):
            r.cr3 = v.hw.cr3
            if pae_paging(r):
                memcpy(r.pdpte, v.hw.pdpte, sizeof(r.pdpte))

    @property
    def state(self):
        """The guest's registers as the guest has them: :class:`GuestState`, with the PDPTE registers of PAE paging."""
        cdef Registers r
        cdef Turn _turn = self.board.take()
        self.board.made()
        self._registers(&r)
        return self.board.initial.replace(cr0=r.cr0, cr3=r.cr3, cr4=r.cr4, efer=r.efer, pkru=r.pkru,
                                          pdptes=tuple(r.pdpte) if pae_paging(&r) else None)

    @property
    def hardware(self):
        """What the processor has while the guest runs, a dict: cr0, cr3, cr4, efer, vm86 (RFLAGS.VM), cr3_load_exiting,
        cr3_store_exiting. Natively the guest's own registers, and nothing exits."""
        cdef Turn _turn = self.board.take()
        cdef const Vcpu *v = self.board.v
        return {
            "cr0": v.r.cr0, "cr3": v.hw.cr3, "cr4": v.r.cr4, "efer": v.r.efer,
            "vm86": bool(v.vm86), "cr3_load_exiting": bool(v.vmcs.primary & PRIMARY_CR3_LOAD),
            "cr3_store_exiting": bool(v.vmcs.primary & PRIMARY_CR3_STORE),
        }

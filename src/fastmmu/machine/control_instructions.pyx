"""Instructions of a bare guest on control registers: every change of paging mode that the architecture allows."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastmmu.arch.registers cimport CR3_NO_FLUSH, CR4_PCIDE, RULE_CR3_RESERVED, Registers, long_mode, pae_paging
from fastmmu.arch.vmx cimport EXIT_CR_ACCESS, PRIMARY_CR3_LOAD, PRIMARY_CR3_STORE
from fastmmu.cpu.control cimport (
    vcpu_clts, vcpu_lmsw, vcpu_mov_cr0, vcpu_mov_cr3, vcpu_mov_cr4, vcpu_mov_from_cr, vcpu_rdmsr_efer, vcpu_wrmsr_efer,
)
from fastmmu.cpu.vcpu cimport DONE_GP, DONE_OK
from fastmmu.kvm.modes cimport modes_own_cr3
from fastmmu.machine.instructions cimport Instructions, word

from fastmmu.arch.registers import RULES
from fastmmu.errors import StateError


cdef class RegisterInstructions(Instructions):
    """Moves to and from CR0, CR3, CR4, and EFER.

    A write that the architecture refuses raises StateError with the rule (paging.md §1.2) and changes nothing. Code
    segments are not modelled: the guest is where the manual wants it to be when it turns paging on or off.
    """

    cdef _written(self, int outcome, str name, value):
        if outcome == DONE_OK:
            return
        if outcome == DONE_GP:
            raise StateError(f"{name}={value:#x}: #GP(0), {RULES[self.v.rule]} (paging.md §1.2)")
        self._raise(0)

    def mov_cr0(self, value):
        """MOV to CR0 by the guest. Bits that no CR0 has are ignored, ET reads 1. Setting PG with EFER.LME = 1 enters
        long mode; PG and PE go off one by one or together.

        :raises StateError: #GP, naming the rule; CR0, EFER.LMA and the PDPTE registers are as before.
        """
        self._guest_runs()
        self._written(vcpu_mov_cr0(self.v, word(value, "cr0")), "cr0", value)

    def lmsw(self, source, *, bint memory=False):
        """LMSW by the guest: bits 3:0 of CR0; it cannot clear PE. `memory`: the operand is in memory."""
        self._guest_runs()
        self._written(vcpu_lmsw(self.v, word(source, "lmsw"), memory), "lmsw", source)

    def clts(self):
        """CLTS by the guest."""
        self._guest_runs()
        self._written(vcpu_clts(self.v), "clts", 0)

    def mov_cr3(self, value):
        """MOV to CR3 by the guest; bit 63 keeps the PCID's translations (CR4.PCIDE = 1). With PAE paging it loads the
        PDPTE registers.

        :raises StateError: reserved bits are set, in the value or in a PDPTE (#GP).
        """
        cdef int outcome
        cdef Registers r
        self._guest_runs()
        outcome = vcpu_mov_cr3(self.v, word(value, "cr3"))
        if outcome == DONE_GP and self.v.rule == RULE_CR3_RESERVED:
            self._registers(&r)
            reserved = value >> (r.maxphyaddr if long_mode(&r) else 32) << (r.maxphyaddr if long_mode(&r) else 32)
            if r.cr4 & CR4_PCIDE:
                reserved &= ~CR3_NO_FLUSH
            raise StateError(f"cr3={value:#x} has reserved bits {reserved:#x}")
        self._written(outcome, "cr3", value)

    def mov_cr4(self, value):
        """MOV to CR4 by the guest.

        :raises StateError: #GP, naming the rule; CR4 and the PDPTE registers are as before.
        """
        self._guest_runs()
        self._written(vcpu_mov_cr4(self.v, word(value, "cr4")), "cr4", value)

    def wrmsr_efer(self, value):
        """WRMSR of IA32_EFER by the guest; LMA is not written, it follows LME and CR0.PG.

        :raises StateError: #GP, naming the rule.
        """
        self._guest_runs()
        self._written(vcpu_wrmsr_efer(self.v, word(value, "efer")), "efer", value)

    def mov_from_cr0(self):
        """The guest reads CR0."""
        cdef uint64_t value = 0
        self._guest_runs()
        self._written(vcpu_mov_from_cr(self.v, 0, &value), "cr0", 0)
        return value

    def mov_from_cr3(self):
        """The guest reads CR3: its own, whatever the hardware has."""
        cdef uint64_t value = 0
        self._guest_runs()
        self._written(vcpu_mov_from_cr(self.v, 3, &value), "cr3", 0)
        return value

    def mov_from_cr4(self):
        """The guest reads CR4; AMD's KVM intercepts that."""
        cdef uint64_t value = 0
        self._guest_runs()
        if self.config.vendor == "amd":
            self.exit_instruction(EXIT_CR_ACCESS)
        self._written(vcpu_mov_from_cr(self.v, 4, &value), "cr4", 0)
        return value

    def rdmsr_efer(self):
        """RDMSR of IA32_EFER by the guest."""
        cdef uint64_t value = 0
        self._guest_runs()
        self._written(vcpu_rdmsr_efer(self.v, &value), "efer", 0)
        return value

    cdef void _registers(self, Registers *r):
        # the guest's own, wherever they are kept
        if not self.v.guest:
            r[0] = self.v.r
            r.cr3 = self.v.hw.cr3
            memcpy(r.pdpte, self.v.hw.pdpte, sizeof(r.pdpte))
            return
        r[0] = self.vcpu.arch
        r.pkru = self.v.r.pkru
        r.cr0 = (r.cr0 & self.v.vmcs.cr0_mask) | (self.v.r.cr0 & ~self.v.vmcs.cr0_mask)
        r.cr4 = (r.cr4 & self.v.vmcs.cr4_mask) | (self.v.r.cr4 & ~self.v.vmcs.cr4_mask)
        if modes_own_cr3(self.vcpu):
            r.cr3 = self.v.hw.cr3
            if pae_paging(r):
                memcpy(r.pdpte, self.v.hw.pdpte, sizeof(r.pdpte))

    @property
    def state(self):
        """The guest's registers as the guest has them: :class:`GuestState`, with the PDPTE registers of PAE paging."""
        cdef Registers r
        self._registers(&r)
        return self.initial.replace(cr0=r.cr0, cr3=r.cr3, cr4=r.cr4, efer=r.efer, pkru=r.pkru,
                                    pdptes=tuple(r.pdpte) if pae_paging(&r) else None)

    @property
    def hardware(self):
        """What the processor has while the guest runs, a dict: cr0, cr3, cr4, efer, vm86 (RFLAGS.VM), cr3_load_exiting,
        cr3_store_exiting. Natively the guest's own registers, and nothing exits."""
        return {
            "cr0": self.v.r.cr0, "cr3": self.v.hw.cr3, "cr4": self.v.r.cr4, "efer": self.v.r.efer,
            "vm86": bool(self.v.vm86), "cr3_load_exiting": bool(self.v.vmcs.primary & PRIMARY_CR3_LOAD),
            "cr3_store_exiting": bool(self.v.vmcs.primary & PRIMARY_CR3_STORE),
        }

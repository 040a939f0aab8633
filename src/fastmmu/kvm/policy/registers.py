"""What KVM does when the guest writes and reads control registers and EFER (kvm_policy.md §2.4, §3.4).

The kernels' form of these rules: kvm/registers.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.errors import Code
from fastmmu.exits import Action, Exit
from fastmmu.kvm.policy.bits import (
    CR0_CD,
    CR0_PG,
    CR0_TS,
    CR3_NO_FLUSH,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_SMEP,
    MSR_EFER,
    RULE_PDPTE,
)
from fastmmu.kvm.policy.modes import Modes
from fastmmu.kvm.policy.requests import TLB_FLUSH_CURRENT, Omit, Request
from fastmmu.kvm.policy.roots import Roots
from fastmmu.kvm.port import ABORT
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu
    from fastmmu.kvm.registers_port import Registers as Values

__all__ = ["Instruction", "Registers"]

TLB_FLUSH_GUEST = int(Request.TLB_FLUSH_GUEST)
EMULATED = int(Action.EMULATED)


class Instruction(Code):
    """Instructions of CPL 0 that exit here (Privileged of cpu/vcpu.pxd)."""

    NONE = 0
    MOV_TO_CR = 1
    MOV_FROM_CR = 2
    CLTS = 3
    LMSW = 4
    RDMSR = 5  # of EFER
    WRMSR = 6
    INVLPG = 7


class Registers(Modes, Roots):
    """Control registers, EFER and the PDPTE registers in KVM's hands."""

    # ---- exits -------------------------------------------------------------------------------------------------

    def on_cr_access(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """MOV to and from CR, CLTS, LMSW, by what the qualification says (handle_cr; vmx.md §5.1)."""
        cr, kind = exit.qualification & 15, exit.qualification >> 4 & 3
        if kind == 0:
            return self.set_cr(vcpu, cr, exit.operand)
        if kind == 1:
            return self.get_cr(vcpu, cr)
        arch = vcpu.arch
        return self.set_cr(vcpu, 0, arch.cr0 & ~CR0_TS if kind == 2 else arch.lmsw(exit.qualification >> 16 & 0xFFFF))

    def on_rdmsr(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Of the MSRs that the machine has EFER alone is no APIC's (kvm_emulate_rdmsr)."""
        if exit.operand == MSR_EFER:
            vcpu.give(vcpu.arch.efer)
        return EMULATED

    def on_wrmsr(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """A write of EFER (set_efer); of other MSRs nothing changes here."""
        return self.set_efer(vcpu, exit.value) if exit.operand == MSR_EFER else EMULATED

    def emulate_instruction(self, vcpu: VirtualCpu) -> int:
        """An instruction of CPL 0 that a virtual-8086 task may not execute, and a guest in real mode may
        (handle_rmode_exception; kvm_policy.md §3.4)."""
        number, cr, source = vcpu.instruction
        if number == Instruction.MOV_TO_CR:
            return self.set_cr(vcpu, cr, source)
        if number == Instruction.MOV_FROM_CR:
            return self.get_cr(vcpu, cr)
        if number == Instruction.CLTS:
            return self.set_cr(vcpu, 0, vcpu.arch.cr0 & ~CR0_TS)
        if number == Instruction.LMSW:
            return self.set_cr(vcpu, 0, vcpu.arch.lmsw(source))
        if number == Instruction.RDMSR:
            vcpu.give(vcpu.arch.efer)
        elif number == Instruction.WRMSR:
            return self.set_efer(vcpu, source)
        elif number == Instruction.INVLPG:
            self.flush_gva(vcpu, source)
        return EMULATED

    # ---- the guest's registers ---------------------------------------------------------------------------------

    def get_cr(self, vcpu: VirtualCpu, cr: int) -> int:
        """What the guest reads is its own, whatever the hardware has (kvm_read_cr0, ...)."""
        arch = vcpu.arch
        vcpu.give(arch.cr0 if cr == 0 else arch.cr3 if cr == 3 else arch.cr4)
        return EMULATED

    def set_cr(self, vcpu: VirtualCpu, cr: int, value: int) -> int:
        """A write of CR0, CR3 or CR4, which changes all that hangs on it, or is #GP(0) (kvm_set_cr0, ...)."""
        old = vcpu.arch
        new = old.copy()
        if cr == 0:
            rule = new.write_cr0(value)
        elif cr == 3:
            rule = new.write_cr3(value)
        else:
            rule = new.write_cr4(value) or self.refused_cr4(value)
        if not rule and (new.pae if cr == 3 else new.loads_pdptes(old)):
            rule = self.load_pdptrs(vcpu, new)
        if rule:
            return vcpu.inject_gp(rule)
        if cr == 3:
            return self.set_cr3(vcpu, new, bool(old.cr4 & CR4_PCIDE and value & CR3_NO_FLUSH))
        return self.adopt(vcpu, old, new)

    def set_efer(self, vcpu: VirtualCpu, value: int) -> int:
        """A write of EFER (set_efer)."""
        old = vcpu.arch
        new = old.copy()
        rule = new.write_efer(value)
        return vcpu.inject_gp(rule) if rule else self.adopt(vcpu, old, new)

    def load_pdptrs(self, vcpu: VirtualCpu, new: Values) -> int:
        """The PDPTE registers from memory at CR3; 0, or a rule (load_pdptrs; paging.md §3.2). KVM cannot read those
        that lie outside memory, and so refuses them."""
        loaded = self.vm.read_guest(new.cr3 & 0xFFFFFFE0, 4)
        return RULE_PDPTE if loaded is None else new.write_pdptes(loaded)

    # ---- what follows ------------------------------------------------------------------------------------------

    def set_cr3(self, vcpu: VirtualCpu, new: Values, no_flush: bool) -> int:
        """MOV to CR3, which exits where CR3 is the VMM's: under shadow paging, and while a guest over EPT does not page
        (kvm_set_cr3, kvm_mmu_new_pgd; kvm_policy.md §2.4).

        Where the guest flushes nothing and the root is one of those kept, neither does the VMM: what may be stale then
        is what may be stale without it.
        """
        vm, roots = self.vm, vcpu.roots
        if not vm.shadow:  # the value counts when paging is on again
            old = vcpu.arch
            vcpu.arch = new
            vm.owed |= TLB_FLUSH_GUEST
            return EMULATED if self.load_registers(vcpu, old) else ABORT
        no_flush = no_flush and vcpu.pcid_on
        table = new.root(new.cr3) >> 12
        kept = no_flush and roots.kept(table, new.cr3 & 0xFFF)
        vcpu.arch = new
        if not no_flush:
            vm.owed |= TLB_FLUSH_CURRENT
        if not roots.found(table):
            self.count_flushes()  # before the root is made, which is another round to the VM entry
        if not self.set_root(vcpu, new.cr3):
            return ABORT
        if not kept:
            roots.sync()
        if vcpu.pcid_on and not no_flush:
            roots.forget_previous(new.cr3 & 0xFFF)
        omit = vm.omit  # else all is flushed: tables had to go, or were brought in sync
        if (not vm.flush or omit & Omit.TABLES) and not kept and not omit & Omit.REGISTERS:
            vcpu.requests |= TLB_FLUSH_CURRENT
        return EMULATED

    def adopt(self, vcpu: VirtualCpu, old: Values, new: Values) -> int:
        """CR0, CR4 or EFER has changed (kvm_post_set_cr0, kvm_post_set_cr4). Over EPT what the old registers made of
        linear addresses is cached, and goes (tlb.md §7)."""
        vm = self.vm
        self.owe_flush(old, new)
        cr4 = old.cr4 ^ new.cr4
        if vm.shadow and cr4 & (CR4_PGE | CR4_PCIDE):
            vcpu.roots.sync_every()  # a new role has pages of its own
        vcpu.arch = new
        if not self.load_registers(vcpu, old):
            return ABORT
        if (old.cr0 ^ new.cr0) & CR0_CD and not self.set_uncached(vcpu, bool(new.cr0 & CR0_CD)):
            return ABORT
        if vm.shadow:
            return EMULATED
        if (old.cr0 ^ new.cr0) & CR0_PG or cr4 & CR4_PAE or cr4 & new.cr4 & CR4_SMEP:
            if vm.modes.amd:
                self.flush_asid(vcpu)
            else:
                vcpu.invept(1, vcpu.vmread(Field.EPTP))
        elif cr4 & CR4_PGE or cr4 & old.cr4 & CR4_PCIDE:
            vcpu.requests |= TLB_FLUSH_CURRENT
        return EMULATED

    def owe_flush(self, old: Values, new: Values) -> None:
        """The kind of flush that KVM asks for, counted before what brings roots in sync asks for another
        (kvm_policy.md §12)."""
        cr4 = old.cr4 ^ new.cr4
        if cr4 & CR4_PGE or cr4 & old.cr4 & CR4_PCIDE or (old.cr0 & ~new.cr0) & CR0_PG:
            self.vm.owed |= TLB_FLUSH_GUEST
        elif cr4 & CR4_PAE or cr4 & new.cr4 & CR4_SMEP:
            self.vm.owed |= TLB_FLUSH_CURRENT
        self.count_flushes()

    def load_registers(self, vcpu: VirtualCpu, old: Values | None) -> bool:
        """The guest's registers are new: hardware state and controls, under shadow paging the root. False: the machine
        stops."""
        arch = vcpu.arch
        if not self.load_mode(vcpu, arch):
            vcpu.stop("identity", arch.cr0)
            return False
        return not self.vm.shadow or self.new_role(vcpu, old)

    def set_uncached(self, vcpu: VirtualCpu, uncached: bool) -> bool:
        """CR0.CD has changed: with a device that writes past the caches every table goes, for its memory types are
        others (kvm_post_set_cr0; kvm_policy.md §7)."""
        vm = self.vm
        vm.uncached = uncached
        self.flush_remote_tlbs(vcpu)  # the flush for the registers is one of its own
        return not vm.noncoherent or vm.ignore_cd or self.reload(vcpu)

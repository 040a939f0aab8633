"""How KVM runs a guest in each paging mode: from the guest's registers to those of the hardware and the controls.

    guest                 without unrestricted guest                        with it, and AMD's
    real mode             virtual-8086 task over the identity table         as it is
    protected, no paging  32-bit paging over the identity table             as it is
    paging                as it is                                          as it is

The identity table maps each linear address below 4 GB to the same guest-physical address. While it is in use CR3 is the
VMM's, so that moves to and from it exit (kvm_policy.md §3.4). The kernels' form of these rules: kvm/modes.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.kvm.policy.base import Base
from fastmmu.kvm.policy.bits import (
    CR0_CD,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_CET,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PKS,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CR4_VME,
    CR4_VMXE,
    EFER_LME,
    EFER_NXE,
    M32,
    M64,
    PF_VECTOR,
    RFLAGS_FIXED,
    RFLAGS_IOPL,
    RFLAGS_VM,
    RULE_CR4_KVM,
    RULE_CR4_NOT_OFFERED,
    RULE_CR4_RESERVED,
)
from fastmmu.vmx.controls import Entry, Primary, Secondary
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu
    from fastmmu.kvm.registers_port import Registers

__all__ = ["Modes"]

# Bits that the guest owns: a write that changes no other does not exit. Those of Linux 6.1.
CR0_GUEST_OWNED, CR0_GUEST_OWNED_SHADOW, CR0_GUEST_OWNED_AMD = CR0_TS | CR0_WP, CR0_TS, CR0_TS | CR0_MP
CR4_GUEST_OWNED_SHADOW = 0x1070E  # PVI, TSD, DE, PCE, OSFXSR, OSXMMEXCPT, FSGSBASE
CR4_GUEST_OWNED = CR4_GUEST_OWNED_SHADOW | CR4_PGE

CR3_EXITS = int(Primary.CR3_LOAD_EXITING | Primary.CR3_STORE_EXITING)
UNRESTRICTED = int(Secondary.UNRESTRICTED_GUEST)
IA32E, LOAD_EFER = int(Entry.IA32E_MODE_GUEST), int(Entry.LOAD_EFER)


class Modes(Base):
    """Registers of the guest and of the hardware, each from the other (vmx_set_cr0, vmx_set_cr4, vmx_set_efer)."""

    def load_mode(self, vcpu: VirtualCpu, arch: Registers) -> bool:
        """Guest state and controls of the VMCS for the guest's registers; the next VM entry loads them.

        False: the guest does not page, the processor runs no such guest, and there is no identity table.
        """
        modes = self.vm.modes
        restricted = modes.ept and not modes.unrestricted and not modes.amd
        if restricted and not arch.pages and not modes.identity:
            return False
        self.load_guest_state(vcpu, arch, restricted)
        self.load_controls(vcpu, arch, restricted)
        if not modes.ept:
            vcpu.run_on(self.shadow_registers(arch), vm86=not arch.cr0 & CR0_PE)
        return True

    def load_guest_state(self, vcpu: VirtualCpu, arch: Registers, restricted: bool) -> None:
        """CR0, CR3, CR4, EFER, RFLAGS and the PDPTEs that the processor runs the guest on (kvm_policy.md §3.4)."""
        modes = self.vm.modes
        cr0, cr3, cr4, rflags = arch.cr0 & ~(CR0_CD | CR0_NW) | CR0_NE, arch.cr3, arch.cr4 | CR4_VMXE, RFLAGS_FIXED
        if restricted and not arch.pages:
            cr3 = modes.identity
            cr4 = cr4 & ~(CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PKE) | CR4_PSE
        if not modes.ept:
            shadow = self.shadow_registers(arch)
            cr0, cr4 = shadow.cr0 | CR0_NE, shadow.cr4 | CR4_VMXE
        if restricted or not modes.ept:
            cr0 |= CR0_PG | CR0_PE
            if not arch.cr0 & CR0_PE:
                cr4 |= CR4_VME
                rflags |= RFLAGS_VM | RFLAGS_IOPL
        vcpu.vmwrite(Field.GUEST_CR0, cr0)
        vcpu.vmwrite(Field.GUEST_CR4, cr4)
        if modes.ept:  # under shadow paging CR3 comes with the root
            vcpu.vmwrite(Field.GUEST_CR3, cr3)
        vcpu.vmwrite(Field.GUEST_IA32_EFER, arch.efer if arch.long_mode else arch.efer & ~EFER_LME)
        vcpu.vmwrite(Field.GUEST_RFLAGS, rflags)
        for i, entry in enumerate(arch.pdpte):
            vcpu.vmwrite(Field.GUEST_PDPTE0 + 2 * i, entry)

    def load_controls(self, vcpu: VirtualCpu, arch: Registers, restricted: bool) -> None:
        """What exits, and what the guest reads of CR0 and CR4 (kvm_policy.md §3.4; vmx.md §2)."""
        modes = self.vm.modes
        if restricted or not modes.ept:
            page_fault = 0 if modes.ept else 1 << PF_VECTOR
            real_mode = M32 & ~(1 << PF_VECTOR) if modes.ept else M32
            vcpu.vmwrite(Field.EXCEPTION_BITMAP, page_fault if arch.cr0 & CR0_PE else real_mode)
        if restricted:
            primary = vcpu.vmread(Field.PRIMARY_CONTROLS) & ~CR3_EXITS
            vcpu.vmwrite(Field.PRIMARY_CONTROLS, primary if arch.pages else primary | CR3_EXITS)
        owned0 = CR0_GUEST_OWNED_AMD if modes.amd else CR0_GUEST_OWNED if modes.ept else CR0_GUEST_OWNED_SHADOW
        owned4 = 0 if modes.amd else CR4_GUEST_OWNED if modes.ept else CR4_GUEST_OWNED_SHADOW
        vcpu.vmwrite(Field.CR0_GUEST_HOST_MASK, M64 & ~owned0)
        vcpu.vmwrite(Field.CR4_GUEST_HOST_MASK, M64 & ~owned4)
        vcpu.vmwrite(Field.CR0_READ_SHADOW, arch.cr0)
        vcpu.vmwrite(Field.CR4_READ_SHADOW, arch.cr4)
        vcpu.vmwrite(Field.VM_ENTRY_CONTROLS, LOAD_EFER | (IA32E if arch.long_mode else 0))
        if modes.ept:
            secondary = vcpu.vmread(Field.SECONDARY_CONTROLS) & ~UNRESTRICTED
            vcpu.vmwrite(Field.SECONDARY_CONTROLS, secondary if restricted else secondary | UNRESTRICTED)

    def shadow_registers(self, arch: Registers) -> Registers:
        """The registers under which the processor walks shadow tables: CR0.WP, NXE on and PGE off, whatever the guest
        has (kvm_policy.md §2); PCIDE and keys off where they are not virtualized.

        For a guest of 32-bit addresses they are PAE tables; where it does not page, SMEP and SMAP mean nothing to it.
        """
        modes = self.vm.modes
        found = arch.copy()
        found.cr0 |= CR0_WP | CR0_PE | CR0_PG
        found.cr3 = 0
        found.pdpte = (0, 0, 0, 0)
        if arch.long_mode:
            found.efer |= EFER_NXE
            lost = CR4_PGE | (0 if modes.pcid else CR4_PCIDE) | (0 if modes.keys else CR4_PKE | CR4_PKS)
            found.cr4 &= ~lost
            return found
        found.efer = EFER_NXE
        rights = arch.cr4 & (CR4_SMEP | CR4_SMAP) if arch.pages else 0
        found.cr4 = CR4_PAE | rights | arch.cr4 & CR4_GUEST_OWNED_SHADOW
        return found

    def save_registers(self, vcpu: VirtualCpu) -> None:
        """At a VM exit: what the guest wrote of its registers without one (vmx_cache_reg; kvm_policy.md §3.4)."""
        vcpu.save_pkru()
        arch = vcpu.arch
        mask0, mask4 = vcpu.vmread(Field.CR0_GUEST_HOST_MASK), vcpu.vmread(Field.CR4_GUEST_HOST_MASK)
        arch.cr0 = arch.cr0 & mask0 | vcpu.vmread(Field.GUEST_CR0) & ~mask0
        arch.cr4 = arch.cr4 & mask4 | vcpu.vmread(Field.GUEST_CR4) & ~mask4
        if self.own_cr3(arch):
            arch.cr3 = vcpu.vmread(Field.GUEST_CR3)
            if arch.pae:
                arch.pdpte = tuple(vcpu.vmread(Field.GUEST_PDPTE0 + 2 * i) for i in range(4))
        vcpu.arch = arch

    def own_cr3(self, arch: Registers) -> bool:
        """The CR3 of the hardware is the guest's own."""
        modes = self.vm.modes
        return modes.ept and (modes.unrestricted or modes.amd or arch.pages)

    def refused_cr4(self, cr4: int) -> int:
        """The rule by which KVM refuses a CR4 that the processor would take, or 0 (kvm_is_valid_cr4): no VMM in the
        guest, no CET, no keys that nobody virtualizes."""
        modes = self.vm.modes
        if cr4 & CR4_VMXE:
            return RULE_CR4_RESERVED
        if cr4 & CR4_CET or (cr4 & CR4_PKS and not modes.keys):
            return RULE_CR4_KVM
        if cr4 & CR4_PKE and not modes.ept and not modes.keys:
            return RULE_CR4_NOT_OFFERED
        return 0

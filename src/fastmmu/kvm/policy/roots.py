"""The root of the VMM's tables that a vCPU runs on, from the guest's registers (kvm_policy.md §1, §2.4).

The kernels' form of these rules: kvm/roots.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.errors import Flags
from fastmmu.exits import Action
from fastmmu.kvm.policy.bits import (
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    PRESENT,
)
from fastmmu.kvm.policy.requests import TLB_FLUSH_CURRENT, Requests
from fastmmu.kvm.port import ABORT
from fastmmu.vmx.controls import Entry
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu
    from fastmmu.kvm.registers_port import Registers

__all__ = ["Role", "Roots"]

IA32E = int(Entry.IA32E_MODE_GUEST)


class Role(Flags):
    """What the guest's registers make of its tables (kvm_mmu_page_role; kvm_policy.md §1)."""

    NXE = 1
    WP = 2
    SMEP = 4  # and not WP
    SMAP = 8  # and not WP
    ENTRIES_4_BYTES = 16
    PSE = 32
    PAE = 64
    KEYS = 128


class Roots(Requests):
    """Roots: chosen by registers, loaded, given up (kvm_mmu_load, kvm_mmu_reset_context, kvm_mmu_new_pgd)."""

    def role_of(self, arch: Registers) -> int:
        """The role of tables of a guest with these registers (kvm_calc_cpu_role; kvm_policy.md §1).

        Linux leaves PSE and PAE out: a guest that turns PSE off goes on with its 4 MB pages there.
        """
        if not arch.pages:
            return 0
        pae = arch.cr4 & CR4_PAE
        wp = arch.cr0 & CR0_WP
        role = (Role.NXE if arch.efer & EFER_NXE and pae else 0) | (Role.WP if wp else 0)
        if self.vm.modes.keys and arch.long_mode:
            role |= Role.KEYS
        if not pae:
            role |= Role.ENTRIES_4_BYTES | (Role.PSE if arch.cr4 & CR4_PSE else 0)
        elif not arch.long_mode:
            role |= Role.PAE
        if not wp:
            role |= (Role.SMEP if arch.cr4 & CR4_SMEP else 0) | (Role.SMAP if arch.cr4 & CR4_SMAP else 0)
        return role

    def shadow_root(self, vcpu: VirtualCpu, cr3: int) -> bool:
        """The shadow root of a guest CR3 (mmu_alloc_shadow_roots); False: no table page, or no memory behind it.

        A guest whose addresses have 32 bits is shadowed by PAE tables: direct ones, four quadrants of its page
        directory, or the page directories of its own PDPTEs.
        """
        arch, roots = vcpu.arch, vcpu.roots
        roots.set_role(self.role_of(arch))
        table = arch.root(cr3) >> 12
        if arch.levels >= 4:
            return roots.load(table)
        if not arch.pages:
            return roots.load_pae([i << 18 for i in range(4)])
        if not arch.pae:
            return roots.load_pae([table] * 4)
        return roots.load_pae([arch.frame(entry) >> 12 if entry & PRESENT else None for entry in arch.pdpte])

    def set_root(self, vcpu: VirtualCpu, cr3: int) -> bool:
        """The root of a guest CR3 and of its PDPTE registers is loaded, the hardware's CR3 with it (kvm_mmu_load_pgd).

        Where table pages are used up all of them go first. False: the machine stops.
        """
        arch, roots = vcpu.arch, vcpu.roots
        if not self.shadow_root(vcpu, cr3):
            if not roots.out_of_tables:
                vcpu.stop("root", cr3)
                return False
            roots.zap_all()
            if not self.shadow_root(vcpu, cr3):
                vcpu.stop("tables")
                return False
        vcpu.walk_guest_from(arch, cr3)
        if not roots.pae:
            roots.pcid = cr3 & 0xFFF if vcpu.pcid_on else 0
        vcpu.vmwrite(Field.GUEST_CR3, roots.address | (0 if roots.pae else roots.pcid))
        return True

    def load_root(self, vcpu: VirtualCpu, cr3: int) -> bool:
        """The same, in sync with what the guest's tables say (kvm_mmu_sync_roots)."""
        if not self.set_root(vcpu, cr3):
            return False
        vcpu.roots.sync()
        return True

    def resume_root(self, vcpu: VirtualCpu) -> bool:
        """A vCPU runs on, with its own roots; those that another one zapped are made anew (kvm_mmu_reload)."""
        if not vcpu.roots.rooted:
            if not self.load_root(vcpu, vcpu.guest_cr3):
                return False
            vcpu.requests |= TLB_FLUSH_CURRENT
        elif vcpu.roots.pae:
            vcpu.roots.write_pdptes()
        return True

    def new_role(self, vcpu: VirtualCpu, old: Registers | None) -> bool:
        """Registers of a shadowed guest other than CR3 are new: what they make of its tables has pages of its own
        (kvm_mmu_reset_context; kvm_policy.md §2.4)."""
        arch = vcpu.arch
        if old is None or self.rights(old) != self.rights(arch):
            vcpu.roots.forget()  # Linux keeps none, whether or not the role is another
        vcpu.walk_guest_by(arch)
        entry = vcpu.vmread(Field.VM_ENTRY_CONTROLS) & ~IA32E
        vcpu.vmwrite(Field.VM_ENTRY_CONTROLS, entry | IA32E if arch.long_mode else entry)
        if not self.load_root(vcpu, arch.cr3):
            return False
        self.vm.flush = True
        return True

    def rights(self, arch: Registers) -> tuple[int, int, int]:
        """What of the registers changes rights: SMEP and SMAP where the guest pages, WP, NXE where entries have XD."""
        smep_smap = arch.cr4 & (CR4_SMEP | CR4_SMAP) if arch.pages else 0
        return smep_smap, arch.cr0 & CR0_WP, arch.efer & EFER_NXE if arch.cr4 & CR4_PAE else 0

    def zap_all(self, vcpu: VirtualCpu) -> bool:
        """Every table goes, and another root takes the place of the one in use (kvm_mmu_zap_all_fast).

        Linux makes it at the next VM entry, and counts those in use once more there (KVM_REQ_MMU_FREE_OBSOLETE_ROOTS).
        Of the TDP MMU it flushes nothing: no root leads to those tables.
        """
        vm = self.vm
        if not vm.tdp:
            vm.roots_gone += vcpu.roots.number
            vm.count_flush_request()
        vcpu.roots.zap_all()
        made = vm.tables_made
        if not self.reload(vcpu):
            return False
        vm.tables_early = vm.tables_made - made
        return True

    def reload(self, vcpu: VirtualCpu) -> bool:
        """Every table goes, the guest goes on with an empty root; the flush is done while the old one is in force."""
        vcpu.roots.zap_all()
        self.flush_remote_tlbs(vcpu)
        if self.vm.shadow:
            return self.load_root(vcpu, vcpu.guest_cr3)
        if not vcpu.roots.load_direct():
            vcpu.stop("tables")
            return False
        self.load_eptp(vcpu)
        return True

    def load_eptp(self, vcpu: VirtualCpu) -> None:
        """The EPTP names the root in use (construct_eptp)."""
        vcpu.vmwrite(Field.EPTP, vcpu.vmread(Field.EPTP) & 0xFFF | vcpu.roots.address)

    def out_of_tables(self, vcpu: VirtualCpu) -> int:
        """Start over with empty tables; the access faults them in again."""
        return Action.RETRY if self.reload(vcpu) else ABORT

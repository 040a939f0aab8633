"""Exits of a fault: EPT violation, EPT misconfiguration, AMD's nested page fault, #PF under shadow paging
(kvm_policy.md §2.1, §3.2, §4.4; npt.md §7).

The kernels' form of these rules: kvm/faults.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastmmu.exits import Action, Exit, FaultClass, Qualification
from fastmmu.kvm.policy.bits import GENERAL_PROTECTION
from fastmmu.kvm.policy.direct import Fault
from fastmmu.kvm.policy.registers import Registers
from fastmmu.kvm.policy.shadow import ShadowMmu
from fastmmu.mmu.port import RetPf

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu
    from fastmmu.mmu.tables_port import Slot

__all__ = ["Faults"]

RETRY, EMULATED = int(Action.RETRY), int(Action.EMULATED)
PF_P, PF_W, PF_RSVD, PF_ID, NPF_FINAL = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 32
WRITE, FETCH, TRANSLATED = int(Qualification.WRITE), int(Qualification.FETCH), int(Qualification.TRANSLATED)
PRESENT = int(Qualification.ENTRY_R | Qualification.ENTRY_W | Qualification.ENTRY_X)
APIC_PAGE = 0xFEE00


class Before(NamedTuple):
    """What the MMU had counted before a fault."""

    dirty: int
    swapped: int


class Faults(ShadowMmu, Registers):
    """What an exit of a fault means, and what is done about it."""

    # ---- EPT ------------------------------------------------------------------------------------------------------

    def on_ept_violation(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 48 (handle_ept_violation, kvm_mmu_page_fault; slides, "EPT violation"; kvm_policy.md §3.2): an address
        without memory is MMIO; a store to a logged slot marks the page and is allowed again; anything else builds the
        EPT."""
        code, gpa = exit.qualification, exit.guest_physical
        fault = Fault(gpa, gpa, write=bool(code & WRITE), fetch=bool(code & FETCH), present=bool(code & PRESENT))
        return self.tdp_fault(vcpu, fault, final=bool(code & TRANSLATED))

    def on_npf(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """AMD's nested page fault (npf_interception; npt.md §7): its error code is that of a #PF; with RSVD it met an
        MMIO SPTE, else it is what an EPT violation is."""
        code, gpa = exit.qualification, exit.guest_physical
        present = bool(code & PF_P) and not code & PF_RSVD
        fault = Fault(gpa, gpa, write=bool(code & PF_W), fetch=bool(code & PF_ID), present=present)
        if code & PF_RSVD:
            return self.tdp_mmio(vcpu, fault)
        return self.tdp_fault(vcpu, fault, final=bool(code & NPF_FINAL))

    def tdp_fault(self, vcpu: VirtualCpu, fault: Fault, *, final: bool) -> int:
        """A fault of the VMM's own tables (kvm_tdp_page_fault). `final`: of the data, not of a table of the guest's."""
        gpa = fault.address
        before = self.before_fault()
        self.vm.count_stat("pf_taken")
        result = self.direct_page_fault(fault)
        vcpu.classify(self.class_of(result, fault, before, fault.fast or (fault.write and fault.present)))
        if result is RetPf.NO_TABLES:
            return self.out_of_tables(vcpu)
        if result is RetPf.EMULATE:
            return self.emulate_violation(vcpu, fault, final)
        if result is RetPf.RETRY:
            return self.retry(vcpu, gpa)
        if result is RetPf.FIXED:
            self.vm.count_stat("pf_fixed")
            if fault.fast:
                vcpu.count("pf_fast")
            elif self.mmu.counted("dirty_faults") == before.dirty:
                vcpu.count("ept_build")
        else:
            vcpu.count("ept_spurious")
        return RETRY

    def emulate_violation(self, vcpu: VirtualCpu, fault: Fault, final: bool) -> int:
        """No memory behind it, or a store to a read-only slot: user space's. Of a reference of the guest's own walk, a
        table of its own that lies there (kvm_policy.md §4.4)."""
        if final:
            self.vm.count_stat("pf_emulate")
            if self.retry_instruction(vcpu, fault.slot, fault.address):
                return RETRY
            return self.emulate_mmio(vcpu, fault.address)
        if fault.slot is None:
            self.vm.count_stat("pf_emulate")
            return self.no_table(vcpu)
        return vcpu.stop("bus", fault.address)  # a write to A or D in a read-only slot

    def on_ept_misconfig(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 49: an MMIO SPTE, of which the page is known without a look at the slots (handle_ept_misconfig;
        kvm_policy.md §4.4); one of an older layout of the slots is made anew, or memory is there by now."""
        gpa = exit.guest_physical
        return self.tdp_mmio(vcpu, Fault(gpa, gpa, write=False, fetch=False, present=False))

    def tdp_mmio(self, vcpu: VirtualCpu, fault: Fault) -> int:
        """A malformed entry of the VMM's own tables was met (handle_mmio_page_fault)."""
        gpa = fault.address
        before = self.before_fault()
        vcpu.classify(FaultClass.MMIO)
        if self.mmio_gfn(gpa) is not None:
            return self.mmio(vcpu, gpa)
        self.vm.count_stat("pf_taken")
        result = self.direct_page_fault(fault) if self.mmu.mmio_caching else RetPf.INVALID
        vcpu.classify(self.class_of(result, fault, before, False))
        if result is RetPf.FIXED and not fault.fast:
            self.vm.count_stat("pf_fixed")
        if result is RetPf.EMULATE:
            self.vm.count_stat("pf_emulate")
            return self.mmio(vcpu, gpa)
        if result is RetPf.SPURIOUS or result is RetPf.INVALID:
            return vcpu.stop("misconfig", gpa)  # nobody made this entry
        return self.retry(vcpu, gpa) if result is RetPf.RETRY else RETRY

    # ---- shadow paging --------------------------------------------------------------------------------------------

    def on_exception_nmi(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """A #PF under shadow paging, or a #GP of a guest in real mode (handle_exception_nmi)."""
        if exit.interruption_info == GENERAL_PROTECTION:
            return self.emulate_instruction(vcpu)
        return self.page_fault(vcpu, exit.qualification, exit.error_code)

    def page_fault(self, vcpu: VirtualCpu, address: int, code: int) -> int:
        """A #PF (kvm_handle_page_fault, kvm_mmu_page_fault; kvm_policy.md §2.1): the guest's own, which it gets; MMIO;
        a store to a shadowed table; an entry that was missing. RSVD is set of an MMIO SPTE."""
        known = self.mmio_gfn(address) if code & PF_RSVD else None
        if known is None:
            self.vm.count_stat("pf_taken")
        before = self.before_fault()
        result, fault, guest = self.shadow_page_fault(vcpu, address, code, known)
        denied = bool(code & PF_P) and bool(code & PF_W)
        vcpu.classify(self.class_of(result, fault, before, denied))
        if result is RetPf.NO_TABLES:
            return self.out_of_tables(vcpu)
        if result is RetPf.BUS:
            return vcpu.stop("bus", guest.gpa)
        if result is RetPf.INJECT:
            return self.inject_guest_fault(vcpu, address, guest.error_code)
        if result is RetPf.RETRY:
            return self.retry(vcpu, guest.gpa)
        if result is RetPf.EMULATE or result is RetPf.WRITE_PROTECTED:
            return self.emulate_fault(vcpu, guest.gpa, result is RetPf.EMULATE, known is not None)
        if result is RetPf.FIXED:
            vcpu.count("pf_fixed")
            self.vm.count_stat("pf_fixed")
        elif result is RetPf.SPURIOUS:
            vcpu.count("pf_spurious")
        return RETRY

    def inject_guest_fault(self, vcpu: VirtualCpu, address: int, code: int) -> int:
        """The guest's tables refuse: its own #PF (kvm_inject_emulated_page_fault). As the processor drops a translation
        that denied, an unsync shadow entry is read again."""
        vcpu.count("pf_guest")
        if code & PF_P and not code & PF_RSVD:
            vcpu.faults.drop(address)
        return vcpu.faults.inject_page_fault(address, code)

    def emulate_fault(self, vcpu: VirtualCpu, gpa: int, mmio: bool, known: bool) -> int:
        """The instruction is emulated (x86_emulate_instruction): MMIO, or a store into a shadowed table, which changes
        the shadow as well (kvm_policy.md §2.2)."""
        if not known:
            self.vm.count_stat("pf_emulate")
        if mmio and self.retry_instruction(vcpu, self.mmu.slot(gpa >> 12), gpa):
            return RETRY
        if mmio:
            return self.emulate_mmio(vcpu, gpa)
        self.decoded(vcpu, gpa, False)
        vcpu.count("pf_emulate")
        vcpu.faults.emulate_store(gpa)
        return vcpu.faults.emulated(gpa)

    # ---- of all of them -------------------------------------------------------------------------------------------

    def before_fault(self) -> Before:
        """For :meth:`class_of`."""
        return Before(self.mmu.counted("dirty_faults"), self.mmu.counted("swap_ins"))

    def class_of(self, result: RetPf, fault: Fault, before: Before, denied: bool) -> FaultClass:
        """What the fault needed the VMM for (:class:`fastmmu.exits.FaultClass`). `denied`: an entry refused a store, or
        a right was given back."""
        if result is RetPf.INJECT:
            return FaultClass.GUEST
        if result is RetPf.EMULATE and ((slot := self.mmu.slot(fault.gfn)) is None or slot.emulated):
            return FaultClass.MMIO
        if self.mmu.counted("swap_ins") != before.swapped:
            return FaultClass.SWAPPED_IN
        if result is RetPf.SPURIOUS or result < 0:
            return FaultClass.SPURIOUS
        if self.mmu.counted("dirty_faults") != before.dirty:
            return FaultClass.DIRTY
        if denied or result is RetPf.EMULATE or result is RetPf.WRITE_PROTECTED:
            return FaultClass.PROTECTED
        return FaultClass.BUILD if result is RetPf.FIXED else FaultClass.SPURIOUS

    def mmio_gfn(self, address: int) -> int | None:
        """The page that the entry for an address marks as MMIO; None: no mark, or one of an older layout of slots."""
        walk = self.mmu.find(address)
        return None if walk is None else walk.mmio_gfn

    def retry(self, vcpu: VirtualCpu, gpa: int) -> int:
        """The fault begins anew; where the host is not done yet only the end of its change can let the guest go on
        (kvm_policy.md §6)."""
        vcpu.count("pf_retry")
        slot = self.mmu.slot(gpa >> 12)
        if slot is None or not slot.away(gpa >> 12):
            return RETRY
        return vcpu.stop("away", gpa)

    def mmio(self, vcpu: VirtualCpu, gpa: int) -> int:
        """An MMIO SPTE was met: by the access, or by the guest's walk on its way to it (kvm_policy.md §4.4)."""
        faults = vcpu.faults
        if faults.loads_pdptes or (self.own_cr3(vcpu.arch) and faults.table_at(gpa)):
            return self.no_table(vcpu)
        return self.emulate_mmio(vcpu, gpa)

    def emulate_mmio(self, vcpu: VirtualCpu, gpa: int) -> int:
        """The instruction is decoded, and its access is a device's, or user space's."""
        vcpu.count("mmio")
        self.decoded(vcpu, gpa, True)
        return vcpu.faults.emulated(gpa)

    def no_table(self, vcpu: VirtualCpu) -> int:
        """A table of the guest's lies where no memory is: KVM emulates the instruction, and to its own walk the entry
        there is not present; PDPTEs that it cannot read are refused (kvm_policy.md §4.4)."""
        self.decoded(vcpu, 0, False)
        return vcpu.faults.inject_no_table()

    def retry_instruction(self, vcpu: VirtualCpu, slot: Slot | None, gpa: int) -> bool:
        """A load that is to be emulated runs once more, for its fault might not come back (retry_instruction;
        kvm_policy.md §14); not where an entry, or what KVM has noted, says that no memory is there."""
        retried = self.vm.rules.apic_load_retried and vcpu.faults.loads and vcpu.last_retry != gpa
        if slot is None or not slot.emulated or not retried:
            return False
        self.vm.count_stat("insn_emulation")
        vcpu.last_retry = gpa
        return True

    def decoded(self, vcpu: VirtualCpu, gpa: int, mmio: bool) -> None:
        """An instruction is emulated; where it accesses no memory, and not the APIC, user space has its part in it."""
        vcpu.last_retry = 0
        self.vm.count_stat("insn_emulation")
        if mmio and gpa >> 12 != APIC_PAGE:
            self.vm.count_stat("mmio_exits")

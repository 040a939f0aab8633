"""Invalidations of a shadowed guest: its INVLPG and INVPCID exit (kvm_policy.md §2.4; tlb.md §4).

The kernels' form of these rules: kvm/exits.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.exits import Action, Exit
from fastmmu.kvm.policy.requests import Omit, Request, Requests

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Invalidations"]

ADDRESS, CONTEXT = 0, 1  # types of INVPCID; 2 and 3: all contexts
RETRY, EMULATED = int(Action.RETRY), int(Action.EMULATED)
OMIT_INVLPG = int(Omit.INVLPG)
FLUSH_CURRENT, FLUSH_GUEST = int(Request.TLB_FLUSH_CURRENT), int(Request.TLB_FLUSH_GUEST)


class Invalidations(Requests):
    """What the guest's own invalidations do to shadow tables and the TLB."""

    def on_invlpg(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 14 (handle_invlpg)."""
        return self.invalidate_page(vcpu, exit.qualification)

    def invalidate_page(self, vcpu: VirtualCpu, address: int) -> int:
        """Below every root that is kept, whichever PCID the guest has for it, the unsync entry goes; and what is cached
        of the address (kvm_mmu_invlpg)."""
        vcpu.faults.invlpg(address)
        self.flush_remote_tlbs(vcpu)
        if not self.vm.omit & OMIT_INVLPG and vcpu.faults.reachable(address):
            self.flush_gva(vcpu, address)
        return EMULATED

    def on_invpcid(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 58 (handle_invpcid): one address as by INVLPG; else the roots are synchronized, those of the PCID are
        not kept, and all that is cached goes."""
        vm = self.vm
        type, pcid, address = vcpu.faults.invpcid
        if type == ADDRESS and vm.rules.invpcid_page:
            vm.count_stat("tlb_flush")
            return self.invalidate_page(vcpu, address)
        if type > CONTEXT:
            vm.owed |= FLUSH_GUEST
        elif type == CONTEXT and pcid == vcpu.faults.pcid:
            vm.owed |= FLUSH_CURRENT
        self.count_flushes()
        vcpu.roots.sync()
        vcpu.roots.forget_previous(pcid if type == CONTEXT else None)
        vm.flush = True
        return EMULATED

    def on_pml_full(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 62 (handle_pml_full): the log was read at the exit, as at every other (kvm_policy.md §4.2)."""
        return RETRY

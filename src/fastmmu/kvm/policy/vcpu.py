"""A vCPU between the VMM and the guest (virt/kvm/kvm_main.c, vcpu_enter_guest of Linux 6.1), and its log of writes.

The kernels' form of these rules: kvm/vcpu.pyx; the log: kvm/exits.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.exits import ExitReason
from fastmmu.kvm.policy.lapic import LocalApics
from fastmmu.kvm.policy.registers import Registers
from fastmmu.kvm.policy.requests import TLB_FLUSH, TLB_FLUSH_CURRENT, Mode, Omit
from fastmmu.vmx.controls import Secondary
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Vcpus"]

PML = int(Secondary.PML)
EMPTY = 511  # index of an empty page-modification log, which fills downwards


class Vcpus(Registers, LocalApics):
    """What happens to a vCPU on its way out of and into the guest."""

    def vcpu_reset(self, vcpu: VirtualCpu) -> bool:
        """The machine is made: a root, and the state that the first VM entry loads (kvm_vcpu_reset, kvm_mmu_load).
        False: the machine cannot run."""
        if not self.vm.shadow:
            if not vcpu.roots.load_direct():
                vcpu.stop("tables")
                return False
            self.load_eptp(vcpu)
        if not self.load_registers(vcpu, None):
            return False
        if self.vm.shadow:
            self.serve_requests(vcpu)
        return True

    def load_mmu(self, vcpu: VirtualCpu) -> bool:
        """A guest with PAE paging has loaded its first PDPTE registers: its root is another (kvm_mmu_load)."""
        return self.load_root(vcpu, vcpu.guest_cr3)

    # ---- vCPUs and physical CPUs (kvm_policy.md §11, tlb.md §7) -----------------------------------------------------

    def vcpu_put(self, vcpu: VirtualCpu) -> None:
        """Another vCPU of the machine is about to run (kvm_arch_vcpu_put): all write to one page of the log, and each
        is read to its own index."""
        self.flush_pml_buffer(vcpu)

    def vcpu_load(self, vcpu: VirtualCpu) -> None:
        """It is the one that runs, from now on (kvm_arch_vcpu_load).

        Over EPT all tables may have gone since it ran, by what another vCPU did: the root is another page then, and the
        old one may serve again. What is cached under it goes by the flush of all that is owed as well, or here, if of
        one alone.
        """
        if self.vm.shadow:
            return
        before = vcpu.vmread(Field.EPTP)
        if not vcpu.roots.load_common() or vcpu.roots.address == before & ~0xFFF:
            return
        if not self.vm.rules.flush_all_contexts or self.vm.modes.amd:
            self.flush_all(vcpu)
        self.load_eptp(vcpu)

    def vcpu_enter_guest(self, vcpu: VirtualCpu) -> None:
        """The host puts it on a physical CPU (vcpu_enter_guest): in guest mode there, with the flushes that it owes.

        Where it stood still in guest mode, what came meanwhile may make it exit first: a kick, its timer.
        """
        reason = vcpu.arrived()
        if reason is not None and vcpu.mode != Mode.OUTSIDE_GUEST_MODE:
            self.leave_guest(vcpu, reason)
        self.update_cpu_dirty_logging(vcpu)
        if self.vm.shadow and not self.resume_root(vcpu):
            return
        if vcpu.pcpu != vcpu.placing:
            self.moved(vcpu)
        self.serve_requests(vcpu)
        if vcpu.mode == Mode.IN_GUEST_MODE:
            return
        vcpu.mode = Mode.IN_GUEST_MODE
        vcpu.route_notifications()
        if vcpu.apic is not None:
            self.apic_begin(vcpu)
            self.apic_entry(vcpu)
        if self.vm.modes.amd:
            self.pre_run(vcpu)
        vcpu.enter()

    def vcpu_exit(self, vcpu: VirtualCpu) -> None:
        """The host's timer takes the physical CPU from it: an external interrupt."""
        self.leave_guest(vcpu, ExitReason.EXTERNAL_INTERRUPT)

    def vcpu_halt(self, vcpu: VirtualCpu) -> None:
        """It has nothing to run, and gives its physical CPU up: HLT (kvm_emulate_halt, kvm_vcpu_block)."""
        self.leave_guest(vcpu, ExitReason.HLT)

    def leave_guest(self, vcpu: VirtualCpu, reason: int) -> None:
        """A VM exit that is the host's own matter."""
        vcpu.leave(reason)
        self.behind_exit(vcpu)
        self.flush_pml_buffer(vcpu)
        vcpu.mode = Mode.OUTSIDE_GUEST_MODE

    def moved(self, vcpu: VirtualCpu) -> None:
        """It runs on a physical CPU for the first time, or again: what it cached there before may be stale, and its
        VPID may have been another's (vmx_vcpu_load_vmcs; tlb.md §7). Of AMD: its ASID is of the other CPU."""
        if self.vm.modes.amd:
            if not self.vm.omit & Omit.MOVED:
                vcpu.asid_generation = 0
            return
        requests = vcpu.requests & ~TLB_FLUSH
        if not self.vm.omit & Omit.MOVED:
            if not self.vm.rules.flush_all_contexts and not self.vm.shadow:
                requests |= TLB_FLUSH_CURRENT
            requests |= TLB_FLUSH
        vcpu.requests = requests

    # ---- the page-modification log (kvm_policy.md §4.2; ept.md §7) --------------------------------------------------

    def flush_pml_buffer(self, vcpu: VirtualCpu) -> None:
        """At each exit the log goes into the dirty log, and is empty (vmx_flush_pml_buffer)."""
        if not vcpu.vmread(Field.SECONDARY_CONTROLS) & PML:
            return
        index = vcpu.vmread(Field.PML_INDEX)
        if index == EMPTY:
            return
        self.vm.log_writes(vcpu.vmread(Field.PML_ADDRESS), index)
        vcpu.vmwrite(Field.PML_INDEX, EMPTY)
        self.read_full_ring(vcpu)

    def read_full_ring(self, vcpu: VirtualCpu) -> None:
        """A dirty ring is full: the guest runs on after user space has read the rings (KVM_EXIT_DIRTY_RING_FULL)."""
        if self.vm.ring_full:
            self.vm.read_rings()
            self.flush_remote_tlbs(vcpu)

    def update_cpu_dirty_logging(self, vcpu: VirtualCpu) -> None:
        """The processor logs writes while any slot is logged; each vCPU has an index of its own
        (vmx_update_cpu_dirty_logging)."""
        if not self.vm.pml:
            return
        controls = vcpu.vmread(Field.SECONDARY_CONTROLS)
        if not self.vm.logged:
            vcpu.vmwrite(Field.SECONDARY_CONTROLS, controls & ~PML)
            return
        if not controls & PML:
            vcpu.vmwrite(Field.PML_INDEX, EMPTY)
        vcpu.vmwrite(Field.SECONDARY_CONTROLS, controls | PML)

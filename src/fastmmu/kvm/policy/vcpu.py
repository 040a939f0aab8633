"""A vCPU between the VMM and the guest (virt/kvm/kvm_main.c, vcpu_enter_guest of Linux 6.1), and its log of writes.

The kernels' form of these rules: kvm/vcpu.pyx; the log: kvm/exits.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.kvm.policy.requests import Requests
from fastmmu.vmx.controls import Secondary
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Vcpus"]

PML = int(Secondary.PML)
EMPTY = 511  # index of an empty page-modification log, which fills downwards


class Vcpus(Requests):
    """What happens to a vCPU on its way out of and into the guest."""

    # ---- the page-modification log (kvm_policy.md §4.2; ept.md §7) --------------------------------------------

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

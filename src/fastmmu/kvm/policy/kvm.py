"""What KVM does at each VM exit (vcpu_enter_guest, vmx_handle_exit of Linux 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.exits import Exit
from fastmmu.kvm.policy.vcpu import Vcpus

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Kvm"]


class Kvm(Vcpus):
    """KVM's policy: the VMM of a machine with ``Config(vmm="python")``; a class of your own derives from it.

    :param vm: :class:`fastmmu.kvm.port.VirtualMachine`, the machine in its hands.

    Threads: its methods are called in the thread that runs the machine.
    """

    def handle(self, vcpu: VirtualCpu) -> int:
        """From a VM exit to the next VM entry; returns the :class:`fastmmu.Action` (vcpu_enter_guest)."""
        self.flush_pml_buffer(vcpu)
        self.entered()
        vcpu._kernel_save()
        vcpu._kernel_apic_begin()
        action = vcpu.handled_by_policy()
        if action is None:
            action = self.default(vcpu, vcpu.exit)
        self.serve_requests(vcpu)
        self.read_full_ring(vcpu)
        vcpu._kernel_apic_end(action)
        return action

    def default(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """The handler of an exit, by its reason (vmx_handle_exit)."""
        return vcpu._kernel_default()

"""What KVM does at each VM exit (vcpu_enter_guest, vmx_handle_exit of Linux 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.exits import Exit

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu, VirtualMachine

__all__ = ["Kvm"]


class Kvm:
    """KVM's policy: the VMM of a machine with ``Config(vmm="python")``; a class of your own derives from it.

    :param vm: :class:`fastmmu.kvm.port.VirtualMachine`, the machine in its hands.

    Threads: its methods are called in the thread that runs the machine.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm

    def handle(self, vcpu: VirtualCpu) -> int:
        """From a VM exit to the next VM entry; returns the :class:`fastmmu.Action`."""
        vcpu._kernel_begin()
        action = vcpu.handled_by_policy()
        if action is None:
            action = self.default(vcpu, vcpu.exit)
        vcpu._kernel_end(action)
        return action

    def default(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """The handler of an exit, by its reason."""
        return vcpu._kernel_default()

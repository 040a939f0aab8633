"""What KVM does at each VM exit (vcpu_enter_guest, vmx_handle_exit of Linux 6.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastmmu.exits import N_REASONS, Action, Exit, ExitReason
from fastmmu.kvm.policy.faults import Faults
from fastmmu.kvm.policy.invalidate import Invalidations
from fastmmu.kvm.policy.log import DirtyLogs
from fastmmu.kvm.policy.vcpu import Vcpus
from fastmmu.kvm.policy.vpid import Vpids

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu, VirtualMachine

__all__ = ["Kvm"]

EMULATED = int(Action.EMULATED)


class Kvm(Faults, Invalidations, DirtyLogs, Vcpus, Vpids):
    """KVM's policy: the VMM of a machine with ``Config(vmm="python")``; a class of your own derives from it.

    :param vm: :class:`fastmmu.kvm.port.VirtualMachine`, the machine in its hands.

    Threads: its methods are called in the thread that runs the machine.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        super().__init__(vm)
        self._handlers: list[Callable[[VirtualCpu, Exit], int] | None] = [None] * N_REASONS
        for reason in ExitReason:
            self._handlers[reason] = getattr(self, f"on_{reason.name.lower()}", None)

    def handle(self, vcpu: VirtualCpu) -> int:
        """From a VM exit to the next VM entry; returns the :class:`fastmmu.Action` (vcpu_enter_guest)."""
        self.behind_exit(vcpu)
        self.flush_pml_buffer(vcpu)
        self.entered()
        self.save_registers(vcpu)
        if vcpu.apic is not None:
            self.apic_begin(vcpu)
        exit = vcpu.exit
        action = vcpu.handled_by_policy()
        if action is None:
            action = self.default(vcpu, exit)
        self.serve_requests(vcpu)
        self.read_full_ring(vcpu)
        if vcpu.apic is not None:
            self.apic_end(vcpu, action, exit)
        if self.vm.modes.amd:
            self.pre_run(vcpu)
        return action

    def default(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """The handler of an exit, by its reason (vmx_handle_exit)."""
        if vcpu.event:
            return EMULATED
        if vcpu.apic is not None:
            action = self.apic_exit(vcpu, exit)
            if action is not None:
                return action
        handler = self._handlers[exit.reason]
        return EMULATED if handler is None else handler(vcpu, exit)  # such as CPUID: no state of ours changes

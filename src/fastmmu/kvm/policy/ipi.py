"""Interprocessor interrupts between the vCPUs of a VM (kvm_irq_delivery_to_apic, __apic_accept_irq of Linux 6.1).

    ICR ──► who is addressed ──► running on another CPU ──► request in IRR, kick: it exits and is injected
                             │                          └─► APICv: posted, notification vector: no exit
                             └──► waiting for a CPU ──► request in IRR, or posted: seen at its next VM entry

The kernels' form of these rules: kvm/ipi.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.kvm.policy.base import Base
from fastmmu.kvm.policy.requests import Mode

if TYPE_CHECKING:
    from fastmmu.cpu.apic_py import InterprocessorInterrupt
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Ipis"]

LOWEST_PRIORITY = 1  # delivery mode of the ICR; 0 fixed: these two are a vector, the others are not


class Ipis(Base):
    """Where an interprocessor interrupt goes, and how it gets there."""

    def send_ipi(self, vcpu: VirtualCpu, ipi: InterprocessorInterrupt | None) -> None:
        """What a write to the ICR sends, if it sends (kvm_irq_delivery_to_apic; apic.md §1.2)."""
        if ipi is None:
            return
        vcpus = self.vm.vcpus
        if len(vcpus) == 1 or ipi.mode > LOWEST_PRIORITY:
            vcpu.apic.send_alone(ipi)
            return
        vcpu.apic.count("ipis")
        addressed = [each for each in vcpus if each.apic.addressed(ipi)]
        if ipi.mode == LOWEST_PRIORITY:
            enabled = [each for each in addressed if each.apic.software_enabled]
            addressed = [min(enabled, key=self.priority)] if enabled else []
        for each in addressed:
            self.accept_irq(vcpu, each, ipi.vector)

    def priority(self, vcpu: VirtualCpu) -> int:
        """PPR as the vCPU has it (kvm_apic_compare_prio): where its instructions are patched, its TPR is in its record;
        of equal ones the first is taken."""
        apic = vcpu.apic
        tpr = apic.read_record() if apic.patched else apic.tpr
        served = max(apic.isr, 0) & 0xF0
        return tpr if tpr >> 4 >= served >> 4 else served

    def accept_irq(self, vcpu: VirtualCpu, to: VirtualCpu, vector: int) -> None:
        """A vector for a vCPU (__apic_accept_irq): its own, or that of another, which is made to see it."""
        apic = to.apic
        if to is vcpu:
            apic.accept(vector)
        elif apic.arrives(vector, vcpu.apic.now):
            if apic.posting:
                self.deliver_posted_interrupt(vcpu, to, vector)
            else:
                apic.request(vector)
                apic.request_event = True
                self.kick(vcpu, to)

    def deliver_posted_interrupt(self, vcpu: VirtualCpu, to: VirtualCpu, vector: int) -> None:
        """Posted: where ON was set, a notification is on its way, or VM entry will look; a vCPU that is in the guest
        takes the notification without an exit (vmx_deliver_posted_interrupt; apic.md §6)."""
        if to.apic.post(vector) and to.mode == Mode.IN_GUEST_MODE:
            to.apic.notify()
            to.apic.count("posted")
            vcpu.apic.count("notifications")

    def kick(self, vcpu: VirtualCpu, to: VirtualCpu) -> None:
        """A vCPU in guest mode is made to exit, by an IPI of the host (kvm_vcpu_kick)."""
        if to.mode == Mode.IN_GUEST_MODE:
            to.mode = int(Mode.EXITING_GUEST_MODE)
            vcpu.apic.count("kicks")

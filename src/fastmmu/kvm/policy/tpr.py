"""The task priority register: by trapping, patching, the TPR shadow and its threshold (slides; apic.md §2, §5).

The kernels' form of these rules: kvm/lapic.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.exits import Action, Exit
from fastmmu.kvm.policy.base import Base

if TYPE_CHECKING:
    from fastmmu.kvm.lapic_port import Lapic
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Tpr"]

EMULATED = int(Action.EMULATED)
WINDOWS = (0x8, 0xE)  # bits 31:28 of addresses of its kernel


class Tpr(Base):
    """When a change of the TPR makes the guest exit, and what the VMM does then."""

    # ---- the TPR shadow (slides, "FlexPriority"; apic.md §5) ----------------------------------------------------

    def tpr_threshold(self, vcpu: VirtualCpu, tpr: int, irr: int) -> int:
        """The threshold, 0 to 15, below which the class of the TPR exits: `tpr` as it is, `irr` the highest vector that
        waits, 0 for none.

        Slides: the smaller of both, so that any further step down exits. KVM today: that of the vector, and none where
        the TPR does not block it (vmx_update_cr8_intercept).
        """
        if vcpu.apic.threshold_rule == "slides":
            return min(tpr, irr) >> 4
        return 0 if tpr >> 4 < irr >> 4 else irr >> 4

    def cr8_intercept(self, tpr: int, irr: int) -> bool:
        """Of AMD, which has no threshold: writes of CR8 exit while the TPR blocks the highest vector that waits
        (svm_update_cr8_intercept; kvm_policy.md §14)."""
        return irr > 0 and tpr >> 4 >= irr >> 4

    def update_cr8_intercept(self, vcpu: VirtualCpu) -> None:
        """The threshold anew (kvm_update_cr8_intercept). The processor needs none where it delivers itself (APICv), and
        a patched guest looks for itself."""
        apic = vcpu.apic
        if apic.way == "apicv" or not apic.tpr_shadow:
            return
        irr = apic.irr
        if irr < 0 or apic.patched or not apic.on:
            irr = 0
        if self.vm.modes.amd:
            apic.intercept_cr8_writes = self.cr8_intercept(apic.tpr & 0xF0, irr)
        else:
            apic.tpr_threshold = self.tpr_threshold(vcpu, apic.tpr & 0xF0, irr)

    def update_ppr(self, vcpu: VirtualCpu) -> None:
        """The TPR changed (apic_update_ppr). A request that an interrupt in service blocks is no event; but the
        threshold must follow, or VM entry fails, or exits at once for ever."""
        apic = vcpu.apic
        apic.update_ppr()
        if apic.deliverable() >= 0:
            apic.request_event = True
        else:
            self.update_cr8_intercept(vcpu)

    def on_tpr_below_threshold(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 43: what waits is looked at anew (handle_tpr_below_threshold)."""
        vcpu.apic.below_threshold = True
        self.update_ppr(vcpu)
        return EMULATED

    def count_spurious(self, apic: Lapic, injected_before: bool) -> None:
        """Of what use was the exit below the threshold: none where nothing is injected by it, as RFLAGS.IF is 0, or an
        interrupt of the same class or a higher one is in service (apic.md §5)."""
        if not apic.below_threshold or (apic.injected >= 0 and not injected_before):
            return
        apic.count("spurious")
        if not apic.interrupts_on:
            apic.count("spurious_if")
        elif apic.isr >> 4 >= apic.irr >> 4:
            apic.count("spurious_in_service")

    # ---- patching (slides, "kvm-tpr-opt"; apic.md §2.2) ----------------------------------------------------------

    def sync_from_vapic(self, vcpu: VirtualCpu) -> None:
        """After an exit: the TPR that a patched guest left in its record (kvm_lapic_sync_from_vapic)."""
        if vcpu.apic.patched:
            vcpu.apic.tpr = vcpu.apic.read_record()

    def sync_to_vapic(self, vcpu: VirtualCpu) -> None:
        """Before VM entry: what its routines compare (kvm_lapic_sync_to_vapic)."""
        apic = vcpu.apic
        if apic.patched:
            apic.write_record(apic.tpr, apic.isr, apic.irr)

    def report_tpr_access(self, vcpu: VirtualCpu) -> None:
        """The instruction that accessed the TPR becomes a call (KVM_EXIT_TPR_ACCESS, kvmvapic's patch_instruction),
        where a kernel of 32-bit Windows lies (QEMU's evaluate_tpr_instruction). The first version has one record for
        all vCPUs: it leaves guests with more than one alone, which share their code."""
        apic = vcpu.apic
        if apic.way != "patch" or not apic.mapped:
            return
        if apic.site_address >> 28 & 15 not in WINDOWS:
            return
        if apic.one_record and (apic.number or len(self.vm.vcpus) > 1):
            return
        if apic.replace_instruction():
            apic.count("patched")
            self.enable_vapic(vcpu)

    def enable_vapic(self, vcpu: VirtualCpu) -> None:
        """From now on the TPR is in the record, and no threshold applies (KVM_SET_VAPIC_ADDR)."""
        vcpu.apic.patched = True
        self.update_cr8_intercept(vcpu)

    def on_io_instruction(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 30: the OUT 7EH of a routine, on a vCPU whose record is not in use yet (vapic_write)."""
        if vcpu.apic is not None and vcpu.apic.enabling and vcpu.apic.mapped:
            self.enable_vapic(vcpu)
        return EMULATED

    def on_vmcall(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 18: a routine has let through an interrupt that waits (KVM_HC_VAPIC_POLL_IRQ)."""
        if vcpu.apic is not None:
            vcpu.apic.request_event = True
        return EMULATED

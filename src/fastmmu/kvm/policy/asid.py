"""ASIDs and flushes of a vCPU of AMD (new_asid, pre_svm_run, svm_flush_tlb of Linux; tlb.md §11).

The kernels' form of these rules: kvm/svm.pyx, kvm/asid.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.arch.vmcb import TlbControl, VmcbField
from fastmmu.kvm.policy.base import Base

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["OMIT_ASIDS", "Asids"]

OMIT_ASIDS = 32  # Omit.ASIDS
ASID, TLB_CONTROL = int(VmcbField.GUEST_ASID), int(VmcbField.TLB_CONTROL)
DO_NOTHING, FLUSH_ALL, FLUSH_ASID = (
    int(each) for each in (TlbControl.DO_NOTHING, TlbControl.FLUSH_ALL_ASID, TlbControl.FLUSH_ASID)
)


class Asids(Base):
    """Under which ASID a vCPU runs: one of its physical CPU, while the generation of these lasts."""

    def pre_run(self, vcpu: VirtualCpu) -> None:
        """Before each VM entry (pre_svm_run)."""
        cpu = vcpu.svm_cpu
        if vcpu.asid_generation != cpu.asid_generation:
            self.new_asid(vcpu)
        vcpu.vmcb_write(ASID, vcpu.asid)

    def new_asid(self, vcpu: VirtualCpu) -> None:
        """The next ASID of the physical CPU; where all are given out a generation begins, and all are flushed."""
        cpu = vcpu.svm_cpu
        if cpu.next_asid > cpu.max_asid:
            cpu.asid_generation += 1
            cpu.next_asid = cpu.min_asid
            vcpu.count("asid_generations")
            if not self.vm.omit & OMIT_ASIDS:
                vcpu.vmcb_write(TLB_CONTROL, FLUSH_ALL)
        vcpu.asid_generation = cpu.asid_generation
        vcpu.asid = cpu.next_asid
        cpu.next_asid += 1
        vcpu.count("asids")

    def behind_exit(self, vcpu: VirtualCpu) -> None:
        """After a VM exit: what was to be flushed is (svm_vcpu_run)."""
        if self.vm.modes.amd:
            vcpu.vmcb_write(TLB_CONTROL, DO_NOTHING)

    def flush_asid(self, vcpu: VirtualCpu) -> None:
        """All that is cached under its ASID, at the next VM entry (svm_flush_tlb): by TLB_CONTROL, else by another
        ASID. A guest that runs enters it at once."""
        vcpu.count("asid_flushes")
        if self.vm.flush_by_asid:
            vcpu.vmcb_write(TLB_CONTROL, FLUSH_ASID)
        else:
            vcpu.asid_generation = vcpu.asid_generation - 1 & (1 << 64) - 1
        if vcpu.in_guest:
            self.pre_run(vcpu)
            vcpu.run_again()

    def flush_asid_address(self, vcpu: VirtualCpu, address: int) -> None:
        """One address, at once (svm_flush_tlb_gva)."""
        if self.vm.rules.flush_by_address:
            vcpu.invlpga(address, vcpu.vmcb_read(ASID))
        else:
            self.flush_asid(vcpu)

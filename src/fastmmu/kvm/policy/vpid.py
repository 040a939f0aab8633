"""The VPIDs of a host: a bitmap, the lowest free number first (allocate_vpid, free_vpid of Linux; tlb.md §6).

The kernels' form of these rules: kvm/vpid.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.kvm.policy.base import Base

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Vpids"]

NR_VPIDS = 1 << 16


class Vpids(Base):
    """Which VPID a vCPU has, from when it comes until it ends."""

    def allocate_vpid(self, vcpu: VirtualCpu) -> int:
        """A vCPU comes: first come, first served. 0, none: it runs with "enable VPID" off, and each VM entry and exit
        flushes."""
        if not self.vm.enable_vpid:
            return 0
        vpid = self.vm.vpids.find_first_zero_bit()
        if vpid == NR_VPIDS:
            return 0
        self.vm.vpids.set_bit(vpid)
        return vpid

    def free_vpid(self, vcpu: VirtualCpu) -> None:
        """A vCPU that has one ends, or does not come after all. Nothing is flushed: whoever has the VPID next flushes
        where it first runs (`moved`)."""
        self.vm.vpids.clear_bit(vcpu.vpid)

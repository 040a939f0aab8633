"""Requests: raised by the MMU and by KVM, served before VM entry (kvm_make_request, vcpu_enter_guest of Linux 6.1).

The kernels' form of these rules: kvm/requests.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.errors import Code, Flags
from fastmmu.kvm.policy.asid import Asids
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["Mode", "Omit", "Request", "Requests"]


class Mode(Code):
    """Of a vCPU, as the others of its VM see it (vcpu->mode)."""

    OUTSIDE_GUEST_MODE = 0
    IN_GUEST_MODE = 1  # on a physical CPU: an IPI makes it exit
    EXITING_GUEST_MODE = 2  # the IPI is on its way


class Request(Flags):
    """What a vCPU does before its next VM entry (KVM_REQ_...)."""

    TLB_FLUSH = 1  # all that it may have cached: another vCPU took rights away
    TLB_FLUSH_CURRENT = 2  # linear mappings: of another root
    TLB_FLUSH_GUEST = 4  # linear mappings: the guest's own instruction asks for it
    STEAL_UPDATE = 8  # linear mappings: KVM_VCPU_FLUSH_TLB stands in its steal time


class Omit(Flags):
    """Flushes that a VMM leaves out, to see that they are missed: the names of :attr:`Vmm.omit`."""

    TABLES = 1
    REGISTERS = 2
    INVLPG = 4
    MOVED = 8
    REMOTE = 16
    ASIDS = 32  # where those of AMD begin anew
    PV = 64  # that the guest asked for while the vCPU had no physical CPU


TLB_FLUSH, TLB_FLUSH_CURRENT = int(Request.TLB_FLUSH), int(Request.TLB_FLUSH_CURRENT)
STEAL_UPDATE = int(Request.STEAL_UPDATE)


class Requests(Asids):
    """Flushes: asked for, and carried out (tlb.md §7)."""

    def serve_requests(self, vcpu: VirtualCpu) -> None:
        """What is owed before a VM entry (vcpu_enter_guest)."""
        requests = vcpu.requests
        if not requests and not self.vm.flush:
            return
        vcpu.requests = 0
        if requests & TLB_FLUSH_CURRENT:
            self.flush_current(vcpu)
        self.flush_remote_tlbs(vcpu)
        if requests & TLB_FLUSH:
            self.flush_all(vcpu)
        if requests & STEAL_UPDATE and not self.vm.omit & Omit.PV:
            self.flush_guest(vcpu)

    def flush_guest(self, vcpu: VirtualCpu) -> None:
        """The guest took rights away in its own tables while the vCPU had no physical CPU, and left the flush to the
        VMM (record_steal_time, kvm_vcpu_flush_tlb_guest): linear mappings, of every root."""
        self.vm.count_stat("tlb_flush")
        if self.vm.shadow:
            vcpu.roots.sync_every()
            self.flush_remote_tlbs(vcpu)
        self.flush_current(vcpu)

    def flush_all(self, vcpu: VirtualCpu) -> None:
        """All that the vCPU may have cached, by every means (kvm_vcpu_flush_tlb_all; tlb.md §7).

        KVM of the slides flushes its own context, Linux 6.1 all of them. Without VPID the transitions flush linear
        mappings: that after which user space was reached, and the VM entry to come.
        """
        every = self.vm.rules.flush_all_contexts
        if self.vm.modes.amd:
            self.flush_asid(vcpu)
        elif not self.vm.shadow:
            vcpu.invept(1 + every, vcpu.vmread(Field.EPTP))
        elif vcpu.vpid_enabled:
            vcpu.invvpid(1 + every, vcpu.vmread(Field.VPID))
        else:
            vcpu.flush_by_transition()

    def flush_current(self, vcpu: VirtualCpu) -> None:
        """Linear mappings of the root before (kvm_vcpu_flush_tlb_current): they are tagged by VPID alone, so that those
        of the old root must go."""
        if self.vm.modes.amd:
            self.flush_asid(vcpu)
        elif vcpu.vpid_enabled:
            vcpu.invvpid(1, vcpu.vmread(Field.VPID))

    def flush_gva(self, vcpu: VirtualCpu, address: int) -> None:
        """Linear mappings of one address (kvm_x86_flush_tlb_gva). Without VPID the exit has flushed them."""
        if self.vm.modes.amd:
            self.flush_asid_address(vcpu, address)
        elif vcpu.vpid_enabled:
            vcpu.invvpid(0, vcpu.vmread(Field.VPID), address)

    def flush_remote_tlbs(self, vcpu: VirtualCpu) -> None:
        """Where rights were taken away, every vCPU flushes (kvm_flush_remote_tlbs): the one that runs at once, and
        before the old root is given up; the others before they enter the guest again."""
        vm = self.vm
        if not vm.flush:
            return
        vm.flush = False
        omit = vm.omit
        if not omit & Omit.TABLES:
            self.flush_all(vcpu)
        if len(vm.vcpus) > 1 and not omit & Omit.REMOTE:
            self.request_remote(vcpu)

    def request_remote(self, vcpu: VirtualCpu) -> None:
        """The other vCPUs are asked to flush; one that is in the guest is made to exit by an IPI, one that has no
        physical CPU flushes when it gets one (kvm_make_all_cpus_request; tlb.md §7)."""
        self.vm.count_remote(flushes=1)
        vcpu.count_remote(sent=1)
        for other in self.vm.vcpus:
            if other is not vcpu:
                other.requests |= TLB_FLUSH
                self.vm.count_remote(requests=1)
                other.count_remote(asked=1, deferred=int(other.mode == Mode.OUTSIDE_GUEST_MODE))
                if other.mode == Mode.IN_GUEST_MODE:
                    other.mode = Mode.EXITING_GUEST_MODE
                    self.vm.count_remote(ipis=1)
                    vcpu.count_remote(ipis=1)
                    other.count_remote(kicked=1)

    # ---- what KVM counts: kinds of flushes that it asks for are not those that are needed (kvm_policy.md §12) -----

    def entered(self) -> None:
        """What the VM entry did from which an exit is the way back: roots that went while in use are freed, and flushes
        that were requested are done (kvm_policy.md §12)."""
        vm = self.vm
        vm.tables_early = 0
        if vm.roots_gone:
            vm.count_zaps(vm.roots_gone)
            vm.count_flush_request()
            vm.roots_gone = 0
        self.count_flushes()

    def count_flushes(self) -> None:
        """Each kind that is owed, once; a flush of all includes that of the current root (kvm_service_tlb_flush...)."""
        vm = self.vm
        owed, requested = vm.owed, vm.flush_requests
        if vm.flush_requests_served != requested:
            vm.flush_requests_served = requested
            owed = owed & ~TLB_FLUSH_CURRENT | TLB_FLUSH
        if owed:
            vm.count_stat("tlb_flush", owed.bit_count())
            vm.owed = 0

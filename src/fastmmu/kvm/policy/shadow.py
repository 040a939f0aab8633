"""Shadow paging: what a #PF of the guest is, and the shadow entry that answers it (kvm_policy.md §2.1, §2.2).

The guest's walk says where its tables lead; down to its last level each is shadowed by a table page, from there on the
code of direct mappings goes on. The kernels' form of these rules: mmu/shadow.pyx, mmu/sync.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.kvm.policy.direct import FRAME, MAY_ALL, MAY_U, MAY_W, MAY_X, PREFETCH, DirectMmu, Fault
from fastmmu.mmu.port import RetPf

if TYPE_CHECKING:
    from fastmmu.kvm.faults_port import GuestWalk
    from fastmmu.kvm.port import VirtualCpu
    from fastmmu.mmu.tables_port import TableWalk

__all__ = ["ShadowMmu"]

PF_P, PF_W, PF_ID = 1 << 0, 1 << 1, 1 << 4
RW, US, DIRTY, XD = 1 << 1, 1 << 2, 1 << 6, 1 << 63  # of an entry of the guest's
KEY_OF_ENTRY, KEY_OF_ACCESS = 59, 3  # where the protection key stands


def rights_of(entry: int) -> int:
    """What an entry of the guest's tables allows: X = 1, W = 2, U = 4."""
    return (0 if entry & XD else MAY_X) | (MAY_W if entry & RW else 0) | (MAY_U if entry & US else 0)


class ShadowMmu(DirectMmu):
    """Faults of a guest whose own tables are shadowed."""

    def shadow_page_fault(
        self, vcpu: VirtualCpu, address: int, code: int, known: int | None
    ) -> tuple[RetPf, Fault, GuestWalk]:
        """Classify a #PF and answer it (FNAME(page_fault); kvm_policy.md §2.1). `known`: the page that the entry marks
        as MMIO."""
        mmu, faults = self.mmu, vcpu.faults
        guest = faults.walk(address, code)
        fetch = bool(code & PF_ID) and not code & PF_W
        fault = Fault(address, guest.gpa, write=bool(code & PF_W), fetch=fetch, present=bool(code & PF_P))
        if guest.fault:
            return RetPf.INJECT if guest.fault == "pf" else RetPf.BUS, fault, guest
        if fault.gfn == known:
            return RetPf.EMULATE, fault, guest
        if not guest.path:  # it does not page: nothing of its own denies
            return self.direct_page_fault(fault), fault, guest
        if fault.write and mmu.tracked(fault.gfn) and (fault.present or not mmu.rules.tracked_if_present):
            if mmu.flooding:
                self.clear_flood(address)
            return RetPf.WRITE_PROTECTED, fault, guest
        result, fault.slot, fault.host_writable = mmu.faultin_pfn(fault.gfn, fault.write)
        mmio = result is RetPf.EMULATE and fault.slot is None and mmu.mmio_caching
        if result is not RetPf.CONTINUE and not mmio:
            return result, fault, guest
        mmu.make_room()
        return self.shadow_fetch(vcpu, fault, guest), fault, guest

    def clear_flood(self, address: int) -> None:
        """The tables that lead to an address are in use: writes to them before are no flood
        (clear_sp_write_flooding_count)."""
        walk = self.mmu.walk(address)
        while walk is not None:
            walk.in_use()
            if not walk.down():
                return

    def shadow_fetch(self, vcpu: VirtualCpu, fault: Fault, guest: GuestWalk) -> RetPf:
        """A table page for each of the guest's tables, then the leaf (FNAME(fetch)). What is linked is in sync with the
        guest's from the start: it is present from now on, and a guest need not flush for that."""
        mmu, faults = self.mmu, vcpu.faults
        walk = mmu.walk(fault.address)
        if walk is None:  # the last table page could not be had
            return RetPf.NO_TABLES
        access = MAY_ALL
        last = guest.path[-1][0]
        for level, entry in guest.path:
            access &= rights_of(entry)
            walk.in_use()
            if level == last:
                break
            if not walk.child((entry & FRAME) >> 12, False, access):
                return RetPf.NO_TABLES
            if walk.linked:
                if walk.unsync and faults.sync_page(walk):
                    mmu.count("flush_requests")
                faults.sync_below(walk)
        if faults.keys:
            if fault.slot is not None and fault.write and not guest.writable and guest.user:
                return RetPf.WRITE_PROTECTED  # a page of the supervisor's would not obey PKRU
            access |= guest.key << KEY_OF_ACCESS
        access = self.leaf_access(fault, guest, access)
        if fault.write and fault.slot is not None and fault.slot.logged:
            mmu.count("dirty_faults")
        result = self.direct_map(walk, fault, last, access)
        # spurious, as KVM counts it: tables may have been linked, the leaf was there
        if result >= 0 and result is not RetPf.SPURIOUS and last == 1 and mmu.prefetch:
            self.pte_prefetch(vcpu, walk)
        return result

    def leaf_access(self, fault: Fault, guest: GuestWalk, access: int) -> int:
        """Rights of the leaf (kvm_policy.md §2.1). A store that CR0.WP = 0 alone allows: writable, for the supervisor
        only. Where the guest's D is 0 the first write must fault, to set it."""
        if fault.slot is not None and fault.write and not guest.writable:
            access = (access | MAY_W) & ~MAY_U
            if guest.smep:
                access &= ~MAY_X
        return access if guest.dirty else access & ~MAY_W

    def pte_prefetch(self, vcpu: VirtualCpu, walk: TableWalk) -> None:
        """The other entries of the aligned eight, as the guest's say; the first that cannot be mapped ends it
        (FNAME(pte_prefetch))."""
        first = walk.index & ~(PREFETCH - 1)
        for index in range(first, first + PREFETCH):
            there = walk.beside(index)
            if index != walk.index and not there.present and not self.prefetch_gpte(vcpu, there):
                return

    def prefetch_gpte(self, vcpu: VirtualCpu, walk: TableWalk) -> bool:
        """Map what the guest's entry says, if that takes no fault and marks no page as written
        (FNAME(prefetch_gpte))."""
        mmu, faults = self.mmu, vcpu.faults
        entry = faults.guest_entry(walk)
        if entry is None:
            return False
        if not faults.usable(entry):
            if walk.entry:
                walk.set(0)
            return False
        gfn = faults.frame(entry)
        access = walk.access & rights_of(entry)
        if faults.keys:
            access |= (entry >> KEY_OF_ENTRY & 15) << KEY_OF_ACCESS
        if not entry & DIRTY:
            access &= ~MAY_W
        slot = mmu.slot(gfn)
        if slot is None or (access & MAY_W and slot.logged) or not slot.at_hand(gfn):
            return False
        self.set_spte(walk, slot, gfn, access, prefetch=True)
        mmu.count("prefetched")
        return True

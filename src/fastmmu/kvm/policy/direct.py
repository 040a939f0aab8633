"""Direct mappings: the code of the guest that does not page, which EPT uses (kvm_policy.md §3.1, §3.2, §4.3, §5).

    direct_page_fault ──► fast_page_fault       rights given back
                     └──► the host's page ──► direct_map ──► set_spte ──► direct_pte_prefetch

The kernels' form of these rules: mmu/direct.pyx.
"""

from __future__ import annotations

from fastmmu.kvm.policy.base import Base
from fastmmu.mmu.port import RetPf
from fastmmu.mmu.tables_port import Slot, TableWalk

__all__ = ["DirectMmu", "Fault"]

MAY_X, MAY_W, MAY_U, MAY_ALL = 1, 2, 4, 7
PREFETCH = 8  # entries mapped together, aligned
FRAME = 0xFFFFFFFFFF000  # of an entry, the host-physical address
LARGE = 511  # pages of 4 KB in one of 2 MB, less 1
UC, WB, IPAT = 0, 6, 1 << 6  # memory types, and the bit of an EPT entry by which the guest's PAT does not count

CONTINUE, RETRY, EMULATE, PROTECTED = RetPf.CONTINUE, RetPf.RETRY, RetPf.EMULATE, RetPf.WRITE_PROTECTED
INVALID, FIXED, SPURIOUS, NO_TABLES = RetPf.INVALID, RetPf.FIXED, RetPf.SPURIOUS, RetPf.NO_TABLES


class Fault:
    """What a fault asks of the MMU (struct kvm_page_fault).

    address: in the tables, linear, under EPT guest-physical. present: an entry was there, but did not allow the access.
    slot, host_writable: what is behind `gfn`, once the host was asked. fast: rights were given back, no more.
    """

    __slots__ = ("address", "fast", "fetch", "gfn", "host_writable", "present", "slot", "write")

    def __init__(self, address: int, gpa: int, *, write: bool, fetch: bool, present: bool) -> None:
        self.address = address
        self.gfn = gpa >> 12
        self.write = write
        self.fetch = fetch
        self.present = present
        self.slot: Slot | None = None
        self.host_writable = False
        self.fast = False


class DirectMmu(Base):
    """Faults of addresses that are guest-physical themselves."""

    def direct_page_fault(self, fault: Fault) -> RetPf:
        """Build what is missing (direct_page_fault; kvm_policy.md §3.2). Where no slot is, and MMIO is cached, an MMIO
        SPTE is made."""
        mmu = self.mmu
        if fault.write and fault.present and mmu.tracked(fault.gfn):
            return PROTECTED
        top = mmu.walk(fault.address)
        if top is None:  # the last table page could not be had
            return NO_TABLES
        if mmu.fast_faults and (fault.write if fault.present else not mmu.ad):
            result = self.fast_page_fault(fault)
            if result is not INVALID:
                return result
        result, slot, fault.host_writable = mmu.faultin_pfn(fault.gfn, fault.write)
        fault.slot = slot
        mmio = result is EMULATE and slot is None and mmu.mmio_caching
        if result is not CONTINUE and not mmio:
            return result
        mmu.make_room()
        if slot is not None and fault.write and slot.logged:
            mmu.count("dirty_faults")
        return self.direct_map(top, fault, 1 if mmio else 2, MAY_ALL)

    def fast_page_fault(self, fault: Fault) -> RetPf:
        """Rights given back, without the host and without tables (fast_page_fault; kvm_policy.md §5): of an aged entry,
        or one that is read-only only because writes are logged. Above level 1 logging splits, on the slow way."""
        mmu = self.mmu
        bits = mmu.format
        walk = mmu.find(fault.gfn << 12)
        if walk is None or not walk.present:
            return INVALID
        entry = walk.entry
        need = bits.execute if fault.fetch else bits.write if fault.write else bits.read
        if entry & need:
            mmu.count("fast_spurious")
            return SPURIOUS
        new = mmu.restored(entry)
        slot = mmu.slot(fault.gfn)
        if fault.write and entry & bits.may_write:
            if slot is None or (walk.level > 1 and slot.logged):
                return INVALID
            new |= bits.write
        if not new & need:
            return INVALID
        walk.set(new)
        if slot is not None and new & bits.write and slot.logged:
            slot.mark_dirty(fault.gfn)
            mmu.count("logged")
            mmu.count("dirty_faults")
        mmu.count("fast")
        fault.fast = True
        return FIXED

    def direct_map(self, walk: TableWalk, fault: Fault, largest: int, access: int) -> RetPf:
        """From a table page down through direct ones to the entry (kvm_tdp_mmu_map, __direct_map).

        `largest`: level of the guest's own page. A page that would be large, but in which code runs, is mapped small
        (kvm_policy.md §8).
        """
        mmu = self.mmu
        gfn, goal, split = fault.gfn, 1, False
        if largest >= 2 and self.large_allowed(fault):
            split = fault.fetch and mmu.nx_huge
            goal = 1 if split else 2
        while True:
            if walk.level == goal == 2 and mmu.nx_huge and self.table_below(walk):
                goal = 1
            if walk.level <= goal:
                break
            if not walk.child(gfn >> 9 * (walk.level - 1) << 9 * (walk.level - 1), True, access):
                return NO_TABLES
            if walk.level == 1 and split:
                walk.mark_split()
        result = self.set_spte(
            walk, fault.slot, gfn & ~LARGE if goal == 2 else gfn, access, write=fault.write, host=fault.host_writable
        )
        if result is not SPURIOUS and mmu.prefetch and walk.level == 1 and walk.direct:
            self.direct_pte_prefetch(walk)
        return result

    def table_below(self, walk: TableWalk) -> bool:
        """A table stands at the entry because an executable large page is not allowed; to KVM of 6.1 any table is one
        (disallowed_hugepage_adjust; kvm_policy.md §8, §14)."""
        return walk.present and not walk.leaf and (walk.split or not self.mmu.rules.nx_own_tables)

    def large_allowed(self, fault: Fault) -> bool:
        """A 2 MB mapping may cover the page (kvm_policy.md §4.3): the host has a large one behind all of it, the slot
        is not logged, no shadowed table lies there, and all of it has one memory type."""
        slot, gfn = fault.slot, fault.gfn
        if slot is None or slot.logged or not slot.huge(gfn) or self.mmu.shadowed_near(gfn):
            return False
        if self.vm.shadow or self.vm.modes.amd or not self.mmu.noncoherent:
            return True
        first = gfn & ~LARGE
        return len({self.memory_type(slot, page) for page in range(first, first + LARGE + 1)}) == 1

    def memory_type(self, slot: Slot, gfn: int) -> int:
        """Bits 6:3 of an EPT entry (vmx_get_mt_mask; kvm_policy.md §7)."""
        mmu = self.mmu
        if slot.device:
            return UC << 3  # the guest's PAT decides between UC and WC
        if not mmu.noncoherent:
            return WB << 3 | IPAT
        if mmu.cd:
            return (WB if mmu.cd_quirk else UC) << 3 | IPAT
        return mmu.mtrr_type(gfn) << 3

    def set_spte(
        self,
        walk: TableWalk,
        slot: Slot | None,
        gfn: int,
        access: int,
        *,
        write: bool = False,
        host: bool = True,
        prefetch: bool = False,
    ) -> RetPf:
        """The leaf entry for the page `gfn`, the first of its region; without a slot an MMIO SPTE (mmu_set_spte,
        make_spte; kvm_policy.md §2.1, §3.3, §4.4). `host`: the host lets the page be written."""
        mmu = self.mmu
        if slot is None:
            mmu.count("mmio_marked")
            walk.set(mmu.mmio_spte(gfn))
            return EMULATE
        if walk.level > 1 and mmu.nx_huge:
            access &= ~MAY_X
        if not host:
            access &= ~MAY_W
        hpa = slot.hpa(gfn)
        flush = self.drop_other(walk, hpa)
        old, present = walk.entry, walk.present
        if not access & MAY_W:
            allowed = dirty = False
        elif present and old & mmu.format.write:
            allowed, dirty = True, not mmu.rules.rewrite_stays_clean
        else:
            allowed = dirty = mmu.may_write(gfn, True, prefetch)
        denied = bool(access & MAY_W) and not allowed
        if denied:
            access &= ~MAY_W
        memory_type = 0 if self.vm.shadow or self.vm.modes.amd else self.memory_type(slot, gfn)
        ad = mmu.ad
        new = mmu.make_spte(hpa, walk.level, access, ad and not prefetch, ad and dirty, host, memory_type)
        if access & MAY_W and slot.logged:
            slot.mark_dirty(gfn)
            mmu.count("logged")
        if new == old:
            return PROTECTED if denied and write else SPURIOUS
        if present:
            flush = not walk.leaf if mmu.tdp else mmu.update_flushes(old, new)
        if flush:
            mmu.count("flush_requests")
        walk.set(new)
        return PROTECTED if denied and write else FIXED

    def drop_other(self, walk: TableWalk, hpa: int) -> bool:
        """A table or another page at the entry: what it allowed says nothing of this one. The TDP MMU sets the new
        entry over it. Returns whether any went."""
        if self.mmu.tdp or not walk.present or (walk.leaf and walk.entry & FRAME == hpa):
            return False
        walk.set(0)
        return True

    def direct_pte_prefetch(self, walk: TableWalk) -> None:
        """The other entries of the aligned eight, run by run; the first page that is not at hand ends it
        (direct_pte_prefetch). Without A flags a prefetched entry could not be told from one in use (kvm_policy.md
        §2.1)."""
        mmu = self.mmu
        if mmu.tdp or not mmu.ad:
            return
        first = walk.index & ~(PREFETCH - 1)
        run: list[TableWalk] = []
        for index in range(first, first + PREFETCH):
            there = walk.beside(index)
            if index != walk.index and not there.present:
                run.append(there)
            elif run:
                if not self.prefetch_run(run):
                    return
                run = []
        if run and mmu.rules.prefetch_last_run:
            self.prefetch_run(run)

    def prefetch_run(self, run: list[TableWalk]) -> bool:
        """Linux takes a run of empty entries as a whole, and none that the slot does not hold
        (direct_pte_prefetch_many); False: it ends here."""
        gfn, access = run[0].gfn, run[0].access
        slot = self.mmu.slot(gfn)
        if slot is None or (access & MAY_W and slot.logged) or gfn + len(run) > slot.base_gfn + slot.npages:
            return False
        for i, walk in enumerate(run):
            if not slot.at_hand(gfn + i):
                return i > 0
            self.set_spte(walk, slot, gfn + i, access, prefetch=True)
            self.mmu.count("prefetched")
        return True

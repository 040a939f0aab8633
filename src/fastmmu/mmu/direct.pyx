"""Mappings: the leaf entry for a page, direct mappings and their faults."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_IPAT, FRAME
from fastmmu.arch.memtype cimport MT_UC, MT_WB, mtrr_type
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport (
    HOST_ABSENT, HOST_CLEAN, HOST_PRESENT, HOST_SHARED, HOST_SWAPPED, HOST_ZERO, Memslot, gfn_to_memslot, host_page,
    mark_dirty, slot_away, slot_hpa, slot_huge,
)
from fastmmu.mmu.mmu cimport (
    NO_SP, PREFETCH, Mmu, Sp, child_at, mmu_frame, mmu_quadrant, mmu_top, sp_child, spte_at,
)
from fastmmu.mmu.notifier cimport notify_end, notify_start
from fastmmu.mmu.pages cimport mmu_link, mmu_make_room, mmu_may_write, mmu_put, mmu_sp, mmu_tracked
from fastmmu.mmu.reclaim cimport host_fetch, host_give
from fastmmu.mmu.rmap cimport spte_set
from fastmmu.mmu.spte cimport (
    MAY_ALL, MAY_W, MAY_X, SpteFormat, make_spte, spte_leaf, spte_mmio, spte_present, spte_restore, spte_tracked,
    spte_update_flushes,
)
from fastmmu.mmu.table_iter cimport TableIter, iter_at, iter_find, iter_start


# ---- the page behind it -------------------------------------------------------------------------------------

cdef int faultin_pfn(Mmu *mmu, Fault *f) noexcept nogil:
    # the host's page for f.gpa: RET_PF_CONTINUE where it is there, and whether it may be written. RET_PF_RETRY where
    # the host changed what it has behind its pages meanwhile, or is about to: the page found may be another by now
    cdef gfn_t gfn = f.gpa >> 12
    cdef uint64_t sequence = mmu.slots.sequence
    cdef int page
    f.slot = gfn_to_memslot(&mmu.slots, gfn)
    f.host_writable = False
    if f.slot == NULL or f.slot.emulated:
        return RET_PF_EMULATE
    if f.slot.readonly and f.write:
        return RET_PF_EMULATE
    if not f.slot.readonly:
        page = host_page(f.slot, gfn)
        if page == HOST_SWAPPED:
            host_fetch(mmu, f.slot, gfn)
            page = HOST_CLEAN
        if f.write and page == HOST_CLEAN:
            f.slot.host[gfn - f.slot.base_gfn] = HOST_PRESENT
            page = HOST_PRESENT
        if f.write and page != HOST_PRESENT:
            host_give(mmu, f.slot, gfn)
            if page == HOST_ZERO or page == HOST_SHARED:    # copied on write: the host unmaps what it was first
                notify_start(mmu, f.slot, gfn, 1)
                notify_end(mmu, f.slot)
            page = HOST_PRESENT
        if page == HOST_ABSENT:
            f.slot.host[gfn - f.slot.base_gfn] = HOST_ZERO
        f.host_writable = page == HOST_PRESENT
    if mmu.slots.sequence != sequence or slot_away(f.slot, gfn):
        mmu.counters.retries += 1
        return RET_PF_RETRY
    return RET_PF_CONTINUE


cdef bint page_for_prefetch(const Memslot *slot, gfn_t gfn) noexcept nogil:
    # without waiting for the host: only a page that is there and may be written
    return not slot.readonly and not slot.invalidating and host_page(slot, gfn) == HOST_PRESENT


cdef uint64_t memory_type(const Mmu *mmu, const Memslot *slot, gfn_t gfn) noexcept nogil:
    # bits 6:3 of an EPT entry (kvm_policy.md §7)
    if slot.device:
        return MT_UC << 3                       # the guest's PAT decides between UC and WC
    if not mmu.noncoherent:
        return MT_WB << 3 | EPT_IPAT
    if mmu.uncached:
        return (MT_WB if mmu.ignore_cd else MT_UC) << 3 | EPT_IPAT
    return <uint64_t> mtrr_type(&mmu.mtrrs, gfn << 12) << 3


cdef bint one_type(const Mmu *mmu, const Memslot *slot, gfn_t gfn) noexcept nogil:
    # the guest's MTRRs give the whole 2 MB around the page one type
    cdef gfn_t first = gfn & ~(<uint64_t> 511), i
    if not mmu.format.memory_type or not mmu.noncoherent:
        return True
    for i in range(1, 512):
        if memory_type(mmu, slot, first + i) != memory_type(mmu, slot, first):
            return False
    return True


# ---- one leaf entry -----------------------------------------------------------------------------------------

cdef int mmu_set_spte(Mmu *mmu, uint32_t owner, uint64_t index, Memslot *slot, gfn_t gfn, int access, bint prefetch,
                      bint write, bint host_writable, bint can_unsync) noexcept nogil:
    # maps the page gfn (first of its region) at an entry; without a slot the entry becomes an MMIO SPTE
    cdef const Sp *sp = &mmu.sp[owner]
    cdef int level = sp.level
    cdef uint64_t old = spte_at(mmu, owner, index), new
    cdef bint denied = False, dirty, flush = False
    cdef uint64_t cache
    if slot == NULL:
        mmu.counters.mmio_marked += 1
        spte_set(mmu, owner, index, spte_mmio(mmu.format, gfn, mmu.slots.generation))
        return RET_PF_EMULATE
    if level > 1 and mmu.policy.nx_huge:
        access &= ~MAY_X
    if not host_writable:
        access &= ~MAY_W
    if (spte_present(old) and not mmu.policy.tdp
            and (not spte_leaf(old, level) or old & FRAME != slot_hpa(slot, gfn))):
        spte_set(mmu, owner, index, 0)        # a table or another page: what it allowed says nothing of this one
        old = 0
        flush = True
    dirty = access & MAY_W != 0
    if dirty and spte_present(old) and old & mmu.format.write:
        dirty = can_unsync and not mmu.policy.rewrite_stays_clean
    elif dirty and not mmu_may_write(mmu, gfn, can_unsync, prefetch):
        denied = True
        dirty = False
        access &= ~MAY_W
    cache = memory_type(mmu, slot, gfn) if mmu.format.memory_type else 0
    new = make_spte(mmu.format, slot_hpa(slot, gfn), level, access, mmu.ad and not prefetch, mmu.ad and dirty,
                    host_writable, cache)
    if access & MAY_W and slot.dirty != NULL:
        mark_dirty(slot, gfn)
        mmu.counters.logged += 1
    if new == old:
        return RET_PF_WRITE_PROTECTED if denied and write else RET_PF_SPURIOUS
    if spte_present(old):
        flush = not spte_leaf(old, level) if mmu.policy.tdp else spte_update_flushes(mmu.format, mmu.ad, old, new)
    mmu.counters.flush_requests += flush
    if level > 1 and mmu.policy.tdp:
        mmu_put(mmu, owner, index, new)
    else:
        spte_set(mmu, owner, index, new)
    return RET_PF_WRITE_PROTECTED if denied and write else RET_PF_FIXED


cdef bint get_child_sp(Mmu *mmu, TableIter *it, gfn_t gfn, bint direct, int access) noexcept nogil:
    # down to the table page below, linked to the entry; what stood there for another page or role goes. False where no
    # table page is left
    cdef uint32_t child
    cdef const Sp *sp
    cdef bint leaf
    it.linked = False
    if spte_present(it.entry) and not spte_leaf(it.entry, it.level):
        child = sp_child(mmu, it.owner, it.index)
        if child != NO_SP:
            sp = &mmu.sp[child]
            if sp.gfn == gfn and sp.direct == direct and sp.access == access:
                iter_at(mmu, it, child)
                return True
    child = mmu_sp(mmu, gfn, it.level - 1, direct, access, mmu_quadrant(mmu, it.index))
    if child == NO_SP:
        return False
    if spte_present(it.entry):
        leaf = spte_leaf(it.entry, it.level)
        mmu.counters.splits += leaf
        mmu.counters.flush_requests += leaf or direct
    mmu_link(mmu, it.owner, it.index, child)
    iter_at(mmu, it, child)
    it.linked = True
    return True


# ---- direct mappings ----------------------------------------------------------------------------------------

cdef bint large_ok(const Mmu *mmu, const Fault *f, gfn_t gfn) noexcept nogil:
    # a 2 MB mapping may cover this page (kvm_policy.md §4.3)
    return (slot_huge(f.slot, gfn) and f.slot.dirty == NULL
            and mmu.tables_in[mmu_frame(mmu, slot_hpa(f.slot, gfn)) >> 9] == 0 and one_type(mmu, f.slot, gfn))


cdef inline bint split_below(const Mmu *mmu, const TableIter *it) noexcept nogil:
    # a table stands at the entry because an executable large page is not allowed, or for any reason (kvm_policy.md §8)
    cdef uint32_t child = child_at(mmu, it.owner, it.index)
    return child != NO_SP and (not mmu.policy.nx_own_tables or mmu.sp[child].split != 0)


cdef int direct_map(Mmu *mmu, uint32_t owner, Fault *f, int largest, int access) noexcept nogil:
    # maps f.la to the memory behind f.gpa, from table page `owner` down through direct pages; `largest`: level of the
    # guest's own page
    cdef TableIter it
    cdef gfn_t gfn = f.gpa >> 12
    cdef int goal = 1, result
    cdef bint split = False     # it would be large, but code runs there (kvm_policy.md §8)
    if largest >= 2 and f.slot != NULL and large_ok(mmu, f, gfn):
        split = f.fetch and mmu.policy.nx_huge
        goal = 1 if split else 2
    iter_start(mmu, &it, owner, f.la)
    while True:
        if it.level == 2 == goal and mmu.policy.nx_huge and split_below(mmu, &it):
            goal = 1
        if it.level <= goal:
            break
        if not get_child_sp(mmu, &it, gfn & ~((<uint64_t> 1 << 9 * (it.level - 1)) - 1), True, access):
            return RET_PF_NO_TABLES
        if it.level == 1 and split and not mmu.sp[it.owner].split:
            mmu.nx_splits += 1
            mmu.counters.nx_lpage_splits += 1
            mmu.sp[it.owner].split = mmu.nx_splits
    result = mmu_set_spte(mmu, it.owner, it.index, f.slot, gfn & ~(<uint64_t> 511) if goal == 2 else gfn, access, False,
                          f.write, f.host_writable, True)
    if result != RET_PF_SPURIOUS and mmu.policy.prefetch and mmu.sp[it.owner].direct and it.level == 1:
        prefetch_direct(mmu, it.owner, it.index)
    return result


cdef void prefetch_direct(Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil:
    # the other entries of the aligned eight, run by run; the first page that is not at hand ends it. Without A flags a
    # prefetched entry could not be told from one in use (kvm_policy.md §2.1).
    cdef uint64_t first = index & ~(<uint64_t> PREFETCH - 1), i, start = 512
    if mmu.policy.tdp or not mmu.ad:
        return
    for i in range(first, first + PREFETCH):
        if i == index or spte_present(spte_at(mmu, owner, i)):
            if start < 512 and not prefetch_run(mmu, owner, start, i):
                return
            start = 512
        elif start == 512:
            start = i
    if start < 512 and mmu.policy.prefetch_last_run:
        prefetch_run(mmu, owner, start, first + PREFETCH)


cdef bint prefetch_run(Mmu *mmu, uint32_t owner, uint64_t start, uint64_t end) noexcept nogil:
    cdef int access = mmu.sp[owner].access
    cdef gfn_t gfn = mmu.sp[owner].gfn + start
    cdef uint64_t i
    cdef Memslot *slot = gfn_to_memslot(&mmu.slots, gfn)
    if slot == NULL or (access & MAY_W and slot.dirty != NULL) or gfn + (end - start) > slot.base_gfn + slot.npages:
        return False                            # Linux takes a run as a whole, and none that the slot does not hold
    for i in range(start, end):
        if not page_for_prefetch(slot, gfn):
            return i > start
        mmu_set_spte(mmu, owner, i, slot, gfn, access, True, False, True, True)
        mmu.counters.prefetched += 1
        gfn += 1
    return True


cdef int fast_fault(Mmu *mmu, Fault *f) noexcept nogil:
    # rights given back, without the host and without tables (kvm_policy.md §5)
    cdef const SpteFormat *format = mmu.format
    cdef TableIter it
    cdef uint64_t entry, need, new
    cdef Memslot *slot
    iter_find(mmu, &it, f.gpa)
    entry = it.entry
    if not spte_present(entry):
        return RET_PF_INVALID
    need = format.execute if f.fetch else format.write if f.write else format.read
    if entry & need:
        mmu.counters.fast_spurious += 1
        return RET_PF_SPURIOUS
    new = entry
    if not mmu.ad and spte_tracked(format, entry):
        new = spte_restore(format, entry)
    slot = gfn_to_memslot(&mmu.slots, f.gpa >> 12)
    if f.write and entry & format.may_write:
        if slot == NULL or (it.level > 1 and slot.dirty != NULL):
            return RET_PF_INVALID
        new |= format.write
    if not new & need:
        return RET_PF_INVALID
    spte_set(mmu, it.owner, it.index, new)
    if new & format.write and slot.dirty != NULL:
        mark_dirty(slot, f.gpa >> 12)
        mmu.counters.logged += 1
        mmu.counters.dirty_faults += 1
    mmu.counters.fast += 1
    f.fast = True
    return RET_PF_FIXED


cdef int direct_page_fault(Mmu *mmu, Fault *f) noexcept nogil:
    # guest-physical = linear: EPT, and the guest that does not page (kvm_policy.md §3.1)
    cdef uint32_t top
    cdef int result
    cdef bint mmio
    f.fast = False
    if f.write and f.present and mmu_tracked(mmu, f.gpa >> 12):
        return RET_PF_WRITE_PROTECTED
    top = mmu_top(mmu, f.la)
    if top == NO_SP:            # the last table page could not be had
        return RET_PF_NO_TABLES
    if mmu.policy.fast and (f.write if f.present else not mmu.ad):
        result = fast_fault(mmu, f)
        if result != RET_PF_INVALID:
            return result
    result = faultin_pfn(mmu, f)
    mmio = result == RET_PF_EMULATE and f.slot == NULL and mmu.policy.mmio_caching
    if result != RET_PF_CONTINUE and not mmio:
        return result
    mmu_make_room(mmu)
    if f.write and not mmio and f.slot.dirty != NULL:
        mmu.counters.dirty_faults += 1
    return direct_map(mmu, top, f, 1 if mmio else 2, MAY_ALL)

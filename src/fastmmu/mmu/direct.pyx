"""Mappings: the leaf entry for a page, direct mappings and their faults."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_IPAT, EPT_R, EPT_W, EPT_X, FRAME, PS, RW
from fastmmu.arch.memtype cimport MT_UC, MT_WB, mtrr_type
from fastmmu.mmu.memslots cimport (
    HOST_ABSENT, HOST_CLEAN, HOST_PRESENT, HOST_SHARED, HOST_SWAPPED, HOST_ZERO, Slot, host_page, mark_dirty, slot_away,
    slot_hpa, slot_huge, slot_of,
)
from fastmmu.mmu.notifier cimport notify_end, notify_start
from fastmmu.mmu.pages cimport (
    NO_SP, Mmu, Sp, mmu_change, mmu_frame, mmu_link, mmu_make_room, mmu_may_write, mmu_quadrant, mmu_sp, mmu_top,
    mmu_tracked,
)
from fastmmu.mmu.reclaim cimport host_fetch, host_give
from fastmmu.mmu.spte cimport (
    FORMAT_EPT, MAY_ALL, MAY_W, MAY_X, spte_leaf, spte_make, spte_may_write, spte_mmio, spte_present, spte_restore,
    spte_tracked, spte_update_flushes,
)
from fastmmu.paging.memory cimport mem_read64

cdef enum:
    PREFETCH = 8                # entries, aligned


# ---- the page behind it -------------------------------------------------------------------------------------

cdef int fault_in(Mmu *mmu, Fault *f) noexcept nogil:
    # the host's page for f.gpa: FILL_MAPPED where it is there, and whether it may be written. FILL_RETRY where the host
    # changed what it has behind its pages meanwhile, or is about to: the page found may be another by now
    cdef uint64_t gfn = f.gpa >> 12, sequence = mmu.slots.sequence
    cdef int page
    f.slot = slot_of(&mmu.slots, gfn)
    f.host_writable = False
    if f.slot == NULL:
        return FILL_NO_SLOT
    if f.slot.readonly and f.write:
        return FILL_READ_ONLY
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
        return FILL_RETRY
    return FILL_MAPPED


cdef bint page_for_prefetch(const Slot *slot, uint64_t gfn) noexcept nogil:
    # without waiting for the host: only a page that is there and may be written
    return not slot.readonly and not slot.invalidating and host_page(slot, gfn) == HOST_PRESENT


cdef uint64_t memory_type(const Mmu *mmu, const Slot *slot, uint64_t gfn) noexcept nogil:
    # bits 6:3 of an EPT entry (kvm_policy.md §7)
    if slot.device:
        return MT_UC << 3                       # the guest's PAT decides between UC and WC
    if not mmu.noncoherent:
        return MT_WB << 3 | EPT_IPAT
    if mmu.uncached:
        return (MT_WB if mmu.ignore_cd else MT_UC) << 3 | EPT_IPAT
    return <uint64_t> mtrr_type(&mmu.mtrrs, gfn << 12) << 3


cdef bint one_type(const Mmu *mmu, const Slot *slot, uint64_t gfn) noexcept nogil:
    # the guest's MTRRs give the whole 2 MB around the page one type
    cdef uint64_t first = gfn & ~(<uint64_t> 511), i
    if mmu.format != FORMAT_EPT or not mmu.noncoherent:
        return True
    for i in range(1, 512):
        if memory_type(mmu, slot, first + i) != memory_type(mmu, slot, first):
            return False
    return True


# ---- one leaf entry -----------------------------------------------------------------------------------------

cdef int set_leaf(Mmu *mmu, uint32_t owner, uint64_t index, Slot *slot, uint64_t gfn, int access, bint prefetch,
                  bint write, bint host_writable, bint can_unsync) noexcept nogil:
    # maps the page gfn (first of its region) at an entry; without a slot the entry is marked as MMIO
    cdef const Sp *sp = &mmu.sp[owner]
    cdef int level = sp.level
    cdef uint64_t old = mem_read64(mmu.mem, sp.hpa + 8 * index), new
    cdef bint denied = False, dirty, flush = False
    cdef uint64_t cache
    if slot == NULL:
        mmu.counters.mmio_marked += 1
        mmu_change(mmu, owner, index, spte_mmio(mmu.format, gfn, mmu.slots.generation))
        return FILL_NO_SLOT
    if level > 1 and mmu.policy.nx_huge:
        access &= ~MAY_X
    if not host_writable:
        access &= ~MAY_W
    if (spte_present(old) and not mmu.policy.tdp
            and (not spte_leaf(old, level) or old & FRAME != slot_hpa(slot, gfn))):
        mmu_change(mmu, owner, index, 0)        # a table or another page: what it allowed says nothing of this one
        old = 0
        flush = True
    dirty = access & MAY_W != 0
    if dirty and spte_present(old) and old & RW:
        dirty = not mmu.policy.modern           # Linux 6.1 leaves D to the processor then
    elif dirty and not mmu_may_write(mmu, gfn, can_unsync, prefetch):
        denied = True
        dirty = False
        access &= ~MAY_W
    cache = memory_type(mmu, slot, gfn) if mmu.format == FORMAT_EPT else 0
    if mmu.format == FORMAT_EPT and not mmu.ad:
        new = spte_make(mmu.format, slot_hpa(slot, gfn), level, access, False, False, host_writable, cache)
    else:
        new = spte_make(mmu.format, slot_hpa(slot, gfn), level, access, not prefetch, dirty, host_writable, cache)
    if access & MAY_W and slot.dirty != NULL:
        mark_dirty(slot, gfn)
        mmu.counters.logged += 1
    if new == old:
        return FILL_TRACKED if denied and write else FILL_UNCHANGED
    if spte_present(old):
        flush = not spte_leaf(old, level) if mmu.policy.tdp else spte_update_flushes(mmu.format, mmu.ad, old, new)
    mmu.counters.flush_requests += flush
    mmu_change(mmu, owner, index, new)
    return FILL_TRACKED if denied and write else FILL_MAPPED


cdef uint32_t descend(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t gfn, bint direct, int access) noexcept nogil:
    # the table page below an entry, linked to it; what stood there for another page or role goes
    cdef int level = mmu.sp[owner].level
    cdef uint64_t entry = mem_read64(mmu.mem, mmu.sp[owner].hpa + 8 * index)
    cdef uint32_t child
    cdef Sp *sp
    if spte_present(entry) and not spte_leaf(entry, level):
        child = mmu.owner[(entry & FRAME) - mmu.pool_start >> 12]
        sp = &mmu.sp[child]
        if sp.gfn == gfn and sp.direct == direct and sp.access == access:
            return child
    child = mmu_sp(mmu, gfn, level - 1, direct, access, mmu_quadrant(mmu, index))
    if child != NO_SP:
        if spte_present(entry):
            mmu.counters.splits += spte_leaf(entry, level)
            mmu.counters.flush_requests += spte_leaf(entry, level) or direct
        mmu_link(mmu, owner, index, child)
    return child


# ---- direct mappings ----------------------------------------------------------------------------------------

cdef bint large_ok(const Mmu *mmu, const Fault *f, uint64_t gfn) noexcept nogil:
    # a 2 MB mapping may cover this page (kvm_policy.md §4.3)
    return (slot_huge(f.slot, gfn) and f.slot.dirty == NULL
            and mmu.tables_in[mmu_frame(mmu, slot_hpa(f.slot, gfn)) >> 9] == 0 and one_type(mmu, f.slot, gfn))


cdef int map_below(Mmu *mmu, uint32_t owner, Fault *f, int largest, int access) noexcept nogil:
    # maps f.la to the memory behind f.gpa, from table page `owner` down through direct pages; `largest`: level of the
    # guest's own page
    cdef uint64_t gfn = f.gpa >> 12, index = f.la >> 21 & 511, entry
    cdef int level = mmu.sp[owner].level, goal = 1, result
    cdef bint split = False     # it would be large, but code runs there (kvm_policy.md §8)
    if largest >= 2 and f.slot != NULL and large_ok(mmu, f, gfn):
        split = f.fetch and mmu.policy.nx_huge
        goal = 1 if split else 2
    while level > goal:
        owner = descend(mmu, owner, f.la >> (9 * level + 3) & 511, gfn & ~((<uint64_t> 1 << 9 * (level - 1)) - 1),
                        True, access)
        if owner == NO_SP:
            return FILL_NO_TABLES
        level -= 1
        if level == 1 and split:
            if not mmu.sp[owner].split:
                mmu.nx_splits += 1
                mmu.counters.nx_lpage_splits += 1
                mmu.sp[owner].split = mmu.nx_splits
        elif level == 2 == goal and mmu.policy.nx_huge:
            entry = mem_read64(mmu.mem, mmu.sp[owner].hpa + 8 * index)
            if spte_present(entry) and not entry & PS:
                if mmu.sp[mmu.owner[(entry & FRAME) - mmu.pool_start >> 12]].split:
                    goal = 1
    index = f.la >> (9 * level + 3) & 511
    result = set_leaf(mmu, owner, index, f.slot, gfn & ~(<uint64_t> 511) if goal == 2 else gfn, access, False, f.write,
                      f.host_writable, True)
    if result != FILL_UNCHANGED and mmu.policy.prefetch and mmu.sp[owner].direct and level == 1:
        prefetch_direct(mmu, owner, index)
    return result


cdef void prefetch_direct(Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil:
    # the other entries of the aligned eight, run by run; the first page that is not at hand ends it. Without A flags a
    # prefetched entry could not be told from one in use (kvm_policy.md §2.1).
    cdef uint64_t first = index & ~(<uint64_t> PREFETCH - 1), i, start = 512, at = mmu.sp[owner].hpa
    if mmu.policy.tdp or (mmu.format == FORMAT_EPT and not mmu.ad):
        return
    for i in range(first, first + PREFETCH):
        if i == index or spte_present(mem_read64(mmu.mem, at + 8 * i)):
            if start < 512 and not prefetch_run(mmu, owner, start, i):
                return
            start = 512
        elif start == 512:
            start = i
    if start < 512:
        prefetch_run(mmu, owner, start, first + PREFETCH)


cdef bint prefetch_run(Mmu *mmu, uint32_t owner, uint64_t start, uint64_t end) noexcept nogil:
    cdef int access = mmu.sp[owner].access
    cdef uint64_t gfn = mmu.sp[owner].gfn + start, i
    cdef Slot *slot = slot_of(&mmu.slots, gfn)
    if slot == NULL or (access & MAY_W and slot.dirty != NULL) or gfn + (end - start) > slot.base_gfn + slot.npages:
        return False                            # Linux takes a run as a whole, and none that the slot does not hold
    for i in range(start, end):
        if not page_for_prefetch(slot, gfn):
            return i > start
        set_leaf(mmu, owner, i, slot, gfn, access, True, False, True, True)
        mmu.counters.prefetched += 1
        gfn += 1
    return True


cdef uint64_t find_entry(const Mmu *mmu, uint64_t la, uint32_t *owner, uint64_t *index) noexcept nogil:
    # the entry at which a walk of the VMM's tables ends, and where it stands; 0 without a root
    cdef uint32_t i = mmu_top(mmu, la)
    cdef uint64_t entry = 0
    cdef int level
    if i == NO_SP:
        return 0
    while True:
        level = mmu.sp[i].level
        owner[0] = i
        index[0] = la >> (9 * level + 3) & 511
        entry = mem_read64(mmu.mem, mmu.sp[i].hpa + 8 * index[0])
        if not spte_present(entry) or spte_leaf(entry, level):
            return entry
        i = mmu.owner[(entry & FRAME) - mmu.pool_start >> 12]


cdef int fast_fault(Mmu *mmu, const Fault *f) noexcept nogil:
    # rights given back, without the host and without tables (kvm_policy.md §5); FILL_MAPPED: it is no such fault
    cdef uint32_t owner = NO_SP
    cdef uint64_t index = 0, entry = find_entry(mmu, f.gpa, &owner, &index), need, new
    cdef Slot *slot
    if not spte_present(entry):
        return FILL_MAPPED
    need = EPT_X if f.fetch else EPT_W if f.write else EPT_R
    if entry & need:
        mmu.counters.fast_spurious += 1
        return FILL_UNCHANGED
    new = entry
    if not mmu.ad and spte_tracked(entry):
        new = spte_restore(entry)
    slot = slot_of(&mmu.slots, f.gpa >> 12)
    if f.write and entry & spte_may_write(mmu.format):
        if slot == NULL or (mmu.sp[owner].level > 1 and slot.dirty != NULL):
            return FILL_MAPPED
        new |= EPT_W
    if not new & need:
        return FILL_MAPPED
    mmu_change(mmu, owner, index, new)
    if new & EPT_W and slot.dirty != NULL:
        mark_dirty(slot, f.gpa >> 12)
        mmu.counters.logged += 1
        mmu.counters.dirty_faults += 1
    mmu.counters.fast += 1
    return FILL_FAST


cdef int map_direct(Mmu *mmu, Fault *f) noexcept nogil:
    # guest-physical = linear: EPT, and the guest that does not page (kvm_policy.md §3.1)
    cdef uint32_t top
    cdef int result
    if f.write and f.present and mmu_tracked(mmu, f.gpa >> 12):
        return FILL_TRACKED
    top = mmu_top(mmu, f.la)
    if top == NO_SP:            # the last table page could not be had
        return FILL_NO_TABLES
    if mmu.policy.fast and (f.write if f.present else not mmu.ad):
        result = fast_fault(mmu, f)
        if result != FILL_MAPPED:
            return result
    result = fault_in(mmu, f)
    if result == FILL_MAPPED or (result == FILL_NO_SLOT and mmu.policy.mmio_caching):
        mmu_make_room(mmu)
    if result == FILL_NO_SLOT and mmu.policy.mmio_caching:
        return map_below(mmu, top, f, 1, MAY_ALL)
    if result != FILL_MAPPED:
        return result
    if f.write and f.slot.dirty != NULL:
        mmu.counters.dirty_faults += 1
    return map_below(mmu, top, f, 2, MAY_ALL)

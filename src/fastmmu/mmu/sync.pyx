"""Shadow pages and the guest tables behind them: sync, INVLPG, emulated writes, prefetch."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, RW, US, XD, A, D, P
from fastmmu.arch.types cimport ACC_R, Paging, gfn_t, gpa_t, gva_t
from fastmmu.mmu.direct cimport mmu_set_spte, page_for_prefetch
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, mark_dirty, slot_hpa
from fastmmu.mmu.mmu cimport (
    NO_SP, PAE_LEVELS, PREFETCH, ROLE_4_BYTE, ROLE_KEYS, Mmu, Sp, child_at, mmu_top, mmu_touches_guest, next_unsync,
    spte_at,
)
from fastmmu.mmu.pages cimport mmu_may_write, mmu_zap
from fastmmu.mmu.rmap cimport mmu_write_protect, spte_set
from fastmmu.mmu.spte cimport (
    MAY_KEY, MAY_U, MAY_W, MAY_X, make_spte, spte_is_mmio, spte_mmio, spte_mmio_gfn, spte_present, spte_update_flushes,
)
from fastmmu.mmu.table_iter cimport TableIter, iter_down, iter_start
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_read64

cdef enum:
    FLOOD = 3                   # writes in a row
    GIVEN_UP = 255


cdef int rights_of(uint64_t entry) noexcept nogil:
    return (0 if entry & XD else MAY_X) | (MAY_W if entry & RW else 0) | (MAY_U if entry & US else 0)


# ---- one entry of a guest's page table ----------------------------------------------------------------------

cdef bint guest_entry(const Mmu *mmu, const Sp *sp, uint64_t index, uint64_t *gpte) noexcept nogil:
    # what the guest's page table holds for an entry of its shadow; False where it lies outside memory
    cdef gpa_t at = sp.gfn << 12
    if sp.role & ROLE_4_BYTE:
        at += 4 * ((<uint64_t> sp.quadrant << 9) + index)
        mmu_touches_guest(mmu, at, 4, ACC_R)
        gpte[0] = mem_read32(&mmu.guest, at) if mem_holds(&mmu.guest, at, 4) else 0
        return mem_holds(&mmu.guest, at, 4)
    at += 8 * index
    mmu_touches_guest(mmu, at, 8, ACC_R)
    gpte[0] = mem_read64(&mmu.guest, at) if mem_holds(&mmu.guest, at, 8) else 0
    return mem_holds(&mmu.guest, at, 8)


cdef bint usable(const Paging *guest, uint64_t gpte) noexcept nogil:
    # an entry to map without an access: the guest has used it, and the processor would not object to it
    return gpte & P and gpte & A and not gpte & guest.rsvd[1][gpte >> 7 & 1]


cdef inline int access_of(const Sp *sp, uint64_t gpte) noexcept nogil:
    # D=0: the first write must fault, to set it
    cdef int access = sp.access & rights_of(gpte)
    if sp.role & ROLE_KEYS:
        access |= <int> (gpte >> 59 & 15) << MAY_KEY
    return access if gpte & D else access & ~MAY_W


cdef bint prefetch_entry(Mmu *mmu, const Paging *guest, uint32_t owner, uint64_t index, bint unlogged) noexcept nogil:
    # maps what the guest's entry says if that takes no fault; `unlogged`: not where it would mark the page as written
    cdef Sp *sp = &mmu.sp[owner]
    cdef uint64_t gpte = 0
    cdef gfn_t gfn
    cdef Memslot *slot
    cdef int access
    if not guest_entry(mmu, sp, index, &gpte):
        return False
    if not usable(guest, gpte):
        if spte_at(mmu, owner, index):
            spte_set(mmu, owner, index, 0)
        return False
    gfn = (gpte & guest.frame) >> 12
    access = access_of(sp, gpte)
    slot = gfn_to_memslot(&mmu.slots, gfn)
    if slot == NULL or (unlogged and access & MAY_W and slot.dirty != NULL) or not page_for_prefetch(slot, gfn):
        return False
    mmu_set_spte(mmu, owner, index, slot, gfn, access, True, False, True, True)
    mmu.counters.prefetched += 1
    return True


cdef void prefetch_guest(Mmu *mmu, const Paging *guest, uint32_t owner, uint64_t index) noexcept nogil:
    # the other entries of the aligned eight; the first that cannot be mapped ends it
    cdef uint64_t first = index & ~(<uint64_t> PREFETCH - 1), i
    for i in range(first, first + PREFETCH):
        if i == index or spte_present(spte_at(mmu, owner, i)):
            continue
        if not prefetch_entry(mmu, guest, owner, i, True):
            return


# ---- unsync pages -------------------------------------------------------------------------------------------

cdef bint sync_entry(Mmu *mmu, const Paging *guest, uint32_t owner, uint64_t index, bint alone) noexcept nogil:
    # the entry follows the guest's again: dropped where that is gone or leads elsewhere, else with today's rights.
    # `alone`: not with its whole table; one that is as it was stays so then, with its A. Returns whether Linux flushes.
    cdef Sp *sp = &mmu.sp[owner]
    cdef uint64_t entry = spte_at(mmu, owner, index), gpte = 0, new
    cdef gfn_t gfn
    cdef Memslot *slot
    cdef int access
    cdef bint host_writable, dirty, accessed
    if not entry or not guest_entry(mmu, sp, index, &gpte):
        return False
    if not usable(guest, gpte):
        spte_set(mmu, owner, index, 0)
        return True
    gfn = (gpte & guest.frame) >> 12
    access = access_of(sp, gpte)
    slot = gfn_to_memslot(&mmu.slots, gfn)
    if spte_is_mmio(mmu.format, entry):
        if slot == NULL and spte_mmio_gfn(entry) == gfn:
            spte_set(mmu, owner, index, spte_mmio(mmu.format, gfn, mmu.slots.generation))
        else:
            spte_set(mmu, owner, index, 0)
        return False
    if slot == NULL or entry & FRAME != slot_hpa(slot, gfn):
        spte_set(mmu, owner, index, 0)
        return True
    host_writable = entry & mmu.format.host_write != 0
    if not host_writable:
        access &= ~MAY_W
    dirty = access & MAY_W and not entry & mmu.format.write
    if dirty and not mmu_may_write(mmu, gfn, False, True):
        access &= ~MAY_W
        dirty = False
    accessed = alone and entry & mmu.format.accessed != 0
    new = make_spte(mmu.format, entry & FRAME, 1, access, accessed, dirty, host_writable, 0)
    if access & MAY_W and slot.dirty != NULL:
        mark_dirty(slot, gfn)
    if new == entry:
        return False
    spte_set(mmu, owner, index, new)
    return spte_update_flushes(mmu.format, mmu.ad, entry, new)


cdef bint sync_page(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil:
    # every entry of a table; returns whether Linux flushes for that
    cdef uint64_t index
    cdef bint flush = False
    for index in range(512):
        flush |= sync_entry(mmu, guest, owner, index, False)
    mmu.counters.synced += 1
    return flush


cdef bint protect_below(Mmu *mmu, uint32_t owner) noexcept nogil:
    # all unsync pages that can be reached from a table page become write-protected; returns whether one was not
    cdef const Sp *sp = &mmu.sp[owner]
    cdef uint64_t index = 0
    cdef uint32_t child
    cdef bint found = False
    if not sp.unsync_children:
        return False
    while next_unsync(sp, &index):
        child = child_at(mmu, owner, index)
        index += 1
        if child == NO_SP:
            continue
        if mmu.sp[child].unsync:
            found |= mmu_write_protect(mmu, mmu.sp[child].gfn, True)
        elif mmu.sp[child].level > 1:
            found |= protect_below(mmu, child)
    return found


cdef void sync_from(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil:
    # all of them are protected before the first is synchronized: what maps one of them is found read-only
    mmu.counters.flush_requests += protect_below(mmu, owner)
    mmu.counters.flush_requests += sync_below(mmu, guest, owner)


cdef bint sync_below(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil:
    # all unsync pages that can be reached from a table page are synchronized; returns whether Linux flushes for that
    cdef Sp *sp = &mmu.sp[owner]
    cdef uint64_t index = 0
    cdef uint32_t child
    cdef bint flush = False
    if not sp.unsync_children:
        return False
    while next_unsync(sp, &index):
        child = child_at(mmu, owner, index)
        if child != NO_SP and mmu.sp[child].unsync:
            mmu.sp[child].unsync = 0
            mmu.counters.unsync -= 1
            flush |= sync_page(mmu, guest, child)
        elif child != NO_SP and mmu.sp[child].level > 1:
            flush |= sync_below(mmu, guest, child)
        sp.unsync_child[index >> 6] &= ~(<uint64_t> 1 << (index & 63))
        sp.unsync_children -= 1
        index += 1
    return flush


cdef void sync_roots(Mmu *mmu, const Paging *guest) noexcept nogil:
    # a point at which the guest's TLB would be flushed
    cdef int i
    if mmu.vcpu.root_level == PAE_LEVELS:
        for i in range(4):
            if mmu.vcpu.pae_root[i] != NO_SP:
                sync_from(mmu, guest, mmu.vcpu.pae_root[i])
    elif mmu.vcpu.root != NO_SP:
        sync_from(mmu, guest, mmu.vcpu.root)


cdef void sync_every_root(Mmu *mmu, const Paging *guest) noexcept nogil:
    # a flush of all that the TLB holds: the next root is not synchronized again when it is loaded without a flush
    cdef int i
    sync_roots(mmu, guest)
    for i in range(3):
        if mmu.vcpu.previous[i] != NO_SP:
            sync_from(mmu, guest, mmu.vcpu.previous[i])


cdef void invlpg_below(Mmu *mmu, const Paging *guest, uint32_t owner, gva_t la) noexcept nogil:
    cdef TableIter it
    iter_start(mmu, &it, owner, la)
    while it.valid and it.level > 1:
        if not mmu.sp[it.owner].unsync_children or not iter_down(mmu, &it):
            return
    if not it.valid or not mmu.sp[it.owner].unsync:
        return
    if mmu.policy.invlpg_syncs_entry:
        mmu.counters.flush_requests += sync_entry(mmu, guest, it.owner, it.index, True)
        return
    if it.entry:
        mmu.counters.flush_requests += spte_present(it.entry)
        spte_set(mmu, it.owner, it.index, 0)
    prefetch_entry(mmu, guest, it.owner, it.index, False)


cdef void shadow_drop(Mmu *mmu, const Paging *guest, gva_t la) noexcept nogil:
    # what a #PF does to the entry that denied: an unsync entry is read again
    if mmu.policy.unsync and mmu.counters.unsync:
        invlpg_below(mmu, guest, mmu_top(mmu, la), la)


cdef void shadow_invlpg(Mmu *mmu, const Paging *guest, gva_t la) noexcept nogil:
    # INVLPG: below every root that is kept
    cdef int i
    if not mmu.policy.unsync or mmu.counters.unsync == 0:
        return
    invlpg_below(mmu, guest, mmu_top(mmu, la), la)
    for i in range(3):
        invlpg_below(mmu, guest, mmu.vcpu.previous[i], la)


# ---- emulated writes ----------------------------------------------------------------------------------------

cdef inline bint within_entry(const Sp *sp, gpa_t gpa, uint64_t nbytes) noexcept nogil:
    cdef uint64_t size = 4 if sp.role & ROLE_4_BYTE else 8
    if nbytes == 1:
        return gpa & (size - 1) == 0
    return nbytes >= 4 and (gpa ^ (gpa + nbytes - 1)) & ~(size - 1) == 0


cdef uint64_t written(const Mmu *mmu, gpa_t gpa, uint64_t nbytes) noexcept nogil:
    # the entry that a store of this size has made; 0 of one of part of an entry
    if not mem_holds(&mmu.guest, gpa, nbytes):
        return 0
    return mem_read64(&mmu.guest, gpa) if nbytes == 8 else mem_read32(&mmu.guest, gpa) if nbytes == 4 else 0


cdef bint drop_written(Mmu *mmu, uint32_t owner, gpa_t gpa, uint64_t nbytes) noexcept nogil:
    # the shadow of the guest's entry at gpa: of 4 bytes it may stand in another quadrant, and in a page directory it
    # is two entries. Returns whether one was present.
    cdef const Sp *sp = &mmu.sp[owner]
    cdef uint64_t index = (gpa & 0xFFF) >> 3, count = 1, entry
    cdef bint found = False
    if sp.role & ROLE_4_BYTE:
        index = (gpa & 0xFFF) >> 2
        if sp.level > 1:
            index *= 2
            count = 2
        if index >> 9 != sp.quadrant:
            return False
        index &= 511
    if sp.level > 1 and written(mmu, gpa, nbytes):
        mmu.counters.pde_zapped += count
    for index in range(index, index + count):
        entry = spte_at(mmu, owner, index)
        found |= spte_present(entry)
        if entry:
            spte_set(mmu, owner, index, 0)
    return found


cdef void guest_wrote(Mmu *mmu, gpa_t gpa, uint64_t nbytes) noexcept nogil:
    # the guest changed a shadowed table: a store within one entry drops that, anything else the whole table, and so
    # does writing without use (kvm_policy.md §2.2, mmu_pte_write)
    cdef gfn_t gfn = gpa >> 12
    cdef uint32_t i = mmu.bucket[gfn & mmu.bucket_mask]
    cdef Sp *sp
    cdef bint flooded = False, flush = False
    if mmu.indirect == 0:
        return
    if nbytes == 4 and not mmu.vcpu.role & ROLE_4_BYTE:      # half of an entry of 8 bytes
        gpa &= ~(<uint64_t> 7)
        nbytes = 8
    mmu.counters.pte_writes += 1
    while i:
        sp = &mmu.sp[i - 1]
        if sp.gfn == gfn and not sp.direct:
            if mmu.policy.flooding and sp.level > 1:
                sp.writes += 1
            if not within_entry(sp, gpa, nbytes) or sp.writes >= FLOOD:
                mmu.counters.flooded += 1
                sp.writes = GIVEN_UP
                flooded = True
            else:
                flush |= drop_written(mmu, i - 1, gpa, nbytes)
        i = sp.chain
    while flooded:                              # each may take others of the chain with it
        flooded = False
        i = mmu.bucket[gfn & mmu.bucket_mask]
        while i and not flooded:
            sp = &mmu.sp[i - 1]
            if sp.gfn == gfn and not sp.direct and sp.writes == GIVEN_UP:
                sp.writes = 0
                flooded = True
                flush |= mmu_zap(mmu, i - 1)
            else:
                i = sp.chain
    mmu.counters.flush_requests += flush


cdef void clear_writes(Mmu *mmu, gva_t la) noexcept nogil:
    # the tables that lead to la are in use
    cdef TableIter it
    iter_start(mmu, &it, mmu_top(mmu, la), la)
    while it.valid:
        mmu.sp[it.owner].writes = 0
        if not iter_down(mmu, &it):
            return

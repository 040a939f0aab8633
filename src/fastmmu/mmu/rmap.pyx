"""Reverse maps, and the one place where an entry changes (kvm_policy.md §2.3)."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_R, EPT_W, EPT_X, FRAME, PS, RW, US, XD, P
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Slot, slot_hpa, slot_of
from fastmmu.mmu.mmu cimport (
    Mmu, Sp, id_index, id_owner, mmu_dirty_flag, mmu_frame, mmu_written, rmap_next, sp_child, spte_id,
)
from fastmmu.mmu.spte cimport FORMAT_EPT, FORMAT_PAGING, SPTE_MARK, spte_dirty, spte_leaf, spte_may_write, spte_present
from fastmmu.paging.memory cimport mem_read64, mem_write64

cdef uint64_t KEY = 15ULL << 59                 # of an ordinary entry


# ---- the one place where an entry changes ------------------------------------------------------------------

cdef uint32_t *list_of(Mmu *mmu, const Sp *sp, uint64_t entry) noexcept nogil:
    # head of the list in which an entry is linked: rmap of the frame mapped, or parents of the table pointed to
    cdef uint64_t frame
    if spte_leaf(entry, sp.level):
        frame = mmu_frame(mmu, entry & FRAME)
        return &mmu.rmap[frame] if sp.level == 1 else &mmu.rmap_large[frame >> 9]
    return &mmu.sp[sp_child(mmu, entry)].parents


cdef inline uint32_t *count_of(Mmu *mmu, const Sp *sp, uint64_t entry) noexcept nogil:
    # of the page that a leaf entry maps: leaf entries there are
    cdef uint64_t frame = mmu_frame(mmu, entry & FRAME)
    return &mmu.rmap_n[frame] if sp.level == 1 else &mmu.rmap_large_n[frame >> 9]


cdef inline bint loses(const Mmu *mmu, uint64_t old, uint64_t new) noexcept nogil:
    # a cached translation of the old entry allows what the new one does not; more rights need no flush (ept.md §11)
    cdef uint64_t rights = EPT_R | EPT_W | EPT_X if mmu.format == FORMAT_EPT else P | RW | US
    cdef uint64_t place = FRAME | SPTE_MARK | PS | (0 if mmu.format == FORMAT_EPT else KEY)
    return (old & rights & ~new or (old ^ new) & place or (mmu.format == FORMAT_PAGING and new & ~old & XD)
            or (mmu.policy.modern and old & ~new & spte_dirty(mmu.format)))


cdef void mmu_change(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t new) noexcept nogil:
    # every change of an entry passes here: reverse maps, counters and the flush that it owes hang on it
    cdef Sp *sp = &mmu.sp[owner]
    cdef uint64_t at = sp.hpa + 8 * index
    cdef uint64_t old = mem_read64(mmu.mem, at)
    cdef uint32_t id = spte_id(owner, index)
    cdef uint32_t *head
    cdef uint32_t *count
    cdef uint32_t near, far
    cdef uint64_t dirty = mmu_dirty_flag(mmu)
    mem_write64(mmu.mem, at, new)
    mmu.counters.changes += 1
    if spte_present(old) and loses(mmu, old, new):
        mmu.flush = True
        mmu.counters.entries_zapped += 1
        if sp.level == 1 and old & dirty and (not new & dirty or (old ^ new) & FRAME):
            mmu_written(mmu, old)
    if spte_present(new) and spte_leaf(new, sp.level):
        mmu.counters.entries_filled += 1
    if not (old ^ new) & (FRAME | SPTE_MARK | PS):
        return
    if spte_present(old):
        head = list_of(mmu, sp, old)
        near = sp.prev[index]
        far = sp.next[index]
        if near:
            mmu.sp[id_owner(near)].next[id_index(near)] = far
        else:
            head[0] = far
        if far:
            mmu.sp[id_owner(far)].prev[id_index(far)] = near
        sp.present -= 1
        if spte_leaf(old, sp.level):
            mmu.counters.pages[sp.level - 1] -= 1
            count_of(mmu, sp, old)[0] -= 1
    if spte_present(new):
        head = list_of(mmu, sp, new)
        far = head[0]
        sp.next[index] = far
        sp.prev[index] = 0
        if far:
            mmu.sp[id_owner(far)].prev[id_index(far)] = id
        head[0] = id
        sp.present += 1
        if spte_leaf(new, sp.level):
            mmu.counters.pages[sp.level - 1] += 1
            count = count_of(mmu, sp, new)
            count[0] += 1
            if count[0] > mmu.counters.max_mmu_rmap_size and not mmu.policy.tdp:
                mmu.counters.max_mmu_rmap_size = count[0]


# ---- the entries that map a page -----------------------------------------------------------------------------

cdef void rmap_zap(Mmu *mmu, uint32_t *head) noexcept nogil:
    # every entry of the list
    while head[0]:
        mmu_change(mmu, id_owner(head[0]), id_index(head[0]), 0)


cdef void mmu_zap_gfn(Mmu *mmu, Slot *slot, gfn_t gfn) noexcept nogil:
    # the host takes the page away: no entry leads to it afterwards
    cdef uint64_t frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    rmap_zap(mmu, &mmu.rmap[frame])
    rmap_zap(mmu, &mmu.rmap_large[frame >> 9])


cdef bint mmu_write_protect(Mmu *mmu, gfn_t gfn, bint tracked) noexcept nogil:
    # every entry that maps the page becomes read-only. tracked: no fault gives the right back before the VMM says so,
    # and that of large entries goes as well; before Linux 6.1 these go themselves. Returns whether any
    # had it, or could have been given it.
    cdef Slot *slot = slot_of(&mmu.slots, gfn)
    cdef uint64_t frame
    cdef bint found
    if slot == NULL:
        return False
    frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    found = protect_list(mmu, mmu.rmap[frame], tracked)
    if tracked and mmu.policy.modern:
        found |= protect_list(mmu, mmu.rmap_large[frame >> 9], True)
    elif tracked:
        found |= mmu.rmap_large[frame >> 9] != 0
        rmap_zap(mmu, &mmu.rmap_large[frame >> 9])
    return found


cdef bint protect_list(Mmu *mmu, uint32_t id, bint tracked) noexcept nogil:
    # the entries of one reverse map, from its first on
    cdef uint64_t at, entry, lose
    cdef bint found = False
    while id:
        at = mmu.sp[id_owner(id)].hpa + 8 * id_index(id)
        entry = mem_read64(mmu.mem, at)
        lose = RW | (spte_may_write(mmu.format) if tracked else 0)
        if entry & RW:
            mmu.counters.write_protected += 1
            mmu.flush = True
            if not mmu.ad:
                mmu_written(mmu, entry)
        if entry & lose:
            found = True
            mem_write64(mmu.mem, at, entry & ~lose)
        id = rmap_next(mmu, id)
    return found

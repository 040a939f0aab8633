"""Reverse maps, and the one place where an entry changes (kvm_policy.md §2.3)."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, PS, level_shift
from fastmmu.arch.types cimport ACC_W, gfn_t
from fastmmu.mmu.invariant cimport CHECKS, invariant
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, slot_hpa
from fastmmu.mmu.mmu cimport (
    Mmu, Sp, id_index, id_owner, leaf_target, mmu_dirty_flag, mmu_frame, mmu_of_tables, mmu_owe_flush, mmu_touches,
    mmu_written, rmap_next, rmap_spte, spte_at, spte_id, table_target,
)
from fastmmu.mmu.spte cimport (
    SPTE_MMU_PRESENT, SpteFormat, spte_is_mmio, spte_leaf, spte_loses, spte_present, spte_tracked,
)
from fastmmu.paging.agile cimport AGILE_SWITCH
from fastmmu.paging.memory cimport mem_write64


# ---- where an entry is linked --------------------------------------------------------------------------------

cdef inline uint64_t spte_target(const Mmu *mmu, const Sp *sp, uint64_t entry) noexcept nogil:
    # where an entry is to be linked, as Sp.target has it: the frame or the table page to which it leads; 0: nowhere,
    # of one that is not present, and of what nobody made: it leads out of the slots, or to no table one level down
    cdef uint64_t frame
    cdef uint32_t child
    if not spte_present(entry):
        return 0
    if spte_leaf(entry, sp.level):
        frame = mmu_frame(mmu, entry & FRAME)
        return leaf_target(frame, sp.level) if frame < mmu.slots.frames and sp.level <= 2 else 0
    frame = (entry & FRAME) - mmu.pool_start
    if frame >= mmu.pool_end - mmu.pool_start:
        return 0
    child = mmu.owner[frame >> 12]
    if not mmu.sp[child].used or mmu.sp[child].hpa != entry & FRAME or mmu.sp[child].level != sp.level - 1:
        return 0
    return table_target(child)


cdef inline bint of_leaf(uint64_t target) noexcept nogil:
    return not target & 1


cdef inline uint32_t *list_of(Mmu *mmu, const Sp *sp, uint64_t target) noexcept nogil:
    # head of the list in which an entry is linked: rmap of the frame mapped, or parents of the table pointed to
    cdef uint64_t at = (target >> 1) - 1
    if not of_leaf(target):
        return &mmu.sp[at].parents
    return &mmu.rmap[at] if sp.level == 1 else &mmu.rmap_large[at]


cdef inline uint32_t *count_of(Mmu *mmu, const Sp *sp, uint64_t target) noexcept nogil:
    # of the page that a leaf entry maps: leaf entries there are
    cdef uint64_t at = (target >> 1) - 1
    return &mmu.rmap_n[at] if sp.level == 1 else &mmu.rmap_large_n[at]


cdef void unlink(Mmu *mmu, Sp *sp, uint32_t id, uint64_t old) noexcept nogil:
    cdef uint64_t target = sp.target[id_index(id)]
    cdef uint32_t *head = list_of(mmu, sp, target)
    cdef uint32_t near = sp.prev[id_index(id)], far = sp.next[id_index(id)]
    invariant(sp.present > 0 and (mmu.sp[id_owner(near)].next[id_index(near)] if near else head[0]) == id
              and (not far or mmu.sp[id_owner(far)].prev[id_index(far)] == id), b"an entry stands in its list", old, 0,
              sp.level)
    if near:
        mmu.sp[id_owner(near)].next[id_index(near)] = far
    else:
        head[0] = far
    if far:
        mmu.sp[id_owner(far)].prev[id_index(far)] = near
    sp.target[id_index(id)] = 0
    sp.present -= 1
    if of_leaf(target):
        mmu.counters.pages[sp.level - 1] -= 1
        count_of(mmu, sp, target)[0] -= 1
        invariant((count_of(mmu, sp, target)[0] == 0) == (head[0] == 0), b"a reverse map whose count is 0 is empty",
                  old, 0, sp.level)


cdef void link(Mmu *mmu, Sp *sp, uint32_t id, uint64_t target) noexcept nogil:
    cdef uint32_t *head = list_of(mmu, sp, target)
    cdef uint32_t *count
    cdef uint32_t far = head[0]
    sp.next[id_index(id)] = far
    sp.prev[id_index(id)] = 0
    if far:
        mmu.sp[id_owner(far)].prev[id_index(far)] = id
    head[0] = id
    sp.target[id_index(id)] = target
    sp.present += 1
    if of_leaf(target):
        mmu.counters.pages[sp.level - 1] += 1
        count = count_of(mmu, sp, target)
        count[0] += 1
        if count[0] > mmu.counters.max_mmu_rmap_size and not mmu.policy.tdp:
            mmu.counters.max_mmu_rmap_size = count[0]


# ---- the one place where an entry changes ---------------------------------------------------------------------

cdef inline bint loses(const Mmu *mmu, uint64_t old, uint64_t new) noexcept nogil:
    # D: the log of writes begins anew. Before Linux 6.1 nothing but the processor's log asks for it.
    return (spte_loses(mmu.format, old, new)
            or ((mmu.policy.loss_of_dirty_flushes or mmu.policy.pml) and old & ~new & mmu.format.dirty != 0))


cdef void check_spte(Mmu *mmu, const Sp *sp, uint64_t index, uint64_t old, uint64_t new) noexcept nogil:
    # an entry as it becomes
    cdef const SpteFormat *f = mmu.format
    cdef int level = sp.level
    cdef gfn_t gfn = sp.gfn + (index << 9 * (level - 1))
    cdef uint64_t within = (<uint64_t> 1 << level_shift(level)) - 1
    cdef const Sp *child
    invariant(sp.used, b"the table page is in use", old, new, level)
    invariant(1 <= level <= 5 and index < 512, b"level 1 to 5, index below 512", old, new, level)
    invariant(not sp.direct or sp.gfn << 12 & ((within << 9) | 511) == 0, b"the gfn of a direct table page is aligned",
              old, new, level)
    if not spte_present(new):
        invariant(new == 0 or (level == 1 and spte_is_mmio(f, new)), b"not present: empty, or an MMIO SPTE",
                  old, new, level)
        return
    if not spte_leaf(new, level) and new & AGILE_SWITCH:
        invariant(mmu.nested != NULL and not mmu_of_tables(mmu, new & FRAME), b"an entry switches to a guest's table",
                  old, new, level)
        return
    if not spte_leaf(new, level):
        child = &mmu.sp[mmu.owner[(new & FRAME) - mmu.pool_start >> 12]]
        invariant(child.used and child.hpa == new & FRAME, b"a table entry points to a table page in use", old, new,
                  level)
        invariant(child.level == level - 1, b"a table entry points one level down", old, new, level)
        return
    invariant(level <= 2, b"leaf entries map 4 KB or 2 MB", old, new, level)
    invariant(not new & f.write or new & f.may_write != 0, b"W implies MAY_WRITE", old, new, level)
    invariant(not new & f.may_write or new & f.host_write != 0, b"MAY_WRITE implies HOST_WRITE", old, new, level)
    invariant(new & FRAME & within == 0, b"the frame of a leaf is aligned", old, new, level)
    invariant(mmu.ad or new & (f.accessed | f.dirty) == 0, b"no A, D without flags", old, new, level)
    invariant(not mmu.ad or not spte_tracked(f, new), b"access-tracked only without A flags", old, new, level)
    if sp.direct and not mmu.anywhere:
        invariant(gfn_to_memslot(&mmu.slots, gfn) != NULL
                  and slot_hpa(gfn_to_memslot(&mmu.slots, gfn), gfn) == new & FRAME & ~within,
                  b"a leaf of a direct table page leads to the memory of its gfn", old, new, level)


cdef bint spte_changed(Mmu *mmu, const Sp *sp, uint64_t index, uint64_t old, uint64_t new,
                       bint cached_stays) noexcept nogil:
    # Every change of an entry ends here: the flush that it owes and what the host must hear of writes hang on it.
    # Returns whether rights went.
    cdef uint64_t dirty = mmu_dirty_flag(mmu)
    if CHECKS:
        check_spte(mmu, sp, index, old, new)
    mem_write64(mmu.mem, sp.hpa + 8 * index, new)
    mmu_touches(mmu, sp.hpa + 8 * index, 8, ACC_W)
    if not spte_present(old) or not loses(mmu, old, new):
        return False
    if sp.level == 1 and old & dirty and (not new & dirty or (old ^ new) & FRAME):
        mmu_written(mmu, old)
    if not cached_stays:
        mmu_owe_flush(mmu)
    return True


cdef void spte_set(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t new) noexcept nogil:
    # the entry is another one from now on, and is linked where that belongs
    cdef Sp *sp = &mmu.sp[owner]
    cdef uint64_t old = spte_at(mmu, owner, index)
    cdef uint64_t target = spte_target(mmu, sp, new)
    mmu.counters.changes += 1
    mmu.counters.entries_zapped += spte_changed(mmu, sp, index, old, new, False)
    mmu.counters.entries_filled += spte_present(new) and spte_leaf(new, sp.level)
    if target != sp.target[index]:
        if sp.target[index]:
            unlink(mmu, sp, spte_id(owner, index), old)
        if target:
            link(mmu, sp, spte_id(owner, index), target)


cdef void spte_update(Mmu *mmu, uint32_t id, uint64_t new) noexcept nogil:
    # rights, A or D of an entry change that leads where it did
    update(mmu, id, new, False)


cdef void spte_age(Mmu *mmu, uint32_t id, uint64_t new) noexcept nogil:
    # the same, of an entry that is to show the next use of its page: what is cached of it stays (kvm_policy.md §6)
    update(mmu, id, new, True)


cdef inline void update(Mmu *mmu, uint32_t id, uint64_t new, bint cached_stays) noexcept nogil:
    cdef uint64_t old = rmap_spte(mmu, id)
    invariant(not (old ^ new) & (FRAME | SPTE_MMU_PRESENT | PS), b"an update leaves the page", old, new,
              mmu.sp[id_owner(id)].level)
    spte_changed(mmu, &mmu.sp[id_owner(id)], id_index(id), old, new, cached_stays)


# ---- the entries that map a page -----------------------------------------------------------------------------

cdef void rmap_zap(Mmu *mmu, uint32_t *head) noexcept nogil:
    # every entry of the list
    while head[0]:
        spte_set(mmu, id_owner(head[0]), id_index(head[0]), 0)


cdef void mmu_zap_gfn(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # the host takes the page away: no entry leads to it afterwards
    cdef uint64_t frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    rmap_zap(mmu, &mmu.rmap[frame])
    rmap_zap(mmu, &mmu.rmap_large[frame >> 9])


cdef bint mmu_write_protect(Mmu *mmu, gfn_t gfn, bint tracked) noexcept nogil:
    # every entry that maps the page becomes read-only. tracked: no fault gives the right back before the VMM says so,
    # and that of large entries goes as well; before Linux 6.1 these go themselves. Returns whether any
    # had it, or could have been given it.
    cdef Memslot *slot = gfn_to_memslot(&mmu.slots, gfn)
    cdef uint64_t frame
    cdef bint found
    if slot == NULL:
        return False
    frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    found = protect_list(mmu, mmu.rmap[frame], tracked)
    if tracked and mmu.policy.large_protected:
        found |= protect_list(mmu, mmu.rmap_large[frame >> 9], True)
    elif tracked:
        found |= mmu.rmap_large[frame >> 9] != 0
        rmap_zap(mmu, &mmu.rmap_large[frame >> 9])
    return found


cdef bint protect_list(Mmu *mmu, uint32_t id, bint tracked) noexcept nogil:
    # the entries of one reverse map, from its first on
    cdef uint64_t entry, lose = mmu.format.write | (mmu.format.may_write if tracked else 0)
    cdef bint found = False
    while id:
        entry = rmap_spte(mmu, id)
        mmu.counters.write_protected += entry & mmu.format.write != 0
        if entry & lose:
            found = True
            spte_update(mmu, id, entry & ~lose)
        id = rmap_next(mmu, id)
    return found

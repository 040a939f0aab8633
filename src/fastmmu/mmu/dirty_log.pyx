"""Dirty logging: which pages the guest has written (kvm_policy.md §4.1, §4.2)."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.bits cimport PS
from fastmmu.arch.types cimport ACC_R, gfn_t, gpa_t, hpa_t
from fastmmu.mmu.memslots cimport Memslot, Ring, gfn_to_memslot, mark_dirty, slot_hpa, slot_huge
from fastmmu.mmu.mmu cimport (
    NO_SP, Mmu, MmuContext, id_index, id_owner, mmu_frame, mmu_owe_flush, mmu_quadrant, mmu_touches, rmap_next,
    rmap_spte, spte_at,
)
from fastmmu.mmu.pages cimport mmu_link, mmu_sp, mmu_zap
from fastmmu.mmu.rmap cimport mmu_write_protect, spte_set, spte_update
from fastmmu.mmu.spte cimport MAY_X, spte_executable, spte_leaf, spte_present
from fastmmu.paging.memory cimport mem_holds, mem_read64

cdef enum:
    RESERVED = 64               # of a ring: what the VMM may add before user space sees that it is full
    LOGGED = 512                # and what one reading of the processor's log may


# ---- protecting ---------------------------------------------------------------------------------------------

cdef void protect_large(Mmu *mmu, uint64_t frame, bint by_hand) noexcept nogil:
    # large entries lose the right to write, so that a write finds its way here and splits them. by_hand: of a log
    # cleared by hand, where KVM of late does not let a fast fault give it back, as for page tables.
    cdef uint32_t id = mmu.rmap_large[frame >> 9]
    cdef uint64_t entry, lose
    lose = mmu.format.write | (mmu.format.may_write if by_hand and mmu.policy.manual_log_for_good else 0)
    while id:
        entry = rmap_spte(mmu, id)
        if entry & lose:
            spte_update(mmu, id, entry & ~lose)
        id = rmap_next(mmu, id)


cdef void clear_dirty(Mmu *mmu, uint64_t head) noexcept nogil:
    # entries of one page lose D: the processor sets it again, and logs the page
    cdef uint32_t id = mmu.rmap[head]
    cdef uint64_t entry
    while id:
        entry = rmap_spte(mmu, id)
        if entry & mmu.format.dirty:
            spte_update(mmu, id, entry & ~mmu.format.dirty)
        id = rmap_next(mmu, id)


cdef inline bint by_processor(const Mmu *mmu) noexcept nogil:
    return mmu.policy.pml and mmu.format.pml and mmu.ad


cdef void dirty_protect_page(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    protect(mmu, slot, gfn)


cdef inline void protect(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # the next write to the page is seen
    if by_processor(mmu):
        clear_dirty(mmu, mmu_frame(mmu, slot_hpa(slot, gfn)))
    else:
        mmu_write_protect(mmu, gfn, False)


# ---- large pages --------------------------------------------------------------------------------------------

cdef bint split(Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil:
    # one large entry becomes 512 small ones with its rights; False where no table page is left
    cdef uint64_t entry = spte_at(mmu, owner, index), i
    cdef gfn_t gfn = mmu.sp[owner].gfn + (index << 9)
    cdef uint32_t child = mmu_sp(mmu, gfn, 1, True, mmu.sp[owner].access, mmu_quadrant(mmu, index))
    if child == NO_SP:
        return False
    entry &= ~PS
    if mmu.policy.nx_huge and mmu.sp[owner].access & MAY_X:
        entry = spte_executable(mmu.format, entry)
    for i in range(512):
        spte_set(mmu, child, i, entry + (i << 12))
    mmu_link(mmu, owner, index, child)
    mmu.counters.splits += 1
    return True


cdef void split_range(Mmu *mmu, const Memslot *slot, uint64_t first, uint64_t pages) noexcept nogil:
    cdef uint64_t page, frame = mmu_frame(mmu, slot.hpa) + first
    cdef uint32_t id
    for page in range(frame >> 9, (frame + pages + 511) >> 9):
        while mmu.rmap_large[page]:
            id = mmu.rmap_large[page]
            if not split(mmu, id_owner(id), id_index(id)):
                return


cdef void collapse_slot(Mmu *mmu, Memslot *slot) noexcept nogil:
    # small entries go where a large one could stand, of direct pages of every role; the next access makes it
    cdef gfn_t gfn
    cdef uint32_t i
    if not mmu.policy.collapse_by_size:
        collapse_compound(mmu, slot)
        return
    for i in range(mmu.n_sp):
        if not mmu.sp[i].used or mmu.sp[i].level != 1 or not mmu.sp[i].direct:
            continue
        gfn = mmu.sp[i].gfn
        if (gfn - slot.base_gfn >= slot.npages or gfn & 511 or not slot_huge(slot, gfn)
                or mmu.tables_in[mmu_frame(mmu, slot_hpa(slot, gfn)) >> 9]):
            continue
        if mmu.policy.tdp:
            mmu_zap(mmu, i)
        else:
            drop_leaves(mmu, i)


cdef void collapse_compound(Mmu *mmu, const Memslot *slot) noexcept nogil:
    # KVM before: small direct entries go wherever the host has a compound page, of the TDP MMU large ones as well
    # (kvm_policy.md §14)
    cdef uint32_t i
    cdef uint64_t index, entry
    cdef gfn_t gfn
    cdef int level
    for i in range(mmu.n_sp):
        level = mmu.sp[i].level
        if not mmu.sp[i].used or not mmu.sp[i].direct or level > (2 if mmu.policy.tdp else 1):
            continue
        for index in range(512):
            entry = spte_at(mmu, i, index)
            gfn = mmu.sp[i].gfn + (index << 9 * (level - 1))
            if (spte_present(entry) and spte_leaf(entry, level) and gfn - slot.base_gfn < slot.npages
                    and slot_huge(slot, gfn)):
                spte_set(mmu, i, index, 0)


cdef void drop_leaves(Mmu *mmu, uint32_t owner) noexcept nogil:
    # of a table page of level 1; MMIO SPTEs stay
    cdef uint64_t index
    for index in range(512):
        if spte_present(spte_at(mmu, owner, index)):
            spte_set(mmu, owner, index, 0)


# ---- the log ------------------------------------------------------------------------------------------------

cdef int dirty_open(Mmu *mmu, int number, bint manual, bint initial) noexcept nogil:
    # every write to the slot is to be logged from now on: 1, once dirty_protect has done its part; 0, where it was, or
    # nothing is protected at first; -1, where memory does not suffice
    cdef Memslot *slot = &mmu.slots.slot[number]
    cdef gfn_t gfn
    if slot.dirty != NULL:
        return 0
    slot.dirty = <uint64_t *> zeroed((slot.npages >> 6) + 1, sizeof(uint64_t))
    if slot.dirty == NULL:
        return -1
    slot.ring = &mmu.slots.ring if mmu.slots.ring.size else NULL
    slot.manual = manual
    slot.initial = manual and initial
    mmu.slots.generation += 1
    if slot.initial:                            # protected bit by bit, as the log is cleared
        for gfn in range(slot.npages):
            slot.dirty[gfn >> 6] |= <uint64_t> 1 << (gfn & 63)
        return 0
    return 1


cdef void dirty_protect(Mmu *mmu, int number) noexcept nogil:
    # every page of a slot
    cdef Memslot *slot = &mmu.slots.slot[number]
    cdef gfn_t gfn
    if mmu.policy.tdp and mmu.policy.eager_split:
        split_range(mmu, slot, 0, slot.npages)
    for gfn in range(slot.base_gfn, slot.base_gfn + slot.npages):
        protect(mmu, slot, gfn)
        protect_large(mmu, mmu_frame(mmu, slot_hpa(slot, gfn)), False)
    mmu_owe_flush(mmu)


cdef void dirty_stop(Mmu *mmu, int number) noexcept nogil:
    # rights that logging took come back one by one, by the faults that miss them
    cdef Memslot *slot = &mmu.slots.slot[number]
    zeroed_free(slot.dirty)
    slot.dirty = NULL
    slot.ring = NULL
    mmu.slots.generation += 1
    collapse_slot(mmu, slot)


cdef uint64_t dirty_get(Mmu *mmu, int number, uint64_t *out) noexcept nogil:
    # the bitmap, one bit a page, and its number of bits; the log begins anew unless it is cleared by hand
    cdef Memslot *slot = &mmu.slots.slot[number]
    cdef uint64_t i, bits, found = dirty_take(mmu, number, out)
    if not found or slot.manual:
        return found
    for i in range((slot.npages + 63) >> 6):
        bits = out[i]
        while bits:
            protect(mmu, slot, slot.base_gfn + (i << 6) + lowest(bits))
            bits &= bits - 1
    mmu_owe_flush(mmu)                          # cached translations may allow more than any entry still does (§6)
    return found


cdef uint64_t dirty_take(Mmu *mmu, int number, uint64_t *out) noexcept nogil:
    # the bitmap, and its number of bits; it is empty then, unless it is cleared by hand
    cdef Memslot *slot = &mmu.slots.slot[number]
    cdef uint64_t i, bits, found = 0
    dirty_collect(mmu)
    for i in range((slot.npages + 63) >> 6):
        bits = out[i] = slot.dirty[i]
        if not slot.manual:
            slot.dirty[i] = 0
        while bits:
            bits &= bits - 1
            found += 1
    return found


cdef void dirty_clear(Mmu *mmu, int number, uint64_t first, uint64_t pages) noexcept nogil:
    # of a log that is cleared by hand: these pages are logged anew
    cdef Memslot *slot = &mmu.slots.slot[number]
    cdef uint64_t page
    for page in range(first, first + pages):
        if not slot.dirty[page >> 6] >> (page & 63) & 1:
            continue
        slot.dirty[page >> 6] &= ~(<uint64_t> 1 << (page & 63))
        mmu_owe_flush(mmu)
        if slot.initial:
            if mmu.policy.tdp and mmu.policy.eager_split:
                split_range(mmu, slot, page, 1)
            protect_large(mmu, mmu_frame(mmu, slot_hpa(slot, slot.base_gfn + page)), True)
        protect(mmu, slot, slot.base_gfn + page)


cdef inline int lowest(uint64_t bits) noexcept nogil:
    cdef int n = 0
    while not bits >> n & 1:
        n += 1
    return n


cdef void dirty_collect(Mmu *mmu) noexcept nogil:
    # user space reads the rings of all vCPUs into its own bitmap, and what it has read is logged anew
    cdef MmuContext *c = mmu.contexts
    collect_ring(mmu, mmu.slots.ring)
    while c != NULL:
        collect_ring(mmu, &c.ring)
        c = c.next


cdef void collect_ring(Mmu *mmu, Ring *ring) noexcept nogil:
    cdef Memslot *slot
    cdef uint64_t page
    cdef uint32_t i
    for i in range(ring.used):
        slot = &mmu.slots.slot[ring.entry[i] >> 48]
        page = ring.entry[i] & ((<uint64_t> 1 << 48) - 1)
        if slot.dirty == NULL or page >= slot.npages:   # no longer logged, or gone
            continue
        slot.dirty[page >> 6] |= <uint64_t> 1 << (page & 63)
        protect(mmu, slot, slot.base_gfn + page)
        mmu_owe_flush(mmu)
    ring.used = 0


cdef void dirty_drain(Mmu *mmu, hpa_t log, uint64_t index) noexcept nogil:
    # what the processor logged: entries index + 1 to 511, all of them where the index has wrapped (ept.md §7)
    cdef uint64_t i
    cdef gpa_t gpa
    cdef Memslot *slot
    for i in range(index + 1 if index < 512 else 0, 512):
        if not mem_holds(mmu.mem, log + 8 * i, 8):
            return
        gpa = mem_read64(mmu.mem, log + 8 * i)
        mmu_touches(mmu, log + 8 * i, 8, ACC_R)
        slot = gfn_to_memslot(&mmu.slots, gpa >> 12)
        if slot != NULL:
            mark_dirty(slot, gpa >> 12)
            mmu.counters.logged += 1


cdef void nx_recover(Mmu *mmu, uint32_t ratio) noexcept nogil:
    # of the table pages in place of large pages that must not be executable one in `ratio` goes, those there longest
    # first: the next access may find a large page again, until code runs there again (kvm_policy.md §8)
    cdef uint64_t left = (mmu.counters.nx_lpage_splits + ratio - 1) // ratio
    cdef uint32_t i, first
    while left:
        first = NO_SP
        for i in range(mmu.n_sp):
            if mmu.sp[i].used and mmu.sp[i].split and (first == NO_SP or mmu.sp[i].split < mmu.sp[first].split):
                first = i
        if first == NO_SP:
            return
        mmu_zap(mmu, first)
        mmu.counters.nx_recovered += 1
        mmu_owe_flush(mmu)
        left -= 1


cdef int dirty_ring(Mmu *mmu, uint32_t size) noexcept nogil:
    # logs started from now on are rings, one a vCPU; -1 where memory does not suffice
    cdef MmuContext *c = mmu.contexts
    while c != NULL:
        if dirty_ring_of(mmu, c, size):
            return -1
        c = c.next
    return 0


cdef int dirty_ring_of(Mmu *mmu, MmuContext *c, uint32_t size) noexcept nogil:
    c.ring.entry = <uint64_t *> calloc(size, sizeof(uint64_t))
    if c.ring.entry == NULL:
        return -1
    c.ring.size = size
    c.ring.room = size - RESERVED - (LOGGED if mmu.policy.pml else 0)
    return 0

"""Entries by page, many at a time: made, looked up, cleared, and rights or flags taken from them.

Over EPT the entry of a gfn is where the walk of it ends. Under shadow paging several entries may map it, of any linear
address: its reverse map has them. A large entry is of each of its pages. What `out` says of a page is what was so
before the call, of all pages.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_IPAT, FRAME, level_shift
from fastmmu.arch.memtype cimport MT_WB
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.direct cimport (
    RET_PF_CONTINUE, RET_PF_RETRY, Fault, faultin_pfn, get_child_sp, large_ok, memory_type,
)
from fastmmu.mmu.dirty_log cimport split
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, mark_dirty, slot_hpa
from fastmmu.mmu.mmu cimport (
    NO_SP, Mmu, id_index, id_owner, mmu_frame, mmu_owe_flush, mmu_top, rmap_next, rmap_spte, spte_at, spte_id,
)
from fastmmu.mmu.pages cimport mmu_make_room, mmu_may_write, mmu_put, mmu_zap
from fastmmu.mmu.rmap cimport spte_set, spte_update
from fastmmu.mmu.spte cimport (
    MAY_ALL, MAY_U, MAY_W, MAY_X, SpteFormat, make_spte, spte_is_mmio, spte_leaf, spte_mmio, spte_mmio_current,
    spte_present,
)
from fastmmu.mmu.table_iter cimport TableIter, iter_find, iter_start

cdef inline void seek(const Mmu *mmu, TableIter *it, uint64_t page) noexcept nogil:
    # to the entry at which the walk of a page ends: of a neighbour of the page before it is in the same table page
    if it.valid and it.level == 1 and it.la >> 21 == page >> 9:
        it.la = page << 12
        it.index = page & 511
        it.entry = spte_at(mmu, it.owner, it.index)
    else:
        iter_find(mmu, it, page << 12)


cdef inline bint maps(const TableIter *it) noexcept nogil:
    return it.valid and spte_present(it.entry) and spte_leaf(it.entry, it.level)


# ---- looking up --------------------------------------------------------------------------------------------------

cdef int rights_of(const SpteFormat *f, uint64_t entry) noexcept nogil:
    cdef int rights = (RIGHT_R if entry & f.read else 0) | (RIGHT_W if entry & f.write else 0)
    rights |= RIGHT_U if entry & f.user else 0
    cdef bint runs = entry & f.execute != 0 if f.execute else entry & f.xd == 0
    return rights | RIGHT_X if runs else rights


cdef void entries_lookup(const Mmu *mmu, const uint64_t *page, uint64_t n, SpteRow *out) noexcept nogil:
    cdef const SpteFormat *f = mmu.format
    cdef TableIter it
    cdef SpteRow *row
    cdef uint64_t i, within
    it.valid = False
    for i in range(n):
        seek(mmu, &it, page[i])
        row = &out[i]
        row.entry, row.level = it.entry, <uint8_t> it.level
        row.mapped = maps(&it)
        row.mmio = it.valid and spte_is_mmio(f, it.entry) and spte_mmio_current(it.entry, mmu.slots.generation)
        row.hpa = 0
        row.rights = row.accessed = row.dirty = 0
        if row.mapped:
            within = (<uint64_t> 1 << level_shift(it.level)) - 1
            row.hpa = (it.entry & FRAME & ~within) | (page[i] << 12 & within)
            row.rights = <uint8_t> rights_of(f, it.entry)
            row.accessed = mmu.ad and it.entry & f.accessed != 0
            row.dirty = mmu.ad and it.entry & f.dirty != 0


# ---- making ------------------------------------------------------------------------------------------------------

cdef inline bint descend(Mmu *mmu, TableIter *it, gfn_t gfn, int level) noexcept nogil:
    # from the root to the entry of this level, through direct table pages, made where there are none; what a large
    # entry above it maps stays mapped, by small ones
    iter_start(mmu, it, mmu_top(mmu, gfn << 12), gfn << 12)
    while it.level > level:
        if it.level == 2 and spte_present(it.entry) and spte_leaf(it.entry, 2):
            if not split(mmu, it.owner, it.index):
                return False
            it.entry = spte_at(mmu, it.owner, it.index)
        if not get_child_sp(mmu, it, gfn & ~((<uint64_t> 1 << 9 * (it.level - 1)) - 1), True, MAY_ALL):
            return False
    return True


cdef int map_one(Mmu *mmu, gfn_t gfn, const uint64_t *pfn, const Mapping *m, uint8_t *out) noexcept nogil:
    cdef TableIter it
    cdef Fault f
    cdef int result, access = MAY_U | (MAY_X if m.rights & RIGHT_X else 0) | (MAY_W if m.rights & RIGHT_W else 0)
    cdef uint64_t hpa, cache, new
    out[0] = False
    f.gpa = f.la = gfn << 12
    f.write = m.rights & RIGHT_W
    f.fetch = f.present = False
    f.slot = NULL
    f.host_writable = True
    if pfn == NULL:
        result = faultin_pfn(mmu, &f)
        if result == RET_PF_RETRY:              # a page was copied: once more
            result = faultin_pfn(mmu, &f)
        if result != RET_PF_CONTINUE or (m.level == 2 and not large_ok(mmu, &f, gfn)):
            return ENTRIES_DONE
        hpa = slot_hpa(f.slot, gfn)
        if not f.host_writable or not mmu_may_write(mmu, gfn, True, False):
            access &= ~MAY_W
        if f.slot.dirty != NULL and access & MAY_W:
            mark_dirty(f.slot, gfn)
            mmu.counters.logged += 1
    else:
        hpa = pfn[0] << 12
    if m.level == 2 and mmu.policy.nx_huge:
        access &= ~MAY_X
    cache = m.memory_type if m.memory_type != OWN_TYPE else MT_WB << 3 | EPT_IPAT
    if m.memory_type == OWN_TYPE and f.slot != NULL:
        cache = memory_type(mmu, f.slot, gfn)
    mmu_make_room(mmu)
    if not descend(mmu, &it, gfn, m.level):
        return ENTRIES_NO_TABLES
    new = make_spte(mmu.format, hpa, m.level, access, False, False, f.host_writable, cache)
    mmu_put(mmu, it.owner, it.index, new if m.rights & RIGHT_R else new & ~mmu.format.read)
    out[0] = True
    return ENTRIES_DONE


cdef int entries_map(Mmu *mmu, const uint64_t *gfn, const uint64_t *pfn, uint64_t n, const Mapping *m, uint8_t *out,
                     uint64_t *done) noexcept nogil:
    # pfn: NULL, the memory behind a gfn is its slot's. out: it is mapped; False: there is no memory, or none that may
    # be mapped so. done: pages that were
    cdef uint64_t zapped = mmu.counters.entries_zapped, i
    cdef const uint64_t *memory = pfn
    cdef int end = ENTRIES_NO_ROOT if mmu_top(mmu, 0) == NO_SP else ENTRIES_DONE
    done[0] = 0
    while end == ENTRIES_DONE and done[0] < n:
        i = done[0]
        if pfn != NULL:
            memory = pfn + i
        end = map_one(mmu, gfn[i], memory, m, &out[i])
        done[0] += end == ENTRIES_DONE
    mmu.counters.flush_requests += mmu.counters.entries_zapped != zapped
    return end


cdef int entries_mark(Mmu *mmu, const uint64_t *gfn, uint64_t n, uint64_t *done) noexcept nogil:
    # each page is marked as MMIO
    cdef TableIter it
    cdef uint64_t zapped = mmu.counters.entries_zapped
    cdef int end = ENTRIES_NO_ROOT if mmu_top(mmu, 0) == NO_SP else ENTRIES_DONE
    done[0] = 0
    while end == ENTRIES_DONE and done[0] < n:
        mmu_make_room(mmu)
        if not descend(mmu, &it, gfn[done[0]], 1):
            end = ENTRIES_NO_TABLES
            break
        mmu_put(mmu, it.owner, it.index, spte_mmio(mmu.format, gfn[done[0]], mmu.slots.generation))
        mmu.counters.mmio_marked += 1
        done[0] += 1
    mmu.counters.flush_requests += mmu.counters.entries_zapped != zapped
    return end


# ---- the entries that map a page ---------------------------------------------------------------------------------

cdef uint32_t *heads(Mmu *mmu, gfn_t gfn, bint large) noexcept nogil:
    # of the reverse map of a page; NULL: no slot has it
    cdef Memslot *slot = gfn_to_memslot(&mmu.slots, gfn)
    cdef uint64_t frame
    if slot == NULL:
        return NULL
    frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    return &mmu.rmap_large[frame >> 9] if large else &mmu.rmap[frame]


cdef inline bint any_has(const Mmu *mmu, const uint32_t *head, uint64_t bits) noexcept nogil:
    # of a list of entries; no bits: it has one
    cdef uint32_t id = head[0] if head != NULL else 0
    while id:
        if not bits or rmap_spte(mmu, id) & bits:
            return True
        id = rmap_next(mmu, id)
    return False


cdef inline void lose(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t entry, uint64_t bits) noexcept nogil:
    if bits == 0:
        spte_set(mmu, owner, index, 0)
    elif entry & bits:
        spte_update(mmu, spte_id(owner, index), entry & ~bits)


cdef void all_lose(Mmu *mmu, uint32_t *head, uint64_t bits) noexcept nogil:
    cdef uint32_t id = head[0] if head != NULL else 0, after
    while id:
        after = rmap_next(mmu, id)
        lose(mmu, id_owner(id), id_index(id), rmap_spte(mmu, id), bits)
        id = after


cdef void entries_lose(Mmu *mmu, bint direct, const uint64_t *gfn, uint64_t n, uint64_t shown, uint64_t bits,
                       uint8_t *out) noexcept nogil:
    # The entries that map these pages lose bits; 0: they go, marks of MMIO with them. out: one of them had a bit of
    # `shown`; 0: there was one. A flush is owed where any had.
    cdef TableIter it
    cdef uint64_t i
    cdef bint found = False
    it.valid = False
    for i in range(n):
        if direct:
            seek(mmu, &it, gfn[i])
            out[i] = maps(&it) and (not shown or it.entry & shown != 0)
        else:
            out[i] = any_has(mmu, heads(mmu, gfn[i], False), shown) or any_has(mmu, heads(mmu, gfn[i], True), shown)
        found |= out[i]
    it.valid = False
    for i in range(n):
        if direct:
            seek(mmu, &it, gfn[i])
            if it.valid and it.entry and (bits == 0 or maps(&it)):
                lose(mmu, it.owner, it.index, it.entry, bits)
        else:
            all_lose(mmu, heads(mmu, gfn[i], False), bits)
            all_lose(mmu, heads(mmu, gfn[i], True), bits)
    if found:
        mmu.counters.flush_requests += 1
        mmu_owe_flush(mmu)


cdef void entries_zap_all(Mmu *mmu) noexcept nogil:
    # every table page but the root, which stays where it is, empty
    cdef uint32_t i
    for i in range(mmu.n_sp):
        if mmu.sp[i].used and i != mmu.vcpu.root:
            mmu_zap(mmu, i)
    mmu_zap(mmu, mmu.vcpu.root)
    mmu.out_of_tables = False
    mmu_owe_flush(mmu)

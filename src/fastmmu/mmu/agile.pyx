"""Agile paging: which of the guest's tables are walked nested, and the EPT beside the shadow tables (agile.md §4).

    written twice ──► agile_move: entries that led to its shadow lead to the table itself; what lay below it goes
    interval ends ──► agile_interval: those not written go back, their shadows filled as if they had never left
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.bits cimport FRAME, PS, RW, US, XD, A, P
from fastmmu.arch.types cimport Paging, gfn_t, hpa_t
from fastmmu.mmu.memslots cimport gfn_to_memslot, slot_hpa
from fastmmu.mmu.mmu cimport (
    NO_SP, Mmu, Sp, id_index, id_owner, mmu_frame, mmu_nested, mmu_owe_flush, rmap_next,
    rmap_spte, sp_child, spte_at, spte_id,
)
from fastmmu.mmu.pages cimport mmu_free, mmu_init, mmu_link, mmu_shadowed, mmu_sp, mmu_zap
from fastmmu.mmu.rmap cimport rmap_zap, spte_set, spte_update
from fastmmu.mmu.roots cimport mmu_set_root, mmu_vcpu_create
from fastmmu.mmu.spte cimport FORMAT_EPT, MAY_U, MAY_W, MAY_X, SPTE_MMU_PRESENT, spte_leaf, spte_present
from fastmmu.mmu.sync cimport guest_entry, prefetch_entry, rights_of
from fastmmu.paging.agile cimport AGILE_SWITCH


# ---- the two sets of tables -----------------------------------------------------------------------------------

cdef int agile_init(AgileMmu *a, Mmu *shadow, bint ad, hpa_t pool, hpa_t pool_end) noexcept nogil:
    # 0, or -1 where the host's memory does not suffice. Regions without large mappings are the same of both.
    cdef Mmu *ept = &a.ept
    if mmu_init(ept, shadow.mem, shadow.slots.base, shadow.slots.frames << 12, FORMAT_EPT, ad, pool, pool_end):
        return -1
    zeroed_free(ept.tables_in)
    ept.tables_in = shadow.tables_in
    ept.guest = shadow.guest
    a.wrote = <uint64_t *> zeroed(shadow.slots.frames + 1, sizeof(uint64_t))
    a.known = <uint8_t *> zeroed(shadow.slots.frames + 1, 1)
    shadow.nested = <uint32_t *> zeroed(shadow.slots.frames + 1, sizeof(uint32_t))
    a.looked = <uint64_t *> zeroed(shadow.slots.frames + 1, sizeof(uint64_t))
    if a.wrote == NULL or a.known == NULL or a.looked == NULL or shadow.nested == NULL:
        return -1
    a.now = 1
    ept.beside = shadow
    shadow.beside = ept
    mmu_vcpu_create(ept, &a.context)
    return mmu_set_root(ept, 0, True)


cdef void agile_free(AgileMmu *a, Mmu *shadow) noexcept nogil:
    a.ept.tables_in = NULL
    mmu_free(&a.ept)
    zeroed_free(a.wrote)
    zeroed_free(a.known)
    zeroed_free(a.looked)
    zeroed_free(shadow.nested)
    shadow.nested = NULL
    free(a.table)
    free(a)


cdef inline uint64_t frame_of(Mmu *mmu, gfn_t gfn) noexcept nogil:
    # of a page in a slot
    return mmu_frame(mmu, slot_hpa(gfn_to_memslot(&mmu.slots, gfn), gfn))


cdef inline uint32_t place_of(Mmu *mmu, uint64_t entry) noexcept nogil:
    # of the table to which an entry switches, as mmu_nested has it
    cdef uint64_t frame = mmu_frame(mmu, entry & FRAME)
    return mmu.nested[frame] if frame < mmu.slots.frames else 0


cdef inline bint switches(const Sp *sp, uint64_t entry) noexcept nogil:
    return sp.level > 1 and spte_present(entry) and not spte_leaf(entry, sp.level) and entry & AGILE_SWITCH != 0


cdef uint64_t agile_entry(Mmu *mmu, gfn_t gfn, int access) noexcept nogil:
    # the shadow entry that leads to the guest's own table, with the rights of all of the guest's above it
    cdef uint64_t entry = slot_hpa(gfn_to_memslot(&mmu.slots, gfn), gfn) | SPTE_MMU_PRESENT | AGILE_SWITCH | P | A
    if access & MAY_W:
        entry |= RW
    if access & MAY_U:
        entry |= US
    return entry if access & MAY_X else entry | XD


# ---- shadow to nested -----------------------------------------------------------------------------------------

cdef int number(AgileMmu *a, Mmu *mmu, gfn_t gfn, int level, uint64_t since) noexcept nogil:
    # the table is one of nested mode. -1: no memory, it stays as it is. Its page is mapped by small entries from now
    # on: a dirty flag is to be its own.
    cdef uint64_t frame = frame_of(mmu, gfn)
    cdef uint32_t room
    cdef void *grown
    cdef NestedTable *t
    if a.n == a.room:
        room = 2 * a.room + 64
        grown = realloc(a.table, room * sizeof(NestedTable))
        if grown == NULL:
            return -1
        a.table = <NestedTable *> grown
        a.room = room
    t = &a.table[a.n]
    memset(t, 0, sizeof(NestedTable))
    t.gfn = gfn
    t.level = level
    t.since = since
    a.n += 1
    mmu.nested[frame] = a.n
    mmu.tables_in[frame >> 9] += 1
    return 0


cdef void zap_tree(Mmu *mmu, uint32_t i) noexcept nogil:
    # a shadow page, and those to which it alone led
    cdef uint64_t index
    cdef uint32_t child
    for index in range(512):
        child = sp_child(mmu, i, index) if mmu.sp[i].level > 1 else <uint32_t> NO_SP
        if spte_at(mmu, i, index):
            spte_set(mmu, i, index, 0)
        if child != NO_SP and not mmu.sp[child].parents:
            zap_tree(mmu, child)
    if mmu.vcpu.root == i:
        mmu.vcpu.root = NO_SP
    mmu_zap(mmu, i)


cdef void leave_shadows(Mmu *mmu, gfn_t gfn) noexcept nogil:
    cdef uint32_t i = mmu.bucket[gfn & mmu.bucket_mask], id
    cdef Sp *sp
    while i:
        sp = &mmu.sp[i - 1]
        if sp.gfn != gfn or sp.direct:
            i = sp.chain
            continue
        while sp.parents:
            id = sp.parents
            spte_set(mmu, id_owner(id), id_index(id), agile_entry(mmu, gfn, sp.access))
        zap_tree(mmu, i - 1)
        i = mmu.bucket[gfn & mmu.bucket_mask]


cdef void small_pages(AgileMmu *a, Mmu *mmu, gfn_t gfn) noexcept nogil:
    cdef uint64_t region = frame_of(mmu, gfn) >> 9
    rmap_zap(mmu, &mmu.rmap_large[region])
    rmap_zap(&a.ept, &a.ept.rmap_large[region])


cdef void agile_move(AgileMmu *a, Mmu *mmu, gfn_t gfn, int level) noexcept nogil:
    # the table, and all that lies below it, is walked nested from now on; level: where it has no shadow
    cdef uint32_t i = mmu.bucket[gfn & mmu.bucket_mask]
    if mmu_nested(mmu, gfn):
        return
    while i:
        if mmu.sp[i - 1].gfn == gfn and not mmu.sp[i - 1].direct:
            level = max(level, mmu.sp[i - 1].level)
        i = mmu.sp[i - 1].chain
    if number(a, mmu, gfn, level, a.now):
        return
    mmu.counters.to_nested += 1
    leave_shadows(mmu, gfn)
    small_pages(a, mmu, gfn)
    mmu_owe_flush(mmu)


cdef void agile_wrote(AgileMmu *a, Mmu *mmu, gfn_t gfn) noexcept nogil:
    # a store into a shadowed table was emulated; where it cost the table its shadow, nothing is to be moved
    cdef uint64_t *w
    cdef uint64_t n
    if gfn_to_memslot(&mmu.slots, gfn) == NULL:
        return
    w = &a.wrote[frame_of(mmu, gfn)]
    n = min((w[0] & 0xFF) + 1 if w[0] >> 8 == a.now else 1, 0xFF)
    w[0] = a.now << 8 | n
    if n >= a.writes and mmu_shadowed(mmu, gfn):
        agile_move(a, mmu, gfn, 1)


# ---- roots ----------------------------------------------------------------------------------------------------

cdef bint agile_root(AgileMmu *a, Mmu *mmu, gfn_t gfn, int level) noexcept nogil:
    # of the guest's root table: it is walked nested
    cdef uint64_t frame
    if gfn_to_memslot(&mmu.slots, gfn) == NULL:
        return False
    frame = frame_of(mmu, gfn)
    if a.begin_nested and not a.known[frame] and not mmu_shadowed(mmu, gfn):
        agile_move(a, mmu, gfn, level)
    a.known[frame] = 1
    return mmu.nested[frame] != 0


cdef void agile_leave_root(Mmu *mmu) noexcept nogil:
    # no shadow root is in use; the one that was is among those kept
    if mmu.vcpu.root != NO_SP and mmu.policy.previous_roots:
        mmu.vcpu.previous[2] = mmu.vcpu.previous[1]
        mmu.vcpu.previous_pcid[2] = mmu.vcpu.previous_pcid[1]
        mmu.vcpu.previous[1] = mmu.vcpu.previous[0]
        mmu.vcpu.previous_pcid[1] = mmu.vcpu.previous_pcid[0]
        mmu.vcpu.previous[0] = mmu.vcpu.root
        mmu.vcpu.previous_pcid[0] = mmu.vcpu.root_pcid
    mmu.vcpu.root = NO_SP
    mmu.vcpu.rooted = True


# ---- nested to shadow -----------------------------------------------------------------------------------------

cdef bint cleaned(Mmu *mmu, uint32_t id, bint large) noexcept nogil:
    # an entry of a list says that its page was written; small ones say so no more. One that refuses writes has its D of
    # another time.
    cdef bint found = False
    cdef uint64_t entry
    while id:
        entry = rmap_spte(mmu, id)
        if entry & mmu.format.dirty:
            found |= entry & mmu.format.write != 0
            if not large:
                spte_update(mmu, id, entry & ~mmu.format.dirty)
                mmu_owe_flush(mmu)
        id = rmap_next(mmu, id)
    return found


cdef bint was_written(AgileMmu *a, Mmu *mmu, gfn_t gfn) noexcept nogil:
    # by entries of both sets of tables; asked again it is about the time from now on
    cdef uint64_t frame = frame_of(mmu, gfn)
    cdef bint found = cleaned(mmu, mmu.rmap[frame], False)
    found |= cleaned(&a.ept, a.ept.rmap[frame], False)
    found |= cleaned(mmu, mmu.rmap_large[frame >> 9], True)
    return found | cleaned(&a.ept, a.ept.rmap_large[frame >> 9], True)


cdef inline bint leads_down(const Paging *guest, uint64_t gpte, int level) noexcept nogil:
    # a guest's entry that was used, and leads to a table
    return (gpte & P and gpte & A and not (gpte & PS and guest.large_ok[level])
            and not gpte & guest.rsvd[level][gpte >> 7 & 1])


cdef void keep_below(AgileMmu *a, Mmu *mmu, const Paging *guest, gfn_t gfn, int level, uint64_t since) noexcept nogil:
    # of a table that goes back: those below it that were written stay in nested mode, each for itself. A second look in
    # an interval finds none; a guest's tables may lead to one another 512 times at each level
    cdef Sp table
    cdef uint64_t index, gpte = 0
    cdef uint64_t *looked = &a.looked[frame_of(mmu, gfn)]
    cdef gfn_t child
    if looked[0] >> 8 != a.now:
        looked[0] = a.now << 8
    if level < 2 or looked[0] >> level & 1:
        return
    looked[0] |= <uint64_t> 1 << level
    memset(&table, 0, sizeof(Sp))
    table.gfn = gfn
    for index in range(512):
        if not guest_entry(mmu, &table, index, &gpte):
            return
        if not leads_down(guest, gpte, level):
            continue
        child = (gpte & guest.frame) >> 12
        if gfn_to_memslot(&mmu.slots, child) == NULL or mmu_nested(mmu, child):
            continue
        if not was_written(a, mmu, child):
            keep_below(a, mmu, guest, child, level - 1, since)
        elif number(a, mmu, child, level - 1, since) == 0:
            leave_shadows(mmu, child)


cdef void meet(AgileMmu *a, Mmu *mmu, gfn_t root) noexcept nogil:
    # to which tables shadow tables lead, or CR3
    cdef uint32_t i, place = mmu_nested(mmu, root)
    cdef uint64_t index, entry
    cdef const Sp *sp
    for i in range(a.n):
        a.table[i].met = i + 1 == place
    for i in range(mmu.n_sp):
        sp = &mmu.sp[i]
        if not sp.used or sp.direct or sp.level < 2:
            continue
        for index in range(512):
            entry = spte_at(mmu, i, index)
            if switches(sp, entry):
                place = place_of(mmu, entry)
                if place:
                    a.table[place - 1].met = True


cdef bint goes_back(AgileMmu *a, Mmu *mmu, NestedTable *t, uint64_t ended) noexcept nogil:
    cdef bint found
    if a.back == BACK_ALL:
        return True
    found = was_written(a, mmu, t.gfn)
    return not found and t.since < ended


cdef void give_up(AgileMmu *a, Mmu *mmu, gfn_t gfn) noexcept nogil:
    cdef uint64_t frame = frame_of(mmu, gfn)
    mmu.nested[frame] = 0
    mmu.tables_in[frame >> 9] -= 1


cdef void back_again(AgileMmu *a, Mmu *mmu, const Paging *guest) noexcept nogil:
    # Entries that switch to a table which is one of nested mode no more: its shadow takes its place. Of another role
    # they go: what the table's shadow would be there the registers in force do not say.
    cdef uint32_t i, n = mmu.n_sp
    cdef uint64_t index, entry, gpte = 0
    cdef gfn_t gfn
    for i in range(n):
        if not mmu.sp[i].used or mmu.sp[i].direct or mmu.sp[i].level < 2:
            continue
        for index in range(512):
            entry = spte_at(mmu, i, index)
            if not switches(&mmu.sp[i], entry) or place_of(mmu, entry):
                continue
            if (mmu.sp[i].role == mmu.vcpu.role and guest_entry(mmu, &mmu.sp[i], index, &gpte)
                    and leads_down(guest, gpte, mmu.sp[i].level)):
                gfn = (gpte & guest.frame) >> 12
                if refill_child(mmu, guest, i, index, gfn, gpte):
                    continue
            spte_set(mmu, i, index, 0)


cdef bint refill_child(Mmu *mmu, const Paging *guest, uint32_t owner, uint64_t index, gfn_t gfn,
                       uint64_t gpte) noexcept nogil:
    # a table of the guest's that is used gets its shadow, of which each entry is set that was used; False: no page left
    cdef int access = mmu.sp[owner].access & rights_of(gpte)
    cdef uint64_t made = mmu.counters.tables_made
    cdef uint32_t child = mmu_sp(mmu, gfn, mmu.sp[owner].level - 1, False, access, 0)
    if child == NO_SP:
        return False
    mmu_link(mmu, owner, index, child)
    mmu.counters.refilled += 1
    if mmu.counters.tables_made != made:
        agile_refill(mmu, guest, child)
    return True


cdef void agile_refill(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil:
    cdef uint64_t index, gpte = 0
    cdef gfn_t gfn
    cdef int level = mmu.sp[owner].level
    for index in range(512):
        if spte_at(mmu, owner, index):
            continue
        if level == 1 and prefetch_entry(mmu, guest, owner, index, True):
            mmu.counters.refilled += 1
            spte_update(mmu, spte_id(owner, index), spte_at(mmu, owner, index) | mmu.format.accessed)
        if level == 1:
            continue
        if not guest_entry(mmu, &mmu.sp[owner], index, &gpte) or not leads_down(guest, gpte, level):
            continue
        gfn = (gpte & guest.frame) >> 12
        if gfn_to_memslot(&mmu.slots, gfn) == NULL:
            continue
        if mmu_nested(mmu, gfn):
            spte_set(mmu, owner, index, agile_entry(mmu, gfn, mmu.sp[owner].access & rights_of(gpte)))
            mmu.counters.refilled += 1
        elif not refill_child(mmu, guest, owner, index, gfn, gpte):
            return


cdef void agile_interval(AgileMmu *a, Mmu *mmu, const Paging *guest, gfn_t root, uint64_t now) noexcept nogil:
    # an interval has ended; `root` of the guest's tables, whose shadow the caller makes where it was nested
    cdef uint64_t ended = now - 1
    cdef uint32_t i, n = a.n, kept = 0
    cdef int level
    cdef NestedTable t
    a.now = now
    if a.back == BACK_NEVER or n == 0:
        return
    meet(a, mmu, root)
    for level in range(5, 0, -1):
        for i in range(n):
            if a.table[i].level != level:
                continue
            t = a.table[i]
            if not t.met:                       # nothing leads to it: another one is above it, or it is no table now
                give_up(a, mmu, t.gfn)
                a.table[i].level = 0
            elif goes_back(a, mmu, &a.table[i], ended):
                mmu.counters.to_shadow += 1
                give_up(a, mmu, t.gfn)
                a.table[i].level = 0
                if a.back == BACK_WRITTEN:
                    keep_below(a, mmu, guest, t.gfn, t.level, ended)
    for i in range(a.n):
        if a.table[i].level == 0:
            continue
        a.table[kept] = a.table[i]
        kept += 1
        mmu.nested[frame_of(mmu, a.table[kept - 1].gfn)] = kept
        small_pages(a, mmu, a.table[kept - 1].gfn)
    a.n = kept
    back_again(a, mmu, guest)
    mmu_owe_flush(mmu)


cdef void agile_forget(AgileMmu *a, Mmu *mmu) noexcept nogil:
    # the guest has left the paging modes that switch: what they had is made anew if they come back
    cdef uint32_t i
    cdef uint64_t index
    if a.n == 0:
        return
    for i in range(a.n):
        give_up(a, mmu, a.table[i].gfn)
    a.n = 0
    for i in range(mmu.n_sp):
        if not mmu.sp[i].used or mmu.sp[i].direct or mmu.sp[i].level < 2:
            continue
        for index in range(512):
            if switches(&mmu.sp[i], spte_at(mmu, i, index)):
                spte_set(mmu, i, index, 0)
    mmu_owe_flush(mmu)

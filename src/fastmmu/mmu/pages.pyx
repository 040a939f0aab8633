"""Table pages that the VMM owns: the pool, the hash, which pages the guest may not write unseen.

Free functions over the struct ``Mmu``; the machine layer drives them. Rules: kvm_policy.md §1-§4.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport ACC_W, Mem, gfn_t, gpa_t, hpa_t
from fastmmu.mmu.invariant cimport invariant
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, slot_hpa, slots_free
from fastmmu.mmu.mmu cimport (
    NO_SP, Mmu, MmuContext, Sp, child_at, id_index, id_owner, mmu_frame, mmu_owe_flush, mmu_touches, next_unsync,
    rmap_next, spte_at, spte_id,
)
from fastmmu.mmu.rmap cimport mmu_write_protect, rmap_zap, spte_set
from fastmmu.mmu.spte cimport spte_format, spte_table
from fastmmu.paging.huge_pages cimport BEGUN, HUGE_PAGE, huge_ahead, huge_begun

cdef enum:
    MIN_FREE = 5
    REFILL = 25


cdef int mmu_init(Mmu *mmu, Mem *mem, hpa_t base, uint64_t nbytes, int format, bint ad, hpa_t pool,
                  hpa_t pool_end) noexcept nogil:
    # base, nbytes: host memory for slots; format: MmuFormat; 0, or -1 where the host's memory does not suffice
    memset(mmu, 0, sizeof(Mmu))
    mmu.mem = mem
    mmu.slots.base = base
    mmu.slots.frames = nbytes >> 12
    mmu.format = spte_format(format)
    mmu.ad = ad
    mmu.pool = mmu.pool_start = pool
    mmu.pool_end = pool_end
    mmu.free_sp = NO_SP
    mmu.bucket_mask = 4095
    while mmu.bucket_mask < mmu.slots.frames:
        mmu.bucket_mask = 2 * mmu.bucket_mask + 1
    # untouched parts take no memory; heads are stored as id + 1, so that zero is "none"
    mmu.bucket = <uint32_t *> zeroed(mmu.bucket_mask + 1, sizeof(uint32_t))
    mmu.rmap = <uint32_t *> zeroed(mmu.slots.frames + 1, sizeof(uint32_t))
    mmu.rmap_large = <uint32_t *> zeroed((mmu.slots.frames >> 9) + 1, sizeof(uint32_t))
    mmu.tables_in = <uint16_t *> zeroed((mmu.slots.frames >> 9) + 1, sizeof(uint16_t))
    mmu.rmap_n = <uint32_t *> zeroed(mmu.slots.frames + 1, sizeof(uint32_t))
    mmu.rmap_large_n = <uint32_t *> zeroed((mmu.slots.frames >> 9) + 1, sizeof(uint32_t))
    mmu.slots.written = <uint64_t *> zeroed((mmu.slots.frames >> 6) + 1, sizeof(uint64_t))
    mmu.owner = <uint32_t *> zeroed((pool_end - pool >> 12) + 1, sizeof(uint32_t))
    if (mmu.bucket == NULL or mmu.rmap == NULL or mmu.rmap_large == NULL or mmu.tables_in == NULL
            or mmu.owner == NULL or mmu.rmap_n == NULL or mmu.rmap_large_n == NULL or mmu.slots.written == NULL):
        mmu_free(mmu)
        return -1
    return 0


cdef void mmu_free(Mmu *mmu) noexcept nogil:
    cdef MmuContext *c = mmu.contexts
    cdef uint32_t i
    while c != NULL:
        free(c.ring.entry)
        c = c.next
    for i in range(mmu.n_sp):
        free(mmu.sp[i].next)
    free(mmu.sp)
    free(mmu.freed)
    zeroed_free(mmu.bucket)
    zeroed_free(mmu.rmap)
    zeroed_free(mmu.rmap_large)
    zeroed_free(mmu.rmap_n)
    zeroed_free(mmu.rmap_large_n)
    zeroed_free(mmu.tables_in)
    zeroed_free(mmu.owner)
    slots_free(&mmu.slots)
    memset(mmu, 0, sizeof(Mmu))


cdef hpa_t mmu_hpa(Mmu *mmu, gpa_t gpa) noexcept nogil:
    # host-physical address behind a guest-physical one; all ones where no slot holds it
    cdef Memslot *slot = gfn_to_memslot(&mmu.slots, gpa >> 12)
    return ONES if slot == NULL else slot_hpa(slot, gpa >> 12) | gpa & 0xFFF


# ---- table pages ------------------------------------------------------------------------------------------

cdef hpa_t new_page(Mmu *mmu) noexcept nogil:
    cdef hpa_t hpa
    if mmu.n_freed:
        mmu.n_freed -= 1
        hpa = mmu.freed[mmu.n_freed]
    elif mmu.pool + 4096 <= mmu.pool_end:
        hpa = mmu.pool
        if not hpa & (HUGE_PAGE - 1) and hpa - mmu.pool_start >= HUGE_PAGE:
            huge_ahead(mmu.mem, hpa)            # tables fill it, as they filled the one before
        elif hpa - mmu.pool_start == BEGUN << 12:
            huge_begun(mmu.mem, mmu.pool_start)
        mmu.pool += 4096
    else:
        return ONES
    memset(mmu.mem.base + hpa, 0, 4096)
    mmu_touches(mmu, hpa, 4096, ACC_W)
    return hpa


cdef void give_back(Mmu *mmu, hpa_t hpa) noexcept nogil:
    cdef uint32_t room
    cdef void *grown
    if mmu.n_freed == mmu.freed_room:
        room = 2 * mmu.freed_room + 64
        grown = realloc(mmu.freed, room * sizeof(uint64_t))
        if grown == NULL:
            return                              # the page stays unused; nothing else depends on it
        mmu.freed = <uint64_t *> grown
        mmu.freed_room = room
    mmu.freed[mmu.n_freed] = hpa
    mmu.n_freed += 1


cdef uint32_t new_descriptor(Mmu *mmu) noexcept nogil:
    cdef uint32_t i = mmu.free_sp, room
    cdef void *grown
    cdef uint32_t *links
    if i != NO_SP:
        mmu.free_sp = mmu.sp[i].chain
        return i
    if mmu.n_sp >= 1 << 22:                     # ids of entries are 32 bits
        return NO_SP
    if mmu.n_sp == mmu.sp_room:
        room = 2 * mmu.sp_room + 256
        grown = realloc(mmu.sp, room * sizeof(Sp))
        if grown == NULL:
            return NO_SP
        mmu.sp = <Sp *> grown
        mmu.sp_room = room
    links = <uint32_t *> malloc(1024 * sizeof(uint32_t) + 512 * sizeof(uint64_t))
    if links == NULL:
        return NO_SP
    memset(links + 1024, 0, 512 * sizeof(uint64_t))     # of a page that goes they are 0 again
    i = mmu.n_sp
    mmu.n_sp += 1
    set_links(&mmu.sp[i], links)
    return i


cdef inline void set_links(Sp *sp, uint32_t *links) noexcept nogil:
    sp.next = links
    sp.prev = links + 512
    sp.target = <uint64_t *> (links + 1024)


cdef uint32_t mmu_find(const Mmu *mmu, gfn_t gfn, int level, bint direct, int access, int quadrant) noexcept nogil:
    cdef uint32_t i = mmu.bucket[gfn & mmu.bucket_mask]
    cdef const Sp *sp
    while i:
        sp = &mmu.sp[i - 1]
        if (sp.gfn == gfn and sp.level == level and sp.direct == direct and sp.access == access
                and sp.role == mmu.vcpu.role and sp.quadrant == quadrant):
            return i - 1
        i = sp.chain
    return NO_SP


cdef uint32_t mmu_sp(Mmu *mmu, gfn_t gfn, int level, bint direct, int access, int quadrant) noexcept nogil:
    # the table page of (gfn, role), made where there is none; NO_SP where no page is left. A guest's table lies in a
    # slot.
    cdef uint32_t i = mmu_find(mmu, gfn, level, direct, access, quadrant)
    cdef hpa_t hpa
    cdef uint32_t *links
    cdef Sp *sp
    if i != NO_SP:
        mmu.sp[i].writes = 0                    # it is in use again
        return i
    hpa = new_page(mmu)
    i = NO_SP if hpa == ONES else new_descriptor(mmu)
    if i == NO_SP:
        if hpa != ONES:
            give_back(mmu, hpa)
        mmu.out_of_tables = True
        return NO_SP
    sp = &mmu.sp[i]
    links = sp.next
    memset(sp, 0, sizeof(Sp))
    set_links(sp, links)
    sp.hpa = hpa
    sp.gfn = gfn
    sp.level = level
    sp.direct = direct
    sp.access = access
    sp.role = mmu.vcpu.role
    sp.quadrant = quadrant
    sp.used = 1
    if not direct:
        if level > 1:
            zap_unsync_of(mmu, gfn)
        if not mmu_shadowed(mmu, gfn):
            mmu.tables_in[mmu_frame(mmu, mmu_hpa(mmu, gfn << 12)) >> 9] += 1
        mmu.counters.flush_requests += mmu_write_protect(mmu, gfn, True)
        if mmu.beside != NULL:
            mmu_write_protect(mmu.beside, gfn, True)
        mmu.indirect += 1
    sp.chain = mmu.bucket[gfn & mmu.bucket_mask]
    mmu.bucket[gfn & mmu.bucket_mask] = i + 1
    mmu.owner[hpa - mmu.pool_start >> 12] = i
    sp.born = <uint32_t> mmu.counters.tables_made
    mmu.counters.tables_made += 1
    return i


cdef void zap_unsync_of(Mmu *mmu, gfn_t gfn) noexcept nogil:
    # a table of an upper level is write-protected for good: an unsync page of the same table would never be synced
    cdef uint32_t i = mmu.bucket[gfn & mmu.bucket_mask], after
    cdef uint64_t zaps = mmu.counters.zaps
    while i:
        after = mmu.sp[i - 1].chain
        if mmu.sp[i - 1].gfn == gfn and mmu.sp[i - 1].unsync:
            mmu_zap(mmu, i - 1)
        i = after
    mmu.counters.flush_requests += mmu.counters.zaps != zaps


# ---- which pages the guest may not write unseen -------------------------------------------------------------

cdef bint mmu_shadowed(const Mmu *mmu, gfn_t gfn) noexcept nogil:
    # the page is a guest table that is shadowed
    cdef uint32_t i = mmu.bucket[gfn & mmu.bucket_mask]
    while i:
        if mmu.sp[i - 1].gfn == gfn and not mmu.sp[i - 1].direct:
            return True
        i = mmu.sp[i - 1].chain
    return False


cdef bint mmu_tracked(const Mmu *mmu, gfn_t gfn) noexcept nogil:
    # writes to the page are emulated, always: shadowed above level 1, or at any level without unsync
    cdef uint32_t i
    if mmu.indirect == 0:
        return mmu.nested == NULL and mmu.beside != NULL and mmu_tracked(mmu.beside, gfn)
    i = mmu.bucket[gfn & mmu.bucket_mask]
    while i:
        if (mmu.sp[i - 1].gfn == gfn and not mmu.sp[i - 1].direct
                and (mmu.sp[i - 1].level > 1 or not mmu.policy.unsync)):
            return True
        i = mmu.sp[i - 1].chain
    return False


cdef bint mmu_may_write(Mmu *mmu, gfn_t gfn, bint can_unsync, bint prefetch) noexcept nogil:
    # whether an entry may map the page writable; shadowed page tables become unsync for that (kvm_policy.md §2.2)
    cdef uint32_t i
    cdef Sp *sp
    if mmu.indirect == 0:
        return not mmu_tracked(mmu, gfn)
    if mmu_tracked(mmu, gfn):
        return False
    i = mmu.bucket[gfn & mmu.bucket_mask]
    while i:
        sp = &mmu.sp[i - 1]
        if sp.gfn == gfn and not sp.direct:
            if not can_unsync or (prefetch and not sp.unsync):
                return False
            if not sp.unsync:
                sp.unsync = 1
                mmu.counters.unsynced += 1
                mmu.counters.unsync += 1
                mark_parents(mmu, sp)
        i = sp.chain
    return True


cdef void mark_parents(Mmu *mmu, const Sp *sp) noexcept nogil:
    cdef uint32_t id = sp.parents
    while id:
        mark_unsync(mmu, id)
        id = rmap_next(mmu, id)


cdef void mark_unsync(Mmu *mmu, uint32_t id) noexcept nogil:
    # below this entry there is an unsync page
    cdef Sp *sp = &mmu.sp[id_owner(id)]
    cdef uint64_t index = id_index(id), bit = <uint64_t> 1 << (index & 63)
    if sp.unsync_child[index >> 6] & bit:
        return
    sp.unsync_child[index >> 6] |= bit
    sp.unsync_children += 1
    if sp.unsync_children == 1:
        mark_parents(mmu, sp)


cdef void mmu_link(Mmu *mmu, uint32_t owner, uint64_t index, uint32_t child) noexcept nogil:
    spte_set(mmu, owner, index, spte_table(mmu.format, mmu.sp[child].hpa, mmu.ad))
    if mmu.sp[child].unsync or mmu.sp[child].unsync_children:
        mark_unsync(mmu, spte_id(owner, index))


# ---- forgetting -------------------------------------------------------------------------------------------

cdef void empty(Mmu *mmu, uint32_t i) noexcept nogil:
    cdef uint64_t index
    for index in range(512):
        if spte_at(mmu, i, index):
            spte_set(mmu, i, index, 0)
    if mmu.sp[i].present:                       # past the VMM somebody cleared entries
        for index in range(512):
            if mmu.sp[i].target[index]:
                spte_set(mmu, i, index, 0)
    invariant(mmu.sp[i].present == 0, b"an empty table page has no present entry", 0, 0, mmu.sp[i].level)


cdef bint has_root(const MmuContext *c, uint32_t i) noexcept nogil:
    return (i == c.root or i == c.previous[0] or i == c.previous[1] or i == c.previous[2]
            or i == c.pae_root[0] or i == c.pae_root[1] or i == c.pae_root[2] or i == c.pae_root[3])


cdef bint in_use(const Mmu *mmu, uint32_t i) noexcept nogil:
    # a root of any vCPU
    cdef const MmuContext *c = mmu.contexts
    while c != NULL:
        if has_root(c, i):
            return True
        c = c.next
    return False


cdef bint drop_previous(MmuContext *c, uint32_t i) noexcept nogil:
    # returns whether the page was kept as a root
    cdef int kept
    cdef bint found = False
    for kept in range(3):
        if c.previous[kept] == i:
            c.previous[kept] = NO_SP
            found = True
    return found


cdef bint zap_unsync_below(Mmu *mmu, uint32_t i) noexcept nogil:
    # nothing would find these pages at the next flush point (kvm_policy.md §2.5); returns whether any went
    cdef Sp *sp = &mmu.sp[i]
    cdef uint64_t index = 0
    cdef uint32_t child
    cdef bint listed = False
    if not sp.unsync_children:
        return False
    while next_unsync(sp, &index):
        child = child_at(mmu, i, index)
        index += 1
        if child == NO_SP:
            continue
        listed |= mmu_zap(mmu, child) if mmu.sp[child].unsync else zap_unsync_below(mmu, child)
    return listed


cdef bint mmu_zap(Mmu *mmu, uint32_t i) noexcept nogil:
    # The table page goes: its entries, those that point to it, and itself unless it is a root in use. Returns whether
    # Linux has a page to free, so that it flushes: one that is still a root is freed later (kvm_policy.md §14)
    cdef Sp *sp = &mmu.sp[i]
    cdef MmuContext *c = mmu.contexts
    cdef uint32_t *link
    cdef bint root = False, used, listed = False
    mmu.counters.zaps += 1
    if not sp.direct:
        listed = zap_unsync_below(mmu, i)
    empty(mmu, i)
    while c != NULL:
        root |= drop_previous(c, i)
        c = c.next
    used = in_use(mmu, i)
    if root or used:                            # freed before the next VM entry
        mmu.counters.zaps += 1
        mmu.counters.flush_requests += 1
    if used:
        mmu.counters.roots_emptied += 1
        return listed
    mmu.counters.tables_zapped += 1
    rmap_zap(mmu, &sp.parents)
    link = &mmu.bucket[sp.gfn & mmu.bucket_mask]
    while link[0] != i + 1:
        link = &mmu.sp[link[0] - 1].chain
    link[0] = sp.chain
    sp.used = 0
    if sp.split:
        mmu.counters.nx_lpage_splits -= 1
    if sp.unsync:
        mmu.counters.unsync -= 1
    if not sp.direct:
        mmu.indirect -= 1
        if not mmu_shadowed(mmu, sp.gfn):
            mmu.tables_in[mmu_frame(mmu, mmu_hpa(mmu, sp.gfn << 12)) >> 9] -= 1
    give_back(mmu, sp.hpa)
    sp.chain = mmu.free_sp
    mmu.free_sp = i
    return listed or not root


cdef void mmu_put(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t new) noexcept nogil:
    # a leaf, or a mark; the table page that stood there goes (handle_changed_spte of the TDP MMU)
    cdef uint32_t child = child_at(mmu, owner, index) if mmu.sp[owner].level > 1 else <uint32_t> NO_SP
    spte_set(mmu, owner, index, new)
    if child != NO_SP and not mmu.sp[child].parents:
        mmu_zap(mmu, child)


cdef void mmu_forget_roots(MmuContext *c) noexcept nogil:
    c.rooted = False
    c.root = c.previous[0] = c.previous[1] = c.previous[2] = NO_SP
    c.pae_root[0] = c.pae_root[1] = c.pae_root[2] = c.pae_root[3] = NO_SP


cdef void mmu_zap_all(Mmu *mmu) noexcept nogil:
    # every table page goes; the caller sets a root again before the guest runs, the other vCPUs when they run next
    cdef MmuContext *c = mmu.contexts
    cdef uint32_t i
    while c != NULL:
        mmu_forget_roots(c)
        c = c.next
    for i in range(mmu.n_sp):
        if mmu.sp[i].used:
            mmu_zap(mmu, i)
    mmu.out_of_tables = False
    mmu_owe_flush(mmu)


cdef void mmu_make_room(Mmu *mmu) noexcept nogil:
    # before a fault: where few table pages are left of those allowed, the oldest go (kvm_policy.md §2.5)
    cdef uint64_t live = mmu.counters.tables_made - mmu.counters.tables_zapped
    cdef uint64_t spare = mmu.policy.limit - live if mmu.policy.limit > live else 0
    cdef uint64_t zapped = mmu.counters.tables_zapped, enough = zapped + REFILL - spare
    cdef uint32_t i, oldest, requests = 0
    if mmu.policy.limit == 0 or mmu.policy.tdp or spare >= MIN_FREE:
        return
    while mmu.counters.tables_zapped < enough:
        oldest = NO_SP
        for i in range(mmu.n_sp):
            if mmu.sp[i].used and not in_use(mmu, i) and (oldest == NO_SP or mmu.sp[i].born < mmu.sp[oldest].born):
                oldest = i
        if oldest == NO_SP:
            break
        zapped = mmu.counters.tables_zapped
        mmu_zap(mmu, oldest)
        mmu.counters.recycled += mmu.counters.tables_zapped - zapped
        requests = 1
    mmu.counters.flush_requests += requests

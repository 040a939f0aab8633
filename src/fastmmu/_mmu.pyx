"""Tables that the VMM owns: table pages, reverse maps, the one place where an entry changes.

Free functions over the struct ``Mmu``; the machine layer drives them. Rules: kvm_policy.md §1-§4.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from fastmmu._bits cimport (
    EPT_A, EPT_D, EPT_IPAT, EPT_R, EPT_W, EPT_X, FRAME, ONES, PS, RW, US, XD, A, D, P,
)
from fastmmu._memory cimport mem_read64, mem_write64
from fastmmu._types cimport Mem

# A leaf entry says in a bit that the processor ignores that it is one (bit 11; ept.md §2, paging.md §3.3).
cdef uint64_t LEAF_MARK = 1 << 11
cdef uint64_t EPT_WRITE_BACK = 6 << 3


cdef int mmu_init(Mmu *mmu, Mem *mem, Slot slot, int format, int backing, bint ad,
                  uint64_t pool, uint64_t pool_end) noexcept nogil:
    # 0, or -1 where the host's memory does not suffice
    memset(mmu, 0, sizeof(Mmu))
    mmu.mem = mem
    mmu.slot = slot
    mmu.guest.base = mem.base + slot.hpa
    mmu.guest.nbytes = slot.npages << 12
    mmu.format = format
    mmu.backing = backing
    mmu.ad = ad
    mmu.pool = mmu.pool_start = pool
    mmu.pool_end = pool_end
    mmu.free_sp = NO_SP
    mmu.root = NO_SP
    cdef uint64_t npages = slot.base_gfn + slot.npages
    # calloc: untouched parts take no memory; heads are stored as id + 1, so that zero is "none"
    mmu.by_gfn = <uint32_t *> calloc(npages + 1, sizeof(uint32_t))
    mmu.rmap = <uint32_t *> calloc(npages + 1, sizeof(uint32_t))
    mmu.rmap_large = <uint32_t *> calloc((npages >> 9) + 1, sizeof(uint32_t))
    mmu.tables_in = <uint16_t *> calloc((npages >> 9) + 1, sizeof(uint16_t))
    mmu.owner = <uint32_t *> calloc((pool_end - pool >> 12) + 1, sizeof(uint32_t))
    if (mmu.by_gfn == NULL or mmu.rmap == NULL or mmu.rmap_large == NULL or mmu.tables_in == NULL
            or mmu.owner == NULL):
        mmu_free(mmu)
        return -1
    return 0


cdef void mmu_free(Mmu *mmu) noexcept nogil:
    cdef uint32_t i
    for i in range(mmu.n_sp):
        free(mmu.sp[i].next)
    free(mmu.sp)
    free(mmu.freed)
    free(mmu.by_gfn)
    free(mmu.rmap)
    free(mmu.rmap_large)
    free(mmu.tables_in)
    free(mmu.owner)
    memset(mmu, 0, sizeof(Mmu))


cdef uint64_t mmu_hpa(const Mmu *mmu, uint64_t gpa) noexcept nogil:
    # host-physical address behind a guest-physical one; all ones where no slot holds it
    cdef uint64_t gfn = gpa >> 12
    if gfn - mmu.slot.base_gfn >= mmu.slot.npages:
        return ONES
    return mmu.slot.hpa + (gpa - (mmu.slot.base_gfn << 12))


# ---- table pages ------------------------------------------------------------------------------------------

cdef uint64_t new_page(Mmu *mmu) noexcept nogil:
    cdef uint64_t hpa
    if mmu.n_freed:
        mmu.n_freed -= 1
        hpa = mmu.freed[mmu.n_freed]
    elif mmu.pool + 4096 <= mmu.pool_end:
        hpa = mmu.pool
        mmu.pool += 4096
    else:
        return ONES
    memset(mmu.mem.base + hpa, 0, 4096)
    return hpa


cdef void give_back(Mmu *mmu, uint64_t hpa) noexcept nogil:
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
    links = <uint32_t *> malloc(1024 * sizeof(uint32_t))
    if links == NULL:
        return NO_SP
    i = mmu.n_sp
    mmu.n_sp += 1
    mmu.sp[i].next = links
    mmu.sp[i].prev = links + 512
    return i


cdef uint32_t mmu_sp(Mmu *mmu, uint64_t gfn, int level, bint direct, int access) noexcept nogil:
    # the table page of (gfn, role), made where there is none; NO_SP where no page is left
    cdef uint32_t i = mmu.by_gfn[gfn]
    cdef uint64_t hpa
    cdef Sp *sp
    while i:
        sp = &mmu.sp[i - 1]
        if sp.level == level and sp.direct == direct and sp.access == access:
            return i - 1
        i = sp.chain
    hpa = new_page(mmu)
    i = NO_SP if hpa == ONES else new_descriptor(mmu)
    if i == NO_SP:
        if hpa != ONES:
            give_back(mmu, hpa)
        mmu.out_of_tables = True
        return NO_SP
    sp = &mmu.sp[i]
    sp.hpa = hpa
    sp.gfn = gfn
    sp.level = level
    sp.direct = direct
    sp.access = access
    sp.used = 1
    sp.present = 0
    sp.parents = 0
    if not direct and not mmu_tracked(mmu, gfn):
        mmu.tables_in[gfn >> 9] += 1
        write_protect(mmu, gfn)
    sp.chain = mmu.by_gfn[gfn]
    mmu.by_gfn[gfn] = i + 1
    mmu.owner[hpa - mmu.pool_start >> 12] = i
    mmu.counters.tables_made += 1
    return i


cdef bint mmu_tracked(const Mmu *mmu, uint64_t gfn) noexcept nogil:
    # the page is a guest table that is shadowed: the guest may not write it unseen (kvm_policy.md §2.2)
    return (gfn - mmu.slot.base_gfn < mmu.slot.npages and mmu.tables_in[gfn >> 9] != 0
            and shadowed(mmu, gfn))


cdef void write_protect(Mmu *mmu, uint64_t gfn) noexcept nogil:
    # every entry that maps the page becomes read-only; large ones go, and come back as small ones
    cdef uint32_t id = mmu.rmap[gfn], after
    cdef Sp *sp
    cdef uint64_t at, entry
    while id:
        sp = &mmu.sp[(id - 1) >> 9]
        after = sp.next[(id - 1) & 511]
        at = sp.hpa + 8 * ((id - 1) & 511)
        entry = mem_read64(mmu.mem, at)
        if entry & RW:
            mem_write64(mmu.mem, at, entry & ~RW)
            mmu.counters.write_protected += 1
            mmu.flush = True
        id = after
    while mmu.rmap_large[gfn >> 9]:
        id = mmu.rmap_large[gfn >> 9] - 1
        changed(mmu, id >> 9, id & 511, 0)


# ---- the one place where an entry changes ------------------------------------------------------------------

cdef inline bint entry_present(const Mmu *mmu, uint64_t entry) noexcept nogil:
    return entry & (7 if mmu.format == FORMAT_EPT else 1) != 0


cdef uint32_t *list_of(Mmu *mmu, const Sp *sp, uint64_t entry) noexcept nogil:
    # head of the list in which an entry is linked: rmap of the gfn mapped, or parents of the table pointed to
    cdef uint64_t gfn
    if entry & LEAF_MARK:
        gfn = ((entry & FRAME) - mmu.slot.hpa >> 12) + mmu.slot.base_gfn
        return &mmu.rmap[gfn] if sp.level == 1 else &mmu.rmap_large[gfn >> 9]
    return &mmu.sp[child_of(mmu, entry)].parents


cdef inline uint32_t child_of(const Mmu *mmu, uint64_t entry) noexcept nogil:
    # table page that a non-leaf entry points to
    return mmu.owner[(entry & FRAME) - mmu.pool_start >> 12]


cdef inline bint loses(const Mmu *mmu, uint64_t old, uint64_t new) noexcept nogil:
    # a cached translation of the old entry allows what the new one does not; more rights need no flush (ept.md §11)
    cdef uint64_t rights = EPT_R | EPT_W | EPT_X if mmu.format == FORMAT_EPT else P | RW | US
    cdef uint64_t place = FRAME | LEAF_MARK | PS
    return old & rights & ~new or (old ^ new) & place or (mmu.format == FORMAT_PAGING and new & ~old & XD)


cdef void changed(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t new) noexcept nogil:
    # every change of an entry passes here: reverse maps, counters and the flush that it owes hang on it
    cdef Sp *sp = &mmu.sp[owner]
    cdef uint64_t at = sp.hpa + 8 * index
    cdef uint64_t old = mem_read64(mmu.mem, at)
    cdef uint32_t id = (owner << 9) + <uint32_t> index + 1
    cdef uint32_t *head
    cdef uint32_t near, far
    if entry_present(mmu, old):
        head = list_of(mmu, sp, old)
        near = sp.prev[index]
        far = sp.next[index]
        if near:
            mmu.sp[(near - 1) >> 9].next[(near - 1) & 511] = far
        else:
            head[0] = far
        if far:
            mmu.sp[(far - 1) >> 9].prev[(far - 1) & 511] = near
        sp.present -= 1
        if loses(mmu, old, new):
            mmu.flush = True
            mmu.counters.entries_zapped += 1
    mem_write64(mmu.mem, at, new)
    mmu.counters.changes += 1
    if entry_present(mmu, new):
        head = list_of(mmu, sp, new)
        far = head[0]
        sp.next[index] = far
        sp.prev[index] = 0
        if far:
            mmu.sp[(far - 1) >> 9].prev[(far - 1) & 511] = id
        head[0] = id
        sp.present += 1
        if new & LEAF_MARK:
            mmu.counters.entries_filled += 1


cdef uint64_t mmu_leaf(const Mmu *mmu, uint64_t hpa, int level, int access) noexcept nogil:
    # an entry that maps a page (kvm_policy.md §3.3): A at once, D with the right to write
    cdef uint64_t entry = hpa | LEAF_MARK
    if level > 1:
        entry |= PS
    if mmu.format == FORMAT_EPT:
        entry |= EPT_R | EPT_WRITE_BACK | EPT_IPAT
        if access & MAY_W:
            entry |= EPT_W
        if access & MAY_X:
            entry |= EPT_X
        if mmu.ad:
            entry |= EPT_A | (EPT_D if access & MAY_W else 0)
        return entry
    entry |= P | A
    if access & MAY_W:
        entry |= RW | D
    if access & MAY_U:
        entry |= US
    if not access & MAY_X:
        entry |= XD
    return entry


cdef inline uint64_t table_entry(const Mmu *mmu, uint64_t hpa) noexcept nogil:
    # an entry that points to a table allows all; rights stand in the leaf
    if mmu.format == FORMAT_EPT:
        return hpa | EPT_R | EPT_W | EPT_X | (EPT_A if mmu.ad else 0)
    return hpa | P | RW | US | A | D


# ---- mapping ----------------------------------------------------------------------------------------------

cdef uint32_t mmu_descend(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t gfn, bint direct,
                          int access) noexcept nogil:
    # the table page below an entry, linked to it; what stood there for another page or role goes
    cdef int level = mmu.sp[owner].level - 1
    cdef uint64_t entry = mem_read64(mmu.mem, mmu.sp[owner].hpa + 8 * index)
    cdef uint32_t child
    cdef Sp *sp
    if entry_present(mmu, entry) and not entry & LEAF_MARK:
        child = child_of(mmu, entry)
        sp = &mmu.sp[child]
        if sp.gfn == gfn and sp.direct == direct and sp.access == access:
            return child
    child = mmu_sp(mmu, gfn, level, direct, access)
    if child != NO_SP:
        changed(mmu, owner, index, table_entry(mmu, mmu.sp[child].hpa))
    return child


cdef int mmu_set_leaf(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t leaf) noexcept nogil:
    if mem_read64(mmu.mem, mmu.sp[owner].hpa + 8 * index) == leaf:
        return FILL_UNCHANGED
    changed(mmu, owner, index, leaf)
    return FILL_MAPPED


cdef bint mmu_large_ok(const Mmu *mmu, uint64_t gfn) noexcept nogil:
    # a 2 MB mapping may cover this page (kvm_policy.md §4.3): backing, whole region in the slot, no shadowed table
    cdef uint64_t base = gfn & ~(<uint64_t> 511)
    return (mmu.backing >= 2 and base >= mmu.slot.base_gfn
            and base + 512 <= mmu.slot.base_gfn + mmu.slot.npages
            and mmu_hpa(mmu, base << 12) & 0x1FFFFF == 0
            and mmu.tables_in[gfn >> 9] == 0)


cdef int mmu_map_below(Mmu *mmu, uint32_t owner, uint64_t la, uint64_t gpa, int largest, int access) noexcept nogil:
    # maps linear address la (under EPT: gpa itself) to the memory behind gpa, from table page `owner` down through
    # direct pages; `largest`: level of the guest's own page
    cdef uint64_t gfn = gpa >> 12
    cdef int goal = 2 if largest >= 2 and mmu_large_ok(mmu, gfn) else 1, level = mmu.sp[owner].level
    if mmu_hpa(mmu, gpa) == ONES:
        return FILL_NO_SLOT
    while level > goal:
        owner = mmu_descend(mmu, owner, la >> (9 * level + 3) & 511, gfn & ~((<uint64_t> 1 << 9 * (level - 1)) - 1),
                            True, access)
        if owner == NO_SP:
            return FILL_NO_TABLES
        level -= 1
    if goal == 1 and access & MAY_W and mmu_tracked(mmu, gfn):
        access &= ~MAY_W
    if goal == 2:
        gfn &= ~(<uint64_t> 511)
    return mmu_set_leaf(mmu, owner, la >> (9 * level + 3) & 511, mmu_leaf(mmu, mmu_hpa(mmu, gfn << 12), level, access))


cdef int mmu_direct(Mmu *mmu, uint64_t gpa) noexcept nogil:
    # guest-physical = linear: EPT, and the guest that does not page (kvm_policy.md §3.1)
    if mmu.root == NO_SP:       # the last table page could not be had
        return FILL_NO_TABLES
    return mmu_map_below(mmu, mmu.root, gpa, gpa, 2, MAY_ALL)


cdef int mmu_set_root(Mmu *mmu, uint64_t gfn, bint direct) noexcept nogil:
    # 0, or -1 where no table page is left
    if gfn - mmu.slot.base_gfn >= mmu.slot.npages:
        return -1
    cdef uint32_t root = mmu_sp(mmu, gfn, ROOT_LEVEL, direct, MAY_ALL)
    if root == NO_SP:
        return -1
    mmu.root = root
    return 0


# ---- forgetting -------------------------------------------------------------------------------------------

cdef void empty(Mmu *mmu, uint32_t i) noexcept nogil:
    cdef uint64_t index
    for index in range(512):
        if mmu.sp[i].present == 0:
            break
        if entry_present(mmu, mem_read64(mmu.mem, mmu.sp[i].hpa + 8 * index)):
            changed(mmu, i, index, 0)


cdef void zap(Mmu *mmu, uint32_t i) noexcept nogil:
    # the table page goes: its entries, those that point to it, and itself unless it is the root in use
    cdef Sp *sp = &mmu.sp[i]
    cdef uint32_t *link
    cdef uint32_t id
    empty(mmu, i)
    if i == mmu.root:
        return
    mmu.counters.tables_zapped += 1
    while sp.parents:
        id = sp.parents - 1
        changed(mmu, id >> 9, id & 511, 0)
    link = &mmu.by_gfn[sp.gfn]
    while link[0] != i + 1:
        link = &mmu.sp[link[0] - 1].chain
    link[0] = sp.chain
    sp.used = 0
    if not sp.direct and not shadowed(mmu, sp.gfn):
        mmu.tables_in[sp.gfn >> 9] -= 1
    give_back(mmu, sp.hpa)
    sp.chain = mmu.free_sp
    mmu.free_sp = i


cdef bint shadowed(const Mmu *mmu, uint64_t gfn) noexcept nogil:
    cdef uint32_t i = mmu.by_gfn[gfn]
    while i:
        if not mmu.sp[i - 1].direct:
            return True
        i = mmu.sp[i - 1].chain
    return False


cdef void mmu_guest_wrote(Mmu *mmu, uint64_t gpa, uint64_t nbytes) noexcept nogil:
    # the guest changed a shadowed table: one aligned word drops its entry, anything else the whole table
    # (kvm_policy.md §2.2, mmu_pte_write)
    cdef uint32_t i = mmu.by_gfn[gpa >> 12], after
    while i:
        after = mmu.sp[i - 1].chain
        if not mmu.sp[i - 1].direct:
            if nbytes == 8 and gpa & 7 == 0:
                if entry_present(mmu, mem_read64(mmu.mem, mmu.sp[i - 1].hpa + (gpa & 0xFF8))):
                    changed(mmu, i - 1, (gpa & 0xFFF) >> 3, 0)
            else:
                zap(mmu, i - 1)
        i = after


cdef void mmu_zap_all(Mmu *mmu) noexcept nogil:
    # every table page goes; the caller sets a root again before the guest runs
    cdef uint32_t i
    mmu.root = NO_SP
    for i in range(mmu.n_sp):
        if mmu.sp[i].used:
            zap(mmu, i)
    mmu.out_of_tables = False
    mmu.flush = True

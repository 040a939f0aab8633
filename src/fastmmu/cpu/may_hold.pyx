"""Kernel of what a CPU may still hold. Header: cpu/may_hold.pxd; for Python: cpu/may_hold_py.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp

from fastmmu.arch.bits cimport ONES, RW, US, XD, A, D, G, P
from fastmmu.arch.registers cimport CR0_PG, CR3_NO_FLUSH, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_SMEP
from fastmmu.arch.types cimport ACC_RW, ACC_W, FAULT_NONE, FAULT_PF, GuestPath
from fastmmu.cpu.vcpu cimport BY_SYSTEM, BY_USER
from fastmmu.paging.guest cimport (
    entry_address, guest_level_shift, is_leaf, key_of as protection_key, leaf_address, permission, root_address,
    table_address,
)
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.paging.walk cimport walk_path, walk_silent

cdef enum:
    SIZES = 3                   # 4 KB, 2 MB, 1 GB
    KEY = 63                    # the bit that makes a key not 0


# ---- what the tables were -----------------------------------------------------------------------------------------

cdef void tables_new(Tables *t, Mem *memory) noexcept nogil:
    t.memory = memory
    t.past.size = sizeof(Past)


cdef void tables_free(Tables *t) noexcept nogil:
    hash_free(&t.past)


cdef void replaced(Tables *t, uint64_t at) noexcept nogil:
    # the entry at this address is about to change
    cdef Past *past = <Past *> hash_put(&t.past, at | <uint64_t> 1 << KEY)
    if past == NULL:
        t.no_memory = True
        return
    past.value[past.next] = mem_read64(t.memory, at)
    past.until[past.next] = t.clock
    past.next = (past.next + 1) % PASTS


cdef bint tables_store(Tables *t, uint64_t gpa, const void *value, uint32_t nbytes) noexcept nogil:
    cdef uint64_t at = gpa & ~<uint64_t> 7
    if not mem_holds(t.memory, gpa, nbytes) or not memcmp(t.memory.base + gpa, value, nbytes):
        return False
    t.clock += 1
    replaced(t, at)
    if gpa + nbytes > at + 8:
        replaced(t, at + 8)
    return True


# ---- the translations of a page -----------------------------------------------------------------------------------

cdef MayHold *may_hold_new(Tables *t) noexcept nogil:
    cdef MayHold *h = <MayHold *> calloc(1, sizeof(MayHold))
    if h != NULL:
        h.t = t
        h.pages.size = sizeof(HeldPage)
        h.own = h.n = 1
    return h


cdef void may_hold_free(MayHold *h) noexcept nogil:
    if h != NULL:
        hash_free(&h.pages)
        free(h.pool)
        free(h)


cdef inline uint64_t key_of(uint64_t la, int size, uint32_t pcid) noexcept nogil:
    return (la << 7 >> 19 >> 9 * size) << 15 | <uint64_t> size << 13 | pcid | <uint64_t> 1 << KEY


cdef inline uint64_t flushed(const MayHold *h, uint32_t pcid) noexcept nogil:
    # clock of the last flush of all the translations of a PCID, or of the global ones
    return h.flushed_all if pcid == GLOBAL_PCID else max(h.flushed_all, max(h.flushed_local, h.flushed[pcid]))


cdef inline void give(MayHold *h, uint32_t i) noexcept nogil:
    h.pool[i].next = h.free
    h.free = i


cdef uint32_t taken(MayHold *h) noexcept nogil:
    # a place in the pool; 0: no memory
    cdef uint32_t i = h.free, room
    cdef Held *larger
    if i:
        h.free = h.pool[i].next
        return i
    if h.n >= h.room:
        room = 2 * h.room if h.room else 1024
        larger = <Held *> realloc(h.pool, room * sizeof(Held))
        if larger == NULL:
            return 0
        h.pool = larger
        h.room = room
    i = h.n
    h.n += 1
    return i


cdef inline bint same(const Held *a, const Held *b) noexcept nogil:
    return (a.frame == b.frame and a.us == b.us and a.rw == b.rw and a.xd == b.xd and a.pkey == b.pkey
            and a.dirty == b.dirty)


cdef void keep(MayHold *h, uint64_t la, bint write) noexcept nogil:
    # what the walk h.w gave, from now on; those of the page that are dead go
    cdef int size = (h.w.guest_shift - 12) // 9
    cdef uint32_t pcid = GLOBAL_PCID if h.w.global_page else h.g.pcid
    cdef HeldPage *page = <HeldPage *> hash_put(&h.pages, key_of(la, size, pcid))
    cdef uint64_t since = flushed(h, pcid)
    cdef uint32_t i = taken(h), follows
    cdef uint32_t *link
    cdef Held *new
    cdef Held *t
    if page == NULL or not i:
        h.t.no_memory = True
        if i:
            give(h, i)
        return
    h.t.clock += 1
    new = &h.pool[i]
    new.frame = h.w.pa & ~((<uint64_t> 1 << h.w.guest_shift) - 1)
    new.since = h.t.clock
    new.us, new.rw, new.xd, new.pkey = h.w.us, h.w.rw, h.w.xd, h.w.pkey
    new.dirty = h.w.dirty != 0 or write     # a write sets it
    link = &page.first
    while link[0]:
        t = &h.pool[link[0]]
        follows = t.next
        if t.since <= since or same(new, t):
            give(h, link[0])
            link[0] = follows
        else:
            link = &t.next
    new.next = page.first
    page.first = i


cdef void forget(MayHold *h, uint64_t la, uint32_t pcid, int sizes, bint here) noexcept nogil:
    # the page's translations go, of the smallest sizes; here: of the simulated CPU, too
    cdef uint64_t key
    cdef HeldPage *page
    cdef uint32_t i, follows
    cdef int size
    for size in range(sizes):
        key = key_of(la, size, pcid)
        page = <HeldPage *> (hash_put(&h.pages, key) if here else hash_find(&h.pages, key))
        if page == NULL:
            h.t.no_memory |= here
            continue
        if here:
            page.dropped = h.t.clock
        i = page.first
        page.first = 0
        while i:
            follows = h.pool[i].next
            give(h, i)
            i = follows


# ---- judging ------------------------------------------------------------------------------------------------------

cdef inline void by_rights(MayHold *h, int user) noexcept nogil:
    h.g.user = user == BY_USER
    h.g.implicit = user == BY_SYSTEM


cdef inline bint writes(int acc) noexcept nogil:
    return acc == ACC_W or acc == ACC_RW


cdef inline bint refuses(const MayHold *h, uint8_t us, uint8_t rw, uint8_t xd, uint8_t pkey, int acc) noexcept nogil:
    cdef Walk w
    cdef uint32_t code
    w.us, w.rw, w.xd, w.pkey = us, rw, xd, pkey
    return permission(&h.g, &w, acc, &code)


cdef bint held(MayHold *h, uint64_t la, int acc, uint64_t pa, bint refused) noexcept nogil:
    # one that was used leads to `pa` (all ones: anywhere), and serves the access, or refuses it; a write needs the
    # flag D, whose absence refuses nothing
    cdef HeldPage *page
    cdef Held *t
    cdef uint32_t i, pcid
    cdef int size, k
    for k in range(2):
        pcid = GLOBAL_PCID if k else h.g.pcid
        for size in range(SIZES):
            page = <HeldPage *> hash_find(&h.pages, key_of(la, size, pcid))
            i = page.first if page != NULL else 0
            while i:
                t = &h.pool[i]
                if (t.since > flushed(h, pcid) and refuses(h, t.us, t.rw, t.xd, t.pkey, acc) == refused
                        and (refused or t.dirty or not writes(acc))
                        and (pa == ONES or t.frame | (la & ((<uint64_t> 0x1000 << 9 * size) - 1)) == pa)):
                    return True
                i = t.next
    return False


cdef bint was_leaf(MayHold *h, uint64_t la, int acc, uint64_t pa, int level, uint64_t entry, uint64_t every,
                   uint64_t any_, uint64_t until) noexcept nogil:
    # a translation that the tables gave until then: not dropped since, leading to `pa`, and permitting the access
    cdef int shift = guest_level_shift(&h.g, level)
    cdef uint32_t pcid = GLOBAL_PCID if h.g.pge and entry & G else h.g.pcid
    cdef const HeldPage *page
    if until <= flushed(h, pcid):
        return False
    page = <const HeldPage *> hash_find(&h.pages, key_of(la, level - 1, pcid))
    if page != NULL and until <= page.dropped:
        return False
    if pa != ONES and leaf_address(&h.g, entry, la, shift) != pa:
        return False
    return ((entry & D or not writes(acc))
            and not refuses(h, every & US != 0, every & RW != 0, any_ & XD != 0, protection_key(&h.g, entry), acc))


cdef bint was_below(MayHold *h, uint64_t la, int acc, uint64_t pa, int level, uint64_t table, uint64_t every,
                    uint64_t any_, uint64_t until) noexcept nogil:
    # the entry of a level as it is, and as it was: a processor may have cached any of them on its way, once A was set
    cdef uint64_t at = entry_address(&h.g, table, la, guest_level_shift(&h.g, level)), entry, ends
    cdef const Past *past = <const Past *> hash_find(&h.t.past, at | <uint64_t> 1 << KEY)
    cdef int i
    if not mem_holds(h.t.memory, at, 8):
        return False
    for i in range(-1, PASTS if past != NULL else 0):
        entry = mem_read64(h.t.memory, at) if i < 0 else past.value[i]
        ends = until if i < 0 else min(until, past.until[i])
        if ~entry & (P | A) or entry & h.g.rsvd[level][entry >> 7 & 1]:
            continue
        if is_leaf(&h.g, entry, level):
            if was_leaf(h, la, acc, pa, level, entry, every & entry, any_ | entry, ends):
                return True
        elif was_below(h, la, acc, pa, level - 1, table_address(&h.g, entry), every & entry, any_ | entry, ends):
            return True
    return False


cdef int may_hold_walked(MayHold *h, uint64_t la, int acc, int user, uint64_t pa, Known *k,
                         uint64_t tag) noexcept nogil:
    by_rights(h, user)
    if walk_silent(h.t.memory, &h.g, NULL, la, acc, &h.w) == FAULT_NONE and h.w.pa == pa:
        keep(h, la, writes(acc))
        k.tag = tag
        k.frame = pa & ~<uint64_t> 0xFFF
        k.changes = h.t.changes
        k.own = h.own
        return STANDS_NOW
    return STANDS_HELD if held(h, la, acc, pa, False) else STANDS_NOT


cdef int may_hold_fault(MayHold *h, uint64_t la, int acc, int user, bint ac, uint32_t code) noexcept nogil:
    # of a #PF: a translation that refuses the access may be held where memory would permit it by now
    by_rights(h, user)
    h.g.ac = ac
    if walk_silent(h.t.memory, &h.g, NULL, la, acc, &h.w) == FAULT_PF and h.w.error_code == code:
        return STANDS_NOW
    return STANDS_HELD if held(h, la, acc, ONES, True) else STANDS_NOT


cdef bint may_hold_allows(MayHold *h, uint64_t la, int acc, int user, bint ac) noexcept nogil:
    by_rights(h, user)
    h.g.ac = ac
    return was_below(h, la, acc, ONES, h.g.levels, h.g.root, ONES, 0, ONES)


cdef int may_hold_could(MayHold *h, uint64_t la, int acc, int user, uint64_t pa) noexcept nogil:
    by_rights(h, user)
    if walk_silent(h.t.memory, &h.g, NULL, la, acc, &h.w) == FAULT_NONE and h.w.pa == pa:
        return STANDS_NOW
    return STANDS_HELD if was_below(h, la, acc, pa, h.g.levels, h.g.root, ONES, 0, ONES) else STANDS_NOT


cdef int may_hold_flags(MayHold *h, uint64_t la, int acc, int user, bint ac) noexcept nogil:
    cdef GuestPath path
    cdef uint64_t every = ONES
    cdef int i, stands = STANDS_NOW
    by_rights(h, user)
    h.g.ac = ac
    if walk_path(h.t.memory, &h.g, NULL, la, acc, &h.w, &path):
        return STANDS_NOW
    for i in range(path.level, path.top + 1):
        every &= path.entry[i]
    if not every & A or (writes(acc) and not path.entry[path.level] & D):
        stands = STANDS_HELD if was_below(h, la, acc, ONES, h.g.levels, h.g.root, ONES, 0, ONES) else STANDS_NOT
        h.g.write_ad = 1
        walk_path(h.t.memory, &h.g, NULL, la, acc, &h.w, &path)
        h.g.write_ad = 0
    return stands


# ---- what invalidates (tlb.md §3, §4) -----------------------------------------------------------------------------

cdef inline uint64_t tick(MayHold *h) noexcept nogil:
    h.own += 1
    h.t.clock += 1
    return h.t.clock


cdef void may_hold_registers(MayHold *h, const Paging *g) noexcept nogil:
    tick(h)
    h.g = g[0]
    h.g.write_ad = 0
    h.g.root = root_address(&h.g, h.g.cr3)


cdef void may_hold_cr0(MayHold *h, uint64_t was, const Paging *g, uint64_t now) noexcept nogil:
    may_hold_registers(h, g)
    if (was ^ now) & CR0_PG:
        h.flushed_all = h.t.clock


cdef void may_hold_cr3(MayHold *h, uint64_t value) noexcept nogil:
    cdef uint64_t now = tick(h)
    h.g.cr3 = value & ~CR3_NO_FLUSH if h.g.pcid_on else value
    h.g.root = root_address(&h.g, h.g.cr3)
    h.g.pcid = h.g.cr3 & 0xFFF if h.g.pcid_on else 0
    if not (h.g.pcid_on and value & CR3_NO_FLUSH):
        h.flushed[h.g.pcid] = now


cdef void may_hold_cr4(MayHold *h, uint64_t was, const Paging *g, uint64_t now) noexcept nogil:
    cdef uint64_t changed = was ^ now
    cdef uint32_t pcid = h.g.pcid
    may_hold_registers(h, g)
    if changed & CR4_PGE or changed & was & CR4_PCIDE:
        h.flushed_all = h.t.clock
    elif changed & CR4_PAE or changed & now & CR4_SMEP:
        h.flushed[pcid] = h.t.clock


cdef void may_hold_pkru(MayHold *h, uint32_t pkru) noexcept nogil:
    h.g.pkr_user = pkru
    h.own += 1


cdef void may_hold_invlpg(MayHold *h, uint64_t la) noexcept nogil:
    tick(h)
    forget(h, la, h.g.pcid, SIZES, True)
    forget(h, la, GLOBAL_PCID, SIZES, True)


cdef void may_hold_invpcid(MayHold *h, int type, uint32_t pcid, uint64_t la) noexcept nogil:
    cdef uint64_t now = tick(h)
    if type == 0:
        forget(h, la, pcid, SIZES, True)
    elif type == 1:
        h.flushed[pcid] = now
    elif type == 2:
        h.flushed_all = now
    else:
        h.flushed_local = now


cdef void may_hold_page_fault(MayHold *h, uint64_t la, bint here) noexcept nogil:
    # of a large page that is cached in pieces (tlb.md R3) the other pieces stay
    tick(h)
    forget(h, la, h.g.pcid, 1, here)

# The walk of a miss as most are: what is cached leads to the guest's last table or the one above it, every flag is set,
# and nothing is denied. Done at once and without a call, it does what walk_cached() and tlb_fill() do; or, where
# anything is otherwise, nothing: first it looks and changes nothing, then it notes what it used.
#
#   quick_begin(&q, m, g, e, t)                     after whatever is no access: what none of them changes
#   value = quick_walk(&q, la, acc, &n, &n_ept)     of an access by the user that both levels of the TLB lack: the
#                                                   value that both hold now, and references; 0: nothing is done
#   ... &into)                                      with a record of the entries read; NULL, a constant: none

from libc.stdint cimport uint64_t

from fastmmu.arch.bits cimport EPT_XU, FRAME, G, ONES, P, PS, RW, US, XD, A, D, level_shift
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X, MODE_4, Ept, Mem, Paging
from fastmmu.cache.hierarchy cimport CAUSE_EPT, CAUSE_GUEST, WalkRefs, walk_ref
from fastmmu.paging.ept cimport (
    NEED_R, NEED_W, ept_denied, ept_entry_address, ept_kept, ept_misconfigured, ept_rights, need_of, on_apic_page,
)
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.paging.npt cimport npt_entries, npt_type
from fastmmu.paging.walk_caches cimport TABLE_WRITABLE, mapping_value, next_table, rights_of
from fastmmu.tlb.entries cimport CLASSES, EPSC, GPM, K_EPSC, K_GPM, K_PSC, NO_CONTEXT, PSC, insert
from fastmmu.tlb.lookup cimport (
    F_D, F_EW, F_G, F_K, F_R, F_U, F_W, F_X, K_GLOBAL, K_LOCAL, TLB_FRAME, Tlb, TlbArray, tlb_fill, tlb_gpm_fill,
    tlb_pa,
)
from fastmmu.tlb.peek cimport Place, makes_room, peek, put, put_at, used

cdef struct Quick:
    Mem *m
    const Paging *g
    const Ept *e                # NULL: none
    Tlb *t
    bint on

cdef struct Through:            # the way of an address through the EPT
    uint64_t value              # of its guest-physical mapping: as it is cached, or as it will be
    int size                    # of one that is cached; -1: none is
    Place mapping, larger       # of 4K, of another size
    Place table, upper          # class 0, another
    uint64_t tables[6]          # [level]: what will be cached of the way down to the next table
    int top, level              # of the entries read, from - to
    int refs


cdef inline void quick_begin(Quick *q, Mem *m, const Paging *g, const Ept *e, Tlb *t) noexcept nogil:
    # Numbers of contexts are left, so that none ends that is in force.
    q.m = m
    q.g = g
    q.e = e
    q.t = t
    q.on = (t.quick_on and g.mode >= MODE_4 and g.pkr_user == 0 and t.key[K_LOCAL] != NO_CONTEXT << 2
            and t.n_free + t.max_id + 1 - t.next_id > 4)


cdef inline bint look_through(const Quick *q, uint64_t gpa, uint64_t need, Through *s, int guest_level,
                              WalkRefs *into) noexcept nogil:
    # False: it is a matter for ept_walk()
    cdef const Ept *e = q.e
    cdef uint64_t value = 0, table, entry, entries, allowed, ptr, want
    cdef int size, level
    if e.levels == 4 and gpa >> 48:
        return False
    s.refs = s.top = s.level = 0
    size = 0
    value = peek(q.t, GPM, K_GPM, 0, gpa, &s.mapping)
    if not value and q.t.unit[<int> GPM].large:
        for size in range(1, CLASSES):
            value = peek(q.t, GPM, K_GPM, size, gpa, &s.larger)
            if value:
                break
    if value:
        s.value = value
        s.size = size
        return not (ept_denied(e, need, True, rights_of(value)) or need & NEED_W and not value & F_D)
    s.size = -1
    level = 1
    value = peek(q.t, EPSC, K_EPSC, 0, gpa, &s.table)
    if not value:
        for level in range(2, e.levels):
            value = peek(q.t, EPSC, K_EPSC, level - 1, gpa, &s.upper)
            if value:
                break
        else:
            return False
    s.top = level
    table = value & e.frame
    entries = npt_entries(value) if e.npt else value | ~(<uint64_t> 7 | EPT_XU)
    want = (e.accessed | (e.dirty if need & NEED_W else 0)) if e.ad else 0
    while True:
        ptr = ept_entry_address(table, gpa, level)
        if not mem_holds(q.m, ptr, 8):
            return False
        if into != NULL:
            walk_ref(into, ptr, CAUSE_EPT + 8 * guest_level + level)
        entry = mem_read64(q.m, ptr)
        s.refs += 1
        entries &= entry ^ e.flip
        if not entry & e.present or ept_misconfigured(e, entry, level, level == 1 or entry & PS):
            return False
        if level == 1 or entry & PS:
            break
        table = entry & e.frame
        s.tables[level] = (entry & FRAME) | ept_kept(e, ept_rights(e, entries)) | <uint64_t> 1 << 63
        level -= 1
    allowed = ept_rights(e, entries)
    if ept_denied(e, need, True, allowed) or (e.ad and (not entries & e.accessed or (entry & want) != want)):
        return False
    s.level = level
    s.value = mapping_value(entry & e.frame, level - 1, ept_kept(e, allowed),
                            npt_type(e, entry, level) << 3 if e.npt else entry, not e.ad or entry & e.dirty != 0)
    return True


cdef inline void went_through(const Quick *q, uint64_t gpa, Through *s) noexcept nogil:
    cdef Tlb *t = q.t
    cdef int i
    t.c.lookups[<int> GPM] += 1
    if s.size >= 0:
        t.c.hits[<int> GPM][s.size] += 1
        if s.size:
            used(&s.larger)
        else:
            used(&s.mapping)
        return
    t.c.misses[<int> GPM] += 1
    t.c.lookups[<int> EPSC] += 1
    t.c.hits[<int> EPSC][s.top - 1] += 1
    if s.top == 1:
        used(&s.table)
    else:
        used(&s.upper)
    for i in range(s.top, max(s.level, 2), -1):
        put(t, EPSC, K_EPSC, i - 2, gpa, s.tables[i])
    if s.top >= 2 and s.level == 1:
        put_at(t, EPSC, K_EPSC, 0, gpa, &s.table, s.tables[2])
    if s.level == 1:
        put_at(t, GPM, K_GPM, 0, gpa, &s.mapping, s.value)
    if s.level > 1 or t.unit[<int> GPM].by[0] == NULL:
        tlb_gpm_fill(t, gpa, s.value)


cdef inline uint64_t value_of(const Quick *q, uint64_t leaf, uint64_t every, uint64_t some, uint64_t pa,
                              uint64_t mapping) noexcept nogil:
    # what tlb_value_of_walk() makes of a page of 4K of the user's; mapping: of its guest-physical address
    cdef uint64_t key = leaf >> 59 & 15, fetch = F_U if q.e != NULL and q.e.mbec else F_X
    return (pa & TLB_FRAME | mapping & (F_R | F_EW | F_D & (F_D if leaf & D else 0) | <uint64_t> 7 << 56) | F_U
            | (F_W if every & RW else 0) | (F_G if q.g.pge and leaf & G else 0) | (0 if key else F_K) | key << 52
            | (F_X if mapping & fetch and not some & XD else 0))


cdef inline uint64_t quick_walk(const Quick *q, uint64_t la, int acc, int *refs, int *ept_refs,
                                WalkRefs *into) noexcept nogil:
    cdef Tlb *t = q.t
    cdef const Paging *g = q.g
    cdef const Ept *e = q.e
    cdef Through of_table, of_data
    cdef Place prefix, upper
    cdef uint64_t link[6]
    cdef uint64_t value = 0, table = g.root, every = ONES, some = 0, entry, at, gpa, table_gpa = 0
    cdef bint through = False, writable = True, write = acc == ACC_W or acc == ACC_RW
    cdef int level, top, i
    cdef TlbArray *second
    value = peek(t, PSC, K_PSC, 0, la, &prefix)
    if value:
        level = 1
    else:
        for level in range(2, g.levels):
            value = peek(t, PSC, K_PSC, level - 1, la, &upper)
            if value:
                break
        else:
            level = g.levels
    if value:
        table = value & FRAME
        every = value | ~(US | RW)
        some = value & XD
        writable = value & TABLE_WRITABLE != 0
    elif e != NULL:
        return 0
    top = level
    while True:
        at = ept_entry_address(table, la, level)        # as those of 64-bit paging
        if e != NULL and level < top:
            # what it fills may not change what the data's way finds: one table alone, which takes no table of the EPT
            # from the cache
            if through or not look_through(q, at, NEED_R | NEED_W if e.ad else NEED_R, &of_table, level,
                                           into):
                return 0
            if of_table.top > of_table.level:
                return 0
            through = True
            table_gpa = at
            at = tlb_pa(of_table.value, at)
            writable = of_table.value & F_EW != 0
        if e != NULL and on_apic_page(e, at) or not mem_holds(q.m, at, 8):
            return 0
        if level < top:
            link[level + 1] = next_table(at, every, some, writable)
        if into != NULL:
            walk_ref(into, at, CAUSE_GUEST + level)
        entry = mem_read64(q.m, at)
        if not entry & P or not entry & A or entry & g.rsvd[level][entry >> 7 & 1]:
            return 0
        every &= entry
        some |= entry
        if level == 1 or entry & PS and g.large_ok[level]:
            break
        table = entry & g.frame
        level -= 1
    if level != 1 or not every & US or (write and not (every & RW and entry & D)) or (acc == ACC_X and some & XD):
        return 0
    gpa = entry & g.frame | la & 0xFFF
    if e == NULL:
        value = value_of(q, entry, every, some, gpa, F_R | F_EW | F_X | F_D)
    else:
        if not look_through(q, gpa, need_of(acc), &of_data, 0, into):
            return 0
        if through and of_table.size < 0 and ((gpa ^ table_gpa) >> level_shift(of_table.level) == 0
                                              or (of_data.size == 0 and makes_room(&of_data.mapping))
                                              or of_data.size > 0 and makes_room(&of_data.larger)):
            return 0
        value = value_of(q, entry, every, some, tlb_pa(of_data.value, gpa), of_data.value)
    if value & F_G and t.key[<int> K_GLOBAL] == NO_CONTEXT << 2:
        return 0

    t.quick_done += 1
    refs[0] = top
    ept_refs[0] = 0
    t.c.lookups[<int> PSC] += 1
    if top == g.levels:
        t.c.misses[<int> PSC] += 1
    else:
        t.c.hits[<int> PSC][top - 1] += 1
        if top == 1:
            used(&prefix)
        else:
            used(&upper)
    if e != NULL:
        if through:
            went_through(q, table_gpa, &of_table)
            ept_refs[0] = of_table.refs
        went_through(q, gpa, &of_data)
        ept_refs[0] += of_data.refs
    for i in range(top, 2, -1):
        put(t, PSC, K_PSC, i - 2, la, link[i])
    if top > 1:
        put_at(t, PSC, K_PSC, 0, la, &prefix, link[2])
    second = t.port[acc].l2.by[0]
    if second.dead:
        tlb_fill(t, acc, la, value)
    else:
        insert(t, second, K_GLOBAL if value & F_G else K_LOCAL, 0, la, value)
        insert(t, t.port[acc].l1.by[0], K_GLOBAL if value & F_G else K_LOCAL, 0, la, value)
    return value

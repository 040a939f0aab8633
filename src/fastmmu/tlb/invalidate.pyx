"""Kernel of the invalidations (tlb.md §3-§5, §11) over the TLB of tlb/lookup.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport ctz
from fastmmu.tlb.entries cimport (
    BY_CR0, BY_CR3, BY_CR4, BY_EPT_VIOLATION, BY_INVEPT, BY_INVLPG, BY_INVLPGA, BY_INVPCID, BY_INVVPID,
    BY_PAGE_FAULT, BY_RESET, BY_TLB_CONTROL, BY_TRANSITION, BY_VMFUNC, CLASSES, CTX_LIVE, EPSC, EXTENDED, GPM, K_GLOBAL,
    KINDS, L1D, L1I, L1S, L2, L2I, LOST_SOME, LostEntry, NO_WAY, PSC,
    TLB_LA, TLB_PAGE, Tlb, TlbArray, TlbSet, TlbUnit, alike, asid_root, bucket_of, fractured_of, id_array,
    id_links, id_slot, lost_remove, page_of, set_at, set_of, tlb_kill, tlb_remove,
)
from fastmmu.tlb.extension cimport extension_drop, extension_flush
from fastmmu.tlb.replacement cimport LRU_LONG, chain_of, chained, long_way
from fastmmu.tlb.which cimport (
    ANY_ROOT, CACHES, GLOBAL, GUEST, LOCAL, NOT_VPID_0, THIS_ASID, THIS_PCID, THIS_ROOT, THIS_VPID, Which, selects,
)

cdef bint flush_aside(Tlb *t, const Which *q, int cause) noexcept nogil:
    # Nothing else is to be done; and what was lost to another hyperthread goes with what is cached.
    cdef uint32_t i
    if t.omit >> cause & 1:
        return True
    if t.omit & LOST_SOME:
        for i in range(t.lost.room):
            if t.lost.entry[i].used and selects(q, &t.lost.entry[i].tags):
                lost_remove(t, i)
    if t.omit & EXTENDED and q.kinds & (LOCAL | GLOBAL):
        extension_flush(t, q)
    return False


cdef uint64_t flush(Tlb *t, const Which *q, int cause) noexcept nogil:
    # Whole contexts.
    cdef uint64_t n = 0
    cdef uint32_t i = t.n_live, next
    cdef int kind
    t.c.flushes[cause] += 1
    if t.omit and flush_aside(t, q, cause):
        return 0
    if q.condition == THIS_VPID | THIS_PCID and not q.kinds & GUEST:
        for kind in range(KINDS):
            if q.kinds >> kind & 1:
                i = t.bucket[bucket_of(kind, q.vpid, 0 if kind == K_GLOBAL else q.pcid, 0)]
                while i:
                    next = t.ctx[i].next
                    t.probes += 1
                    if selects(q, &t.ctx[i]):
                        n += tlb_kill(t, i, cause)
                    i = next
        return n
    t.probes += i
    while i > 0:                # a killed one is replaced by the last, which has been looked at
        i -= 1
        if selects(q, &t.ctx[t.live_ids[i]]):
            n += tlb_kill(t, t.live_ids[i], cause)
    return n


cdef inline bint covers(const TlbArray *a, uint64_t key, uint64_t value, uint64_t la) noexcept nogil:
    # Whether la lies in the page of the entry, or in the guest's page that it is a part of; a paging-structure entry is
    # used for la.
    cdef int shift = a.shift + 9 * (key & 3)
    cdef int page = value >> 10 & 3
    if a.unit <= GPM and page > <int> (key & 3):
        shift = 22 if page == 3 else 12 + 9 * page
    return (((key >> 18 << 12) ^ (la & TLB_LA)) >> shift) == 0


cdef uint64_t drop_way(Tlb *t, TlbArray *a, TlbSet *x, uint32_t way, const Which *q, int cause) noexcept nogil:
    cdef uint32_t id = x.way[way] >> 2 & 0xFFFF
    if t.state[id] != CTX_LIVE or not selects(q, &t.ctx[id]):
        return 0
    tlb_remove(t, a, x, way, cause)
    return 1


cdef uint64_t drop_page(Tlb *t, TlbArray *a, int size, uint64_t la, const Which *q, int cause) noexcept nogil:
    # The entries of one size for the page of la, which lie in one set.
    cdef TlbSet *x = set_of(a, size, la)
    cdef uint64_t page = page_of(a, size, la), n = 0
    cdef uint32_t first = 0, hits, w, next
    t.probes += 1
    if a.pad == 4:
        for w in range(4):
            if x.way[w] & (TLB_PAGE | 3) == page:
                n += drop_way(t, a, x, w, q, cause)
        return n
    if a.replacement == LRU_LONG and not a.tags:
        next = chain_of(a, x, page)[0]
        while next:
            w = next - 1
            next = chained(a, x)[w]
            t.probes += 1
            if x.way[w] & (TLB_PAGE | 3) == page:
                n += drop_way(t, a, x, w, q, cause)
        return n
    if a.replacement == LRU_LONG and long_way(a, x, page, TLB_PAGE | 3) == NO_WAY:
        return 0
    while first < a.pad:
        hits = alike(x.way + first, min(a.pad - first, 32), page, TLB_PAGE | 3)
        while hits:
            n += drop_way(t, a, x, first + ctz(hits), q, cause)
            hits &= hits - 1
        first += 32
    return n


cdef uint64_t drop_fractured(Tlb *t, uint32_t units, uint32_t id, uint64_t la, const Which *q,
                             int cause) noexcept nogil:
    # Those linked from this one on whose page, or the guest's page that they are a part of, holds la.
    cdef TlbArray *a
    cdef TlbSet *x
    cdef uint64_t n = 0
    cdef uint32_t next, way
    while id:
        next = id_links(t, id)[0]
        t.probes += 1
        a = id_array(t, id)
        x = set_at(a, id_slot(id) // a.pad)
        way = id_slot(id) % a.pad
        if units >> a.unit & 1 and covers(a, x.way[way], x.way[a.pad + way], la):
            n += drop_way(t, a, x, way, q, cause)
        id = next
    return n


cdef bint drop_aside(Tlb *t, uint32_t units, uint64_t la, const Which *q, int cause, bint whole) noexcept nogil:
    # As flush_aside().
    cdef LostEntry *e
    cdef uint32_t i
    cdef int shift, page
    if t.omit >> cause & 1:
        return True
    if t.omit & LOST_SOME:
        for i in range(t.lost.room):
            e = &t.lost.entry[i]
            page = e.value >> 10 & 3
            shift = 12 + 9 * (e.page & 3)
            if whole and page > <int> (e.page & 3):
                shift = 22 if page == 3 else 12 + 9 * page
            if (e.used and units >> e.unit & 1 and ((e.page >> 18 << 12) ^ (la & TLB_LA)) >> shift == 0
                    and selects(q, &e.tags)):
                lost_remove(t, i)
    if t.omit & EXTENDED and units & 1 << L2 and q.kinds & (LOCAL | GLOBAL):
        extension_drop(t, la, q, whole)
    return False


cdef uint64_t drop(Tlb *t, uint32_t units, uint64_t la, const Which *q, int cause, bint whole) noexcept nogil:
    # Single entries; whole: those of the guest's page that la is in, where it is fractured: they may lie in any set.
    cdef TlbUnit *unit
    cdef uint64_t n = 0
    cdef int size
    if t.omit and drop_aside(t, units, la, q, cause, whole):
        return 0
    if whole:
        for size in range(1, 4):
            n += drop_fractured(t, units, fractured_of(t, la, size)[0], la, q, cause)
    while units:
        unit = &t.unit[ctz(units)]
        units &= units - 1
        if unit.live[0]:
            n += drop_page(t, unit.by[0], 0, la, q, cause)
        if unit.large:
            for size in range(1, CLASSES):
                if unit.live[size]:
                    n += drop_page(t, unit.by[size], size, la, q, cause)
    return n


cdef enum:
    # units, as bits
    MAPPINGS = (1 << L1I) | (1 << L1D) | (1 << L1S) | (1 << L2I) | (1 << L2)
    LINEAR = (1 << L1I) | (1 << L1D) | (1 << L1S) | (1 << L2I) | (1 << L2) | (1 << PSC)
    GUEST_PHYSICAL = (1 << GPM) | (1 << EPSC)   # mappings that share an array of the second level count as the former


cdef inline Which which(uint32_t kinds, uint32_t condition, uint32_t vpid, uint32_t pcid,
                        uint64_t eptrta) noexcept nogil:
    cdef Which q
    q.kinds = kinds
    q.condition = condition
    q.vpid = vpid
    q.pcid = pcid
    q.eptrta = eptrta
    return q


# ---- tlb.md §3 ----------------------------------------------------------------------------------------------

cdef uint64_t this_pcid(Tlb *t, uint32_t vpid, uint32_t pcid, int cause) noexcept nogil:
    cdef Which q = which(LOCAL | CACHES, THIS_VPID | THIS_PCID, vpid, pcid, 0)
    return flush(t, &q, cause)


cdef uint64_t this_vpid(Tlb *t, uint32_t vpid, int cause) noexcept nogil:
    cdef Which q = which(LOCAL | GLOBAL | CACHES, THIS_VPID, vpid, 0, 0)
    return flush(t, &q, cause)


cdef uint64_t this_vpid_but_global(Tlb *t, uint32_t vpid, int cause) noexcept nogil:
    cdef Which q = which(LOCAL | CACHES, THIS_VPID, vpid, 0, 0)
    return flush(t, &q, cause)


cdef uint64_t this_address(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t la, int cause) noexcept nogil:
    # Global mappings stay; of the paging-structure caches what would be used for la goes.
    cdef Which q = which(LOCAL | CACHES, THIS_VPID | THIS_PCID, vpid, pcid, 0)
    t.c.flushes[cause] += 1
    return drop(t, LINEAR, la, &q, cause, True)


cdef uint64_t inv_mov_cr3(Tlb *t, uint32_t vpid, uint32_t pcid) noexcept nogil:
    return this_pcid(t, vpid, pcid, BY_CR3)


cdef uint64_t inv_cr0_pg(Tlb *t, uint32_t vpid) noexcept nogil:
    return this_vpid(t, vpid, BY_CR0)


cdef uint64_t inv_cr4_all(Tlb *t, uint32_t vpid) noexcept nogil:
    return this_vpid(t, vpid, BY_CR4)


cdef uint64_t inv_cr4_pcid(Tlb *t, uint32_t vpid, uint32_t pcid) noexcept nogil:
    return this_pcid(t, vpid, pcid, BY_CR4)


cdef uint64_t inv_invlpg(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t la) noexcept nogil:
    # Global ones too, and every paging-structure entry of the PCID whatever its address.
    cdef Which q = which(LOCAL | GLOBAL, THIS_VPID | THIS_PCID, vpid, pcid, 0)
    cdef uint64_t n = drop(t, MAPPINGS, la, &q, BY_INVLPG, True)
    q.kinds = CACHES
    return n + flush(t, &q, BY_INVLPG)


cdef uint64_t inv_page_fault(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t la) noexcept nogil:
    return this_address(t, vpid, pcid, la, BY_PAGE_FAULT)


cdef uint64_t inv_invpcid(Tlb *t, int type, uint32_t vpid, uint32_t pcid, uint64_t la) noexcept nogil:
    # tlb.md §4
    if type == 0:
        return this_address(t, vpid, pcid, la, BY_INVPCID)
    if type == 1:
        return this_pcid(t, vpid, pcid, BY_INVPCID + 1)
    if type == 2:
        return this_vpid(t, vpid, BY_INVPCID + 2)
    return this_vpid_but_global(t, vpid, BY_INVPCID + 3)


# ---- tlb.md §5 ----------------------------------------------------------------------------------------------

cdef uint64_t inv_transition(Tlb *t, bint vpid_enabled) noexcept nogil:
    cdef int u, size
    if not vpid_enabled:
        return this_vpid(t, 0, BY_TRANSITION)
    for u in range(L2 + 1):
        for size in range(CLASSES):
            t.c.survivals += t.unit[u].live[size]
    return 0


cdef uint64_t every_pcid(Tlb *t, uint32_t vpid, uint64_t la, int cause) noexcept nogil:
    cdef Which q = which(LOCAL | GLOBAL | CACHES, THIS_VPID, vpid, 0, 0)
    t.c.flushes[cause] += 1
    return drop(t, LINEAR, la, &q, cause, True)


cdef uint64_t inv_invvpid(Tlb *t, int type, uint32_t vpid, uint64_t la) noexcept nogil:
    cdef Which q
    if type == 0:
        return every_pcid(t, vpid, la, BY_INVVPID)
    if type == 1:
        return this_vpid(t, vpid, BY_INVVPID + 1)
    if type == 2:
        q = which(LOCAL | GLOBAL | CACHES, NOT_VPID_0, 0, 0, 0)
        return flush(t, &q, BY_INVVPID + 2)
    return this_vpid_but_global(t, vpid, BY_INVVPID + 3)


cdef uint64_t inv_invept(Tlb *t, int type, uint64_t eptrta) noexcept nogil:
    cdef Which q = which(LOCAL | GLOBAL | CACHES | GUEST, THIS_ROOT if type == 1 else ANY_ROOT, 0, 0, eptrta)
    return flush(t, &q, BY_INVEPT + type - 1)


cdef uint64_t inv_vmfunc(Tlb *t, bint vpid_enabled) noexcept nogil:
    cdef Which q = which(LOCAL | GLOBAL | CACHES, THIS_VPID | ANY_ROOT, 0, 0, 0)
    return 0 if vpid_enabled else flush(t, &q, BY_VMFUNC)


cdef uint64_t inv_ept_violation(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t eptrta, uint64_t gpa, bint has_la,
                                uint64_t la) noexcept nogil:
    # Addresses, not pages: the rest of a fractured page stays.
    cdef Which q = which(GUEST, THIS_ROOT, 0, 0, eptrta)
    cdef uint64_t n = drop(t, GUEST_PHYSICAL, gpa, &q, BY_EPT_VIOLATION, False)
    t.c.flushes[BY_EPT_VIOLATION] += 1
    if has_la:
        q = which(LOCAL | CACHES, THIS_VPID | THIS_PCID | THIS_ROOT, vpid, pcid, eptrta)
        n += drop(t, LINEAR, la, &q, BY_EPT_VIOLATION, False)
    return n


cdef uint64_t inv_reset(Tlb *t) noexcept nogil:
    cdef Which q = which(LOCAL | GLOBAL | CACHES | GUEST, 0, 0, 0, 0)
    return flush(t, &q, BY_RESET)


# ---- AMD ----------------------------------------------------------------------------------------------------

cdef uint64_t inv_invlpga(Tlb *t, uint32_t asid, uint64_t la) noexcept nogil:
    # INVLPGA: the page in every PCID of an ASID, global mappings too; guest-physical ones stay (APM vol. 3)
    return every_pcid(t, asid, la, BY_INVLPGA)


cdef uint64_t inv_tlb_control(Tlb *t, int control, uint32_t asid) noexcept nogil:
    # What an ASID has, guest-physical mappings too: there is no other way to flush them.
    cdef Which q = which(LOCAL | GLOBAL | CACHES | GUEST, THIS_ASID, asid, 0, asid_root(asid))
    if control == TLB_CONTROL_NONE:
        return 0
    if control == TLB_CONTROL_ALL:
        q.condition = 0
        return flush(t, &q, BY_TLB_CONTROL)
    if control == TLB_CONTROL_ASID:
        return flush(t, &q, BY_TLB_CONTROL + 1)
    q.kinds &= ~<uint32_t> GLOBAL
    return flush(t, &q, BY_TLB_CONTROL + 2)

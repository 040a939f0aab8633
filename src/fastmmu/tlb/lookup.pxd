# The TLB of one physical CPU: lookups and fills. Its parts: tlb/entries.pxd; invalidations: tlb/invalidate.pxd; how
# one is made: tlb/making.pxd.
#
# One lookup:
#
#   v = tlb_l1(t, acc, la)
#   if v == 0: v = tlb_l2(t, acc, la)
#   if v == 0: walk; v = tlb_fill(t, acc, la, tlb_value_of_walk(...))
#   if need & ~v: the cached rights, or D, do not suffice: walk; no fault: v = tlb_refill(t, acc, la, ...)
#
# It is one of the context that tlb_switch put in force. The caller adds the number of its lookups to
# c.lookups[t.port[acc].l1.id] whenever it likes; everything else is counted here.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Walk
from fastmmu.tlb.entries cimport (
    BY_CONTEXTS, BY_CR0, BY_CR3, BY_CR4, BY_EPT_VIOLATION, BY_INVEPT, BY_INVLPG, BY_INVPCID, BY_INVVPID,
    BY_PAGE_FAULT, BY_RESET, BY_REWALK, BY_TRANSITION, BY_VMFUNC, CAUSES, CLASSES, EPSC, F_D, F_EW, F_G, F_K, F_LOOK,
    F_R, F_S, F_U, F_W, F_X, GPM, L1D, L1I, L1S, L2, L2I, NO_EPT, PSC, TLB_FRAME, TLB_LA, Tlb, TlbCounters, TlbPort,
    TlbUnit, TlbArray, TlbSet, UNITS, K_GLOBAL, K_LOCAL, find, page_of, set_of, tlb_switch
)

# ---- values -----------------------------------------------------------------------------------------------

cdef inline uint64_t tlb_value(uint64_t pa, int size, int page, uint64_t flags) noexcept nogil:
    # pa: any address in the page; size, page: 0 4K, 1 2M, 2 1G; page also 3 = 4M of 32-bit paging
    return (pa & TLB_FRAME & ~((<uint64_t> 0x1000 << (9 * size)) - 1)) | flags | <uint64_t> (size << 8 | page << 10)


cdef inline uint64_t tlb_pa(uint64_t value, uint64_t la) noexcept nogil:
    return (value & TLB_FRAME) | (la & ((<uint64_t> 0x1000 << (9 * (value >> 8 & 3))) - 1))


cdef inline uint64_t tlb_value_of_walk(const Walk *w, bint mbec) noexcept nogil:
    # tlb.md §1.1 R3, R4: the smaller of guest and EPT page; rights ANDed, XD ORed
    cdef uint64_t f
    cdef int guest = 2 if w.guest_shift == 30 else 3 if w.guest_shift == 22 else w.guest_shift == 21
    cdef int size = guest if guest < 3 else 1
    cdef int ept = 2 if w.ept_shift == 30 else w.ept_shift == 21
    f = (F_U if w.us else F_S) | (F_W if w.rw else 0) | (F_G if w.global_page else 0)
    if w.dirty and w.ept_dirty:
        f |= F_D
    if w.pkey == 0:
        f |= F_K
    if w.ept_shift == 0:
        f |= F_R | F_EW | (0 if w.xd else F_X)
    else:
        if w.ept_rights & 1:
            f |= F_R
        if w.ept_rights & 2:
            f |= F_EW
        if not w.xd and w.ept_rights & (8 if mbec and w.us else 4):
            f |= F_X
        if w.guest_shift == 0:
            size = guest = ept
        elif ept < size:
            size = ept
    return tlb_value(w.pa, size, guest, f) | <uint64_t> (w.pkey & 15) << 52 | <uint64_t> (w.ept_mt & 7) << 56

# ---- lookup -----------------------------------------------------------------------------------------------

cdef inline uint64_t tlb_find(Tlb *t, TlbUnit *u, int size, uint64_t la) noexcept nogil:
    cdef TlbArray *a = u.by[size]
    cdef TlbSet *x = set_of(a, size, la)
    cdef uint64_t page = page_of(a, size, la)
    if x.key == (page | t.key[K_LOCAL]) or x.key == (page | t.key[K_GLOBAL]):
        return x.value          # the entry used last: the order stays
    return find(a, x, page | t.key[K_LOCAL], page | t.key[K_GLOBAL])


cdef uint64_t tlb_l1_large(Tlb *t, TlbUnit *u, uint64_t la) noexcept nogil

cdef inline uint64_t tlb_l1(Tlb *t, int acc, uint64_t la) noexcept nogil:
    # Value, or 0; after 0, tlb_l2 must follow (it counts the miss). la is canonical; acc: Access.
    cdef TlbPort *p = &t.port[acc]
    cdef TlbSet *x = <TlbSet *> (p.base + ((la >> 12 & p.mask) << p.log))
    cdef uint64_t page = (la & TLB_LA) << 6, value
    if x.key == (page | t.key[K_LOCAL]) or x.key == (page | t.key[K_GLOBAL]):
        return x.value
    if p.l1.live[0]:
        value = find(p.l1.by[0], x, page | t.key[K_LOCAL], page | t.key[K_GLOBAL])
        if value:
            return value
    return tlb_l1_large(t, p.l1, la) if p.l1.large else 0


cdef uint64_t tlb_l2(Tlb *t, int acc, uint64_t la) noexcept nogil
# Guest-physical mappings: key is the gpa. Paging-structure caches: level 2..5 of the entry that was read; its value
# is whatever the walker wants back, not 0. tlb_psc gives the lowest level cached (the longest prefix), below `above`.
cdef uint64_t tlb_gpm(Tlb *t, uint64_t gpa) noexcept nogil
cdef uint64_t tlb_psc(Tlb *t, uint64_t la, int above, int *level) noexcept nogil
cdef uint64_t tlb_epsc(Tlb *t, uint64_t gpa, int above, int *level) noexcept nogil

# ---- fills ------------------------------------------------------------------------------------------------

# Both give the value as the first level has it. tlb_refill first drops what la hits now.
cdef uint64_t tlb_fill(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil
cdef uint64_t tlb_refill(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil
cdef uint64_t tlb_found(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil   # the same, and no walk was made
cdef void tlb_gpm_fill(Tlb *t, uint64_t gpa, uint64_t value) noexcept nogil
cdef void tlb_psc_fill(Tlb *t, uint64_t la, int level, uint64_t value) noexcept nogil
cdef void tlb_psc_fills(Tlb *t, uint64_t la, int top, int lowest, const uint64_t *values) noexcept nogil  # [level]
cdef void tlb_epsc_fill(Tlb *t, uint64_t gpa, int level, uint64_t value) noexcept nogil

# What lookups of this address would find, in the context in force: a walk is about to fetch it anew.
cdef void tlb_gpm_drop(Tlb *t, uint64_t gpa) noexcept nogil
cdef void tlb_psc_drop(Tlb *t, uint64_t la) noexcept nogil
cdef void tlb_epsc_drop(Tlb *t, uint64_t gpa) noexcept nogil

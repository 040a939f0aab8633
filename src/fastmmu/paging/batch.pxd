# The batch walk: many queries of one address space.
#
# In a query memory does not change, so what the upper levels say of a *region* (the addresses that share one page
# table: 2 MB, under 32-bit paging 4 MB) is asked of the exact walk once and kept for the length of the call:
#
#   linear address ─► region ─► page table ─► PTE ─► guest-physical address ─► EPT region ─► EPT PTE ─► pa
#
# The stages work on a block of lanes at a time, so that the cache misses of a block overlap. They settle what is
# allowed and the faults that the PTE itself decides; for anything else they ask the exact walk again.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport EPT_R, EPT_W, EPT_X, EPT_XU, FRAME, ONES, A, D, P, PS, RW, US, XD
from fastmmu.arch.types cimport ACC_RW, ACC_W, ACC_X, FAULT_BUS, MODE_4, MODE_32, Ept, Mem, Paging
from fastmmu.paging.ept cimport ept_bad_type

cdef enum:
    LANES = 64
    MIN_REGION_BITS = 4         # log2 of the number of regions held
    MAX_REGION_BITS = 16        # 1 MB, of which only what the addresses touch costs anything; 128 GB of 4K pages
    EPT_REGION_SHIFT = 21
    CODE_SHIFT = 16             # of the fault code in a region without translations

cdef extern from *:
    """
    #define FM_RARE(x) __builtin_expect(!!(x), 0)
    #define FM_TAKE(next, n) __atomic_fetch_add((next), (n), __ATOMIC_RELAXED)
    """
    bint rare "FM_RARE"(bint) noexcept nogil
    uint64_t take "FM_TAKE"(uint64_t *next, uint64_t n) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *) noexcept nogil

# What is kept of a region, one word in the format of an entry:
#   table   PS = 0: the page table's host-physical address; all of the table lies in memory
#   large   PS = 1, P = 1: serves as PTE of each address; its frame is where the region begins
#   none    PS = 1, P = 0: no address gets past the upper levels. Bits 23:16 hold the fault code, 0 = it depends on the
#           address
# Rights are those of all entries above the PTE together. A and D are set where no update of the PTE can fail; one can
# fail only under an EPT without A/D flags that maps the page table read-only (ept.md §4).
cdef struct Region:
    uint64_t tag                # ~(address >> region_shift); 0: not filled, and no region has that tag
    uint64_t value

cdef struct Query:
    Mem *m
    const Paging *g
    const Ept *e                # NULL: no EPT
    int acc
    int region_bits
    Region *guest               # 1 << region_bits of each, at first all zero
    Region *ept
    int region_shift            # 21 or 22
    uint64_t la_mask
    uint64_t need               # bits that all entries must have, besides A and D
    uint64_t forbid             # bits that some entry must lack
    uint64_t forbid_any         # bits that all entries must lack
    uint64_t rsvd               # reserved in a PTE
    uint64_t want               # A and D of the PTE, where their update can fail
    uint64_t frame              # address bits
    uint32_t key_deny           # bit 16 * US + key: the protection key forbids the access
    uint64_t ept_need           # bits that all EPT entries must have


cdef inline void query_init(Query *q, Mem *m, const Paging *g, const Ept *e, int acc) noexcept nogil:
    # The rules of paging.md §4.2 as masks: each is about one right. The query keeps the pointers; its EPT has no PML.
    cdef bint user = g.user and not g.implicit, write = acc == ACC_W or acc == ACC_RW
    cdef int i
    memset(q, 0, sizeof(Query))
    q.m = m
    q.g = g
    q.e = e
    q.acc = acc
    q.la_mask = ONES if g.mode >= MODE_4 else 0xFFFFFFFFU
    q.region_shift = 12 + g.index_bits
    q.need = P | (US if user else 0) | (RW if write and (user or g.wp) else 0)
    if acc == ACC_X:
        q.forbid_any = XD
        if not user and g.smep:
            q.forbid = US
    else:
        if not user and g.smap and (g.implicit or not g.ac):
            q.forbid = US
        for i in range(16):
            if denies(g.pkr_super >> (2 * i), write, user or g.wp):
                q.key_deny |= <uint32_t> 1 << i
            if denies(g.pkr_user >> (2 * i), write, user or g.wp):
                q.key_deny |= <uint32_t> 1 << (16 + i)
    q.rsvd = g.rsvd[1][0]
    q.frame = FRAME if g.mode == MODE_32 else g.frame       # a PSE-36 page has more address bits than a PTE
    if e != NULL:
        if not e.ad:
            q.want = A | (D if write else 0)
        # more than the access needs: entries without R, and fetches that only one of X and XU allows, are left to
        # the exact walk
        q.ept_need = EPT_R | (EPT_W if write else 0)
        if acc == ACC_X:
            q.ept_need |= EPT_X | (EPT_XU if e.mbec else 0)


cdef inline bint denies(uint32_t rights, bint write, bint write_counts) noexcept nogil:
    return rights & 1 or (rights & 2 and write and write_counts)


cdef inline uint64_t no_region(int fault) noexcept nogil:
    # a table may lie in memory in part, so FAULT_BUS is a matter of the single address
    return PS | <uint64_t> (0 if fault == FAULT_BUS else fault) << CODE_SHIFT


cdef inline Region *slot(Region *regions, int bits, uint64_t key) noexcept nogil:
    # neighbours never share a slot
    return regions + ((key ^ key >> bits) & ((<uint64_t> 1 << bits) - 1))


cdef uint64_t guest_region(Query *q, uint64_t la) noexcept nogil
cdef uint64_t ept_region(Query *q, uint64_t gpa) noexcept nogil
cdef void translate_batch(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, uint64_t n) noexcept nogil


cdef inline uint64_t guest_value(Query *q, Region *regions, int bits, uint64_t la, int shift) noexcept nogil:
    cdef Region *r = slot(regions, bits, la >> shift)
    if rare(r.tag != ~(la >> shift)):
        r.value = guest_region(q, la)
        r.tag = ~(la >> shift)
    return r.value


cdef inline uint64_t ept_value(Query *q, Region *regions, int bits, uint64_t gpa) noexcept nogil:
    cdef Region *r = slot(regions, bits, gpa >> EPT_REGION_SHIFT)
    if rare(r.tag != ~(gpa >> EPT_REGION_SHIFT)):
        r.value = ept_region(q, gpa)
        r.tag = ~(gpa >> EPT_REGION_SHIFT)
    return r.value


# ---- the stages of a block ---------------------------------------------------------------------------------

cdef inline uint64_t guest_stage(Query *q, const uint64_t *va, uint64_t *gpa, uint64_t *held, uint64_t *odd, int n,
                                 int entry_shift, bint nested) noexcept nogil:
    # gpa[lane], and odd[lane] nonzero where something is amiss; OR of odd. held: what is kept of the lane's region.
    # entry_shift and nested are constants at each call.
    cdef const uint8_t *place[LANES]
    cdef uint64_t pte[LANES]
    cdef uint64_t la_mask = q.la_mask, need = q.need, forbid = q.forbid, forbid_any = q.forbid_any, rsvd = q.rsvd
    cdef uint64_t want = q.want if nested else 0, frame = q.frame, offset = (<uint64_t> 1 << q.region_shift) - 1
    cdef int shift = 21 if entry_shift == 3 else 22, bits = q.region_bits, j
    cdef Region *regions = q.guest
    cdef uint64_t index_mask = 511 if entry_shift == 3 else 1023
    cdef uint64_t la, value, entry, large, every, index, spread = 0, amiss = 0
    cdef const uint8_t *base = q.m.base
    cdef const uint8_t *at
    for j in range(n):
        spread |= va[j] ^ va[0]
    if (spread & la_mask) >> shift:
        for j in range(n):
            value = guest_value(q, regions, bits, va[j] & la_mask, shift)
            held[j] = value
            at = base + (value & FRAME) + ((va[j] >> 12 & index_mask) << entry_shift)
            if value & PS:              # the region's own word serves as PTE
                at = <const uint8_t *> &held[j]
            place[j] = at
            prefetch(at)
        for j in range(n):
            pte[j] = (<const uint64_t *> place[j])[0] if entry_shift == 3 or held[j] & PS else \
                (<const uint32_t *> place[j])[0]
    else:                               # all in one region, as in a pass over a buffer
        value = guest_value(q, regions, bits, va[0] & la_mask, shift)
        at = base + (value & FRAME)
        if value & PS:
            for j in range(n):
                pte[j] = value
        else:
            for j in range(n):
                index = va[j] >> 12 & index_mask
                pte[j] = (<const uint64_t *> at)[index] if entry_shift == 3 else (<const uint32_t *> at)[index]
        for j in range(n):
            held[j] = value
    for j in range(n):
        la = va[j] & la_mask
        value = held[j]
        entry = pte[j]
        every = value & entry
        large = 0 - (value >> 7 & 1)
        gpa[j] = (entry & frame) | (la & (0xFFF | (offset & large)))
        odd[j] = ((need & ~every) | (forbid & every) | (forbid_any & (value | entry)) | (rsvd & entry)
                  | (want & ~(value | entry)))
        amiss |= odd[j]
    if q.key_deny:
        for j in range(n):
            if q.key_deny >> ((held[j] & pte[j] & US) << 2 | (pte[j] >> 59 & 15)) & 1:
                odd[j] |= P
                amiss |= P
    return amiss


cdef inline uint64_t ept_stage(Query *q, const uint64_t *gpa, uint64_t *hpa, uint64_t *odd, int n) noexcept nogil:
    # the same from guest-physical to host-physical
    cdef const uint8_t *place[LANES]
    cdef uint64_t held[LANES]
    cdef uint64_t need = q.ept_need, rsvd = q.e.rsvd[1][1], frame = q.e.frame
    cdef uint64_t value, entry, large, amiss = 0
    cdef int bits = q.region_bits, j
    cdef Region *regions = q.ept
    cdef const uint8_t *base = q.m.base
    cdef const uint8_t *at
    for j in range(n):
        value = ept_value(q, regions, bits, gpa[j])
        held[j] = value
        at = base + (value & FRAME) + ((gpa[j] >> 12 & 511) << 3)
        if value & PS:
            at = <const uint8_t *> &held[j]
        place[j] = at
        prefetch(at)
    for j in range(n):
        value = held[j]
        entry = (<const uint64_t *> place[j])[0]
        large = 0 - (value >> 7 & 1)
        hpa[j] = (entry & frame) | (gpa[j] & (0xFFF | (0x1FFFFF & large)))
        odd[j] = (need & ~(value & entry)) | (rsvd & entry) | ept_bad_type(entry)
        amiss |= odd[j]
    return amiss

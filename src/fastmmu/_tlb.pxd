# The TLB of one physical CPU: structs, the first-level lookup, signatures. Invalidations: _invalidate.pxd.
#
# A TLB has units (first level per kind of access, second level, guest-physical mappings, paging-structure caches);
# a unit has an array per page size, or one array for several. An entry is a key and a value:
#
#   key    62:18  linear address bits 56:12 of the page's first byte | 17:2 context | 1:0 size (0 4K, 1 2M, 2 1G)
#   value  58:56 memory type | 55:52 protection key | 51:12 frame | 11:10 size of the guest's page | 9:8 size of the
#          entry | 7 G | 6 D | 5 X | 4 EW | 3 W | 2 R | 1 S | 0 U
#
# A context stands for (kind, VPID, PCID, EPTRTA), see TlbKind. To flush one is to mark its number dead: O(1). Dead
# entries match nothing, count as empty ways, and a new number is given out at the next fill.
#
# The rights in a value are those that an access needs, so it is allowed iff (need & ~value) == 0:
#
#   user read U|R    user write U|R|W|EW|D    user fetch U|X    supervisor: no U; + S where SMAP or SMEP forbids user
#   pages; W only with CR0.WP.    R, EW: EPT read, write (set without EPT). X: fetch, guest and EPT. D: no D to set.
#
# One lookup:  v = tlb_l1(t, acc, la);  if not v: v = tlb_l2(t, acc, la);  if not v: walk, v = tlb_fill(t, acc, la, v)
# and where the rights do not suffice: walk, v = tlb_refill(...). The caller adds its lookups to c.lookups[unit].

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu._types cimport Walk

cdef extern from *:
    """
    #include <stdint.h>
    #define FM_TLB_U     0x01ULL
    #define FM_TLB_S     0x02ULL
    #define FM_TLB_R     0x04ULL
    #define FM_TLB_W     0x08ULL
    #define FM_TLB_X     0x20ULL
    #define FM_TLB_EW    0x10ULL
    #define FM_TLB_D     0x40ULL
    #define FM_TLB_G     0x80ULL
    #define FM_TLB_FRAME 0x000FFFFFFFFFF000ULL
    #define FM_TLB_LA    0x01FFFFFFFFFFF000ULL
    #define FM_TLB_PAGE  0x7FFFFFFFFFFC0000ULL
    #define FM_NO_EPT    1ULL
    _Static_assert((FM_TLB_LA << 6) == FM_TLB_PAGE, "the page in the key is bits 56:12 of the address");
    """
    const uint64_t F_U "FM_TLB_U"
    const uint64_t F_S "FM_TLB_S"
    const uint64_t F_R "FM_TLB_R"
    const uint64_t F_W "FM_TLB_W"
    const uint64_t F_EW "FM_TLB_EW"
    const uint64_t F_X "FM_TLB_X"
    const uint64_t F_D "FM_TLB_D"
    const uint64_t F_G "FM_TLB_G"
    const uint64_t TLB_FRAME "FM_TLB_FRAME"
    const uint64_t TLB_LA "FM_TLB_LA"
    const uint64_t TLB_PAGE "FM_TLB_PAGE"
    const uint64_t NO_EPT "FM_NO_EPT"       # EPTRTA of linear mappings; a real one has zeros in 11:0

cdef enum:                      # units
    L1I = 0
    L1D = 1
    L1S = 2                     # stores, where they have a TLB of their own
    L2I = 3                     # second level of fetches, where it is not the unified one
    L2 = 4
    GPM = 5                     # guest-physical mappings
    PSC = 6                     # linear and combined paging-structure caches: classes PDE, PDPTE, PML4E, PML5E
    EPSC = 7                    # guest-physical paging-structure caches
    UNITS = 8

cdef enum:                      # TlbKind: what identifies a context of this kind (tlb.md §1)
    K_LOCAL = 0                 # VPID, PCID, EPTRTA
    K_GLOBAL = 1                # VPID, EPTRTA
    K_PSC = 2                   # VPID, PCID, EPTRTA
    K_GPM = 3                   # EPTRTA
    K_EPSC = 4                  # EPTRTA
    KINDS = 5

cdef enum:                      # why entries were invalidated
    BY_CR3 = 0
    BY_CR0 = 1
    BY_CR4 = 2
    BY_INVLPG = 3
    BY_INVPCID = 4              # + type
    BY_INVVPID = 8              # + type
    BY_INVEPT = 12              # + type - 1
    BY_TRANSITION = 14          # VM entry or VM exit without VPID
    BY_VMFUNC = 15
    BY_PAGE_FAULT = 16
    BY_EPT_VIOLATION = 17
    BY_REWALK = 18              # rights or D did not suffice
    BY_CONTEXTS = 19            # context numbers ran out
    BY_RESET = 20
    CAUSES = 21

cdef enum:
    CLASSES = 4
    MAX_ARRAYS = 24
    NO_CONTEXT = 0xFFFF         # matches no entry

cdef enum:                      # state of a context
    CTX_FREE = 0
    CTX_LIVE = 1                # has entries, or is being given its first
    CTX_DEAD = 2                # flushed; entries still to be overwritten

cdef struct TlbArray:
    uint64_t *row               # sets x (ways keys, ways values); LRU: most recent first, empty ways last
    uint64_t *tree              # PLRU: per set, bit n = node n of a heap-ordered tree points right
    uint64_t *plru_and          # [way]: nodes on the way's path cleared
    uint64_t *plru_or           # [way]: nodes on its path that must point right, away from it
    void *memory
    uint32_t sets, ways, stride
    uint32_t mask               # sets - 1
    uint32_t quota[4]           # [class]: most ways of a set that the class may hold
    uint32_t dead               # entries of dead contexts
    uint32_t pieces             # entries smaller than the guest's page, dead ones too
    uint8_t plru
    uint8_t unit                # TlbUnitId
    uint8_t classes             # bit c: holds class c
    uint8_t shift               # log2 of the page size of class 0; class c: + 9 c

cdef struct TlbUnit:
    TlbArray *by[4]             # [class]; NULL: not cached at this size
    uint32_t live[4]            # [class]: entries that can match
    uint32_t large              # live[1] + live[2] + live[3]
    uint32_t id

cdef struct TlbPort:            # what one kind of access goes through; row..plru: of l1.by[0]
    uint64_t *row
    uint32_t mask, stride, ways, plru
    TlbUnit *l1
    TlbUnit *l2                 # NULL: none

cdef struct TlbContext:
    uint64_t eptrta
    uint32_t vpid, pcid
    uint32_t total              # entries in the arrays
    uint32_t live[8][4]         # [unit][class]; 0 where dead
    uint16_t next               # hash chain
    uint16_t place              # index into live_ids
    uint8_t kind, cause

cdef struct TlbCounters:
    uint64_t lookups[8]         # [unit]; first level: added by the caller
    uint64_t hits[8][4]         # [unit][class]; first level, class 0: lookups - misses - the other classes' hits
    uint64_t misses[8]
    uint64_t fills[8]
    uint64_t evictions[8]
    uint64_t flushes[21]        # [cause]: operations
    uint64_t invalidated[21][8]  # [cause][unit]: entries
    uint64_t refill_misses[21]  # [cause]: walks for a translation that this flush took and nothing had overwritten
    uint64_t survivals          # entries of the first and second level that lived through a VM entry or exit

cdef struct Tlb:
    uint64_t key[5]             # [kind]: context in force << 2; NO_CONTEXT << 2 where it has no entries
    TlbPort port[4]             # [Access]
    TlbUnit unit[8]
    TlbArray array[24]
    uint32_t arrays
    uint32_t smash              # pages too large for the second level are cached there in pieces
    uint32_t vpid, pcid         # in force
    uint64_t eptrta
    TlbContext *ctx
    uint8_t *state              # [context]: ContextState
    uint16_t *free_ids
    uint16_t *live_ids
    uint16_t *bucket
    uint32_t max_id, next_id, n_free, n_live
    TlbCounters c

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

cdef inline uint64_t tlb_find_lru(uint64_t *row, uint32_t ways, uint64_t k, uint64_t g) noexcept nogil:
    # k, g: the keys wanted, of the context in force and of global pages. A hit becomes the most recent.
    cdef uint32_t j = 0
    cdef uint64_t hit, value
    while row[j] != k and row[j] != g:
        j += 1
        if j == ways:
            return 0
    hit = row[j]
    value = row[ways + j]
    while j > 0:
        row[j] = row[j - 1]
        row[ways + j] = row[ways + j - 1]
        j -= 1
    row[0] = hit
    row[ways] = value
    return value


cdef uint64_t tlb_l1_rest(Tlb *t, int acc, uint64_t la) noexcept nogil

cdef inline uint64_t tlb_l1(Tlb *t, int acc, uint64_t la) noexcept nogil:
    # Value, or 0; after 0, tlb_l2 must follow (it counts the miss). la is canonical.
    cdef TlbPort *p = &t.port[acc]
    cdef uint64_t *row = p.row + (la >> 12 & p.mask) * p.stride
    cdef uint64_t page = (la & TLB_LA) << 6
    cdef uint64_t value
    if p.plru:
        return tlb_l1_rest(t, acc, la)
    if row[0] == (page | t.key[0]):
        return row[p.ways]
    value = tlb_find_lru(row, p.ways, page | t.key[0], page | t.key[1])
    if value or not p.l1.large:
        return value
    return tlb_l1_rest(t, acc, la)


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
cdef void tlb_gpm_fill(Tlb *t, uint64_t gpa, uint64_t value) noexcept nogil
cdef void tlb_psc_fill(Tlb *t, uint64_t la, int level, uint64_t value) noexcept nogil
cdef void tlb_epsc_fill(Tlb *t, uint64_t gpa, int level, uint64_t value) noexcept nogil

# ---- contexts ---------------------------------------------------------------------------------------------

cdef void tlb_switch(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil  # in force from now on
cdef uint64_t tlb_kill(Tlb *t, uint32_t id, int cause) noexcept nogil
cdef void tlb_remove(Tlb *t, TlbArray *a, uint32_t s, uint32_t way, int cause) noexcept nogil

# ---- making -----------------------------------------------------------------------------------------------

cdef Tlb *tlb_new(uint32_t max_id) noexcept nogil       # NULL: no memory
cdef void tlb_free(Tlb *t) noexcept nogil
cdef int tlb_add(Tlb *t, int unit, int classes, uint32_t sets, uint32_t ways, bint plru) noexcept nogil  # -1: no memory
# After the last tlb_add. l2_fetches: fetches use L2 where there is no L2I; gpm_in_l2: it holds guest-physical mappings.
cdef void tlb_ready(Tlb *t, bint l2_fetches, bint gpm_in_l2) noexcept nogil

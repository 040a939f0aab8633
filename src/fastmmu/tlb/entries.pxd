# What the TLB of one physical CPU is made of: structs, contexts, entries. Sets and replacement: tlb/replacement.pxd;
# lookups and fills: tlb/lookup.pxd.
#
# A TLB has units (first level per kind of access, second level, guest-physical mappings, paging-structure caches);
# a unit has an array per page size, or one array for several. An entry is a key and a value:
#
#   key    62:18  linear address bits 56:12 of the page's first byte | 17:2 context | 1:0 size (0 4K, 1 2M, 2 1G)
#   value  59 K | 58:56 memory type | 55:52 protection key | 51:12 frame | 11:10 size of the guest's page | 9:8 size of
#          the entry | 7 G | 6 D | 5 X | 4 EW | 3 W | 2 R | 1 S | 0 U
#
# A context stands for (kind, VPID, PCID, EPTRTA), see TlbKind. To flush one is to mark its number dead: O(1). Dead
# entries match nothing, count as empty ways, and a new number is given out at the next fill.
#
# The rights in a value are those that an access needs, so it is allowed iff (need & ~value) == 0:
#
#   user read U|R    user write U|R|W|EW|D    user fetch U|X    supervisor: no U; + S where SMAP or SMEP forbids user
#   pages; W only with CR0.WP; + K where a key register denies something, and then an entry without K is looked at.
#   R, EW: EPT read, write (set without EPT). X: fetch, guest and EPT. D: no D to set. K: the protection key is 0.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport ctz
from fastmmu.tlb.replacement cimport (
    LRU, LRU_LONG, Replacement, TlbArray, TlbSet, key_came, key_goes, last_first, long_way, on_fill, on_hit, on_remove,
    order_first,
)

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
    #define FM_TLB_K     (1ULL << 59)
    #define FM_TLB_LOOK  (1ULL << 60)
    #define FM_TLB_FRAME 0x000FFFFFFFFFF000ULL
    #define FM_TLB_LA    0x01FFFFFFFFFFF000ULL
    #define FM_TLB_PAGE  0x7FFFFFFFFFFC0000ULL
    #define FM_NO_EPT    1ULL
    #define FM_CONTEXT   0x3FFFFULL
    /* Bit per key that equals k or g; n: a multiple of 4, at most 32. No early exit, which no processor predicts. SSE2,
       which every x86-64 has, so that it is inlined everywhere: a key is equal where both its halves are. */
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline __m128 fm_both(__m128i a, __m128i b) {
        const __m128 x = _mm_castsi128_ps(a), y = _mm_castsi128_ps(b);
        return _mm_and_ps(_mm_shuffle_ps(x, y, _MM_SHUFFLE(2, 0, 2, 0)), _mm_shuffle_ps(x, y, _MM_SHUFFLE(3, 1, 3, 1)));
    }
    #endif
    static inline uint32_t fm_equal(const uint64_t *key, uint32_t n, uint64_t k, uint64_t g) {
        uint32_t hits = 0, i;
    #if defined(__SSE2__)
        const __m128i kk = _mm_set1_epi64x((long long)k), gg = _mm_set1_epi64x((long long)g);
        for (i = 0; i < n; i += 4) {
            const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(key + i));
            const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(key + i + 2));
            hits |= (uint32_t)_mm_movemask_ps(_mm_or_ps(fm_both(_mm_cmpeq_epi32(a, kk), _mm_cmpeq_epi32(b, kk)),
                                                        fm_both(_mm_cmpeq_epi32(a, gg), _mm_cmpeq_epi32(b, gg)))) << i;
        }
    #else
        for (i = 0; i < n; i++) hits |= (uint32_t)((key[i] == k) | (key[i] == g)) << i;
    #endif
        return hits;
    }
    /* Bit per key that equals k in the bits of a mask; n: a multiple of 4, at most 32. */
    static inline uint32_t fm_alike(const uint64_t *key, uint32_t n, uint64_t k, uint64_t mask) {
        uint32_t hits = 0, i;
    #if defined(__SSE2__)
        const __m128i kk = _mm_set1_epi64x((long long)k), mm = _mm_set1_epi64x((long long)mask);
        for (i = 0; i < n; i += 4) {
            const __m128i a = _mm_and_si128(_mm_loadu_si128((const __m128i *)(const void *)(key + i)), mm);
            const __m128i b = _mm_and_si128(_mm_loadu_si128((const __m128i *)(const void *)(key + i + 2)), mm);
            hits |= (uint32_t)_mm_movemask_ps(fm_both(_mm_cmpeq_epi32(a, kk), _mm_cmpeq_epi32(b, kk))) << i;
        }
    #else
        for (i = 0; i < n; i++) hits |= (uint32_t)((key[i] & mask) == k) << i;
    #endif
        return hits;
    }
    _Static_assert((FM_TLB_LA << 6) == FM_TLB_PAGE, "the page in the key is bits 56:12 of the address");
    #define FM_TLB_VALUE(OP) (FM_TLB_U OP FM_TLB_S OP FM_TLB_R OP FM_TLB_W OP FM_TLB_EW OP FM_TLB_X OP FM_TLB_D OP \\
        FM_TLB_G OP (15ULL << 8) OP FM_TLB_FRAME OP (15ULL << 52) OP (7ULL << 56) OP FM_TLB_K OP FM_TLB_LOOK)
    _Static_assert(FM_TLB_VALUE(|) == FM_TLB_VALUE(+), "bits of a TLB entry overlap");
    _Static_assert((FM_TLB_PAGE & FM_CONTEXT) == 0, "page and context of a key overlap");
    """
    const uint64_t F_U "FM_TLB_U"
    const uint64_t F_S "FM_TLB_S"
    const uint64_t F_R "FM_TLB_R"
    const uint64_t F_W "FM_TLB_W"
    const uint64_t F_EW "FM_TLB_EW"
    const uint64_t F_X "FM_TLB_X"
    const uint64_t F_D "FM_TLB_D"
    const uint64_t F_G "FM_TLB_G"
    const uint64_t F_K "FM_TLB_K"
    const uint64_t F_LOOK "FM_TLB_LOOK"     # in no value: an access that needs it is looked at
    const uint64_t TLB_FRAME "FM_TLB_FRAME"
    const uint64_t TLB_LA "FM_TLB_LA"
    const uint64_t TLB_PAGE "FM_TLB_PAGE"
    const uint64_t NO_EPT "FM_NO_EPT"       # EPTRTA of linear mappings; a real one has zeros in 11:0
    const uint64_t CONTEXT "FM_CONTEXT"     # context and size in a key
    uint32_t equal "fm_equal"(const uint64_t *key, uint32_t n, uint64_t k, uint64_t g) noexcept nogil
    uint32_t alike "fm_alike"(const uint64_t *key, uint32_t n, uint64_t k, uint64_t mask) noexcept nogil

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
    BY_INVLPGA = 21
    BY_TLB_CONTROL = 22         # of VMRUN: all, of one ASID, of it but global mappings
    CAUSES = 25

cdef enum:
    CLASSES = 4
    MAX_ARRAYS = 24
    BUCKETS = 4096              # of the hash of contexts
    NO_CONTEXT = 0xFFFF         # matches no entry
    NO_WAY = 0xFFFFFFFF

cdef enum:                      # state of a context
    CTX_FREE = 0
    CTX_LIVE = 1                # has entries, or is being given its first
    CTX_DEAD = 2                # flushed; entries still to be overwritten
    CTX_SIBLINGS = 3            # live, of another hyperthread of the core: matches nothing here

cdef enum:
    MAX_THREADS = 8             # hyperthreads of a core
    LOST_SOME = 1 << 30         # in `omit`: entries were lost to another hyperthread, see below
    EXTENDED = 1 << 29          # in `omit`: extensions hold translations, too (tlb/extension.pxd)

cdef struct Tlb

cdef struct TlbUnit:
    TlbArray *by[4]             # [class]; NULL: not cached at this size
    uint32_t live[4]            # [class]: entries that can match
    uint32_t large              # live[1] + live[2] + live[3]
    uint32_t id

cdef struct TlbPort:            # what one kind of access goes through; base, mask, log: of l1.by[0]
    uint8_t *base
    uint32_t mask, log
    uint32_t ways               # of l1.by[0] to compare; 0: it is not LRU
    TlbUnit *l1
    TlbUnit *l2                 # NULL: none
    TlbArray *second            # of its 4K pages, where misses of both levels are plain; NULL: not (tlb/held.pxd)

cdef struct TlbContext:
    uint64_t eptrta
    Tlb *owner                  # of the hyperthread whose context it is
    uint32_t live[8][4]         # [unit][class]; 0 where dead
    uint32_t vpid, pcid
    uint32_t total              # entries in the arrays
    uint16_t next               # hash chain
    uint16_t place              # index into live_ids
    uint8_t kind, cause

cdef struct LostEntry:          # see below
    uint64_t page               # as in a key: page and size
    uint64_t value
    TlbContext tags             # kind, VPID, PCID and EPT root; nothing else
    uint32_t unit
    uint32_t next               # of its bucket: index + 1, 0: none
    bint used

cdef struct Lost:
    uint32_t room, n            # places, of which so many are used
    uint32_t at                 # the next one to be taken, whatever it holds
    uint32_t mask               # buckets - 1
    uint32_t *head              # [bucket] index + 1
    LostEntry *entry

cdef struct TlbCounters:
    uint64_t lookups[8]         # [unit]; first level: added by the caller
    uint64_t hits[8][4]         # [unit][class]; first level, class 0: lookups - misses - the other classes' hits
    uint64_t misses[8]
    uint64_t fills[8]
    uint64_t evictions[8]
    uint64_t flushes[25]        # [cause]: operations
    uint64_t invalidated[25][8]  # [cause][unit]: entries
    uint64_t refill_misses[25]  # [cause]: walks for a translation that this flush took and nothing had overwritten
    uint64_t displaced[8]       # [unit]: evictions of another hyperthread's entries, in arrays that they share
    uint64_t sibling_misses     # walks for what another hyperthread had displaced in the second level
    uint64_t survivals          # entries of the first and second level that lived through a VM entry or exit
    uint64_t extension_reads    # of extensions (tlb/extension.pxd): arrays that their lookups read
    uint64_t extension_refs     # references to what they keep in memory, for which accesses wait
    uint64_t background_refs    # the same, and of walks of prefetchers, for which none waits

cdef struct Tlb:
    uint64_t key[5]             # [kind]: context in force << 2; NO_CONTEXT << 2 where it has no entries
    TlbPort port[4]             # [Access]
    TlbUnit unit[8]
    TlbArray array[24]          # its own
    TlbArray *at[24]            # those, or in their place what the hyperthreads of the core share
    uint32_t arrays
    uint32_t omit               # causes, as bits, whose invalidations do nothing: what goes wrong without them?
    uint64_t probes             # sets, entries and contexts that invalidations looked at: what they cost
    void (*grow)(Tlb *t, TlbArray *a) noexcept nogil    # of the module above
    uint32_t l2_fractures       # pages too large for the second level are cached there, fractured
    uint32_t fractured[1 << 16]     # [hash of the guest's page] first of its fractured entries, 0: there is none
    bint lower                  # a global or large page of the lower half of addresses was cached, ever
    bint quick_on               # the arrays that walks use are plain, of several ways, and for nothing else: a walk may
    uint64_t quick_done         # be quick (paging/quick_walk.pxd); so many were
    uint32_t vpid, pcid         # in force
    uint64_t eptrta
    TlbContext *ctx
    uint8_t *state              # [context]: ContextState
    uint16_t *free_ids
    uint16_t *live_ids
    uint16_t *bucket
    uint32_t max_id, next_id, n_free, n_live
    uint32_t peers              # other hyperthreads of the core: each has numbers of contexts of its own
    Tlb *peer[7]
    Lost *lost                  # NULL: nothing is shared
    TlbCounters c
    void *extension             # Extensions, asked between a miss of both levels and the walk; NULL: none
    uint64_t (*beyond)(Tlb *t, int acc, uint64_t la) noexcept nogil     # asks it: the module above

# ---- entries ----------------------------------------------------------------------------------------------------

cdef inline TlbSet *set_at(const TlbArray *a, uint64_t s) noexcept nogil:
    return <TlbSet *> (a.base + (s << a.log))


cdef inline TlbSet *set_of(const TlbArray *a, int size, uint64_t la) noexcept nogil:
    return set_at(a, la >> (a.shift + 9 * size) & a.mask)


cdef inline uint64_t page_of(const TlbArray *a, int size, uint64_t la) noexcept nogil:
    # As in a key: page and size.
    cdef int shift = a.shift + 9 * size
    return ((la & TLB_LA) >> shift << shift) << 6 | size


cdef inline bint is_fractured(uint64_t value) noexcept nogil:
    # An entry smaller than the guest's page, of which there may be others.
    return (value >> 10 & 3) > (value >> 8 & 3)


cdef inline uint32_t *fractured_of(Tlb *t, uint64_t la, int page) noexcept nogil:
    # page: size of the guest's page, as in a value
    cdef uint64_t region = (la & TLB_LA) >> (22 if page == 3 else 12 + 9 * page)
    return &t.fractured[(region * 4 + page) * <uint64_t> 0x9E3779B97F4A7C15 >> 48]


# Those of a page are linked, so that they are found wherever they lie. The id of an entry:
# its array << 27 | set * pad + way, plus 1.

cdef enum:
    SLOT_BITS = 27
    SLOTS = 1 << SLOT_BITS      # of an array, at most

cdef inline TlbArray *id_array(Tlb *t, uint32_t id) noexcept nogil:
    return t.at[(id - 1) >> SLOT_BITS]


cdef inline uint32_t id_slot(uint32_t id) noexcept nogil:
    return (id - 1) & (SLOTS - 1)


cdef inline uint32_t *id_links(Tlb *t, uint32_t id) noexcept nogil:
    return id_array(t, id).link + 2 * id_slot(id)


cdef void tlb_fracture(Tlb *t, TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil     # a fractured entry has come
cdef void tlb_unfracture(Tlb *t, TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil   # one is about to go


cdef uint64_t find_elsewhere(TlbArray *a, TlbSet *x, uint64_t k, uint64_t g) noexcept nogil

cdef inline uint64_t find(TlbArray *a, TlbSet *x, uint64_t k, uint64_t g) noexcept nogil:
    # Value, or 0. k, g: keys of the context in force and of its global pages. A hit is the one used last; where both
    # are cached the more recent is hit (LRU_LONG too; else: the lower way, where neither is the set's `key`).
    cdef uint64_t order
    cdef uint32_t hits, way
    if a.replacement != LRU:
        return find_elsewhere(a, x, k, g)
    hits = equal(x.way, a.pad, k, g)
    if not hits:
        return 0
    way = ctz(hits)
    if hits & (hits - 1):
        order = x.order
        while not hits >> (order & 15) & 1:
            order >>= 4
        way = order & 15
    x.order = order_first(x.order, way)
    x.key = x.way[way]
    x.value = x.way[a.pad + way]
    return x.value


cdef void insert_elsewhere(Tlb *t, TlbArray *a, int kind, int size, uint64_t la, uint64_t value) noexcept nogil

cdef inline void insert(Tlb *t, TlbArray *a, int kind, int size, uint64_t la, uint64_t value) noexcept nogil:
    # In place of a live entry of the same context and size if it is the least recent: no account but the eviction's.
    cdef TlbSet *x = set_of(a, size, la)
    cdef uint64_t key = page_of(a, size, la) | t.key[kind]
    cdef uint32_t way = x.order >> a.last & 15
    if (kind == K_GLOBAL or (size and kind == K_LOCAL)) and not la >> 56 & 1:
        t.lower = True
    if (a.plain and a.dead == 0 and ((x.way[way] ^ key) & CONTEXT) == 0 and not is_fractured(value)
            and (a.fractured == 0 or not is_fractured(x.way[a.pad + way]))):
        x.order = x.order & ~a.nibbles | (x.order << 4 & a.nibbles) | way
        x.key = x.way[way] = key
        x.value = x.way[a.pad + way] = value
        t.c.evictions[GPM if kind == K_GPM else a.unit] += 1
        t.c.fills[GPM if kind == K_GPM else a.unit] += 1
    else:
        insert_elsewhere(t, a, kind, size, la, value)


cdef inline bint insert_long(Tlb *t, TlbArray *a, TlbSet *x, int unit, uint64_t key, uint64_t value) noexcept nogil:
    # insert() in a set of LRU_LONG, likewise; False: it has to be insert().
    cdef uint32_t way = x.order >> 16
    if (not a.plain_long or a.dead or (x.way[way] ^ key) & CONTEXT or a.fractured
            or unit <= GPM and is_fractured(value)):
        return False
    last_first(a, x)
    key_goes(a, x, way)
    x.key = x.way[way] = key
    key_came(a, x, way)
    x.value = x.way[a.pad + way] = value
    t.c.evictions[unit] += 1
    t.c.fills[unit] += 1
    return True


cdef inline void insert_page(Tlb *t, TlbArray *a, uint64_t key, uint64_t la, uint64_t value) noexcept nogil:
    # insert() of a 4K page that is neither global nor a piece; key: its page and context, which has a number
    cdef TlbSet *x = set_at(a, la >> 12 & a.mask)
    cdef uint32_t way = x.order >> a.last & 15
    if (a.plain and a.dead == 0 and ((x.way[way] ^ key) & CONTEXT) == 0
            and (a.fractured == 0 or not is_fractured(x.way[a.pad + way]))):
        x.order = x.order & ~a.nibbles | (x.order << 4 & a.nibbles) | way
        x.key = x.way[way] = key
        x.value = x.way[a.pad + way] = value
        t.c.evictions[a.unit] += 1
        t.c.fills[a.unit] += 1
    else:
        insert_elsewhere(t, a, K_LOCAL, 0, la, value)


cdef inline uint32_t way_of(const TlbArray *a, const TlbSet *x, uint64_t key) noexcept nogil:
    # the way that holds it, or NO_WAY
    cdef uint32_t first, hits
    if a.replacement == LRU_LONG:
        return long_way(a, x, key, ~<uint64_t> 0)
    if a.pad == 4:
        for first in range(4):
            if x.way[first] == key:
                return first
        return NO_WAY
    for first in range(0, a.pad, 32):
        hits = equal(x.way + first, min(a.pad - first, 32), key, key)
        if hits:
            return first + ctz(hits)
    return NO_WAY


# ---- entries that leave -----------------------------------------------------------------------------------------

cdef void tlb_release(Tlb *t, uint32_t id) noexcept nogil      # a context of its own that has no entry left

cdef inline bint fractured_in(const TlbArray *a, uint64_t value) noexcept nogil:
    # The values of paging-structure caches are the walker's own.
    return a.unit <= GPM and is_fractured(value)


cdef inline int unit_of(const TlbArray *a, int kind) noexcept nogil:
    return GPM if kind == K_GPM else a.unit     # guest-physical mappings may share the second level


cdef inline void tlb_forget(Tlb *t, TlbArray *a, TlbSet *s, uint32_t way, int cause) noexcept nogil:
    # Accounts for an entry that leaves its way, a dead one or its own; cause -1: not an invalidation.
    cdef uint32_t id = s.way[way] >> 2 & 0xFFFF
    cdef int size = s.way[way] & 3
    cdef TlbContext *x = &t.ctx[id]
    cdef int u = unit_of(a, x.kind)
    if fractured_in(a, s.way[a.pad + way]):
        tlb_unfracture(x.owner, a, s, way)
    if t.state[id] == CTX_DEAD:
        a.dead -= 1
    else:
        x.live[u][size] -= 1
        t.unit[u].live[size] -= 1
        if size:
            t.unit[u].large -= 1
        if cause >= 0:
            t.c.invalidated[cause][u] += 1
    x.total -= 1
    if x.total == 0:
        tlb_release(x.owner, id)


cdef inline void tlb_remove(Tlb *t, TlbArray *a, TlbSet *x, uint32_t way, int cause) noexcept nogil:
    # Empties a way, of no other hyperthread's live entry.
    cdef uint64_t key = x.way[way]
    tlb_forget(t, a, x, way, cause)
    if x.key == key:
        x.key = 0
    if a.replacement == LRU_LONG:
        key_goes(a, x, way)
    x.way[way] = 0
    x.way[a.pad + way] = 0
    on_remove(a, x, way)

# ---- contexts ---------------------------------------------------------------------------------------------------
# A processor of AMD tags by ASID alone (APM vol. 2, 15.16): it stands in the place of the VPID, and under nested paging
# in that of the EPT root, too, so that guest-physical entries have it.

cdef inline uint64_t asid_root(uint32_t asid) noexcept nogil:
    return <uint64_t> asid << 12


cdef inline uint32_t bucket_of(int kind, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil:
    # Without the EPT root for the kinds that have a VPID: MOV CR3 finds the contexts of all roots in one chain.
    cdef uint64_t h = <uint64_t> vpid << 12 | pcid
    if kind == K_GPM or kind == K_EPSC:
        h = eptrta >> 12
    return ((h * 8 + kind) * <uint64_t> 0x9E3779B97F4A7C15) >> 52


cdef void tlb_switch(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil  # in force from now on
cdef uint64_t tlb_kill(Tlb *t, uint32_t id, int cause) noexcept nogil  # flushes a live one; number of entries

# ---- what a hyperthread lost to another ---------------------------------------------------------------------------
# What a hyperthread lost to another: translations of the second level that the other's fills displaced. A miss that
# finds its translation here is one that sharing has caused. What invalidates a translation ends it here, too; so does a
# fill. As many are remembered as the shared arrays hold, the last ones.

cdef Lost *lost_new(uint32_t room) noexcept nogil       # NULL: no memory; free() frees it
cdef void lost_add(Tlb *t, uint32_t unit, const TlbContext *x, uint64_t key, uint64_t value) noexcept nogil
cdef void lost_remove(Tlb *t, uint32_t i) noexcept nogil
# Of a fill: 1 where the entry that comes had been lost.
cdef uint64_t lost_claim(Tlb *t, uint32_t unit, int kind, uint64_t key) noexcept nogil
cdef void lost_rewalk(Tlb *t, uint32_t unit, uint64_t la) noexcept nogil    # what la would hit, in this context

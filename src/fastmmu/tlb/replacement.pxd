# Sets of ways, and which way makes room for a new entry. LRU and tree-PLRU are here, all others are functions behind
# pointers (tlb/policy.pxd), which are told the same:
#
#   on_hit      the way was used
#   on_fill     the way has a new entry
#   on_remove   the way was emptied, or its entry is to be
#   victim      the way that makes room where all are taken
#
# An array has one policy for good; callers branch on it alone where they need to be quicker than that.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport ctzll
from fastmmu.tlb.chirp cimport note_fetch
from fastmmu.tlb.policy cimport PolicySets

cdef extern from *:
    """
    #include <stdint.h>
    #define FM_NIBBLES   0x1111111111111111ULL
    #define FM_IDENTITY  0xFEDCBA9876543210ULL
    #define FM_HASH      0x9E3779B97F4A7C15ULL
    #define FM_MOSTLY(x) __builtin_expect(!!(x), 1)
    /* Bit per tag that equals t; n: a multiple of 16, at most 64. */
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    static inline uint64_t fm_same_tag(const uint16_t *tag, uint32_t n, uint16_t t) {
        uint64_t hits = 0;
        uint32_t i;
    #if defined(__SSE2__)
        const __m128i all = _mm_set1_epi16((short)t);
        for (i = 0; i < n; i += 16) {
            const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(tag + i));
            const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(tag + i + 8));
            const __m128i both = _mm_packs_epi16(_mm_cmpeq_epi16(a, all), _mm_cmpeq_epi16(b, all));
            hits |= (uint64_t)(uint32_t)_mm_movemask_epi8(both) << i;
        }
    #else
        for (i = 0; i < n; i++) hits |= (uint64_t)(tag[i] == t) << i;
    #endif
        return hits;
    }
    """
    const uint64_t NIBBLES "FM_NIBBLES"
    const uint64_t IDENTITY "FM_IDENTITY"
    const uint64_t HASH "FM_HASH"
    bint mostly "FM_MOSTLY"(bint) noexcept nogil
    uint64_t same_tag "fm_same_tag"(const uint16_t *tag, uint32_t n, uint16_t t) noexcept nogil

cdef enum Replacement:
    LRU = 0                     # true LRU by the order of the ways, at most 16 of them
    LRU_LONG = 1                # true LRU of more ways: they are linked in the order of their last use
    TREE_PLRU = 2               # a tree of bits, at most 64 ways
    BY_POLICY = 3               # as `policy` of the array has it, at most 64 ways

cdef struct TlbSet:             # a power of two in size
    uint64_t key, value         # copy of the entry used last, so that one comparison serves most lookups; or 0
    uint64_t order              # LRU: the ways, the one used last in bits 3:0, empty ones last; LRU_LONG: see there
    uint64_t tree               # TREE_PLRU: bit n = node n of a heap-ordered tree points right
    uint64_t way[4]             # really 2 pad: keys, then values; a key of 0: empty; LRU_LONG: links, tags or chains

cdef struct TlbArray:
    uint8_t *base               # sets
    uint64_t *plru_and          # [way]: nodes on the way's path cleared
    uint64_t *plru_or           # [way]: nodes on its path that must point right, away from it
    void *memory
    uint32_t sets, ways
    uint32_t mask               # sets - 1
    uint32_t log                # log2 of a set's bytes
    uint32_t pad                # ways, rounded up to 4; the keys beyond stay 0
    uint32_t tags               # LRU_LONG: ways rounded up to 16, where each has a tag
    uint32_t chains             # else: chains of ways by their page - 1, a power of two - 1
    uint32_t quota[4]           # [class]: most ways of a set that the class may hold
    uint32_t last               # LRU: where the least recent way stands in `order`
    uint64_t nibbles            # LRU: the bits of `order` in use
    uint32_t plain              # LRU without quotas, and it does not grow
    uint32_t plain_long         # LRU_LONG likewise
    uint32_t dead               # entries of dead contexts
    uint32_t fractured          # entries smaller than the guest's page, dead ones too
    PolicySets policy           # BY_POLICY
    uint64_t *fetches           # BY_POLICY, of L1I: where each fetch is noted; NULL: it is not
    uint32_t *link              # [set * pad + way][2]: of such an entry the next and the previous one of its page
    uint32_t index              # of the TLB's arrays
    uint8_t replacement         # Replacement
    uint8_t unit                # TlbUnitId
    uint8_t classes             # bit c: holds class c
    uint8_t shift               # log2 of the page size of class 0; class c: + 9 c
    uint8_t aside               # not LRU, or what hyperthreads share of the second level: no way is taken in passing
    uint8_t shared              # by the hyperthreads of a core
    uint8_t grows               # a live entry is never replaced: the array gets larger


# ---- LRU: the ways of a set in the order of their last use --------------------------------------------------

cdef inline uint64_t order_first(uint64_t order, uint64_t way) noexcept nogil:
    # The way becomes the most recent. Its nibble is the lowest one that is 0 after the XOR: the nibbles up to it move.
    cdef uint64_t x = order ^ way * NIBBLES
    cdef uint64_t top = (x - NIBBLES) & ~x & (NIBBLES << 3)
    return order ^ ((order ^ (order << 4 | way)) & (top ^ (top - 1)))


cdef inline uint64_t order_last(uint64_t order, uint32_t way, uint32_t ways) noexcept nogil:
    # The way becomes the least recent: it goes to the front, and all rotate by one.
    cdef uint64_t o = order_first(order, way)
    cdef uint64_t used = ~<uint64_t> 0 >> (64 - 4 * ways)
    return o & ~used | (o & used) >> 4 | <uint64_t> way << (4 * (ways - 1))


# ---- LRU_LONG: the ways linked in that order; `order` has the first one in 15:0, the last in 31:16 ------------


cdef enum:
    NONE = 0xFFFF               # no way

cdef inline uint16_t *behind(const TlbArray *a, const TlbSet *x) noexcept nogil:
    # [way] the next one, used before it
    return <uint16_t *> (x.way + 2 * a.pad)


cdef inline uint16_t *before(const TlbArray *a, const TlbSet *x) noexcept nogil:
    return <uint16_t *> (x.way + 2 * a.pad) + a.pad


cdef inline void long_order(const TlbArray *a, TlbSet *x) noexcept nogil:
    # of a new set
    cdef uint32_t w
    for w in range(a.ways):
        behind(a, x)[w] = w + 1 if w + 1 < a.ways else <int> NONE
        before(a, x)[w] = w - 1 if w else <int> NONE
    x.order = (a.ways - 1) << 16


cdef inline void unlink(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef uint16_t next = behind(a, x)[way], previous = before(a, x)[way]
    if previous == NONE:
        x.order = x.order & ~<uint64_t> 0xFFFF | next
    else:
        behind(a, x)[previous] = next
    if next == NONE:
        x.order = x.order & 0xFFFF | <uint64_t> previous << 16
    else:
        before(a, x)[next] = previous


cdef inline void move_first(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    if x.order & 0xFFFF == way:
        return
    unlink(a, x, way)
    behind(a, x)[way] = x.order & 0xFFFF
    before(a, x)[way] = NONE
    before(a, x)[x.order & 0xFFFF] = way
    x.order = x.order & ~<uint64_t> 0xFFFF | way


cdef inline uint32_t last_first(const TlbArray *a, TlbSet *x) noexcept nogil:
    # the least recent way becomes the most recent; there are more than one
    cdef uint16_t way = x.order >> 16, first = x.order, last = before(a, x)[way]
    behind(a, x)[last] = NONE
    behind(a, x)[way] = first
    before(a, x)[way] = NONE
    before(a, x)[first] = way
    x.order = <uint64_t> last << 16 | way
    return way


cdef inline void move_last(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    if x.order >> 16 == way:
        return
    unlink(a, x, way)
    before(a, x)[way] = x.order >> 16
    behind(a, x)[way] = NONE
    behind(a, x)[x.order >> 16] = way
    x.order = x.order & 0xFFFF | <uint64_t> way << 16


# A page is found without a look at the keys of all ways: each has a tag, a hash of its page, of which 8 are compared at
# a time, without a branch. Of more ways than TAGGED those whose pages have the same hash are chained, a way stored as
# way + 1: 0 ends a chain.

cdef enum:
    TAGGED = 128

cdef inline uint16_t *tags(const TlbArray *a, const TlbSet *x) noexcept nogil:
    return <uint16_t *> (x.way + 2 * a.pad) + 2 * a.pad


cdef inline uint16_t tag_of(uint64_t key) noexcept nogil:
    # of any size, any context; not 0, as behind the ways
    return (key >> 18) * HASH >> 48 | 1


cdef inline uint16_t *chained(const TlbArray *a, const TlbSet *x) noexcept nogil:
    # [way] the next one of its chain
    return <uint16_t *> (x.way + 2 * a.pad) + 2 * a.pad


cdef inline uint16_t *chain_of(const TlbArray *a, const TlbSet *x, uint64_t key) noexcept nogil:
    # the first of the chain in which a key's page is
    return <uint16_t *> (x.way + 2 * a.pad) + 3 * a.pad + ((key >> 18) * HASH >> 40 & a.chains)


cdef inline uint32_t tagged_way(const TlbSet *x, const uint16_t *tag, uint32_t n, uint32_t first, uint64_t key,
                                uint64_t mask) noexcept nogil:
    # long_way() among the n ways from `first` on
    cdef uint64_t hits = same_tag(tag, n, tag_of(key))
    cdef uint32_t way
    while hits:
        way = first + ctzll(hits)
        if x.way[way] & mask == key:
            return way
        hits &= hits - 1
    return ~<uint32_t> 0


cdef inline uint32_t long_way(const TlbArray *a, const TlbSet *x, uint64_t key, uint64_t mask) noexcept nogil:
    # a way whose key is this one in the bits of a mask, which has the page's; all ones: there is none
    cdef uint32_t first, next
    if mostly(a.tags == 32):    # caches of tables, guest-physical mappings: no loop
        return tagged_way(x, tags(a, x), 32, 0, key, mask)
    if mostly(a.tags == 64):
        return tagged_way(x, tags(a, x), 64, 0, key, mask)
    if a.tags:
        for first in range(0, a.tags, 64):
            next = tagged_way(x, tags(a, x) + first, min(a.tags - first, 64), first, key, mask)
            if next != ~<uint32_t> 0:
                return next
        return ~<uint32_t> 0
    next = chain_of(a, x, key)[0]
    while next and x.way[next - 1] & mask != key:
        next = chained(a, x)[next - 1]
    return next - 1


cdef inline void key_came(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef uint16_t *first
    if mostly(a.tags):
        tags(a, x)[way] = tag_of(x.way[way])
        return
    first = chain_of(a, x, x.way[way])
    chained(a, x)[way] = first[0]
    first[0] = way + 1


cdef inline void key_goes(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef uint16_t *link
    cdef uint16_t *next
    if mostly(a.tags):
        return
    link = chain_of(a, x, x.way[way])
    next = chained(a, x)
    while link[0] != way + 1:
        link = &next[link[0] - 1]
    link[0] = next[way]


# ---- TREE_PLRU ----------------------------------------------------------------------------------------------

cdef inline void plru_paths(TlbArray *a) noexcept nogil:
    cdef uint32_t w, node, leaves = 1
    while leaves < a.ways:
        leaves *= 2
    for w in range(a.ways):
        a.plru_and[w] = ~<uint64_t> 0
        a.plru_or[w] = 0
        node = leaves + w
        while node > 1:
            a.plru_and[w] &= ~(<uint64_t> 1 << (node >> 1))
            if not node & 1:
                a.plru_or[w] |= <uint64_t> 1 << (node >> 1)
            node >>= 1


cdef inline uint32_t plru_victim(const TlbArray *a, const TlbSet *x, uint64_t allowed) noexcept nogil:
    # Follows the tree, where a half holds no allowed way takes the other.
    cdef uint32_t leaves = 1, half, first = 0, node = 1
    cdef bint right
    allowed &= (<uint64_t> 2 << (a.ways - 1)) - 1
    while leaves < a.ways:
        leaves *= 2
    half = leaves // 2
    while half:
        right = x.tree >> node & 1
        if not (allowed >> (first + half * right) & ((<uint64_t> 1 << half) - 1)):
            right = not right
        first += half * right
        node = 2 * node + right
        half //= 2
    return first


# ---- BY_POLICY: the functions of a tlb/policy.pxd --------------------------------------------------------------

cdef inline uint32_t set_number(const TlbArray *a, const TlbSet *x) noexcept nogil:
    return <uint32_t> (<const uint8_t *> x - a.base >> a.log)


cdef inline void policy_hit(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    # x.key serves lookups without a call: that of the entry hit last, where the policy need not be told again
    cdef PolicySets *p = <PolicySets *> &a.policy
    p.policy.on_hit(p, set_number(a, x), x.way, way)
    if a.fetches != NULL:
        note_fetch(a.fetches, x.way[way])
    if p.policy.every or a.fetches != NULL:
        x.key = 0
    else:
        x.key = x.way[way]
        x.value = x.way[a.pad + way]


cdef inline void policy_fill(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef PolicySets *p = <PolicySets *> &a.policy
    x.key = 0                   # the first hit is to be told
    p.policy.on_fill(p, set_number(a, x), x.way, way)
    if a.fetches != NULL:
        note_fetch(a.fetches, x.way[way])


cdef inline void policy_remove(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef PolicySets *p = <PolicySets *> &a.policy
    if p.policy.on_remove != NULL:
        p.policy.on_remove(p, set_number(a, x), x.way, way)


cdef inline uint32_t policy_victim(const TlbArray *a, const TlbSet *x, uint64_t allowed) noexcept nogil:
    cdef PolicySets *p = <PolicySets *> &a.policy
    cdef uint32_t way
    allowed &= (<uint64_t> 2 << (a.ways - 1)) - 1
    way = p.policy.victim(p, set_number(a, x), x.way, allowed)
    return way if way < a.ways and allowed >> way & 1 else ctzll(allowed)


# ---- what a policy is ---------------------------------------------------------------------------------------

cdef inline bint ordered(const TlbArray *a) noexcept nogil:
    # the ways in turn tell the order of use, and empty ways come last
    return a.replacement < TREE_PLRU


cdef inline uint32_t way_at(const TlbArray *a, const TlbSet *x, uint32_t place, uint32_t previous) noexcept nogil:
    # the ways in turn, the most recent first where they are ordered; previous: the one at the place before
    if a.replacement == LRU:
        return x.order >> (4 * place) & 15
    if a.replacement == LRU_LONG:
        return behind(a, x)[previous] if place else x.order & 0xFFFF
    return place


cdef inline uint32_t way_back(const TlbArray *a, const TlbSet *x, uint32_t place, uint32_t next) noexcept nogil:
    # the same from the last place on; next: the one at the place behind
    if a.replacement == LRU:
        return x.order >> (4 * place) & 15
    if a.replacement == LRU_LONG:
        return before(a, x)[next] if place + 1 < a.ways else x.order >> 16
    return place


cdef inline void on_hit(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    # It is the one used last.
    if a.replacement == LRU_LONG:
        move_first(a, x, way)
    elif a.replacement == LRU:
        x.order = order_first(x.order, way)
    elif a.replacement == TREE_PLRU:
        x.tree = x.tree & a.plru_and[way] | a.plru_or[way]
    else:
        policy_hit(a, x, way)
        return
    x.key = x.way[way]
    x.value = x.way[a.pad + way]


cdef inline void on_fill(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    if a.replacement == BY_POLICY:
        policy_fill(a, x, way)
    else:
        on_hit(a, x, way)       # the new entry is the one used last


cdef inline void on_remove(const TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    if a.replacement == LRU:
        x.order = order_last(x.order, way, a.ways)
    elif a.replacement == LRU_LONG:
        move_last(a, x, way)
    elif a.replacement == BY_POLICY:
        policy_remove(a, x, way)


cdef inline uint32_t victim(const TlbArray *a, const TlbSet *x, uint64_t allowed, uint32_t least) noexcept nogil:
    # Of some ways of a set: `allowed`, a bit for each (not asked of LRU_LONG), `least` the last of them by way_at().
    if a.replacement == BY_POLICY:
        return policy_victim(a, x, allowed)
    return plru_victim(a, x, allowed) if a.replacement == TREE_PLRU else least

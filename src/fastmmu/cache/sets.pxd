# One cache: sets of ways, and which way makes room for a line (caches.md §2).
#
# A line is 64 bytes, its number the address / 64. A way has a key: 63:3 line | 2 mark: it holds entries of tables |
# 1 dirty | 0 valid. A set is the state of its replacement, a byte a way or a tree of bits, rounded up to 16 bytes, and
# then the keys, rounded up to 4. All zeros: an empty set.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport ctzll

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* Bit per key that is k where flags are left out; n: a multiple of 4, at most 64. Every x86-64 has SSE2. */
    static inline uint64_t fm_cache_ways(const uint64_t *key, uint32_t n, uint64_t k) {
        uint64_t hits = 0;
        uint32_t i;
    #if defined(__SSE2__)
        const __m128i kk = _mm_set1_epi64x((long long)(k & ~6ULL)), mm = _mm_set1_epi64x((long long)~6ULL);
        for (i = 0; i < n; i += 4) {
            __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(key + i));
            __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(key + i + 2));
            __m128 x, y;
            a = _mm_cmpeq_epi32(_mm_and_si128(a, mm), kk);
            b = _mm_cmpeq_epi32(_mm_and_si128(b, mm), kk);
            x = _mm_castsi128_ps(a);
            y = _mm_castsi128_ps(b);
            hits |= (uint64_t)(uint32_t)_mm_movemask_ps(_mm_and_ps(
                _mm_shuffle_ps(x, y, _MM_SHUFFLE(2, 0, 2, 0)), _mm_shuffle_ps(x, y, _MM_SHUFFLE(3, 1, 3, 1)))) << i;
        }
    #else
        for (i = 0; i < n; i++) hits |= (uint64_t)((key[i] & ~6ULL) == (k & ~6ULL)) << i;
    #endif
        return hits;
    }
    /* One more in each of n bytes that are below r; n: a multiple of 16. */
    static inline void fm_cache_age(uint8_t *rank, uint32_t n, uint8_t r) {
        uint32_t i;
    #if defined(__SSE2__)
        const __m128i rr = _mm_set1_epi8((char)r), one = _mm_set1_epi8(1);
        for (i = 0; i < n; i += 16) {
            __m128i *const at = (__m128i *)(void *)(rank + i);
            const __m128i a = _mm_loadu_si128(at);
            const __m128i not_below = _mm_cmpeq_epi8(_mm_max_epu8(a, rr), a);
            _mm_storeu_si128(at, _mm_add_epi8(_mm_add_epi8(a, one), not_below));
        }
    #else
        for (i = 0; i < n; i++) rank[i] += rank[i] < r;
    #endif
    }
    /* The way of rank r is used: it becomes 0, one more in each that was below it. Of ranks that differ. */
    static inline void fm_cache_front(uint8_t *rank, uint32_t n, uint8_t r) {
        uint32_t i;
    #if defined(__SSE2__)
        const __m128i rr = _mm_set1_epi8((char)r), one = _mm_set1_epi8(1);
        for (i = 0; i < n; i += 16) {
            __m128i *const at = (__m128i *)(void *)(rank + i);
            const __m128i a = _mm_loadu_si128(at);
            const __m128i not_below = _mm_cmpeq_epi8(_mm_max_epu8(a, rr), a);
            const __m128i aged = _mm_add_epi8(_mm_add_epi8(a, one), not_below);
            _mm_storeu_si128(at, _mm_andnot_si128(_mm_cmpeq_epi8(a, rr), aged));
        }
    #else
        for (i = 0; i < n; i++) rank[i] = rank[i] == r ? 0 : rank[i] + (rank[i] < r);
    #endif
    }
    #define fm_cache_ahead(at) __builtin_prefetch(at)
    #define fm_cache_seldom(x) __builtin_expect(!!(x), 0)
    /* Bit per byte that equals r; n: a multiple of 16, at most 64. */
    static inline uint64_t fm_cache_at(const uint8_t *rank, uint32_t n, uint8_t r) {
        uint64_t hits = 0;
        uint32_t i;
    #if defined(__SSE2__)
        const __m128i rr = _mm_set1_epi8((char)r);
        for (i = 0; i < n; i += 16)
            hits |= (uint64_t)(uint32_t)_mm_movemask_epi8(
                _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)(rank + i)), rr)) << i;
    #else
        for (i = 0; i < n; i++) hits |= (uint64_t)(rank[i] == r) << i;
    #endif
        return hits;
    }
    """
    void ahead "fm_cache_ahead"(const void *at) noexcept nogil     # of a look at it
    uint64_t ways_with "fm_cache_ways"(const uint64_t *key, uint32_t n, uint64_t k) noexcept nogil
    bint seldom "fm_cache_seldom"(bint) noexcept nogil
    void age_below "fm_cache_age"(uint8_t *rank, uint32_t n, uint8_t r) noexcept nogil
    void to_front "fm_cache_front"(uint8_t *rank, uint32_t n, uint8_t r) noexcept nogil
    uint64_t ways_at "fm_cache_at"(const uint8_t *rank, uint32_t n, uint8_t r) noexcept nogil

cdef enum CachePolicy:
    CACHE_LRU = 0               # a byte a way: 0 of the one used last, ...
    CACHE_PLRU = 1              # the first 8 bytes: bit n = node n of a heap-ordered tree points right
    CACHE_SRRIP = 2             # a byte a way: its re-reference prediction value, 0..3

cdef enum:
    LINE_SHIFT = 6
    KEY_SHIFT = 3
    K_VALID = 1
    K_DIRTY = 2
    K_MARK = 4
    K_FLAGS = 6                 # dirty, mark
    MOST_WAYS = 64
    RRPV_LONG = 2               # of a line that comes
    RRPV_DISTANT = 3            # of one that may go

cdef struct CacheArray:
    uint8_t *base               # sets; NULL: there is no such cache
    uint64_t *hot               # [set] key whose use changes nothing, or 0; of L1D and L1I, else NULL
    uint64_t sets
    uint64_t mask               # sets - 1, where that is a power of two; else 0: line modulo sets
    uint64_t all                # bit per way
    uint32_t ways
    uint32_t pad                # ways, rounded up to 4
    uint32_t ranks              # bytes of the replacement's state, a multiple of 16
    uint32_t stride             # bytes of a set
    uint32_t leaves             # ways, rounded up to a power of two
    uint8_t policy              # CachePolicy
    uint8_t tables              # lines without a mark make room before those that have it


cdef inline uint64_t key_of(uint64_t hpa) noexcept nogil:
    return hpa >> LINE_SHIFT << KEY_SHIFT | K_VALID


cdef inline uint64_t set_number(const CacheArray *a, uint64_t key) noexcept nogil:
    return key >> KEY_SHIFT & a.mask if a.mask or a.sets == 1 else (key >> KEY_SHIFT) % a.sets


cdef inline uint8_t *rank_of(const CacheArray *a, uint64_t s) noexcept nogil:
    return a.base + s * a.stride


cdef inline uint64_t *keys_of(const CacheArray *a, uint64_t s) noexcept nogil:
    return <uint64_t *> (a.base + s * a.stride + a.ranks)


cdef inline uint64_t empty_ways(const CacheArray *a, const uint64_t *key) noexcept nogil:
    return ways_with(key, a.pad, 0) & a.all


cdef inline void set_ahead(const CacheArray *a, uint64_t key) noexcept nogil:
    # a large cache's set is far away on the host: it comes while the caches before it are searched
    cdef const uint8_t *at = a.base + set_number(a, key) * a.stride
    ahead(at)
    ahead(at + 64)
    if a.stride > 128:
        ahead(at + 128)


# ---- tree-PLRU --------------------------------------------------------------------------------------------------

cdef inline void plru_used(const CacheArray *a, uint64_t *tree, uint32_t way) noexcept nogil:
    # the nodes on its path point away from it
    cdef uint32_t node = a.leaves + way
    cdef uint64_t t = tree[0]
    while node > 1:
        t = t & ~(<uint64_t> 1 << (node >> 1)) | <uint64_t> (~node & 1) << (node >> 1)
        node >>= 1
    tree[0] = t


cdef inline uint32_t plru_victim(const CacheArray *a, uint64_t tree, uint64_t allowed) noexcept nogil:
    # follows the tree; where a half has no allowed way takes the other
    cdef uint32_t half = a.leaves // 2, first = 0, node = 1
    cdef bint right
    while half:
        right = tree >> node & 1
        if not (allowed >> (first + half * right) & ((<uint64_t> 1 << half) - 1)):
            right = not right
        first += half * right
        node = 2 * node + right
        half //= 2
    return first


# ---- what a policy is -------------------------------------------------------------------------------------------

cdef inline void on_use(const CacheArray *a, uint64_t s, uint32_t way) noexcept nogil:
    cdef uint8_t *rank = rank_of(a, s)
    if a.policy == CACHE_LRU:
        to_front(rank, a.ranks, rank[way])
    elif a.policy == CACHE_SRRIP:
        rank[way] = 0
    else:
        plru_used(a, <uint64_t *> rank, way)


cdef inline void on_fill(const CacheArray *a, uint64_t s, uint32_t way, bint replaces) noexcept nogil:
    cdef uint8_t *rank = rank_of(a, s)
    if a.policy == CACHE_LRU and replaces:
        to_front(rank, a.ranks, rank[way])
    elif a.policy == CACHE_LRU:
        age_below(rank, a.ranks, 0xFF)
        rank[way] = 0
    elif a.policy == CACHE_SRRIP:
        rank[way] = RRPV_LONG
    else:
        plru_used(a, <uint64_t *> rank, way)


cdef inline void on_remove(const CacheArray *a, uint64_t s, uint32_t way) noexcept nogil:
    # LRU: the ranks of the lines that stay have no gap
    cdef uint8_t *rank = rank_of(a, s)
    cdef uint8_t was = rank[way]
    cdef uint32_t i
    if a.policy == CACHE_LRU:
        for i in range(a.ways):
            if rank[i] > was:
                rank[i] -= 1


cdef inline uint32_t victim_of(const CacheArray *a, uint64_t s, uint64_t allowed) noexcept nogil:
    # of a set without an empty way, among the allowed ones
    cdef uint8_t *rank = rank_of(a, s)
    cdef uint64_t found
    cdef uint32_t r
    if a.policy == CACHE_PLRU:
        return plru_victim(a, (<uint64_t *> rank)[0], allowed)
    if a.policy == CACHE_SRRIP:
        while True:
            found = ways_at(rank, a.ranks, RRPV_DISTANT) & allowed
            if found:
                return ctzll(found)
            age_below(rank, a.ranks, RRPV_DISTANT)
    r = a.ways - 1
    while True:
        found = ways_at(rank, a.ranks, r) & allowed
        if found or r == 0:
            return ctzll(found)
        r -= 1


# ---- lines that come and go ---------------------------------------------------------------------------------------

cdef inline uint64_t *cache_find(const CacheArray *a, uint64_t key, uint64_t *s, uint32_t *way) noexcept nogil:
    # the key of the way that holds this line, or NULL; its set and number
    cdef uint64_t hits
    cdef uint64_t *keys
    s[0] = set_number(a, key)
    keys = keys_of(a, s[0])
    hits = ways_with(keys, a.pad, key)
    if not hits:
        return NULL
    way[0] = ctzll(hits)
    return keys + way[0]


cdef inline bint cache_use(const CacheArray *a, uint64_t key) noexcept nogil:
    # a lookup; a hit is a use, and takes the flags of the key over
    cdef uint64_t s = 0
    cdef uint32_t way = 0
    cdef uint64_t *at = cache_find(a, key, &s, &way)
    if at == NULL:
        return False
    on_use(a, s, way)
    at[0] |= key & K_FLAGS
    if a.hot != NULL:
        a.hot[s] = at[0]
    return True


cdef inline uint64_t cache_fill(const CacheArray *a, uint64_t key) noexcept nogil:
    # a line that is not there comes; the key of the one that goes, or 0
    cdef uint64_t s = set_number(a, key), allowed, gone = 0
    cdef uint64_t *keys = keys_of(a, s)
    cdef uint32_t way, i
    allowed = empty_ways(a, keys)
    if allowed:
        way = ctzll(allowed)
        on_fill(a, s, way, False)
    else:
        allowed = a.all
        if a.tables:
            for i in range(a.ways):
                if keys[i] & K_MARK:
                    allowed &= ~(<uint64_t> 1 << i)
            if not allowed:
                allowed = a.all
        way = victim_of(a, s, allowed)
        gone = keys[way]
        on_fill(a, s, way, True)
    keys[way] = key
    if a.hot != NULL:
        a.hot[s] = 0 if a.policy == CACHE_SRRIP else key
    return gone


cdef inline uint64_t cache_take(const CacheArray *a, uint64_t key) noexcept nogil:
    # a line is taken out; its key, or 0
    cdef uint64_t s = 0, gone
    cdef uint32_t way = 0
    cdef uint64_t *at = cache_find(a, key, &s, &way)
    if at == NULL:
        return 0
    gone = at[0]
    on_remove(a, s, way)
    at[0] = 0
    if a.hot != NULL and not (a.hot[s] ^ gone) & ~<uint64_t> K_FLAGS:
        a.hot[s] = 0
    return gone

# The first two levels as a loop asks them that runs as long as they hold: what no lookup changes is loaded once, and
# again after whatever is no lookup.
#
#   held_begin(&h, t, acc, half)          after each fill, invalidation or context switch; half: all addresses are of
#                                         the lower half, where no kernel has its global and large pages
#   value = held_first(&h, la)            what tlb_l1 finds among entries of 4K pages, ordered as that does
#   or:  value = held_second(t, &h, la)   what tlb_l2 finds, or MISSED: neither level holds it. The misses are counted
#   or:  tlb_l1, tlb_l2, as ever          where that is 0: nothing has changed
#
# The caller counts the lookup.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport ctz
from fastmmu.tlb.entries cimport (
    CLASSES, F_G, K_GLOBAL, K_LOCAL, NO_CONTEXT, NO_WAY, TLB_LA, Tlb, TlbArray, TlbPort, TlbSet, TlbUnit, equal, insert,
    insert_page, is_fractured, page_of, set_of, way_of,
)
from fastmmu.tlb.replacement cimport order_first

cdef extern from *:
    """
    #define FM_TLB_MISSED (1ULL << 61)
    _Static_assert((FM_TLB_VALUE(|) & FM_TLB_MISSED) == 0, "no value of an entry is that of a miss");
    /* Bit per key that equals k; n: a multiple of 4, at most 32. */
    static inline uint32_t fm_equal_to(const uint64_t *key, uint32_t n, uint64_t k) {
        uint32_t hits = 0, i;
    #if defined(__SSE2__)
        const __m128i kk = _mm_set1_epi64x((long long)k);
        for (i = 0; i < n; i += 4) {
            const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(key + i));
            const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(key + i + 2));
            hits |= (uint32_t)_mm_movemask_ps(fm_both(_mm_cmpeq_epi32(a, kk), _mm_cmpeq_epi32(b, kk))) << i;
        }
    #else
        for (i = 0; i < n; i++) hits |= (uint32_t)(key[i] == k) << i;
    #endif
        return hits;
    }
    """
    const uint64_t MISSED "FM_TLB_MISSED"
    uint32_t equal_to "fm_equal_to"(const uint64_t *key, uint32_t n, uint64_t k) noexcept nogil

cdef struct Held:               # of one kind of access
    uint8_t *base
    uint32_t mask, log
    uint32_t ways               # to compare; 0: only the entry that the set used last
    bint both                   # global pages are cached, too
    uint64_t k, g               # contexts in force
    TlbPort *port
    TlbArray *second            # of 4K pages; NULL: held_second cannot tell
    bint large                  # larger pages are cached, too


cdef inline void held_begin(Held *h, Tlb *t, int acc, bint half) noexcept nogil:
    cdef TlbPort *p = &t.port[acc]
    h.port = p
    h.base = p.base
    h.mask = p.mask
    h.log = p.log
    h.ways = p.ways
    h.k = t.key[K_LOCAL]
    h.g = t.key[K_GLOBAL]
    h.both = h.g != NO_CONTEXT << 2 and (t.lower or not half)
    h.second = p.second
    h.large = h.second != NULL and (p.l1.large or p.l2.large) and (t.lower or not half)


cdef inline bint hit(TlbSet *x, uint32_t pad, uint32_t ways, uint64_t k, uint64_t g, bint both) noexcept nogil:
    # the way that holds one of the keys becomes the set's last used; not where both are held, which find() decides
    cdef uint32_t hits, way
    if both:
        hits = equal(x.way, ways, k, g)
        if hits & (hits - 1):
            return False
    else:
        hits = equal_to(x.way, ways, k)
    if not hits:
        return False
    way = ctz(hits)
    x.order = order_first(x.order, way)
    x.key = x.way[way]
    x.value = x.way[pad + way]
    return True


cdef inline uint64_t held_first(const Held *h, uint64_t la) noexcept nogil:
    cdef TlbSet *x = <TlbSet *> (h.base + ((la >> 12 & h.mask) << h.log))
    cdef uint64_t page = (la & TLB_LA) << 6
    if x.key == (page | h.k) or x.key == (page | h.g):
        return x.value
    if h.ways == 4:             # of most processors: no loop
        return x.value if hit(x, h.ways, 4, page | h.k, page | h.g, h.both) else 0
    return x.value if hit(x, h.ways, h.ways, page | h.k, page | h.g, h.both) else 0


cdef inline bint holds_large(const TlbUnit *u, uint64_t la, uint64_t k, uint64_t g) noexcept nogil:
    cdef uint64_t page
    cdef int size
    for size in range(1, CLASSES):
        if u.live[size]:
            page = page_of(u.by[size], size, la)
            if way_of(u.by[size], set_of(u.by[size], size, la), page | k) != NO_WAY:
                return True
            if way_of(u.by[size], set_of(u.by[size], size, la), page | g) != NO_WAY:
                return True
    return False


cdef inline bint unclear(const Held *h, uint64_t la, uint64_t page) noexcept nogil:
    # after held_first() found nothing: a set may hold the page twice, or a larger page holds it
    cdef uint32_t hits
    if h.both:
        hits = equal((<TlbSet *> (h.base + ((la >> 12 & h.mask) << h.log))).way, h.ways, page | h.k, page | h.g)
        if hits:
            return True
        hits = equal(set_of(h.second, 0, la).way, h.second.pad, page | h.k, page | h.g)
        if hits & (hits - 1):
            return True
    return h.large and (holds_large(h.port.l1, la, h.k, h.g) or holds_large(h.port.l2, la, h.k, h.g))


cdef inline uint64_t held_second(Tlb *t, const Held *h, uint64_t la) noexcept nogil:
    # after held_first() found nothing
    cdef TlbArray *a = h.second
    cdef TlbSet *x
    cdef uint64_t page = (la & TLB_LA) << 6
    if a == NULL or (h.both or h.large) and unclear(h, la, page):
        return 0
    x = set_of(a, 0, la)
    if not hit(x, a.pad, a.pad, page | h.k, page | h.g, h.both):
        t.c.misses[h.port.l1.id] += 1
        t.c.lookups[h.port.l2.id] += 1
        t.c.misses[h.port.l2.id] += 1
        return MISSED
    t.c.misses[h.port.l1.id] += 1
    t.c.lookups[h.port.l2.id] += 1
    t.c.hits[h.port.l2.id][0] += 1
    insert(t, h.port.l1.by[0], K_GLOBAL if x.value & F_G else K_LOCAL, 0, la, x.value)
    return x.value


cdef inline bint held_fill(Tlb *t, const Held *h, uint64_t la, uint64_t value) noexcept nogil:
    # after MISSED what tlb_fill() does with a 4K page that is not global; False: it has to be that, and held_begin()
    cdef uint64_t key = (la & TLB_LA) << 6 | h.k
    if h.second.dead or h.k == NO_CONTEXT << 2 or is_fractured(value):
        return False
    insert_page(t, h.second, key, la, value)
    insert_page(t, h.port.l1.by[0], key, la, value)
    return True


cdef inline Py_ssize_t not_linear(const uint64_t[::1] va, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    # index of the first address that is none, or the end
    cdef Py_ssize_t i
    for i in range(first, end):
        if (va[i] + (<uint64_t> 1 << 56)) >> 57:
            return i
    return end

# A predictor of dead entries by the code that runs, as CHiRP: Mirbagher-Ajorpaz, Garza, Pokam, Jiménez, "CHiRP:
# control-flow history reuse prediction", MICRO 2020. Theirs takes a signature of the PC, the PCs of the last accesses
# to the TLB and the addresses of the last branches. Traces have neither for each access, so here:
#
#   signature   12 bits of a hash. Where fetches are noted: of the page that the last one was of, and of the path, the
#               last four pages that fetches left (calls and returns across pages). Else of the region of 16 pages of
#               which the entry is, as of SHiP-Mem (Wu et al., "SHiP", MICRO 2011)
#   table       4096 counters of 2 bits an array, by signature; 2 and more: dead
#   hit         the counter of the entry's signature goes down by one; the entry gets the signature of now, and whether
#               that one is dead
#   fill        the entry gets them, too
#   victim      of the dead entries the one used least recently; where none is dead the one used least recently of all,
#               and the counter of its signature goes up by one
#
# A hit of the entry that was hit last in its set is not told (tlb/policy.pxd); theirs leaves out accesses to the set of
# the one before. Fetches are noted where the first level for instructions is LRU or one of tlb/policy.pxd's and the
# trace has any: a page is noted as the entry that maps it, and the fetch that misses both levels when its entry comes.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport ctzll
from fastmmu.tlb.policy cimport FETCHES, NO_PAGE, PolicySets, policy_set, policy_size

cdef extern from *:
    """
    #define FM_CHIRP_HASH 0x9E3779B97F4A7C15ULL
    """
    const uint64_t CHIRP_HASH "FM_CHIRP_HASH"

cdef enum:
    SIGNATURES = 4096
    DEAD_FROM = 2
    MOST = 3


cdef inline uint32_t chirp_bytes() noexcept nogil:
    return 8 * FETCHES + SIGNATURES


cdef inline void note_fetch(uint64_t *fetches, uint64_t key) noexcept nogil:
    # of an entry of the first level for instructions
    cdef uint64_t page = key >> 18 << 12
    if page != fetches[0]:
        if fetches[0] != NO_PAGE:
            fetches[1] = fetches[1] << 4 | (fetches[0] >> 12) * CHIRP_HASH >> 60
        fetches[0] = page


cdef inline uint32_t signature(const PolicySets *p, uint64_t key) noexcept nogil:
    cdef uint64_t region
    if p.fetches != NULL and p.fetches[0] != NO_PAGE:
        return <uint32_t> (((p.fetches[0] >> 12) << 16 ^ p.fetches[1] & 0xFFFF) * CHIRP_HASH >> 52)
    region = key >> (18 + 9 * policy_size(key) + 4)
    return <uint32_t> (region * CHIRP_HASH >> 52)


# Recency: a byte for each way, the number of ways used later. Bytes that are no order, of a file, do no harm.

cdef inline void make_first(uint8_t *age, uint32_t ways, uint32_t step, uint32_t way) noexcept nogil:
    cdef uint32_t w
    cdef uint8_t own = age[way * step]
    for w in range(ways):
        if age[w * step] < own:
            age[w * step] += 1
    age[way * step] = 0


cdef inline uint32_t oldest(const uint8_t *age, uint32_t step, uint64_t allowed) noexcept nogil:
    cdef uint32_t way = ctzll(allowed), w
    while allowed:
        w = ctzll(allowed)
        if age[w * step] > age[way * step]:
            way = w
        allowed &= allowed - 1
    return way


cdef inline void recency_start(uint8_t *age, uint32_t ways, uint32_t step) noexcept nogil:
    cdef uint32_t w
    for w in range(ways):
        age[w * step] = <uint8_t> w


cdef inline uint8_t *of_way(const PolicySets *p, uint32_t set, uint32_t way) noexcept nogil:
    # signature, low byte first; dead; age
    return policy_set(p, set) + 4 * way


cdef void chirp_start(PolicySets *p) noexcept nogil
cdef void chirp_hit(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil
cdef void chirp_fill(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil
cdef uint32_t chirp_victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil

# True LRU as such a policy, for first levels that note fetches.
cdef void recency_begin(PolicySets *p) noexcept nogil
cdef void recency_told(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil
cdef uint32_t recency_victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil

"""Replacement policies of this package that are functions over the sets of an array. Header: tlb/policies.pxd; what a
policy is: tlb/policy.pxd.

    random  a way at random. Each array has a generator of its own, SplitMix64 (Steele, Lea, Flood, "Fast splittable
            pseudorandom number generators", OOPSLA 2014), which begins at seed · 256 + index of the array; the way is
            ⌊n · r / 2³²⌋ among the n that may go, r the upper half of the next number.
    srrip   static re-reference interval prediction with hit priority, M = 2 (Jaleel, Theobald, Steely, Emer, "High
            performance cache replacement using re-reference interval prediction (RRIP)", ISCA 2010): an entry comes
            with 2, a hit makes it 0; the first way of 3 goes, and until there is one all that may go are counted up.
    chirp   as CHiRP: tlb/chirp.pxd.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport ctzll
from fastmmu.tlb.chirp cimport (
    chirp_bytes, chirp_fill, chirp_hit, chirp_start, chirp_victim, recency_begin, recency_told, recency_victim,
)
from fastmmu.tlb.policy cimport PolicySets, policy_set, registered_policy

cdef extern from *:
    """
    #define FM_GAMMA 0x9E3779B97F4A7C15ULL
    #define FM_MIX_A 0xBF58476D1CE4E5B9ULL
    #define FM_MIX_B 0x94D049BB133111EBULL
    """
    const uint64_t GAMMA "FM_GAMMA"
    const uint64_t MIX_A "FM_MIX_A"
    const uint64_t MIX_B "FM_MIX_B"
    int popcount "__builtin_popcountll"(uint64_t) noexcept nogil


cdef void nothing(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    pass


# ---- random -------------------------------------------------------------------------------------------------

cdef void random_start(PolicySets *p) noexcept nogil:
    (<uint64_t *> p.own)[0] = p.parameter << 8 | p.index


cdef uint32_t random_victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil:
    cdef uint64_t *state = <uint64_t *> p.own
    cdef uint64_t z
    cdef uint32_t skip
    state[0] += GAMMA
    z = state[0]
    z = (z ^ z >> 30) * MIX_A
    z = (z ^ z >> 27) * MIX_B
    z ^= z >> 31
    skip = <uint32_t> ((z >> 32) * <uint64_t> popcount(allowed) >> 32)
    while skip:
        allowed &= allowed - 1
        skip -= 1
    return ctzll(allowed)


# ---- SRRIP --------------------------------------------------------------------------------------------------

cdef enum:
    NEAR = 0
    LONG = 2
    DISTANT = 3


cdef void srrip_hit(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    policy_set(p, set)[way] = NEAR


cdef void srrip_fill(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    policy_set(p, set)[way] = LONG


cdef uint32_t srrip_victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil:
    cdef uint8_t *interval = policy_set(p, set)
    cdef uint64_t left
    cdef uint32_t way
    cdef int most = 0
    left = allowed
    while left:
        way = ctzll(left)
        left &= left - 1
        if interval[way] >= DISTANT:
            return way
        if interval[way] > most:
            most = interval[way]
    left = allowed
    while left:                                 # as often as it takes until one of them is DISTANT
        interval[ctzll(left)] += DISTANT - most
        left &= left - 1
    left = allowed
    while interval[ctzll(left)] < DISTANT:
        left &= left - 1
    return ctzll(left)


# ---- those of this package ----------------------------------------------------------------------------------

cdef Replacer RANDOM, SRRIP, CHIRP, RECENCY

memset(&RANDOM, 0, sizeof(Replacer))
RANDOM.start, RANDOM.on_hit, RANDOM.on_fill, RANDOM.victim = random_start, nothing, nothing, random_victim
RANDOM.own_bytes = 8

memset(&SRRIP, 0, sizeof(Replacer))
SRRIP.on_hit, SRRIP.on_fill, SRRIP.victim, SRRIP.way_bytes = srrip_hit, srrip_fill, srrip_victim, 1

memset(&CHIRP, 0, sizeof(Replacer))
CHIRP.start, CHIRP.on_hit, CHIRP.on_fill, CHIRP.victim = chirp_start, chirp_hit, chirp_fill, chirp_victim
CHIRP.own_bytes, CHIRP.way_bytes, CHIRP.fetches = chirp_bytes(), 4, True

memset(&RECENCY, 0, sizeof(Replacer))
RECENCY.start, RECENCY.on_hit, RECENCY.on_fill = recency_begin, recency_told, recency_told
RECENCY.victim, RECENCY.way_bytes = recency_victim, 1

RECENCY_NAME = "lru, noting fetches"        # no name that anybody can give


cdef const Replacer *policy_of(str name) except NULL:
    if name == "random":
        return &RANDOM
    if name == "srrip":
        return &SRRIP
    if name == "chirp":
        return &CHIRP
    if name == RECENCY_NAME:
        return &RECENCY
    return registered_policy(name)

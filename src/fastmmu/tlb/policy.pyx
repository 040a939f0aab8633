"""Replacement by policies that are functions over the sets of an array: those of this package, those of others.
Header, and what a policy is: tlb/policy.pxd.

    random  a way at random. Each array has a generator of its own, SplitMix64 (Steele, Lea, Flood, "Fast splittable
            pseudorandom number generators", OOPSLA 2014), which begins at seed · 256 + index of the array; the way is
            ⌊n · r / 2³²⌋ among the n that may go, r the upper half of the next number.
    srrip   static re-reference interval prediction with hit priority, M = 2 (Jaleel, Theobald, Steely, Emer, "High
            performance cache replacement using re-reference interval prediction (RRIP)", ISCA 2010): an entry comes with
            2, a hit makes it 0; the first way of 3 goes, and until there is one all that may go are counted up.
    chirp   as CHiRP: tlb/chirp.pxd.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport shown
from fastmmu.arch.bits cimport ctzll
from fastmmu.tlb.chirp cimport (
    chirp_bytes, chirp_fill, chirp_hit, chirp_start, chirp_victim, recency_begin, recency_told, recency_victim,
)
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.tlb.arrays import REPLACEMENTS, add_replacement

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


# ---- those of others ----------------------------------------------------------------------------------------

cdef dict _registered = {}
RECENCY_NAME = "lru, noting fetches"        # no name that anybody can give


cdef class ReplacementPolicy:
    """A replacement policy in Cython, of any package: a class derived from it, whose constructor fills in
    ``self.policy`` (tlb/policy.pxd says with what; examples/policy is one). :func:`register_policy` gives it a name.

    Threads: immutable once it has a name; its functions are called in the thread that uses the TLB.
    """


def register_policy(name, policy, described_as=None):
    """Gives a replacement policy a name, under which ``replacement=`` of :class:`fastmmu.Config` and
    :func:`fastmmu.geometry` takes it, for as long as the process lives: ``"lru,NAME"``, ``"NAME:7"``.

    :param name: lower-case letters, digits and underscores, beginning with a letter; not yet taken.
    :param policy: of a class derived from :class:`ReplacementPolicy`.
    :param described_as: what tables call it; default: the name.
    :raises ConfigError: the name is none or taken, or the policy lacks a function or wants more than a MB of an array
        or 4096 bytes of a set or a way.
    """
    cdef const Replacer *p
    if not isinstance(policy, ReplacementPolicy):
        raise WrongTypeError(f"policy must be of a class derived from ReplacementPolicy, not {shown(policy)}")
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise ConfigError(f"a replacement policy cannot be called {shown(name)}; use lower-case letters and digits")
    if described_as is not None and not isinstance(described_as, str):
        raise WrongTypeError(f"described_as must be text, not {shown(described_as)}")
    p = &(<ReplacementPolicy> policy).policy
    if p.on_hit == NULL or p.on_fill == NULL or p.victim == NULL:
        raise ConfigError(f"the replacement policy {name} lacks one of on_hit, on_fill, victim")
    if p.own_bytes > 1 << 20 or p.set_bytes > 4096 or p.way_bytes > 4096:
        raise ConfigError(f"the replacement policy {name} wants {p.own_bytes} bytes of an array, {p.set_bytes} of a "
                          f"set, {p.way_bytes} of a way; at most 1048576, 4096 and 4096")
    if name in REPLACEMENTS or name in _registered:
        raise ConfigError(f"there is a replacement policy {name!r} already; give another name")
    _registered[name] = policy                  # which lives from now on: arrays point into it
    add_replacement(name, described_as or name)


cdef const Replacer *policy_of(str name) except NULL:
    if name == "random":
        return &RANDOM
    if name == "srrip":
        return &SRRIP
    if name == "chirp":
        return &CHIRP
    if name == RECENCY_NAME:
        return &RECENCY
    if name not in _registered:
        raise ConfigError(f"there is no replacement policy {name!r}")
    return &(<ReplacementPolicy> _registered[name]).policy

# Replacement by a policy of one's own: five functions over the sets of an array. Other packages may implement it
# (examples/policy); random, SRRIP and CHiRP of this package are such policies. True LRU and tree-PLRU are none, but
# branches of tlb/replacement.pxd.
#
#   start       the array is new, its state all zeros (may be NULL)
#   on_hit      a lookup has found the entry of a way
#   on_fill     a new entry has come to a way
#   on_remove   the entry of a way was invalidated, the way is empty (may be NULL)
#   victim      which way of `allowed`, a bit for each of at least one, makes room. All of them have live entries; the
#               entry of the way that it names goes, and on_fill of that way follows
#
# An empty way, or that of a flushed context, takes a new entry before any live one has to go, the lowest of them first;
# victim is not asked then. Where a page size has as many ways of a set as its quota, `allowed` is those.
# A hit of the entry that was hit last in its set, with neither hit nor fill of the set in between, is not told: it
# changes nothing in most policies, and is most of all lookups of a first level. `every`: it is told, too, which takes
# several times as long.
#
# What a policy remembers is bytes: `own_bytes` of an array, and of each set `set_bytes` plus `way_bytes` for each way.
# It is all that a checkpoint saves, and comes back as a file has it: what is no state of the policy must do no harm.
# A way outside of `allowed` that victim names is taken for the lowest allowed one.
#
# The functions run without the GIL, in one thread at a time for each array.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #define FM_NO_PAGE (~0ULL)
    """
    const uint64_t NO_PAGE "FM_NO_PAGE"

cdef struct PolicySets:         # of an array
    const Replacer *policy
    uint8_t *own                # its own_bytes, 8-byte aligned
    uint8_t *state              # of set 0; see policy_set()
    uint64_t *fetches           # `fetches` of a policy: see below; NULL elsewhere
    uint64_t parameter          # behind the policy's name: random:7; 0 where nothing stands there
    uint32_t sets, ways
    uint32_t set_bytes          # of a set, those of its ways too
    uint32_t index              # of the array among those of its TLB

ctypedef void (*StartOf)(PolicySets *p) noexcept nogil
ctypedef void (*ToldOf)(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil
ctypedef uint32_t (*VictimOf)(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil

cdef struct Replacer:             # key: of all ways of the set; 0: it is empty
    StartOf start
    ToldOf on_hit
    ToldOf on_fill
    ToldOf on_remove
    VictimOf victim
    uint32_t own_bytes, set_bytes, way_bytes
    bint every
    bint fetches                # it looks at which code runs: the pages of the last fetches, `PolicySets.fetches`


# Of fetches, which the first level for instructions notes where a policy looks at them, in the first 16 of the
# own_bytes of the last such array (before `start`: NO_PAGE and 0):
#   fetches[0]  the page of the last one, as policy_page() of its key; NO_PAGE: there was none
#   fetches[1]  the path: for each fetch of another page than the one before it, 4 bits of a hash of the page that was
#               left come in at the bottom
cdef enum:
    FETCHES = 2


cdef inline uint8_t *policy_set(const PolicySets *p, uint32_t set) noexcept nogil:
    # the bytes of a set; those of its ways lie behind its own
    return p.state + <uint64_t> set * p.set_bytes


cdef inline uint64_t policy_page(uint64_t key) noexcept nogil:
    # address of the first byte of the page that an entry maps
    return key >> 18 << 12


cdef inline int policy_size(uint64_t key) noexcept nogil:
    # of that page: 0 4K, 1 2M, 2 1G
    return key & 3


cdef class ReplacementPolicy:
    cdef Replacer policy          # which the constructor of a class derived from it fills in

cdef const Replacer *registered_policy(str name) except NULL

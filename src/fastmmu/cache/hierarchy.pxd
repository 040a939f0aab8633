# Data caches and memory of a CPU, by host-physical address (caches.md): L1D, L1I and L2 are a CPU's own, L3 and DRAM
# may be those of several. A reference costs the latency of the place where it was found, no more: one at a time, as a
# walk makes them.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport ACC_RW, ACC_W, ACC_X, Steps
from fastmmu.cache.frame_map cimport FrameMap, frame_map_apply
from fastmmu.cache.sets cimport K_DIRTY, K_MARK, KEY_SHIFT, CacheArray, key_of, set_ahead

cdef enum CacheCause:
    CAUSE_READ = 0              # of the trace
    CAUSE_WRITE = 1
    CAUSE_FETCH = 2
    CAUSE_KERNEL = 3            # the guest's kernel
    CAUSE_VMM = 4
    CAUSE_EXTENSION = 5         # what the TLB keeps in memory, where the access waits for it (tlb/extension.pxd)
    CAUSE_BACKGROUND = 6        # the same, and walks of prefetchers, where none waits
    CAUSE_GUEST = 8             # + level 1..5: entry of the guest's tables, or the VMM's shadow tables, read by a walk
    CAUSE_EPT = 16              # + 8 * guest level 0..5 (0: of the data) + EPT level 1..5
    CAUSES = 64

cdef enum CacheLevel:           # where a reference was found
    FOUND_L1 = 0
    FOUND_L2 = 1
    FOUND_L3 = 2
    FOUND_ROW = 3               # memory, in the open row of its bank
    FOUND_DRAM = 4
    FOUND = 5

cdef enum:
    WALK_BINS = 128
    MOST_CPUS = 64              # that share an L3
    MOST_OF_WALK = 32           # references of a quick walk

cdef struct CacheCounters:      # cycles of a cause: what was found at each level, times its latency
    uint64_t found[64][5]       # [cause][level]
    uint64_t walks[128]         # [walk_bin(latency)]
    uint64_t walk_cycles
    uint64_t written[4]         # written lines that made room in L1D, L2, L3; [3] lines written to memory
    uint64_t invalidated        # lines that other CPUs lost to writes of this one
    uint64_t supplied           # lines that another CPU had written, and this one asked for

cdef struct Caches

cdef struct CachesShared:       # L3 and memory
    CacheArray l3
    uint64_t *open              # [bank] the open row + 1, 0: none
    uint64_t banks
    uint32_t row_shift          # log2 of the bytes of a row
    bint inclusive, exclusive
    uint32_t cpus
    Caches *cpu[64]             # those above it

cdef struct Caches:
    CacheCounters c
    CacheArray l1d, l1i, l2
    CachesShared *shared
    FrameMap map                # where in memory host-physical addresses lie
    uint32_t latency[5]         # [level]
    uint64_t mark               # K_MARK where table entries are preferred anywhere, else 0
    bint l2_inclusive           # of L1D and L1I
    bint walks_l2               # walks look into L2 first
    bint bypass_l1, bypass_l2, bypass_l3    # what walks do not fill


cdef struct WalkRefs:           # references of a quick walk, in turn, and the caches that they will go through
    const Caches *caches
    int n
    uint64_t hpa[32]
    uint8_t cause[32]


cdef inline void caches_ahead(const Caches *c, uint64_t hpa) noexcept nogil:
    # of a reference that will come: sets of large caches are far away on the host
    cdef uint64_t key = key_of(frame_map_apply(&c.map, hpa) if c.map.nbytes else hpa)
    if c.l2.base != NULL:
        set_ahead(&c.l2, key)
    if c.shared.l3.base != NULL:
        set_ahead(&c.shared.l3, key)


cdef inline void walk_ref(WalkRefs *refs, uint64_t hpa, int cause) noexcept nogil:
    caches_ahead(refs.caches, hpa)
    refs.hpa[refs.n] = hpa
    refs.cause[refs.n] = cause
    refs.n += 1


# A CPU with caches on an L3 and memory of its own, or on that of others (NULL: its own); NULL: no memory. Without a
# cache yet. Those of one L3 are freed together, or one after the other.
cdef Caches *caches_new(CachesShared *shared) noexcept nogil
cdef void caches_free(Caches *c) noexcept nogil

# One reference, of 8 bytes or less that a line holds. Its cycles.
cdef uint32_t caches_use(Caches *c, uint64_t hpa, int acc, int cause) noexcept nogil
cdef int caches_find(Caches *c, uint64_t hpa, int acc, int cause) noexcept nogil       # where it was found
# Every line of an access. For those that have caches seldom, caches_touch: caches_access() as a call.
cdef void caches_lines(Caches *c, uint64_t hpa, uint32_t nbytes, int acc, int cause) noexcept nogil
cdef void caches_touch(Caches *c, uint64_t hpa, uint32_t nbytes, int acc, int cause) noexcept nogil

# Each reference that a walk has recorded, in turn, but not the data's. Its cycles, which go into the histogram, too.
cdef uint32_t caches_walk(Caches *c, const Steps *steps) noexcept nogil
cdef uint32_t caches_walk_refs(Caches *c, const WalkRefs *refs) noexcept nogil


cdef struct Hot:                # of one kind of access: L1's line that each set used last, whose use changes nothing
    const uint64_t *key
    uint64_t mask
    uint64_t want               # flags that it has to have
    uint64_t count              # bits that count

cdef inline void hot_begin(Hot *h, const Caches *c, int acc) noexcept nogil:
    cdef const CacheArray *l1 = &c.l1i if acc == ACC_X else &c.l1d
    cdef bint writes = acc == ACC_W or acc == ACC_RW
    h.key = l1.hot
    h.mask = l1.mask
    h.want = K_DIRTY if writes else 0
    h.count = ~<uint64_t> (K_MARK if writes else K_MARK | K_DIRTY)


cdef inline bint hot_holds(const Hot *h, uint64_t hpa) noexcept nogil:
    cdef uint64_t key = key_of(hpa)
    return not (h.key[key >> KEY_SHIFT & h.mask] ^ (key | h.want)) & h.count


cdef inline void caches_access(Caches *c, uint64_t hpa, uint32_t nbytes, int acc, int cause) noexcept nogil:
    # Every line that it touches. The one used last in its set of L1 is found here.
    cdef Hot h
    hot_begin(&h, c, acc)
    if (hpa & 63) + nbytes <= 64 and hot_holds(&h, frame_map_apply(&c.map, hpa) if c.map.nbytes else hpa):
        c.c.found[cause][0] += 1
        return
    caches_lines(c, hpa, nbytes, acc, cause)


cdef inline uint32_t walk_bin(uint32_t latency) noexcept nogil:
    # 4 bins a power of two: bin 4 (e - 1) + f begins at 2**e + f 2**(e-2), of e >= 2; 0..3 have a bin each
    cdef uint32_t e = 2
    if latency < 4:
        return latency
    while latency >> e > 1:
        e += 1
    return 4 * (e - 1) + (latency >> (e - 2) & 3)

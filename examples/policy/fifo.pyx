# cython: language_level=3
"""First in, first out: a replacement policy of one's own. `import fifo` gives it its name; then
`fastmmu.Config(replacement="fifo")`, or "lru,fifo" for the second level alone."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.tlb.policy cimport PolicySets, Replacer, ReplacementPolicy, policy_set
from fastmmu.tlb.policy import register_policy


cdef void on_hit(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    pass


cdef void on_fill(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    # a byte for each way: how many fills of the set ago its entry came, 255 and more alike
    cdef uint8_t *age = policy_set(p, set)
    cdef uint32_t w
    for w in range(p.ways):
        if age[w] < 255:
            age[w] += 1
    age[way] = 0


cdef uint32_t victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil:
    cdef uint8_t *age = policy_set(p, set)
    cdef uint32_t w, first = 64
    for w in range(p.ways):
        if allowed >> w & 1 and (first == 64 or age[w] > age[first]):
            first = w
    return first


cdef class Fifo(ReplacementPolicy):
    def __init__(self):
        memset(&self.policy, 0, sizeof(Replacer))
        self.policy.on_hit, self.policy.on_fill, self.policy.victim = on_hit, on_fill, victim
        self.policy.way_bytes = 1


register_policy("fifo", Fifo(), "first in, first out")

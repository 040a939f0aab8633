# The batch walk: many queries of one address space.
#
# In a query memory does not change, so what the upper levels say of a *region* (the addresses that share one page
# table: 2 MB, under 32-bit paging 4 MB) is asked of the exact walk once and kept for the length of the call:
#
#   linear address ─► region ─► page table ─► PTE ─► guest-physical address ─► EPT region ─► EPT PTE ─► pa
#
# The stages work on a block of lanes at a time, so that the cache misses of a block overlap. They settle what is
# allowed and the faults that the PTE itself decides; for anything else they ask the exact walk again.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging

cdef struct Region:
    uint64_t tag                # ~(address >> region_shift); 0: not filled, and no region has that tag
    uint64_t value

cdef struct Query:
    Mem *m
    const Paging *g
    const Ept *e                # NULL: no EPT
    int acc
    int region_bits
    Region *guest               # 1 << region_bits of each, at first all zero
    Region *ept
    int region_shift            # 21 or 22
    uint64_t la_mask
    uint64_t need               # bits that all entries must have, besides A and D
    uint64_t forbid             # bits that some entry must lack
    uint64_t forbid_any         # bits that all entries must lack
    uint64_t rsvd               # reserved in a PTE
    uint64_t want               # A and D of the PTE, where their update can fail
    uint64_t frame              # address bits
    uint32_t key_deny           # bit 16 * US + key: the protection key forbids the access
    uint64_t ept_need           # bits that all EPT entries must have
    uint64_t ept_forbid         # of an NPT: NX, which all must lack
    bint aside                  # rights are left aside (query_aside)

cdef struct Batch:              # one call, which threads share
    Query query
    const uint64_t *va
    uint64_t *pa
    uint8_t *fault
    uint64_t n
    uint64_t next               # the first address that no thread has taken
    uint64_t chunk              # addresses that a thread takes at a time; no result depends on it
    Region *regions             # `each` of a thread, at first all zero
    uint64_t each

# The query keeps the pointers; its EPT has no PML. `guest` and `ept` are for the caller to set.
cdef void query_init(Query *q, Mem *m, const Paging *g, const Ept *e, int acc) noexcept nogil
# A query of where pages are, rights left aside, as an enumeration lists them: neither rights nor flags of entries stop
# it, only what is not present, malformed or outside memory. Of its registers and its EPT the two are changed for that.
cdef void query_aside(Query *q, Mem *m, Paging *g, Ept *e) noexcept nogil
cdef void translate_batch(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, uint64_t n) noexcept nogil
cdef void batch_size(Batch *b) noexcept nogil          # query.region_bits and each, for n addresses
cdef bint batch_step(Batch *b, int thread) noexcept nogil   # a chunk; False: no address was left
cdef void batch_work(Batch *b, int thread) noexcept nogil   # until no address is left
cdef void batch_stop(Batch *b) noexcept nogil               # none is, from now on

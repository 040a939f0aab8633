# Entries by page, many at a time: what user-level calls of a VMM in Python do (`entries_port`).
#
# A page is what the tables translate: a gfn, under shadow paging (of SPTEs looked up) a linear address >> 12.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.mmu.mmu cimport Mmu

cdef enum EntriesEnd:           # else all is done
    ENTRIES_DONE = 0
    ENTRIES_NO_ROOT = 1
    ENTRIES_NO_TABLES = 2       # the pool of table pages is used up

cdef enum:
    OWN_TYPE = -1               # the memory type that the MMU itself gives the page

cdef enum SpteRights:           # of a leaf entry, as SpteRow and Mapping have them
    RIGHT_R = 1
    RIGHT_W = 2
    RIGHT_X = 4
    RIGHT_U = 8

cdef struct SpteRow:            # fastmmu.dtypes.SPTE_DTYPE
    uint64_t entry              # at which the walk ends; 0 without a root
    uint64_t hpa                # of the page; 0: not mapped
    uint8_t level               # of the entry; 0 without a root
    uint8_t rights              # of a leaf entry: R=1 W=2 X=4 U=8
    uint8_t mapped
    uint8_t mmio                # marked so, in the layout of slots there is now
    uint8_t accessed, dirty

cdef struct Mapping:            # what entries_map makes of each page
    int level                   # 1, 2
    int rights                  # R=1 W=2 X=4
    int memory_type             # bits 6:3 of an EPT entry, or OWN_TYPE

cdef void entries_lookup(const Mmu *mmu, const uint64_t *page, uint64_t n, SpteRow *out) noexcept nogil
cdef int entries_map(Mmu *mmu, const uint64_t *gfn, const uint64_t *pfn, uint64_t n, const Mapping *m, uint8_t *out,
                     uint64_t *done) noexcept nogil
cdef int entries_mark(Mmu *mmu, const uint64_t *gfn, uint64_t n, uint64_t *done) noexcept nogil
cdef void entries_lose(Mmu *mmu, bint direct, const uint64_t *gfn, uint64_t n, uint64_t shown, uint64_t bits,
                       uint8_t *out) noexcept nogil
cdef void entries_zap_all(Mmu *mmu) noexcept nogil

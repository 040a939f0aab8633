# The tables that the VMM owns: direct (EPT, or linear = guest-physical) and shadow. kvm_policy.md §0-§4.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu._types cimport Mem, Paging

cdef enum MmuFormat:
    FORMAT_PAGING = 0           # entries that the processor reads as ordinary 4-level paging
    FORMAT_EPT = 1

cdef enum RoleAccess:           # role.access, and the rights of a mapping
    MAY_X = 1
    MAY_W = 2
    MAY_U = 4
    MAY_ALL = 7

cdef enum:
    NO_SP = 0xFFFFFFFFU
    NO_SPTE = 0xFFFFFFFFU
    ROOT_LEVEL = 4

cdef struct Slot:               # guest-physical → host-physical
    uint64_t base_gfn
    uint64_t npages
    uint64_t hpa

cdef struct Sp:                 # one VMM-owned table page, keyed by (gfn, role)
    uint64_t hpa
    uint64_t gfn                # guest table shadowed; of a direct page: first gfn mapped
    uint32_t *next              # [512] links of each entry in the list of what it points to:
    uint32_t *prev              # rmap of a gfn for a leaf, parents of a table otherwise
    uint32_t chain              # next page with the same gfn
    uint32_t parents            # entries that point to this page
    uint8_t level
    uint8_t direct
    uint8_t access
    uint8_t used
    uint16_t present

cdef struct MmuCounters:
    uint64_t changes            # of entries
    uint64_t tables_made        # table pages allocated
    uint64_t tables_zapped
    uint64_t entries_filled     # leaf entries set
    uint64_t entries_zapped     # present entries cleared or reduced
    uint64_t write_protected    # leaf entries made read-only because their page became a shadowed table

cdef struct Mmu:
    Mem *mem                    # host physical memory
    Mem guest                   # guest-physical memory as a window of it (one slot from gpa 0)
    Slot slot
    int format
    int backing                 # largest level of a direct mapping: 1 = 4K, 2 = 2M
    bint ad                     # EPT A/D flags on: mappings are made with A, and D where writable
    uint64_t pool, pool_end     # host-physical addresses of the VMM's table pages: next unused, end
    uint64_t pool_start
    uint32_t *owner             # [table page] its Sp
    uint64_t *freed             # pages given back
    uint32_t n_freed
    uint32_t freed_room
    Sp *sp
    uint32_t n_sp, sp_room
    uint32_t free_sp            # list of unused descriptors, through Sp.chain
    uint32_t *by_gfn            # [gfn] first Sp of the chain
    uint32_t *rmap              # [gfn] first 4K leaf entry
    uint32_t *rmap_large        # [gfn >> 9] first 2M leaf entry
    uint16_t *tables_in         # [gfn >> 9] shadowed tables in this 2M region: no large mapping while there are any
    uint32_t root               # Sp in use as root
    bint flush                  # an entry lost rights since this was last cleared: cached translations may be stale
    bint out_of_tables
    MmuCounters counters

cdef enum FillResult:
    FILL_MAPPED = 0             # the entry now allows the access
    FILL_NO_SLOT = 1            # no memory behind it: MMIO
    FILL_NO_TABLES = 2          # the pool of table pages is used up
    FILL_UNCHANGED = 3          # it allowed the access already: spurious

cdef int mmu_init(Mmu *mmu, Mem *mem, Slot slot, int format, int backing, bint ad,
                  uint64_t pool, uint64_t pool_end) noexcept nogil
cdef void mmu_free(Mmu *mmu) noexcept nogil
cdef uint64_t mmu_hpa(const Mmu *mmu, uint64_t gpa) noexcept nogil
cdef uint32_t mmu_sp(Mmu *mmu, uint64_t gfn, int level, bint direct, int access) noexcept nogil
cdef uint64_t mmu_leaf(const Mmu *mmu, uint64_t hpa, int level, int access) noexcept nogil
cdef uint32_t mmu_descend(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t gfn, bint direct,
                          int access) noexcept nogil
cdef int mmu_set_leaf(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t leaf) noexcept nogil
cdef int mmu_map_below(Mmu *mmu, uint32_t owner, uint64_t la, uint64_t gpa, int largest, int access) noexcept nogil
cdef int mmu_direct(Mmu *mmu, uint64_t gpa) noexcept nogil
cdef bint mmu_large_ok(const Mmu *mmu, uint64_t gfn) noexcept nogil
cdef int mmu_set_root(Mmu *mmu, uint64_t gfn, bint direct) noexcept nogil
cdef bint mmu_tracked(const Mmu *mmu, uint64_t gfn) noexcept nogil
cdef void mmu_guest_wrote(Mmu *mmu, uint64_t gpa, uint64_t nbytes) noexcept nogil
cdef void mmu_zap_all(Mmu *mmu) noexcept nogil

# Enumeration of an address space: the state of one that is under way, and what it hands out.
#
#   root ─► guest tables (one being read at each level) ─► page ─► EPT tables (likewise) ─► rows
#
# An enumeration stops wherever its room ends and goes on from there: where it is stands in the struct alone. Work that
# leads nowhere is bounded: a table of which all was read without a row is remembered as barren and not read again.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.memtype cimport MtrrState
from fastmmu.arch.types cimport Ept, Mem, Paging
from fastmmu.paging.hash_table cimport HashTable

cdef enum:
    CAUSES = 5                  # counts are indexed by FaultCode - 1; the last is FAULT_BUS
    KEPT_FAULTS = 4096          # faults that are described; all are counted
    REGIONS = 1 << 15           # page tables of the EPT that are held: 64 GB of guest-physical addresses

cdef struct LeafRow:            # fastmmu.dtypes.MAPPING_DTYPE
    uint64_t va
    uint64_t pa
    uint64_t gpa
    uint64_t size
    uint64_t leaf
    uint64_t rights             # its bytes: user, readable, writable, executable, accessed, dirty, global_page, large
    uint64_t kind               # pat, key, memory_type, ept_rights, guest_shift, ept_shift, ept_accessed, ept_dirty

cdef struct LeafFault:          # fastmmu.dtypes.MAPPING_FAULT_DTYPE
    uint64_t va
    uint64_t size
    uint64_t hpa
    uint64_t entry
    uint8_t fault
    uint8_t level
    uint8_t ept

cdef struct Table:              # one that is being read
    uint64_t hpa
    uint64_t base               # address that its entry 0 covers: linear (not sign-extended) or guest-physical
    uint64_t every              # AND of the entries above
    uint64_t any_               # OR of them
    uint64_t rows               # rows handed out when it was opened, and faults
    uint64_t faults[CAUSES]
    uint32_t next               # entry to read next
    uint32_t stop               # end of the entries asked for
    uint32_t held               # entries that lie in memory
    uint8_t whole               # all of its addresses are asked for

cdef struct Page:               # a guest page, while EPT cuts it
    uint64_t la                 # not sign-extended
    uint64_t gpa
    uint64_t leaf
    uint64_t rights             # words of a row, as without EPT
    uint64_t kind
    int shift

cdef struct Barren:             # a table without mappings
    uint64_t key                # its address, level and stage
    uint64_t faults[CAUSES]

cdef struct EptRegion:          # 2 MB of guest-physical addresses that have a page table of the EPT
    uint64_t tag                # ~(gpa >> 21); 0: free
    uint64_t table              # its address, and in the low bits the rights above it

cdef struct Leaves:
    Mem *m
    Paging g
    Ept e
    const MtrrState *mtrrs
    uint8_t nested
    uint8_t bare                # the EPT alone: addresses are guest-physical, leaves are those of the EPT
    uint8_t loose
    uint8_t done
    uint8_t root                # PDPTE registers, or roots, opened
    uint8_t sign                # bit that is copied upwards; 0: none
    uint8_t one_type            # no MTRR tells ranges apart above 1 MB
    uint8_t below               # their type
    uint8_t type_of[8][8]       # [MTRR or EPT type][PAT index]: effective memory type
    uint64_t present_ept
    uint64_t first              # linear addresses asked for (not sign-extended), both included
    uint64_t last
    uint64_t gpa_first          # part of `page` that is asked for
    uint64_t gpa_last
    int level                   # guest table being read
    int ept_level               # EPT table being read; 0: no page is being cut
    Table guest[7]
    Table ept[7]
    Page page
    LeafRow *out
    uint64_t n                  # rows in `out`
    uint64_t room
    uint64_t before             # rows of earlier calls
    uint64_t work               # tables that this call may still open
    uint64_t count[CAUSES]
    LeafFault *kept             # KEPT_FAULTS of them
    uint32_t n_kept
    HashTable barren            # of Barren
    EptRegion *region           # REGIONS of them; only those that are used take memory


cdef void leaves_types(Leaves *s) noexcept nogil
cdef void leaves_fault(Leaves *s, uint64_t la, uint64_t size, uint64_t hpa, uint64_t entry, int fault, int level,
                       bint ept) noexcept nogil
cdef bint leaves_range(Leaves *s, uint64_t first, uint64_t last) noexcept nogil
cdef void leaves_run(Leaves *s, LeafRow *out, uint64_t room, uint64_t work) noexcept nogil
cdef void leaves_free(Leaves *s) noexcept nogil

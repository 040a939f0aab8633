# What walks find in the paging-structure caches and among the guest-physical mappings, and what they leave there
# (tlb.md §1.1, R1-R6).
#
# A cached entry may deny what memory allows. So a walk that used one and fails is made again, from the root and from
# memory: `look`, `used`. It changes nothing here unless it succeeds; then what it found takes the place of what lookups
# of the same addresses would find.
#
#   paging-structure cache   63 XD | 51:12 host-physical address of the next table | 6 EPT lets the table be written |
#                            5 it is the guest's own, below shadow tables (agile.md §3) |
#                            2 U/S | 1 R/W | 0 P: ANDed over the entries until here, XD ORed
#   the same of EPT          63 set | 51:12 next table | 10 XU | 2:0 X W R, ANDed
#   guest-physical mapping   as any TLB value: R, EW, X, XU in the place of U, D; ignore-PAT in bit 52

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_IPAT, EPT_W, EPT_XU, FRAME, P, RW, US, XD
from fastmmu.tlb.lookup cimport (
    F_D, F_EW, F_R, F_U, F_X, Tlb, tlb_epsc, tlb_gpm, tlb_pa, tlb_psc, tlb_value,
)

cdef enum:
    TABLE_WRITABLE = 1 << 6
    TABLE_NESTED = 1 << 5
    GPM_IPAT_BIT = 52

cdef extern from *:
    """
    _Static_assert(FM_TLB_R == 1 << 2 && (FM_TLB_EW | FM_TLB_X) == 6 << 3 && FM_TLB_U << 10 == FM_EPT_XU
                   && FM_EPT_IPAT == 1 << 6, "rights_of() and mapping_value() shift these bits");
    """

cdef struct EptLeaf:            # where a walk led
    uint64_t hpa
    uint64_t entries        # AND over the entries used; of an NPT the rights that they give, as bits of an EPT entry
    uint64_t leaf           # of an NPT its memory type alone, where an EPT entry has it
    int shift
    int dirty               # leaf D after the walk; 1 where A/D flags are off
    int top                 # the entries that it read, also one that failed: from this level
    int level               # to this one; above `top`: none
    uint64_t at[6]          # [level]: host-physical address
    uint64_t entry[6]       # as it was read
    uint64_t every[6]       # AND over the entries, flipped, down to here

cdef struct Cached:
    Tlb *tlb                    # its context in force is the walk's
    bint look                   # cached entries may be used
    bint used                   # one was
    # what the guest's walk leaves in the paging-structure caches, once it has ended
    uint64_t la
    int top, lowest             # levels of the table entries, from - to; lowest > top: none
    uint64_t link[6]            # [level]: what is cached of the way down to its table
    # of a walk from memory: its walks of EPT
    int n
    uint64_t gpa[6]
    EptLeaf walked[6]

cdef struct Mapping:            # a guest-physical mapping
    uint64_t hpa
    uint64_t rights             # R W X, XU, in the bits of an EPT entry
    uint64_t type               # memory type and ignore-PAT, in the bits of an EPT leaf
    int shift                   # log2 of the size of the EPT's page
    bint dirty


cdef inline uint64_t next_table(uint64_t table, uint64_t every, uint64_t some, bint writable) noexcept nogil:
    return (table & FRAME) | (every & (US | RW)) | (some & XD) | (TABLE_WRITABLE if writable else 0) | P


cdef inline uint64_t find_table(Cached *c, uint64_t la, int levels, int *level) noexcept nogil:
    # of the longest prefix cached, the value; `level` becomes that of the next table. 0: none
    cdef uint64_t value
    cdef int at = 0
    if not c.look:
        return 0
    value = tlb_psc(c.tlb, la, levels + 1, &at)
    if value:
        c.used = True
        level[0] = at - 1
    return value


cdef inline uint64_t find_ept_table(Cached *c, uint64_t gpa, int levels, int *level) noexcept nogil:
    cdef uint64_t value
    cdef int at = 0
    if not c.look:
        return 0
    value = tlb_epsc(c.tlb, gpa, levels + 1, &at)
    if value:
        c.used = True
        level[0] = at - 1
    return value


cdef inline uint64_t rights_of(uint64_t mapping) noexcept nogil:
    # R W X, XU of the value of a guest-physical mapping, in the bits of an EPT entry
    return (mapping & F_R) >> 2 | (mapping & (F_EW | F_X)) >> 3 | (mapping & F_U) << 10


cdef inline bint find_mapping(Cached *c, uint64_t gpa, Mapping *out) noexcept nogil:
    cdef uint64_t value
    if not c.look:
        return False
    value = tlb_gpm(c.tlb, gpa)
    if not value:
        return False
    out.hpa = tlb_pa(value, gpa)
    out.rights = rights_of(value)
    out.type = (value >> 56 & 7) << 3 | (EPT_IPAT if value >> GPM_IPAT_BIT & 1 else 0)
    out.shift = 12 + 9 * <int> (value >> 10 & 3)
    out.dirty = value & F_D != 0
    return True


cdef inline uint64_t mapping_value(uint64_t hpa, int size, uint64_t rights, uint64_t type, bint dirty) noexcept nogil:
    # of a guest-physical mapping; size: 0 4K, 1 2M, 2 1G
    return tlb_value(hpa, size, size, (rights & 1) << 2 | (rights & 6) << 3 | (rights & EPT_XU) >> 10
                     | (F_D if dirty else 0) | (type & 0x38) << 53 | (type & EPT_IPAT) << (GPM_IPAT_BIT - 6))

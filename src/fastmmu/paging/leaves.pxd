# Enumeration of an address space: the state of one that is under way, and what it hands out.
#
#   root ─► guest tables (one being read at each level) ─► page ─► EPT tables (likewise) ─► rows
#
# An enumeration stops wherever its room ends and goes on from there: where it is stands in the struct alone. Work that
# leads nowhere is bounded: a table of which all was read without a row is remembered as barren and not read again.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.arch.bits cimport ONES, A, D, G
from fastmmu.arch.memtype cimport MtrrState, mtrr_type
from fastmmu.arch.types cimport Ept, Mem, Paging
from fastmmu.paging.guest cimport key_of, pat_index

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
    uint64_t key                # its address, level and stage; 0: a free slot
    uint64_t faults[CAUSES]

cdef struct EptRegion:          # 2 MB of guest-physical addresses that have a page table of the EPT
    uint64_t tag                # ~(gpa >> 21); 0: free
    uint64_t table              # its address, and in the low bits the rights above it

cdef struct Found:              # where a guest-physical address led
    uint64_t hpa                # of the entry
    uint64_t entry
    uint64_t every
    int level
    int fault

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
    Barren *barren              # open addressing; NULL until needed
    uint64_t barren_size        # a power of two
    uint64_t barren_used
    EptRegion *region           # REGIONS of them; only those that are used take memory


cdef void leaves_types(Leaves *s) noexcept nogil
cdef bint leaves_range(Leaves *s, uint64_t first, uint64_t last) noexcept nogil
cdef void leaves_run(Leaves *s, LeafRow *out, uint64_t room, uint64_t work) noexcept nogil
cdef void leaves_free(Leaves *s) noexcept nogil


# ---- entries ----------------------------------------------------------------------------------------------

cdef inline uint64_t entry_at(const uint8_t *table, uint32_t i, int entry_shift) noexcept nogil:
    return (<const uint64_t *> table)[i] if entry_shift == 3 else (<const uint32_t *> table)[i]


cdef inline uint64_t eight_ored(const uint8_t *table, uint32_t i, int entry_shift) noexcept nogil:
    cdef const uint64_t *wide = <const uint64_t *> table + i
    cdef const uint32_t *narrow = <const uint32_t *> table + i
    if entry_shift == 3:
        return (wide[0] | wide[1]) | (wide[2] | wide[3]) | (wide[4] | wide[5]) | (wide[6] | wide[7])
    return (narrow[0] | narrow[1] | narrow[2] | narrow[3]) | (narrow[4] | narrow[5] | narrow[6] | narrow[7])


cdef inline uint32_t next_present(const uint8_t *table, uint32_t i, uint32_t stop, uint64_t present,
                                  int entry_shift) noexcept nogil:
    # the first entry from i on that has one of the bits; eight at a time where there is none
    while i < stop:
        if entry_at(table, i, entry_shift) & present:
            return i
        i += 1
        while i & 7 == 0 and i + 8 <= stop and not eight_ored(table, i, entry_shift) & present:
            i += 8
    return stop


cdef inline uint64_t extended(const Leaves *s, uint64_t la) noexcept nogil:
    if s.sign and la >> s.sign & 1:
        return la | ONES << s.sign
    return la


cdef inline uint64_t rights_word(const Leaves *s, uint64_t entry, uint64_t every, uint64_t any_,
                                 int shift) noexcept nogil:
    return ((every >> 2 & 1) | 1 << 8 | (every >> 1 & 1) << 16 | (~any_ >> 63) << 24
            | (entry & A) << 27 | (entry & D) << 34 | <uint64_t> (entry & G != 0 and s.g.pge) << 48
            | <uint64_t> (shift > 12) << 56)


cdef inline uint64_t kind_word(const Leaves *s, uint64_t entry, int level, int shift) noexcept nogil:
    return pat_index(entry, level) | <uint64_t> key_of(&s.g, entry) << 8 | <uint64_t> shift << 32


cdef inline uint64_t native_type(const Leaves *s, uint64_t pa, uint64_t pat) noexcept nogil:
    return s.type_of[s.below if s.one_type and pa >= 0x100000 else mtrr_type(s.mtrrs, pa)][pat]


# ---- faults and barren tables -----------------------------------------------------------------------------

cdef inline void leaves_fault(Leaves *s, uint64_t la, uint64_t size, uint64_t hpa, uint64_t entry, int fault,
                              int level, bint ept) noexcept nogil:
    cdef LeafFault *f
    s.count[fault - 1] += 1
    if s.n_kept < KEPT_FAULTS:
        f = s.kept + s.n_kept
        s.n_kept += 1
        f.va = extended(s, la)
        f.size = size
        f.hpa = hpa
        f.entry = entry
        f.fault = fault
        f.level = level
        f.ept = ept


cdef inline uint64_t barren_key(uint64_t table, int level, bint ept) noexcept nogil:
    return table | 8 | level | <uint64_t> ept << 4


cdef inline Barren *barren_slot(Barren *table, uint64_t size, uint64_t key) noexcept nogil:
    cdef uint64_t at = (key * 0x9E3779B97F4A7C15ULL) >> 20
    while table[at & (size - 1)].key and table[at & (size - 1)].key != key:
        at += 1
    return table + (at & (size - 1))


cdef inline void barren_add(Leaves *s, uint64_t key, const Table *t) noexcept nogil:
    # Without memory for it the table is simply read again.
    cdef Barren *larger
    cdef Barren *slot
    cdef uint64_t i, size = s.barren_size * 2 if s.barren_size else 64
    cdef int cause
    if s.barren_used * 2 >= s.barren_size:
        larger = <Barren *> calloc(size, sizeof(Barren))
        if larger == NULL:
            return
        for i in range(s.barren_size):
            if s.barren[i].key:
                barren_slot(larger, size, s.barren[i].key)[0] = s.barren[i]
        free(s.barren)
        s.barren = larger
        s.barren_size = size
    slot = barren_slot(s.barren, s.barren_size, key)
    slot.key = key
    for cause in range(CAUSES):
        slot.faults[cause] = s.count[cause] - t.faults[cause]
    s.barren_used += 1


cdef inline bint barren_skip(Leaves *s, uint64_t key) noexcept nogil:
    # Faults below a barren table are counted again, but they are not described again: not before no more are kept.
    cdef const Barren *slot
    cdef uint64_t faults = 0
    cdef int i
    if not s.barren_used:
        return False
    slot = barren_slot(s.barren, s.barren_size, key)
    if not slot.key:
        return False
    for i in range(CAUSES):
        faults |= slot.faults[i]
    if faults and s.n_kept < KEPT_FAULTS:
        return False
    for i in range(CAUSES):
        s.count[i] += slot.faults[i]
    return True


cdef inline void close_table(Leaves *s, const Table *t, uint64_t key) noexcept nogil:
    if t.whole and t.rows == s.before + s.n:
        barren_add(s, key, t)

# An enumeration that is under way, and what its loops over tables share: entries, rows, faults, tables that led
# nowhere, and where a guest-physical address leads.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_IPAT, EPT_R, EPT_W, EPT_X, EPT_XU, FRAME, ONES, A, D, G, PS, level_shift
from fastmmu.arch.memtype cimport MT_UC, MtrrState, mtrr_type
from fastmmu.arch.types cimport (
    FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_NONE, FAULT_NPF, Ept, Mem, Paging,
)
from fastmmu.paging.ept cimport ept_entry_address, ept_misconfigured, ept_rights
from fastmmu.paging.guest cimport key_of, pat_index
from fastmmu.paging.hash_table cimport HashTable, hash_find, hash_put
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.paging.npt cimport npt_type

cdef enum:
    CAUSES = 6                  # counts: of FaultCode 1 to FAULT_BUS, then of FAULT_NPF
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
    uint64_t table              # its address, and in the other bits the rights above it

cdef struct Leaves:
    Mem *m
    Paging g
    Ept e
    const MtrrState *mtrrs
    uint8_t nested
    uint8_t bare                # the EPT alone: addresses are guest-physical, leaves are those of the EPT
    uint8_t loose
    uint8_t survey              # a page table counts as full, and is not read
    uint8_t done
    uint8_t root                # PDPTE registers, or roots, opened
    uint8_t sign                # bit that is copied upwards; 0: none
    uint8_t one_type            # no MTRR tells ranges apart above 1 MB
    uint8_t below               # their type
    uint8_t type_of[8][8]       # [MTRR or EPT type][PAT index]: effective memory type
    uint8_t absent              # FaultCode of an entry of the VMM's that is not present
    uint8_t malformed           # and of one that is malformed
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

cdef struct Found:              # where a guest-physical address led
    uint64_t hpa                # of the entry
    uint64_t entry
    uint64_t every
    int level
    int fault


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


# ---- faults and barren tables ---------------------------------------------------------------------------------

cdef inline void leaves_fault(Leaves *s, uint64_t la, uint64_t size, uint64_t hpa, uint64_t entry, int fault,
                              int level, bint ept) noexcept nogil:
    cdef LeafFault *f
    s.count[fault - 1 if fault < CAUSES else CAUSES - 1] += 1
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


cdef inline void barren_add(Leaves *s, uint64_t key, const Table *t) noexcept nogil:
    # Without memory for it the table is simply read again.
    cdef Barren *slot
    cdef int cause
    s.barren.size = sizeof(Barren)
    slot = <Barren *> hash_put(&s.barren, key)
    if slot != NULL:
        for cause in range(CAUSES):
            slot.faults[cause] = s.count[cause] - t.faults[cause]


cdef inline bint barren_skip(Leaves *s, uint64_t key) noexcept nogil:
    # Faults below a barren table are counted again, but they are not described again: not before no more are kept.
    cdef const Barren *slot = <const Barren *> hash_find(&s.barren, key)
    cdef uint64_t faults = 0
    cdef int i
    if slot == NULL:
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


cdef inline void absent(Leaves *s, const Table *t, uint64_t i, uint64_t behind, int shift, int entry_shift, int level,
                        bint ept) noexcept nogil:
    # entries i..behind-1 lie outside memory
    cdef uint64_t start = t.base + (i << shift), end = t.base + (behind << shift), to_la = 0
    if i >= behind:
        return
    if ept:
        start = max(start, s.page.gpa)
        end = min(end, s.page.gpa + (<uint64_t> 1 << s.page.shift))
        to_la = s.page.la - s.page.gpa
    leaves_fault(s, start + to_la, end - start, t.hpa + (i << entry_shift), 0, FAULT_BUS, level, ept)


cdef inline void outside(Leaves *s, const Table *t, int shift, int entry_shift, int level, bint ept) noexcept nogil:
    # what the table lacks because memory ends
    absent(s, t, max(t.next, t.held), t.stop, shift, entry_shift, level, ept)


# ---- EPT ------------------------------------------------------------------------------------------------------

cdef inline void ept_find(Leaves *s, uint64_t gpa, Found *f) noexcept nogil:
    # the leaf of one guest-physical address, or the entry that stops the walk
    cdef uint64_t table = s.e.root
    cdef EptRegion *r = s.region + (gpa >> 21 & (REGIONS - 1))
    cdef bint leaf
    f.level = s.e.levels
    f.fault = FAULT_NONE
    f.hpa = f.every = ONES
    f.entry = 0
    if f.level == 4 and gpa >> 48:
        f.fault = s.absent
        return
    if r.tag == ~(gpa >> 21):
        table = r.table & FRAME
        f.every = r.table
        f.level = 1
    while True:
        f.hpa = ept_entry_address(table, gpa, f.level)
        if not mem_holds(s.m, f.hpa, 8):
            f.entry = 0
            f.fault = FAULT_BUS
            return
        f.entry = mem_read64(s.m, f.hpa)
        if not f.entry & s.e.present:
            f.fault = s.absent
            return
        leaf = f.level == 1 or f.entry & PS
        if ept_misconfigured(&s.e, f.entry, f.level, leaf):
            f.fault = s.malformed
            return
        f.every &= f.entry ^ s.e.flip
        if leaf:
            return
        table = f.entry & s.e.frame
        f.level -= 1
        if f.level == 1 and mem_holds(s.m, table, 4096):
            r.tag = ~(gpa >> 21)
            r.table = table | (f.every & (EPT_R | EPT_W | EPT_X | EPT_XU | s.e.flip))


cdef inline uint64_t found_hpa(const Leaves *s, const Found *f, uint64_t gpa) noexcept nogil:
    cdef uint64_t offset = (<uint64_t> 1 << level_shift(f.level)) - 1
    return (f.entry & s.e.frame & ~offset) | (gpa & offset)


cdef inline void nested_row(Leaves *s, const Page *page, uint64_t gpa, uint64_t pa, uint64_t entry, uint64_t every,
                            int ept_shift) noexcept nogil:
    # the part of a page that one EPT leaf maps
    # every: of all entries, flipped
    cdef LeafRow *row = s.out + s.n
    cdef uint64_t allows = ept_rights(&s.e, every)
    cdef uint64_t rights = (allows & 7) | (allows >> 10 & 1 & s.e.mbec) << 3, mt = entry >> 3 & 7, kind = page.kind
    cdef uint64_t fetch = rights >> 3 if s.e.mbec and page.rights & 1 else rights >> 2
    cdef uint64_t allowed = (rights & 1) << 8 | (rights >> 1 & 1) << 16 | (fetch & 1) << 24
    s.n += 1
    if s.out == NULL:
        return
    row.va = extended(s, page.la + (gpa - page.gpa))
    row.pa = pa
    row.gpa = gpa
    row.size = <uint64_t> 1 << min(ept_shift, page.shift)
    row.leaf = page.leaf
    row.rights = page.rights & (allowed | ~<uint64_t> 0x01010100)
    if s.e.npt:
        mt = npt_type(&s.e, entry, (ept_shift - 3) // 9)
    if s.bare:
        row.leaf = entry
        row.rights = (rights & 1) << 8 | (rights & 2) << 15 | (rights & 4) << 22 | rights >> 3
        kind = 0 if s.e.npt else entry >> 6 & 1
    elif s.g.cd:
        mt = MT_UC
    elif s.e.npt or not entry & EPT_IPAT:
        mt = s.type_of[mt][kind & 7]
    row.kind = (kind | mt << 16 | rights << 24 | <uint64_t> ept_shift << 40
                | <uint64_t> (entry & s.e.accessed != 0) << 48 | <uint64_t> (entry & s.e.dirty != 0) << 56)

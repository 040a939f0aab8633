# Which pages the tables of an address space map, in the order of their addresses (paging.md §2-§4, ept.md §2-§5).

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmmu.arch.bits cimport EPT_IPAT, EPT_R, EPT_W, EPT_X, EPT_XU, FRAME, ONES, P, PS
from fastmmu.arch.memtype cimport MT_UC, MT_WB, combined_type
from fastmmu.arch.types cimport (
    FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_NONE, FAULT_PF, MODE_NONE, MODE_PAE,
)
from fastmmu.paging.ept cimport ept_misconfigured
from fastmmu.paging.guest cimport is_leaf, leaf_address
from fastmmu.paging.memory cimport mem_holds, mem_read64

cdef extern from *:
    """
    #define FM_RARE(x) __builtin_expect(!!(x), 0)
    """
    bint rare "FM_RARE"(bint) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *) noexcept nogil

cdef enum:
    LANES = 32                  # entries of a guest page table, whose EPT entries are fetched together


# ---- opening tables ---------------------------------------------------------------------------------------

cdef inline bint open_table(Leaves *s, Table *t, uint64_t key, uint64_t hpa, uint64_t base, uint64_t every,
                            uint64_t any_, int shift, int index_bits, int entry_shift, uint64_t first,
                            uint64_t last) noexcept nogil:
    # False: nothing is mapped there. Some of its addresses lie in first..last.
    cdef uint64_t entries = <uint64_t> 1 << index_bits, n
    cdef int i
    s.work -= 1
    t.next = 0 if first <= base else <uint32_t> ((first - base) >> shift)
    n = (last - base) >> shift
    t.stop = <uint32_t> (entries if n >= entries else n + 1)
    t.whole = first <= base and last - base >= (entries << shift) - 1
    if t.whole and barren_skip(s, key):
        return False
    n = 0 if hpa >= s.m.nbytes else (s.m.nbytes - hpa) >> entry_shift
    t.held = <uint32_t> (entries if n > entries else n)
    t.hpa = hpa
    t.base = base
    t.every = every
    t.any_ = any_
    t.rows = s.before + s.n
    for i in range(CAUSES):
        t.faults[i] = s.count[i]
    return True


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
        f.fault = FAULT_EPT_VIOLATION
        return
    if r.tag == ~(gpa >> 21):
        table = r.table & FRAME
        f.every = r.table
        f.level = 1
    while True:
        f.hpa = table + ((gpa >> (9 * f.level + 3) & 511) << 3)
        if not mem_holds(s.m, f.hpa, 8):
            f.entry = 0
            f.fault = FAULT_BUS
            return
        f.entry = mem_read64(s.m, f.hpa)
        if not f.entry & s.present_ept:
            f.fault = FAULT_EPT_VIOLATION
            return
        leaf = f.level == 1 or f.entry & PS
        if ept_misconfigured(&s.e, f.entry, f.level, leaf):
            f.fault = FAULT_EPT_MISCONFIG
            return
        f.every &= f.entry
        if leaf:
            return
        table = f.entry & s.e.frame
        f.level -= 1
        if f.level == 1 and mem_holds(s.m, table, 4096):
            r.tag = ~(gpa >> 21)
            r.table = table | (f.every & (EPT_R | EPT_W | EPT_X | EPT_XU))


cdef inline uint64_t found_hpa(const Leaves *s, const Found *f, uint64_t gpa) noexcept nogil:
    cdef uint64_t offset = (<uint64_t> 1 << (9 * f.level + 3)) - 1
    return (f.entry & s.e.frame & ~offset) | (gpa & offset)


cdef void open_guest(Leaves *s, int level, uint64_t table, uint64_t base, uint64_t every, uint64_t any_) noexcept nogil:
    # The page walker reads a guest table, and with EPT A/D flags that counts as a write (ept.md §4).
    cdef Found f
    cdef uint64_t hpa = table, need = EPT_R | (EPT_W if s.e.ad else 0)
    cdef int shift = 12 + s.g.index_bits * (level - 1)
    if s.nested:
        ept_find(s, table, &f)
        if not f.fault and need & ~f.every:
            f.fault = FAULT_EPT_VIOLATION
        if f.fault:
            leaves_fault(s, base, <uint64_t> 1 << (shift + s.g.index_bits), f.hpa, f.entry, f.fault, f.level, True)
            return
        hpa = found_hpa(s, &f, table)
    if open_table(s, &s.guest[level], barren_key(hpa, level, False), hpa, base, every, any_, shift, s.g.index_bits,
                  s.g.entry_shift, s.first, s.last):
        s.level = level


cdef void open_ept(Leaves *s, int level, uint64_t table, uint64_t base, uint64_t every) noexcept nogil:
    if open_table(s, &s.ept[level], barren_key(table, level, True), table, base, every, 0, 9 * level + 3, 9, 3,
                  s.gpa_first, s.gpa_last):
        s.ept_level = level


# ---- pages ------------------------------------------------------------------------------------------------

cdef inline void nested_row(Leaves *s, const Page *page, uint64_t gpa, uint64_t pa, uint64_t entry, uint64_t every,
                            int ept_shift) noexcept nogil:
    # the part of a page that one EPT leaf maps
    cdef LeafRow *row = s.out + s.n
    cdef uint64_t rights = (every & 7) | (every >> 10 & 1 & s.e.mbec) << 3, mt = entry >> 3 & 7, kind = page.kind
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
    if s.bare:
        row.leaf = entry
        row.rights = (rights & 1) << 8 | (rights & 2) << 15 | (rights & 4) << 22 | rights >> 3
        kind = entry >> 6 & 1
    elif s.g.cd:
        mt = MT_UC
    elif not entry & EPT_IPAT:
        mt = s.type_of[mt][kind & 7]
    row.kind = (kind | mt << 16 | rights << 24 | <uint64_t> ept_shift << 40
                | (entry >> 8 & 1) << 48 | (entry >> 9 & 1) << 56)


cdef void open_page(Leaves *s) noexcept nogil:
    # hands out `page`, or the first part of it under EPT
    cdef Page *page = &s.page
    cdef LeafRow *row = s.out + s.n
    cdef Found f
    cdef uint64_t size = <uint64_t> 1 << page.shift
    if s.out == NULL and (not s.nested or (s.loose and page.shift == 12)):
        s.n += 1
    elif not s.nested:
        row.va = extended(s, page.la)
        row.pa = row.gpa = page.gpa
        row.size = size
        row.leaf = page.leaf
        row.rights = page.rights
        row.kind = page.kind | native_type(s, page.gpa, page.kind & 7) << 16
        s.n += 1
    elif page.shift == 12:
        ept_find(s, page.gpa, &f)
        if f.fault:
            leaves_fault(s, page.la, size, f.hpa, f.entry, f.fault, f.level, True)
        else:
            nested_row(s, page, page.gpa, found_hpa(s, &f, page.gpa), f.entry, f.every, 9 * f.level + 3)
    elif s.e.levels == 4 and page.gpa >> 48:
        leaves_fault(s, page.la, size, ONES, 0, FAULT_EPT_VIOLATION, 4, True)
    else:
        s.gpa_first = page.gpa + (s.first - page.la if s.first > page.la else 0)
        s.gpa_last = page.gpa + min(size - 1, s.last - page.la)
        open_ept(s, s.e.levels, s.e.root, 0, ONES)


cdef void open_root(Leaves *s) noexcept nogil:
    # PAE has four roots, one for each PDPTE register
    cdef uint64_t i = s.root
    s.root += 1
    if s.bare or s.g.mode == MODE_NONE:
        s.done = i == 1
        if not s.done:
            memset(&s.page, 0, sizeof(Page))
            s.page.rights = 0x01010101
            s.page.shift = 32 if not s.bare else 48 if s.e.levels == 4 else 52
            open_page(s)
    elif s.g.mode == MODE_PAE:
        s.done = i == 4
        if i < 4 and s.g.pdpte[i] & P and s.first >> 30 <= i <= s.last >> 30:
            open_guest(s, 2, s.g.pdpte[i] & s.g.frame, i << 30, ONES, 0)
    else:
        s.done = i == 1
        if not s.done:
            open_guest(s, s.g.levels, s.g.root, 0, ONES, 0)


# ---- reading tables ---------------------------------------------------------------------------------------

cdef inline void outside(Leaves *s, const Table *t, int shift, int entry_shift, int level, bint ept) noexcept nogil:
    # what the table lacks because memory ends
    cdef uint64_t i = max(t.next, t.held), start = t.base + (i << shift)
    cdef uint64_t end = t.base + (<uint64_t> t.stop << shift), to_la = 0
    if i >= t.stop:
        return
    if ept:
        start = max(start, s.page.gpa)
        end = min(end, s.page.gpa + (<uint64_t> 1 << s.page.shift))
        to_la = s.page.la - s.page.gpa
    leaves_fault(s, start + to_la, end - start, t.hpa + (i << entry_shift), 0, FAULT_BUS, level, ept)


cdef inline void scan_guest(Leaves *s, int entry_shift) noexcept nogil:
    # on with the table being read: until one below it is opened, a page is being cut, or there is no more room
    cdef int level = s.level, bits = 9 if entry_shift == 3 else 10, shift = 12 + bits * (level - 1)
    cdef Table *t = &s.guest[level]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef uint32_t i, stop = min(t.stop, t.held)
    cdef uint64_t entry, base, every, any_
    while True:
        i = next_present(at, t.next, stop, P, entry_shift)
        if i >= stop:
            break
        t.next = i + 1
        entry = entry_at(at, i, entry_shift)
        base = t.base + (<uint64_t> i << shift)
        if entry & s.g.rsvd[level][entry >> 7 & 1]:
            leaves_fault(s, base, <uint64_t> 1 << shift, t.hpa + (<uint64_t> i << entry_shift), entry, FAULT_PF, level,
                         False)
            continue
        every = t.every & entry
        any_ = t.any_ | entry
        if is_leaf(&s.g, entry, level):
            s.page.la = base
            s.page.gpa = leaf_address(&s.g, entry, 0, shift)
            s.page.leaf = entry
            s.page.rights = rights_word(s, entry, every, any_, shift)
            s.page.kind = kind_word(s, entry, level, shift)
            s.page.shift = shift
            open_page(s)
            if s.n >= s.room or s.ept_level or not s.work:
                return
        else:
            open_guest(s, level - 1, entry & s.g.frame if entry_shift == 3 else entry & 0xFFFFF000U, base, every, any_)
            if s.level != level or not s.work:
                return
    outside(s, t, shift, entry_shift, level, False)
    close_table(s, t, barren_key(t.hpa, level, False))
    s.level = level + 1 if level < s.g.levels else 0


cdef inline void count_pages(Leaves *s, int entry_shift) noexcept nogil:
    # `room` is no matter here; loops without branches
    cdef Table *t = &s.guest[1]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef uint32_t i, stop = min(t.stop, t.held)
    cdef uint64_t rsvd = s.g.rsvd[1][0], n = 0, malformed = 0, entry
    for i in range(t.next, stop):
        entry = entry_at(at, i, entry_shift)
        n += entry & P
        malformed |= entry & rsvd & (0 - (entry & P))
    if malformed:
        for i in range(t.next, stop):
            entry = entry_at(at, i, entry_shift)
            n -= entry & P != 0 and entry & rsvd != 0
    s.n += n
    close_table(s, t, barren_key(t.hpa, 1, False))
    s.level = 2


cdef inline void scan_pages(Leaves *s, int entry_shift) noexcept nogil:
    # a page table without EPT: the hot loop, as scan_guest
    cdef Table *t = &s.guest[1]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef LeafRow *row = s.out + s.n
    cdef const LeafRow *end = s.out + s.room
    cdef uint32_t i = t.next, stop = min(t.stop, t.held)
    cdef uint64_t base = extended(s, t.base), frame = s.g.frame, rsvd = s.g.rsvd[1][0], entry, kind
    while row < end:
        i = next_present(at, i, stop, P, entry_shift)
        if i >= stop:
            break
        entry = entry_at(at, i, entry_shift)
        if entry & rsvd:
            leaves_fault(s, t.base + (<uint64_t> i << 12), 4096, t.hpa + (<uint64_t> i << entry_shift), entry,
                         FAULT_PF, 1, False)
        else:
            kind = kind_word(s, entry, 1, 12)
            row.va = base + (<uint64_t> i << 12)
            row.pa = row.gpa = entry & frame
            row.size = 4096
            row.leaf = entry
            row.rights = rights_word(s, entry, t.every & entry, t.any_ | entry, 12)
            row.kind = kind | native_type(s, entry & frame, kind & 7) << 16
            row += 1
        i += 1
    t.next = i
    s.n = row - s.out
    if i < stop:
        return
    outside(s, t, 12, entry_shift, 1, False)
    close_table(s, t, barren_key(t.hpa, 1, False))
    s.level = 2


cdef inline void scan_pages_nested(Leaves *s, int entry_shift) noexcept nogil:
    # a page table over EPT, a block of entries at a time, so that the cache misses of a block overlap
    cdef Table *t = &s.guest[1]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef const uint64_t *place[LANES]
    cdef uint64_t entry[LANES]
    cdef uint64_t above[LANES]
    cdef uint32_t index[LANES]
    cdef uint32_t i = t.next, stop = min(t.stop, t.held)
    cdef int n, j
    cdef EptRegion *r
    cdef Page page
    cdef Found f
    page.shift = 12
    while s.n < s.room:
        n = 0
        while n < LANES and s.n + n < s.room:
            i = next_present(at, i, stop, P, entry_shift)
            if i >= stop:
                break
            index[n] = i
            entry[n] = entry_at(at, i, entry_shift)
            page.gpa = entry[n] & s.g.frame
            r = s.region + (page.gpa >> 21 & (REGIONS - 1))
            place[n] = NULL
            if r.tag == ~(page.gpa >> 21):
                place[n] = <const uint64_t *> (s.m.base + (r.table & FRAME)) + (page.gpa >> 12 & 511)
                above[n] = r.table
                prefetch(place[n])
            n += 1
            i += 1
        t.next = i
        if not n:
            break
        for j in range(n):
            page.la = t.base + (<uint64_t> index[j] << 12)
            if rare((entry[j] & s.g.rsvd[1][0]) != 0):
                leaves_fault(s, page.la, 4096, t.hpa + (<uint64_t> index[j] << entry_shift), entry[j], FAULT_PF, 1,
                             False)
                continue
            page.gpa = entry[j] & s.g.frame
            page.leaf = entry[j]
            page.rights = rights_word(s, entry[j], t.every & entry[j], t.any_ | entry[j], 12)
            page.kind = kind_word(s, entry[j], 1, 12)
            if place[j] != NULL:
                f.level = 1
                f.entry = place[j][0]
                f.every = above[j] & f.entry
            if place[j] == NULL or not f.entry & s.present_ept or ept_misconfigured(&s.e, f.entry, 1, True):
                ept_find(s, page.gpa, &f)
                if f.fault:
                    leaves_fault(s, page.la, 4096, f.hpa, f.entry, f.fault, f.level, True)
                    continue
            nested_row(s, &page, page.gpa, found_hpa(s, &f, page.gpa), f.entry, f.every, 9 * f.level + 3)
    if i >= stop:
        outside(s, t, 12, entry_shift, 1, False)
        close_table(s, t, barren_key(t.hpa, 1, False))
        s.level = 2


cdef void scan_ept(Leaves *s) noexcept nogil:
    # the same for an EPT table under `page`; absent entries side by side are one fault
    cdef int level = s.ept_level, shift = 9 * level + 3
    cdef Table *t = &s.ept[level]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef uint32_t i, stop = min(t.stop, t.held)
    cdef uint64_t entry, base, start, to_la = s.page.la - s.page.gpa, end = s.page.gpa + (<uint64_t> 1 << s.page.shift)
    cdef bint leaf
    while t.next < stop:
        i = next_present(at, t.next, stop, s.present_ept, 3)
        if i != t.next:
            base = t.base + (<uint64_t> t.next << shift)
            start = max(base, s.page.gpa)
            leaves_fault(s, start + to_la, min(t.base + (<uint64_t> i << shift), end) - start,
                         t.hpa + (<uint64_t> t.next << 3), entry_at(at, t.next, 3), FAULT_EPT_VIOLATION, level, True)
            t.next = i
            continue
        t.next = i + 1
        entry = entry_at(at, i, 3)
        base = t.base + (<uint64_t> i << shift)
        start = max(base, s.page.gpa)
        leaf = level == 1 or entry & PS
        if ept_misconfigured(&s.e, entry, level, leaf):
            leaves_fault(s, start + to_la, min(base + (<uint64_t> 1 << shift), end) - start,
                         t.hpa + (<uint64_t> i << 3), entry, FAULT_EPT_MISCONFIG, level, True)
        elif leaf:
            nested_row(s, &s.page, start, (entry & s.e.frame >> shift << shift) | (start - base), entry,
                       t.every & entry, shift)
            if s.n >= s.room:
                return
        else:
            open_ept(s, level - 1, entry & s.e.frame, base, t.every & entry)
            if s.ept_level != level or not s.work:
                return
    outside(s, t, shift, 3, level, True)
    close_table(s, t, barren_key(t.hpa, level, True))
    s.ept_level = level + 1 if level < s.e.levels else 0


cdef void leaves_run(Leaves *s, LeafRow *out, uint64_t room, uint64_t work) noexcept nogil:
    # On from where the last call ended: up to `room` rows (s.n says how many), reading up to `work` tables anew.
    # With out = NULL rows are only counted, perhaps some more than `room`, and faults are not; `loose` counts every
    # guest page of 4 KB, whatever EPT says of it.
    s.before += s.n
    s.n = 0
    s.out = out
    s.room = room
    s.work = work
    while s.n < room and s.work and not s.done:
        if s.ept_level:
            scan_ept(s)
        elif not s.level:
            open_root(s)
        elif s.level == 1 and not s.nested and out == NULL:
            if s.g.entry_shift == 3:
                count_pages(s, 3)
            else:
                count_pages(s, 2)
        elif s.level == 1 and not s.nested:
            if s.g.entry_shift == 3:
                scan_pages(s, 3)
            else:
                scan_pages(s, 2)
        elif s.level == 1 and out != NULL:
            if s.g.entry_shift == 3:
                scan_pages_nested(s, 3)
            else:
                scan_pages_nested(s, 2)
        elif s.g.entry_shift == 3:
            scan_guest(s, 3)
        else:
            scan_guest(s, 2)


# ---- before and after -------------------------------------------------------------------------------------

cdef void leaves_types(Leaves *s) noexcept nogil:
    # the effective memory type as a table (paging.md §8, ept.md §8)
    cdef int below, pat
    for below in range(8):
        for pat in range(8):
            s.type_of[below][pat] = MT_UC if s.g.cd else combined_type(
                below, MT_WB if s.g.mode == MODE_NONE else s.g.pat >> (8 * pat) & 0xFF)
    s.one_type = not s.mtrrs.enabled or s.mtrrs.n == 0
    s.below = MT_UC if not s.mtrrs.enabled else s.mtrrs.default_type


cdef bint leaves_range(Leaves *s, uint64_t first, uint64_t last) noexcept nogil:
    # Addresses first..last, both included; those that are not canonical are left out. False: none is left.
    cdef uint64_t half
    if s.sign:
        half = <uint64_t> 1 << s.sign
        if half <= first < 0 - half:
            first = 0 - half
        if half <= last < 0 - half:
            last = half - 1
        s.first = first & (2 * half - 1)
        s.last = last & (2 * half - 1)
    else:
        s.first = first
        s.last = min(last, ((<uint64_t> 1 << (48 if s.e.levels == 4 else 52)) if s.bare else <uint64_t> 1 << 32) - 1)
    return first <= last and s.first <= s.last


cdef void leaves_free(Leaves *s) noexcept nogil:
    free(s.kept)
    free(s.barren)
    free(s.region)
    s.region = NULL
    s.kept = NULL
    s.barren = NULL

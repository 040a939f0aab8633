"""The page tables of an enumeration: the loops that most of its time goes to. Header: paging/leaf_pages.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, ONES, P, level_shift, pt_index
from fastmmu.arch.types cimport FAULT_PF
from fastmmu.paging.ept cimport ept_misconfigured
from fastmmu.paging.leaf_rows cimport (
    REGIONS, EptRegion, Found, LeafRow, Page, Table, barren_key, close_table, entry_at, ept_find, extended, found_hpa,
    kind_word, leaves_fault, native_type, nested_row, next_present, outside, rights_word,
)

cdef extern from *:
    """
    #define FM_RARE(x) __builtin_expect(!!(x), 0)
    """
    bint rare "FM_RARE"(bint) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *) noexcept nogil

cdef enum:
    LANES = 32                  # entries of a guest page table, whose EPT entries are fetched together


cdef inline void count_pages(Leaves *s, int entry_shift) noexcept nogil:
    # `room` is no matter here, nor EPT; loops without branches
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
    # A page table without EPT: the hot loop, as scan_guest. An entry that has the bits of the last one, but for the
    # address, is present and well-formed like that, and has the same rights, key, PAT index and type.
    cdef Table *t = &s.guest[1]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef LeafRow *row = s.out + s.n
    cdef const LeafRow *end = s.out + s.room
    cdef uint32_t i = t.next, stop = min(t.stop, t.held)
    cdef uint64_t base = extended(s, t.base), frame = s.g.frame, rsvd = s.g.rsvd[1][0], entry
    cdef uint64_t least = 0x100000 if s.one_type else ONES, last = ONES, rights = 0, kind = 0
    while row < end and i < stop:
        entry = entry_at(at, i, entry_shift)
        if rare(entry & ~frame != last or entry & frame < least):
            if not entry & P:
                i = next_present(at, i, stop, P, entry_shift)
                continue
            if entry & rsvd:
                leaves_fault(s, t.base + (<uint64_t> i << 12), 4096, t.hpa + (<uint64_t> i << entry_shift), entry,
                             FAULT_PF, 1, False)
                i += 1
                continue
            rights = rights_word(s, entry, t.every & entry, t.any_ | entry, 12)
            kind = kind_word(s, entry, 1, 12)
            kind |= native_type(s, entry & frame, kind & 7) << 16
            last = entry & ~frame if entry & frame >= least else ONES
        row.va = base + (<uint64_t> i << 12)
        row.pa = row.gpa = entry & frame
        row.size = 4096
        row.leaf = entry
        row.rights = rights
        row.kind = kind
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
    # A page table over EPT, a block of entries at a time, so that the cache misses of a block overlap. Two entries that
    # have the bits of the last ones, but for the addresses, make the same rights and kind.
    cdef Table *t = &s.guest[1]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef const uint64_t *place[LANES]
    cdef uint64_t entry[LANES]
    cdef uint64_t above[LANES]
    cdef uint32_t index[LANES]
    cdef uint32_t i = t.next, stop = min(t.stop, t.held)
    cdef int n, j
    cdef uint64_t frame = s.g.frame, host_frame = s.e.frame, base = extended(s, t.base), rights = 0, kind = 0
    cdef uint64_t last = ONES, last_host = ONES, last_above = ONES
    cdef LeafRow *row
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
                place[n] = <const uint64_t *> (s.m.base + (r.table & FRAME)) + pt_index(page.gpa, 1)
                above[n] = r.table
                prefetch(place[n])
            n += 1
            i += 1
        t.next = i
        if not n:
            break
        for j in range(n):
            if place[j] != NULL:
                f.entry = place[j][0]
                if (entry[j] & ~frame == last and f.entry & ~host_frame == last_host
                        and above[j] & ~FRAME == last_above):
                    row = s.out + s.n
                    s.n += 1
                    row.va = base + (<uint64_t> index[j] << 12)
                    row.pa = f.entry & host_frame
                    row.gpa = entry[j] & frame
                    row.size = 4096
                    row.leaf = entry[j]
                    row.rights = rights
                    row.kind = kind
                    continue
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
                f.every = above[j] & (f.entry ^ s.e.flip)
            if place[j] == NULL or not f.entry & s.e.present or ept_misconfigured(&s.e, f.entry, 1, True):
                ept_find(s, page.gpa, &f)
                if f.fault:
                    leaves_fault(s, page.la, 4096, f.hpa, f.entry, f.fault, f.level, True)
                    continue
            nested_row(s, &page, page.gpa, found_hpa(s, &f, page.gpa), f.entry, f.every, level_shift(f.level))
            if f.level == 1 and place[j] != NULL:
                row = s.out + s.n - 1
                rights, kind = row.rights, row.kind
                last, last_host, last_above = entry[j] & ~frame, f.entry & ~host_frame, above[j] & ~FRAME
    if i >= stop:
        outside(s, t, 12, entry_shift, 1, False)
        close_table(s, t, barren_key(t.hpa, 1, False))
        s.level = 2


cdef void leaf_pages(Leaves *s) noexcept nogil:
    if s.survey:
        s.n += 512 if s.g.entry_shift == 3 else 1024
        s.level = 2
    elif s.out == NULL:
        if s.g.entry_shift == 3:
            count_pages(s, 3)
        else:
            count_pages(s, 2)
    elif not s.nested:
        if s.g.entry_shift == 3:
            scan_pages(s, 3)
        else:
            scan_pages(s, 2)
    elif s.g.entry_shift == 3:
        scan_pages_nested(s, 3)
    else:
        scan_pages_nested(s, 2)

"""Kernel of the enumeration (paging.md §2-§4, ept.md §2-§5). Header: leaves.pxd; page tables: leaf_pages.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmmu.arch.bits cimport EPT_R, EPT_W, ONES, P, PS, level_shift
from fastmmu.arch.memtype cimport MT_UC, MT_WB, combined_type, nested_type
from fastmmu.arch.types cimport (
    FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_NPF, FAULT_PF, MODE_NONE, MODE_PAE,
)
from fastmmu.paging.ept cimport ept_misconfigured, ept_rights
from fastmmu.paging.guest cimport PDPT, guest_level_shift, is_leaf, leaf_address, pdpte_reserved, table_address
from fastmmu.paging.hash_table cimport hash_free
from fastmmu.paging.leaf_pages cimport leaf_pages
from fastmmu.paging.leaf_rows cimport (
    Found, absent, barren_key, barren_skip, close_table, entry_at, ept_find, extended, found_hpa, kind_word,
    native_type, nested_row, next_present, outside, rights_word,
)
from fastmmu.paging.memory cimport mem_holds, mem_read64


# ---- opening tables ---------------------------------------------------------------------------------------

cdef inline bint open_table(Leaves *s, Table *t, uint64_t key, uint64_t hpa, uint64_t base, uint64_t every,
                            uint64_t any_, int shift, int index_bits, int entry_shift, uint64_t first,
                            uint64_t last, int level, bint ept) noexcept nogil:
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
    if s.m.segments != NULL:
        held_entries(s, t, <uint32_t> entries, shift, entry_shift, level, ept)
    return True


cdef void held_entries(Leaves *s, Table *t, uint32_t entries, int shift, int entry_shift, int level,
                       bint ept) noexcept nogil:
    # A table of memory with holes. One that lies in memory in part is read whole, for what is not memory is zero there.
    cdef uint64_t size = <uint64_t> 1 << entry_shift
    cdef uint32_t i, since
    if mem_holds(s.m, t.hpa, entries << entry_shift):
        t.held = entries
        return
    t.held = 0
    for i in range(entries):
        if mem_holds(s.m, t.hpa + i * size, size):
            t.held = entries
    if not t.held:
        return
    i = since = t.next
    while i < t.stop:
        if mem_holds(s.m, t.hpa + i * size, size):
            absent(s, t, since, i, shift, entry_shift, level, ept)
            since = i + 1
        i += 1
    absent(s, t, since, t.stop, shift, entry_shift, level, ept)


cdef inline bint find_table(Leaves *s, uint64_t gpa, uint64_t la, int shift, uint64_t *hpa) noexcept nogil:
    # Where a guest's table lies, of which 1 << shift addresses from la on depend. The page walker reads it, and with
    # EPT A/D flags that counts as a write (ept.md §4), by AMD's as one by user mode.
    cdef Found f
    cdef uint64_t need = EPT_R | (EPT_W if s.e.ad else 0)
    hpa[0] = gpa
    if not s.nested:
        return True
    ept_find(s, gpa, &f)
    if not f.fault and need & ~ept_rights(&s.e, f.every):
        f.fault = s.absent
    if f.fault:
        leaves_fault(s, la, <uint64_t> 1 << shift, f.hpa, f.entry, f.fault, f.level, True)
        return False
    hpa[0] = found_hpa(s, &f, gpa)
    return True


cdef uint64_t pdpte(Leaves *s, uint64_t i) noexcept nogil:
    # of PAE paging: the register, or the entry itself, which AMD's nested paging leaves in memory; 0: not present
    cdef uint64_t hpa = 0, entry
    if not (s.nested and s.e.npt):
        return s.g.pdpte[i]
    if not find_table(s, (s.g.cr3 & PDPT) + 8 * i, i << 30, 30, &hpa):
        return 0
    if not mem_holds(s.m, hpa, 8):
        leaves_fault(s, i << 30, 1 << 30, hpa, 0, FAULT_BUS, 3, False)
        return 0
    entry = mem_read64(s.m, hpa)
    if entry & P and entry & pdpte_reserved(&s.g):
        leaves_fault(s, i << 30, 1 << 30, hpa, entry, FAULT_PF, 3, False)
        return 0
    return entry


cdef void open_guest(Leaves *s, int level, uint64_t table, uint64_t base, uint64_t every, uint64_t any_) noexcept nogil:
    cdef uint64_t hpa = 0
    cdef int shift = guest_level_shift(&s.g, level)
    if not find_table(s, table, base, shift + s.g.index_bits, &hpa):
        return
    if open_table(s, &s.guest[level], barren_key(hpa, level, False), hpa, base, every, any_, shift, s.g.index_bits,
                  s.g.entry_shift, s.first, s.last, level, False):
        s.level = level


cdef void open_ept(Leaves *s, int level, uint64_t table, uint64_t base, uint64_t every) noexcept nogil:
    if open_table(s, &s.ept[level], barren_key(table, level, True), table, base, every, 0, level_shift(level), 9, 3,
                  s.gpa_first, s.gpa_last, level, True):
        s.ept_level = level


# ---- pages ------------------------------------------------------------------------------------------------

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
            nested_row(s, page, page.gpa, found_hpa(s, &f, page.gpa), f.entry, f.every, level_shift(f.level))
    elif s.e.levels == 4 and page.gpa >> 48:
        leaves_fault(s, page.la, size, ONES, 0, s.absent, 4, True)
    else:
        s.gpa_first = page.gpa + (s.first - page.la if s.first > page.la else 0)
        s.gpa_last = page.gpa + min(size - 1, s.last - page.la)
        open_ept(s, s.e.levels, s.e.root, 0, ONES)


cdef void open_root(Leaves *s) noexcept nogil:
    # PAE has four roots, one for each PDPTE register
    cdef uint64_t i = s.root, entry
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
        if i < 4 and s.first >> 30 <= i <= s.last >> 30:
            entry = pdpte(s, i)
            if entry & P:
                open_guest(s, 2, entry & s.g.frame, i << 30, ONES, 0)
    else:
        s.done = i == 1
        if not s.done:
            open_guest(s, s.g.levels, s.g.root, 0, ONES, 0)


# ---- reading tables ---------------------------------------------------------------------------------------

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
            open_guest(s, level - 1, table_address(&s.g, entry), base, every, any_)
            if s.level != level or not s.work:
                return
    outside(s, t, shift, entry_shift, level, False)
    close_table(s, t, barren_key(t.hpa, level, False))
    s.level = level + 1 if level < s.g.levels else 0


cdef void scan_ept(Leaves *s) noexcept nogil:
    # the same for an EPT table under `page`; absent entries side by side are one fault
    cdef int level = s.ept_level, shift = level_shift(level)
    cdef Table *t = &s.ept[level]
    cdef const uint8_t *at = s.m.base + t.hpa
    cdef uint32_t i, stop = min(t.stop, t.held)
    cdef uint64_t entry, base, start, to_la = s.page.la - s.page.gpa, end = s.page.gpa + (<uint64_t> 1 << s.page.shift)
    cdef bint leaf
    while t.next < stop:
        i = next_present(at, t.next, stop, s.e.present, 3)
        if i != t.next:
            base = t.base + (<uint64_t> t.next << shift)
            start = max(base, s.page.gpa)
            leaves_fault(s, start + to_la, min(t.base + (<uint64_t> i << shift), end) - start,
                         t.hpa + (<uint64_t> t.next << 3), entry_at(at, t.next, 3), s.absent, level, True)
            t.next = i
            continue
        t.next = i + 1
        entry = entry_at(at, i, 3)
        base = t.base + (<uint64_t> i << shift)
        start = max(base, s.page.gpa)
        leaf = level == 1 or entry & PS
        if ept_misconfigured(&s.e, entry, level, leaf):
            leaves_fault(s, start + to_la, min(base + (<uint64_t> 1 << shift), end) - start,
                         t.hpa + (<uint64_t> i << 3), entry, s.malformed, level, True)
        elif leaf:
            nested_row(s, &s.page, start, (entry & s.e.frame >> shift << shift) | (start - base), entry,
                       t.every & (entry ^ s.e.flip), shift)
            if s.n >= s.room:
                return
        else:
            open_ept(s, level - 1, entry & s.e.frame, base, t.every & (entry ^ s.e.flip))
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
        elif s.level == 1 and (not s.nested or out != NULL or s.loose):
            leaf_pages(s)
        elif s.g.entry_shift == 3:
            scan_guest(s, 3)
        else:
            scan_guest(s, 2)


# ---- before and after -------------------------------------------------------------------------------------

cdef void leaves_types(Leaves *s) noexcept nogil:
    # the effective memory type as a table (paging.md §8, ept.md §8, npt.md §6); and what faults are called
    cdef int below, pat, kind
    for below in range(8):
        for pat in range(8):
            kind = MT_WB if s.g.mode == MODE_NONE else s.g.pat >> (8 * pat) & 0xFF
            if s.g.cd:
                kind = MT_UC
            else:
                kind = nested_type(below, kind) if s.e.npt else combined_type(below, kind)
            s.type_of[below][pat] = kind
    s.absent = FAULT_NPF if s.e.npt else FAULT_EPT_VIOLATION
    s.malformed = FAULT_NPF if s.e.npt else FAULT_EPT_MISCONFIG
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
    hash_free(&s.barren)
    free(s.region)
    s.region = NULL
    s.kept = NULL

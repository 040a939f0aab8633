"""Kernel of the judgement of tables. Header: space/facts.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport A, D, FRAME, PCD, PS, US, XD
from fastmmu.paging.ept cimport ept_bad_type
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put
from fastmmu.paging.segments cimport placed_covers, placed_read
from fastmmu.space.scan cimport FORM_EPT, FORM_PAE, FORM_TWO

cdef enum:
    FEW = 8                     # pages of devices that stand alone

cdef extern from *:
    const uint64_t ABOVE_52 "0x7FF0000000000000ULL"


# ---- entries ----------------------------------------------------------------------------------------------

cdef inline bint present(int form, uint64_t entry) noexcept nogil:
    return entry & (7 if form == FORM_EPT else 1) != 0


cdef inline bint leaf(int form, int level, uint64_t entry) noexcept nogil:
    return level == 1 or (entry & PS and level <= (2 if form == FORM_TWO or form == FORM_PAE else 3))


cdef inline int shift_of(int form, int level) noexcept nogil:
    return 12 + (10 if form == FORM_TWO else 9) * (level - 1)


cdef inline uint64_t frame_of(int form, int level, uint64_t entry) noexcept nogil:
    # of a table, or where a page begins; that of a page of 4 MB has bits 39:32 of the address in bits 20:13
    cdef uint64_t low = ((<uint64_t> 1 << shift_of(form, level)) - 1) if leaf(form, level, entry) else 0xFFF
    if form == FORM_TWO and low > 0xFFF:
        return (entry & 0xFFC00000U) | (entry >> 13 & 0xFF) << 32
    return entry & FRAME & ~low


cdef inline bint malformed(const Judge *s, int form, int level, uint64_t entry) noexcept nogil:
    # reserved bits (paging.md §3.4, ept.md §3)
    cdef bint is_leaf = leaf(form, level, entry)
    cdef uint64_t low = ((<uint64_t> 1 << shift_of(form, level)) - 1) & ~(<uint64_t> 0xFFF)
    if form == FORM_TWO:
        return is_leaf and level == 2 and entry & 0x200000 != 0
    if entry & s.reserved:
        return True
    if form == FORM_EPT:
        if entry & 2 and not entry & 1:
            return True
        if not is_leaf:
            return entry & 0xF8 != 0
        return entry & low != 0 or ept_bad_type(entry) != 0
    if form == FORM_PAE and entry & ABOVE_52:
        return True
    # bit 12 of a large page is its PAT bit
    if is_leaf:
        return entry & low & ~(<uint64_t> 0x1000) != 0
    return entry & PS != 0


cdef inline bint executable(int form, uint64_t entry) noexcept nogil:
    if form == FORM_EPT:
        return entry & 4 != 0
    return entry & XD == 0


cdef inline uint64_t entry_of(int form, const uint8_t *table, int i) noexcept nogil:
    return (<const uint32_t *> table)[i] if form == FORM_TWO else (<const uint64_t *> table)[i]


cdef inline bint in_memory(const Judge *s, uint64_t page) noexcept nogil:
    if s.placed != NULL:
        return placed_covers(s.placed, page, 4096)
    return page < s.m.nbytes and s.m.nbytes - page >= 4096


cdef inline bint continues(int form, uint64_t one, uint64_t next_) noexcept nogil:
    # the next page with the same rights
    return present(form, one) and present(form, next_) and ((one + 0x1000) ^ next_) & ~(A | D) == 0


# ---- tables -----------------------------------------------------------------------------------------------

cdef void count_leaf(const Judge *s, int form, int level, uint64_t entry, Facts *f) noexcept nogil:
    cdef uint64_t frame = frame_of(form, level, entry)
    cdef bint user = form != FORM_EPT and entry & US != 0, code = executable(form, entry)
    f.pages += 1
    f.inside += in_memory(s, frame) and (frame != 0 or level > 1)
    f.user += user
    f.code += code
    f.kernel_code += code and not user
    if form == FORM_EPT:
        f.typed += (entry >> 3 & 7) == 6
    else:
        f.typed += entry & PCD != 0


cdef void count_below(int form, uint64_t entry, const Facts *below, Facts *f) noexcept nogil:
    cdef bint user = form != FORM_EPT and entry & US != 0, code = executable(form, entry)
    f.tables += below.tables
    f.malformed += below.malformed
    f.pages += below.pages
    f.inside += below.inside
    f.typed += below.typed
    if user:
        f.user += below.user
    if code:
        f.code += below.code
        f.kernel_code += below.kernel_code if user else below.code


cdef bint judge_table(Judge *s, int form, int level, uint64_t table, Facts *out) noexcept nogil:
    cdef uint8_t copy[4096]
    cdef const uint8_t *at = copy
    cdef uint64_t key = table | 0x800 | form << 4 | level
    cdef const Facts *known = <const Facts *> hash_find(&s.known, key)
    cdef Facts *kept
    if known != NULL:
        out[0] = known[0]
        return True
    if not in_memory(s, table):
        return False
    if s.placed == NULL:
        at = s.m.base + table
    elif placed_read(s.placed, table, 4096, copy) < 4096:
        return False
    judge_entries(s, form, level, at, out)
    out.key = key
    s.known.size = sizeof(Facts)
    kept = <Facts *> hash_put(&s.known, key)
    if kept != NULL:            # without memory for it the table is read again
        kept[0] = out[0]
    return True


cdef void judge_entries(Judge *s, int form, int level, const uint8_t *at, Facts *f) noexcept nogil:
    cdef int n = 1024 if form == FORM_TWO else 512, i
    cdef uint64_t entry, there = 0, bad = 0, barren = 0, stray = 0
    cdef Facts below
    memset(f, 0, sizeof(Facts))
    f.tables = 1
    for i in range(n):
        entry = entry_of(form, at, i)
        there += present(form, entry)
        bad += present(form, entry) and malformed(s, form, level, entry)
    if 4 * bad > there:         # what it leads to is not looked at
        f.malformed = bad
        return
    for i in range(n):
        entry = entry_of(form, at, i)
        if not present(form, entry) or malformed(s, form, level, entry):
            continue
        if leaf(form, level, entry):
            count_leaf(s, form, level, entry, f)
            if level == 1 and not in_memory(s, frame_of(form, level, entry)):
                stray += not ((i and continues(form, entry_of(form, at, i - 1), entry))
                              or (i + 1 < n and continues(form, entry, entry_of(form, at, i + 1))))
        elif not frame_of(form, level, entry) or not judge_table(s, form, level - 1, frame_of(form, level, entry),
                                                                 &below) or not below.plausible:
            bad += 1
        else:
            barren += below.pages == 0
            count_below(form, entry, &below, f)
    f.malformed += bad
    f.plausible = 4 * bad <= there and (level > 2 or 4 * (bad + barren) <= 3 * there) and \
        (stray <= FEW or 2 * stray <= there)


cdef bint judge_pdptes(Judge *s, uint64_t address, Facts *out) noexcept nogil:
    # bits 2:1 are reserved here, so rights are those of what is below
    cdef uint64_t entry[4]
    cdef Facts below
    cdef uint64_t there = 0, bad = 0
    cdef int i
    memset(out, 0, sizeof(Facts))
    if s.placed != NULL:
        if placed_read(s.placed, address, 32, <uint8_t *> entry) < 32:
            return False
    elif address > s.m.nbytes or s.m.nbytes - address < 32:
        return False
    else:
        for i in range(4):
            entry[i] = (<const uint64_t *> (s.m.base + address))[i]
    for i in range(4):
        if not entry[i] & 1:
            continue
        there += 1
        if not entry[i] & FRAME or not judge_table(s, FORM_PAE, 2, entry[i] & FRAME, &below) or not below.plausible:
            bad += 1
        else:
            count_below(FORM_PAE, US, &below, out)
    out.malformed += bad
    out.plausible = 4 * bad <= there
    return True


cdef void judge_free(Judge *s) noexcept nogil:
    hash_free(&s.known)

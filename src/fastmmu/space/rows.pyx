"""Kernel of questions to the rows of an enumeration. Header: space/rows.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmmu.arch.bits cimport ctzll

cdef enum:
    DIGIT = 11                  # bits that a pass of the sort goes by

cdef extern from *:
    const uint64_t RIGHTS "0xFFFF0000FFFFFFFFULL"   # of LeafRow.rights: without accessed and dirty
    const uint64_t KIND "0x0000FFFFFFFFFFFFULL"     # of LeafRow.kind: without those of the EPT leaf


# ---- the reverse index ------------------------------------------------------------------------------------

cdef void sort(uint64_t *key, uint32_t *row, uint64_t *key2, uint32_t *row2, uint64_t n) noexcept nogil:
    # by key, stable: passes from the lowest digit up, without those in which all keys agree
    cdef uint64_t count[1 << DIGIT]
    cdef uint64_t differ = 0, i, sum, one, at
    cdef uint64_t *k = key
    cdef uint64_t *other = key2
    cdef uint32_t *r = row
    cdef uint32_t *other_r = row2
    cdef bint sorted_ = True
    cdef int shift = 0, d
    for i in range(1, n):
        differ |= key[i] ^ key[0]
        sorted_ &= key[i - 1] <= key[i]
    if sorted_:
        return
    while differ >> shift:
        if differ >> shift & ((1 << DIGIT) - 1):
            memset(count, 0, sizeof(count))
            for i in range(n):
                count[k[i] >> shift & ((1 << DIGIT) - 1)] += 1
            sum = 0
            for d in range(1 << DIGIT):
                one = count[d]
                count[d] = sum
                sum += one
            for i in range(n):
                d = <int> (k[i] >> shift & ((1 << DIGIT) - 1))
                at = count[d]
                count[d] = at + 1
                other[at] = k[i]
                other_r[at] = r[i]
            k, other = other, k
            r, other_r = other_r, r
        shift += DIGIT
    if k != key:
        for i in range(n):
            key[i] = k[i]
            row[i] = r[i]


cdef int reverse_build(Reverse *r, const LeafRow *rows, uint64_t n) noexcept nogil:
    cdef uint64_t at[SIZES]
    cdef uint64_t i
    cdef int size
    cdef uint64_t *key = <uint64_t *> malloc(8 * (n + 1))
    cdef uint32_t *row = <uint32_t *> malloc(4 * (n + 1))
    memset(r, 0, sizeof(Reverse))
    r.key = <uint64_t *> malloc(8 * (n + 1))
    r.row = <uint32_t *> malloc(4 * (n + 1))
    if key == NULL or row == NULL or r.key == NULL or r.row == NULL:
        free(key)
        free(row)
        reverse_free(r)
        return -1
    for i in range(n):
        r.start[ctzll(rows[i].size) + 1] += 1
    for size in range(SIZES):
        r.start[size + 1] += r.start[size]
        at[size] = r.start[size]
    for i in range(n):
        size = ctzll(rows[i].size)
        r.key[at[size]] = rows[i].pa >> size
        r.row[at[size]] = <uint32_t> i
        at[size] += 1
    for size in range(SIZES):
        if r.start[size] < r.start[size + 1]:
            sort(r.key + r.start[size], r.row + r.start[size], key, row, r.start[size + 1] - r.start[size])
    free(key)
    free(row)
    return 0


cdef void reverse_free(Reverse *r) noexcept nogil:
    free(r.key)
    free(r.row)
    memset(r, 0, sizeof(Reverse))


cdef uint64_t reverse_find(const Reverse *r, uint64_t first, uint64_t last, uint32_t *out,
                           uint64_t room) noexcept nogil:
    cdef uint64_t found = 0, low, high, middle
    cdef int size
    for size in range(SIZES):
        low = r.start[size]
        high = r.start[size + 1]
        while low < high:
            middle = (low + high) >> 1
            if r.key[middle] < first >> size:
                low = middle + 1
            else:
                high = middle
        while low < r.start[size + 1] and r.key[low] <= last >> size:
            if found < room:
                out[found] = r.row[low]
            found += 1
            low += 1
    return found


# ---- two enumerations --------------------------------------------------------------------------------------

cdef inline bint differs(const LeafRow *a, const LeafRow *b, bint software) noexcept nogil:
    if software:
        return a.pa != b.pa or a.gpa != b.gpa or a.leaf != b.leaf or a.rights != b.rights or a.kind != b.kind
    return a.pa != b.pa or a.gpa != b.gpa or ((a.rights ^ b.rights) & RIGHTS) != 0 or ((a.kind ^ b.kind) & KIND) != 0


cdef void rows_compare(const LeafRow *old, uint64_t n_old, const LeafRow *new, uint64_t n_new, bint software,
                       uint32_t *added, uint32_t *gone, uint32_t *changed, uint64_t *n) noexcept nogil:
    cdef uint64_t i = 0, j = 0
    n[0] = n[1] = n[2] = 0
    while i < n_old or j < n_new:
        if j >= n_new or (i < n_old and (old[i].va < new[j].va
                                         or (old[i].va == new[j].va and old[i].size != new[j].size))):
            gone[n[1]] = <uint32_t> i
            n[1] += 1
            i += 1
        elif i >= n_old or new[j].va < old[i].va:
            added[n[0]] = <uint32_t> j
            n[0] += 1
            j += 1
        else:
            if differs(old + i, new + j, software):
                changed[2 * n[2]] = <uint32_t> i
                changed[2 * n[2] + 1] = <uint32_t> j
                n[2] += 1
            i += 1
            j += 1

"""`Touches`: of a stretch of a trace what touches a page for the first time."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu._arguments cimport bytes_in, words_in
from fastmmu.arch.ops cimport LAST_ACCESS, OP_COLLAPSE, OP_FETCH, OP_INVLPG, OP_MUNMAP, OP_READ, OP_SWITCH, OP_UNMAP

from fastmmu.threads.turns cimport Turn, Turns

from fastmmu.errors import OutOfMemoryError, TraceError

cdef enum:
    READ = 1
    WRITTEN = 2
    FETCHED = 4
    EPOCHS = 0xFFFF

# An entry: epoch << 48 | page << 3 | what was done to it; one of another epoch is free.


cdef class Touches:
    """What of a stretch of a trace touches a page in a new way: the first read, write, fetch of each page of 4 KB (a
    write is a read, too), and every event that is no access. A change of the process, and of what is mapped, begins
    anew.

    What is left out is a further access to pages that were just used in the same way: it changes no page table, only
    which translations a TLB holds.

    Threads: each call is one step.
    """

    cdef uint64_t *entry
    cdef uint64_t mask, used, epoch
    cdef Turns turns

    def __cinit__(self):
        self.turns = Turns()
        self.mask, self.epoch = (1 << 12) - 1, 1
        self.entry = <uint64_t *> calloc(self.mask + 1, 8)
        if self.entry == NULL:
            raise OutOfMemoryError("no memory for the pages of a stretch")

    def __dealloc__(self):
        free(self.entry)

    def forget(self):
        """Another stretch begins."""
        cdef Turn _turn = self.turns.take()
        forget(self)

    def first(self, op, size, addr):
        """Places of the events that touch in a new way, and of those that are no accesses: int64, ascending.

        :param op, size, addr: columns of consecutive events; all have one length.
        """
        cdef const uint8_t[::1] ops = bytes_in("op", op, TraceError), sizes = bytes_in("size", size, TraceError)
        cdef const uint64_t[::1] addrs = words_in("addr", addr, TraceError)
        cdef uint64_t n = addrs.shape[0]
        cdef int64_t kept
        if <uint64_t> ops.shape[0] != n or <uint64_t> sizes.shape[0] != n:
            raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {n}")
        places = np.empty(n, np.int64)
        cdef int64_t[::1] to = places
        if n == 0:
            return places
        cdef Turn _turn = self.turns.take()
        with nogil:
            kept = select(self, &ops[0], &sizes[0], &addrs[0], n, &to[0])
        if kept < 0:
            raise OutOfMemoryError("no memory for so many pages of a stretch; make its intervals shorter")
        return places[:kept].copy()


cdef void forget(Touches t) noexcept nogil:
    t.used = 0
    t.epoch += 1
    if t.epoch > EPOCHS:
        memset(t.entry, 0, 8 * (t.mask + 1))
        t.epoch = 1


cdef inline uint64_t page_of(uint64_t entry) noexcept nogil:
    return entry << 16 >> 19


cdef inline uint64_t *find(Touches t, uint64_t page) noexcept nogil:
    # its entry, or the free one where it would stand
    cdef uint64_t i = (page ^ page >> 12) * <uint64_t> 0x9E3779B97F4A7C15 >> 32 & t.mask
    while t.entry[i] >> 48 == t.epoch and page_of(t.entry[i]) != page:
        i = (i + 1) & t.mask
    return &t.entry[i]


cdef bint grow(Touches t) noexcept nogil:
    cdef uint64_t *old = t.entry
    cdef uint64_t *new = <uint64_t *> calloc(2 * (t.mask + 1), 8)
    cdef uint64_t i, n = t.mask + 1
    if new == NULL:
        return False
    t.entry = new
    t.mask = 2 * n - 1
    for i in range(n):
        if old[i] >> 48 == t.epoch:
            find(t, page_of(old[i]))[0] = old[i]
    free(old)
    return True


cdef inline bint touch(Touches t, uint64_t page, uint64_t how) noexcept nogil:
    # whether it is new
    cdef uint64_t *e = find(t, page)
    if e[0] >> 48 != t.epoch:
        e[0] = t.epoch << 48 | page << 3 | how
        t.used += 1
        return True
    if (e[0] & how) == how:
        return False
    e[0] |= how
    return True


cdef int64_t select(Touches t, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                    int64_t *to) noexcept nogil:
    cdef uint64_t i, page, how, last = ~(<uint64_t> 0), done = 0
    cdef int64_t kept = 0
    cdef bint new
    for i in range(n):
        if op[i] > LAST_ACCESS:
            if op[i] == OP_SWITCH or op[i] == OP_INVLPG or op[i] == OP_UNMAP or OP_MUNMAP <= op[i] <= OP_COLLAPSE:
                forget(t)
                last = ~(<uint64_t> 0)
        elif not addr[i] >> 57:
            page = addr[i] >> 12
            how = READ if op[i] == OP_READ else FETCHED if op[i] == OP_FETCH else READ | WRITTEN
            if (addr[i] & 0xFFF) + size[i] <= 0x1000:
                if page == last and (done & how) == how:
                    continue
                new = touch(t, page, how)
                done = how if page != last else done | how
                last = page
            else:
                new = touch(t, page, how)
                if not (page + 1) >> 45:
                    new = touch(t, page + 1, how) or new
            if 2 * t.used > t.mask and not grow(t):
                return -1
            if not new:
                continue
        to[kept] = i
        kept += 1
    return kept

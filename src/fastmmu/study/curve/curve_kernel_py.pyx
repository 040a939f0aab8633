"""`StackDistances`: distances in every level of a TLB, for Python."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.study.curve.curve_kernel cimport (
    CURVE_BAD_ADDRESS, CURVE_BAD_PROCESS, CURVE_NO_MEMORY, NO_KEY, NO_LEVEL, Curve, Level, curve_run,
)
from fastmmu.study.curve.stack_distance cimport GROUPS, List, list_free, list_new, tree_free, tree_new

from fastmmu.errors import ConfigError, OutOfMemoryError, TraceError


cdef class StackDistances:
    """Distances of every access in every level of a TLB, from events that come batch by batch.

    :param levels: for each level its (numbers of sets, depth of their lists).
    :param ports: for reads, writes, modifies, fetches: (first level, its list that decides what misses, ways of that
        list, second level or None).
    :param shift: log2 of the page size. :param pcid: a SWITCH flushes nothing.
    :param limit: farthest distance in a tree that is told from infinity. :param threshold: pages whose 32-bit hash is
        below it go through the trees; 2**32: all.
    """

    cdef Curve c
    cdef uint64_t events

    def __cinit__(self, levels, ports, int shift, bint pcid, uint64_t limit, uint64_t threshold):
        cdef Level *x
        if not 1 <= len(levels) <= 5 or len(ports) != 4:
            raise ConfigError(f"{len(levels)} levels, {len(ports)} ports; there are 1..5 levels and 4 ports")
        self.c.shift, self.c.pcid = shift, pcid
        for sets, depth in levels:
            x = &self.c.level[self.c.levels]
            self.c.levels += 1
            x.last = NO_KEY
            x.list = <List *> calloc(len(sets), sizeof(List))
            if x.list == NULL:
                raise OutOfMemoryError("no memory for the curves")
            for number in sets:
                if number & (number - 1) or not 1 <= number <= 1 << 20 or not 1 <= depth <= 1 << 12:
                    raise ConfigError(f"{number} sets of {depth} ways: sets are a power of two up to 1048576, ways up "
                                      "to 4096")
                x.lists += 1
                if not list_new(&x.list[x.lists - 1], number, depth):
                    raise OutOfMemoryError(f"no memory for the curves of {number} sets; give fewer")
            if not tree_new(&x.tree, limit, threshold):
                raise OutOfMemoryError(f"no memory for curves of up to {limit} entries; give a lower limit")
        for op, (first, chosen, ways, second) in enumerate(ports):
            if not (0 <= first < self.c.levels and 0 <= chosen < self.c.level[<int> first].lists
                    and (second is None or 0 <= second < self.c.levels)):
                raise ConfigError(f"port {op}: ({first}, {chosen}, {ways}, {second}) names a level or list that "
                                  "is none")
            if not 1 <= ways <= self.c.level[<int> first].list[<int> chosen].depth:
                raise ConfigError(f"port {op}: a first level of {ways} ways needs lists as deep")
            self.c.first[<int> op], self.c.filter[<int> op], self.c.ways[<int> op] = first, chosen, ways
            self.c.second[<int> op] = NO_LEVEL if second is None else second

    def __dealloc__(self):
        cdef uint32_t i, j
        for i in range(self.c.levels):
            for j in range(self.c.level[i].lists):
                list_free(&self.c.level[i].list[j])
            free(self.c.level[i].list)
            tree_free(&self.c.level[i].tree)

    def feed(self, const uint8_t[::1] op not None, const uint8_t[::1] size not None,
             const uint64_t[::1] addr not None):
        """Events of a trace; all arrays have one length.

        :raises TraceError: an address of more than 57 bits, a process number too large.
        """
        cdef uint64_t n = addr.shape[0], done = 0
        cdef int outcome
        if <uint64_t> op.shape[0] != n or <uint64_t> size.shape[0] != n:
            raise TraceError(f"op, size and addr have different lengths: {op.shape[0]}, {size.shape[0]}, {n}")
        if n == 0:
            return
        with nogil:
            outcome = curve_run(&self.c, &op[0], &size[0], &addr[0], n, &done)
        if outcome == CURVE_BAD_ADDRESS:
            raise TraceError(f"event {self.events + done}: {addr[done]:#x} has more than 57 bits")
        if outcome == CURVE_BAD_PROCESS:
            raise TraceError(f"event {self.events + done}: process number {addr[done]} is not below "
                             f"{4095 if self.c.pcid else 1 << 18}; number processes from 0")
        if outcome == CURVE_NO_MEMORY:
            raise OutOfMemoryError("no memory for the order of so many pages; sample them (sample=0.01)")
        self.events += n

    def counts(self):
        """dict of int: accesses, flushes (SWITCH), invalidations (INVLPG, UNMAP)."""
        return {"accesses": self.c.accesses, "flushes": self.c.flushes, "invalidations": self.c.invalidations}

    def lookups(self, unsigned int level):
        """Number of lookups of a level."""
        return self._level(level).lookups

    def of_list(self, unsigned int level, unsigned int number):
        """Lookups by distance in a list: int64 (depth + 1,); [i] of distance i + 1, the last: farther or never."""
        cdef Level *x = self._level(level)
        cdef uint32_t i
        if number >= x.lists:
            raise ConfigError(f"level {level} has {x.lists} lists, no number {number}")
        found = np.zeros(x.list[number].depth + 1, np.int64)
        cdef int64_t[::1] to = found
        for i in range(x.list[number].depth + 1):
            to[i] = x.list[number].hist[i]
        to[0] += x.repeats
        return found

    def of_tree(self, unsigned int level):
        """Sampled lookups by distance: int64 (8 groups, limit + 1); [:, 0]: farther than the limit, or never.

        An access to the same page as the one before it, which hits at every size, is not among them.
        """
        cdef Level *x = self._level(level)
        cdef uint64_t i, w = x.tree.limit + 1
        cdef int g
        found = np.zeros((GROUPS, w), np.int64)
        cdef int64_t[:, ::1] to = found
        for g in range(GROUPS):
            for i in range(w):
                to[g, i] = x.tree.hist[g * w + i]
        return found

    def pages(self, unsigned int level):
        """Distinct pages that went through the tree of a level."""
        return self._level(level).tree.pages

    cdef Level *_level(self, unsigned int level) except NULL:
        if level >= self.c.levels:
            raise ConfigError(f"there are {self.c.levels} levels, no number {level}")
        return &self.c.level[level]

"""`StackDistances`: distances in every level of a TLB, for Python."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu._arguments cimport bytes_in, flag, many, within, words_in
from fastmmu.study.curve.curve_kernel cimport (
    CURVE_BAD_ADDRESS, CURVE_BAD_PROCESS, CURVE_NO_MEMORY, CURVE_OK, NO_KEY, NO_LEVEL, Curve, Level, curve_run,
)
from fastmmu.study.curve.stack_distance cimport GROUPS, List, list_free, list_new, tree_free, tree_new

from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin

from fastmmu.errors import ConfigError, OutOfMemoryError, TraceError


cdef enum:
    MOST_LIMIT = 1 << 26


cdef class StackDistances:
    """Distances of every access in every level of a TLB, from events that come batch by batch.

    :param levels: for each level its (numbers of sets, depth of their lists).
    :param ports: for reads, writes, modifies, fetches: (first level, its list that decides what misses, ways of that
        list, second level or None).
    :param shift: log2 of the page size. :param pcid: a SWITCH flushes nothing.
    :param limit: farthest distance in a tree that is told from infinity. :param threshold: pages whose 32-bit hash is
        below it go through the trees; 2**32: all.

    Threads: one feeds it at a time, a second one is refused (PolicyError); it can be read meanwhile.
    """

    cdef Curve c
    cdef uint64_t events
    cdef Turns turns

    def __cinit__(self, levels, ports, shift, pcid, limit, threshold):
        cdef Level *x
        cdef uint64_t most = within("limit", limit, 1, MOST_LIMIT, ConfigError), number, depth
        cdef uint32_t first, chosen
        cdef uint64_t below = within("threshold", threshold, 0, 1ULL << 32, ConfigError)
        self.turns = Turns()
        levels = [_parts("a level", each, 2) for each in many("levels", levels)]
        ports = [_parts("a port", each, 4) for each in many("ports", ports)]
        if not 1 <= len(levels) <= 5 or len(ports) != 4:
            raise ConfigError(f"{len(levels)} levels, {len(ports)} ports; there are 1..5 levels and 4 ports")
        self.c.shift, self.c.pcid = within("shift", shift, 12, 30, ConfigError), flag("pcid", pcid)
        for sets, ways in levels:
            sets, depth = many("the sets of a level", sets), within("depth", ways, 1, 1 << 12, ConfigError)
            x = &self.c.level[self.c.levels]
            self.c.levels += 1
            x.last = NO_KEY
            if not sets:
                raise ConfigError("a level has at least one list")
            x.list = <List *> calloc(len(sets), sizeof(List))
            if x.list == NULL:
                raise OutOfMemoryError("no memory for the curves")
            for each in sets:
                number = within("sets", each, 1, 1 << 20, ConfigError)
                if number & (number - 1):
                    raise ConfigError(f"{number} sets of {depth} ways: sets are a power of two up to 1048576, ways up "
                                      "to 4096")
                x.lists += 1
                if not list_new(&x.list[x.lists - 1], number, depth):
                    raise OutOfMemoryError(f"no memory for the curves of {number} sets; give fewer")
            if not tree_new(&x.tree, most, below):
                raise OutOfMemoryError(f"no memory for curves of up to {most} entries; give a lower limit")
        for op, port in enumerate(ports):
            first = within("first level of a port", port[0], 0, self.c.levels - 1, ConfigError)
            x = &self.c.level[first]
            chosen = within("list of a port", port[1], 0, x.lists - 1, ConfigError)
            self.c.first[<int> op], self.c.filter[<int> op] = first, chosen
            self.c.ways[<int> op] = within("ways of a port", port[2], 1, x.list[chosen].depth, ConfigError)
            self.c.second[<int> op] = NO_LEVEL if port[3] is None else within(
                "second level of a port", port[3], 0, self.c.levels - 1, ConfigError)

    def __dealloc__(self):
        cdef uint32_t i, j
        for i in range(self.c.levels):
            for j in range(self.c.level[i].lists):
                list_free(&self.c.level[i].list[j])
            free(self.c.level[i].list)
            tree_free(&self.c.level[i].tree)

    def feed(self, op, size, addr):
        """Events of a trace; all arrays have one length.

        :raises TraceError: an address of more than 57 bits, a process number too large.
        """
        cdef const uint8_t[::1] ops = bytes_in("op", op, TraceError), sizes = bytes_in("size", size, TraceError)
        cdef const uint64_t[::1] addrs = words_in("addr", addr, TraceError)
        cdef uint64_t n = addrs.shape[0]
        if <uint64_t> ops.shape[0] != n or <uint64_t> sizes.shape[0] != n:
            raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {n}")
        if n == 0:
            return
        self.turns.begin("StackDistances.feed()")
        try:
            self._feed(ops, sizes, addrs)
        finally:
            self.turns.end()

    cdef _feed(self, const uint8_t[::1] op, const uint8_t[::1] size, const uint64_t[::1] addr):
        cdef uint64_t n = addr.shape[0], done = 0, did = 0, chunk
        cdef int outcome
        cdef Pace pace
        with nogil:
            pace_begin(&pace)
            while True:
                chunk = min(n - done, pace.chunk)
                outcome = curve_run(&self.c, &op[done], &size[done], &addr[done], chunk, &did)
                done += did
                if outcome != CURVE_OK or done == n or self.turns.between(&pace):
                    break
        self.events += done
        self.turns.signals()
        if outcome == CURVE_BAD_ADDRESS:
            raise TraceError(f"event {self.events}: {addr[done]:#x} has more than 57 bits")
        if outcome == CURVE_BAD_PROCESS:
            raise TraceError(f"event {self.events}: process number {addr[done]} is not below "
                             f"{4095 if self.c.pcid else 1 << 18}; number processes from 0")
        if outcome == CURVE_NO_MEMORY:
            raise OutOfMemoryError("no memory for the order of so many pages; sample them (sample=0.01)")

    def counts(self):
        """dict of int: accesses, flushes (SWITCH, FORK), invalidations (INVLPG, UNMAP, MUNMAP, PROTECT)."""
        cdef Turn _turn = self.turns.take()
        return {"accesses": self.c.accesses, "flushes": self.c.flushes, "invalidations": self.c.invalidations}

    def lookups(self, level):
        """Number of lookups of a level."""
        cdef Turn _turn = self.turns.take()
        return self._level(level).lookups

    def of_list(self, level, number):
        """Lookups by distance in a list: int64 (depth + 1,); [i] of distance i + 1, the last: farther or never."""
        cdef Turn _turn = self.turns.take()
        cdef Level *x = self._level(level)
        cdef uint32_t i, chosen
        chosen = within("number of a list", number, 0, x.lists - 1, ConfigError)
        found = np.zeros(x.list[chosen].depth + 1, np.int64)
        cdef int64_t[::1] to = found
        for i in range(x.list[chosen].depth + 1):
            to[i] = x.list[chosen].hist[i]
        to[0] += x.repeats
        return found

    def of_tree(self, level):
        """Sampled lookups by distance: int64 (8 groups, limit + 1); [:, 0]: farther than the limit, or never.

        An access to the same page as the one before it, which hits at every size, is not among them.
        """
        cdef Turn _turn = self.turns.take()
        cdef Level *x = self._level(level)
        cdef uint64_t i, w = x.tree.limit + 1
        cdef int g
        found = np.zeros((GROUPS, w), np.int64)
        cdef int64_t[:, ::1] to = found
        for g in range(GROUPS):
            for i in range(w):
                to[g, i] = x.tree.hist[g * w + i]
        return found

    def pages(self, level):
        """Distinct pages that went through the tree of a level."""
        cdef Turn _turn = self.turns.take()
        return self._level(level).tree.pages

    cdef Level *_level(self, object level) except NULL:
        return &self.c.level[within("number of a level", level, 0, self.c.levels - 1, ConfigError)]


cdef list _parts(str name, object value, int n):
    found = many(name, value)
    if len(found) != n:
        raise ConfigError(f"{name} has {n} parts, not {len(found)}")
    return found

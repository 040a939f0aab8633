"""Kernel of an enumeration in several threads. Header: paging/mapping_parts.pxd."""

import threading

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastmmu.paging.guest cimport guest_level_shift
from fastmmu.paging.hash_table cimport hash_free
from fastmmu.paging.leaves cimport CAUSES, KEPT_FAULTS, REGIONS, LeafFault, leaves_free, leaves_run
from fastmmu.dtypes import MAPPING_FAULT_DTYPE, Fault
from fastmmu.errors import OutOfMemoryError

cdef extern from *:
    """
    #define FM_TAKE(next, n) __atomic_fetch_add((next), (n), __ATOMIC_RELAXED)
    """
    uint64_t take "FM_TAKE"(uint64_t *next, uint64_t n) noexcept nogil

cdef enum:
    TABLES = 1 << 14            # read between two looks for a stop
    GRAIN = 1 << 15             # rows of a part, at least
    SHARES = 8                  # parts a thread
    MAX_THREADS = 256           # more share no better
    MOST = 1 << 26              # rows, if all page tables are full, that are looked for cuts

cdef uint64_t ALL = <uint64_t> 1 << 62


cdef class Parts:
    """An enumeration in parts.

    Threads: one call makes it, and starts the others that use it.
    """

    def __dealloc__(self):
        cdef uint64_t i
        for i in range(self.n):
            self.part[i].s.region = NULL
            leaves_free(&self.part[i].s)
        free(self.part)
        free(self.regions)

    cdef int add(self, const Leaves *s, uint64_t first, uint64_t last) except -1:
        cdef Part *part = &self.part[self.n]
        part.s = s[0]
        part.s.region = NULL
        memset(&part.s.barren, 0, sizeof(part.s.barren))
        part.s.first, part.s.last = first, last
        part.s.kept = <LeafFault *> calloc(KEPT_FAULTS, sizeof(LeafFault))
        self.n += 1
        if part.s.kept == NULL:
            raise OutOfMemoryError("no memory for the state of an enumeration")
        return 0

    cdef bint step(self, int worker) noexcept nogil:
        # one part; False: none is left
        cdef uint64_t i = take(&self.next, 1)
        cdef Part *part
        cdef Leaves s
        cdef LeafRow one
        if i >= self.n or self.stop:
            return False
        part = &self.part[i]
        s = part.s                      # which stays as it is when rows are counted
        s.region = self.regions + <uint64_t> worker * REGIONS if self.regions != NULL else NULL
        s.loose = self.out == NULL
        if s.loose:
            s.kept = NULL
            s.n_kept = KEPT_FAULTS
        part.n = 0
        while not (s.done or self.stop):
            if self.out == NULL:
                leaves_run(&s, NULL, ALL, TABLES)
                part.n += s.n
            elif part.n < part.room:
                leaves_run(&s, self.out + part.at + part.n, part.room - part.n, TABLES)
                part.n += s.n
            else:
                leaves_run(&s, &one, 1, TABLES)           # faults behind the last row
        if self.out == NULL:
            hash_free(&s.barren)
        else:
            s.region = NULL
            part.s = s
        return True

    def _run(self, int worker):
        # of a thread that `go` started
        cdef bint more = True
        with nogil:
            while more:
                more = self.step(worker)

    cdef int go(self) except -1:
        # all parts; a thread that the system refuses costs only time
        cdef bint more = True
        cdef list started = []
        self.next = 0
        try:
            for i in range(1, self.threads):
                thread = threading.Thread(target=self._run, args=(i,), name="fastmmu.mappings")
                thread.start()
                started.append(thread)
        except RuntimeError:
            pass
        try:
            while more:
                with nogil:
                    more = self.step(0)
                PyErr_CheckSignals()
        except BaseException:
            self.stop = True
            raise
        finally:
            for thread in started:
                thread.join()
        return 0

    cdef uint64_t count(self) except? 0:
        cdef uint64_t i, total = 0
        self.out = NULL
        self.go()
        for i in range(self.n):
            self.part[i].at, self.part[i].room = total, self.part[i].n
            total += self.part[i].n
        return total

    cdef uint64_t fill(self, rows) except? 0:
        cdef uint64_t i, n = 0, at
        self.out = <LeafRow *> <uintptr_t> rows.ctypes.data
        self.go()
        for i in range(self.n):         # each to the end of the one before it
            at = self.part[i].at
            if n < at:
                rows[n:n + self.part[i].n] = rows[at:at + self.part[i].n]
            n += self.part[i].n
        return n

    cdef faults(self):
        # {Fault: how often}, and the first of them
        cdef uint64_t i, n = 0, some
        cdef int cause
        cdef list counts = [0] * CAUSES
        kept = np.empty(KEPT_FAULTS, MAPPING_FAULT_DTYPE)
        cdef LeafFault *to = <LeafFault *> <uintptr_t> kept.ctypes.data
        for i in range(self.n):
            for cause in range(CAUSES):
                counts[cause] += self.part[i].s.count[cause]
            some = min(<uint64_t> self.part[i].s.n_kept, KEPT_FAULTS - n)
            memcpy(to + n, self.part[i].s.kept, some * sizeof(LeafFault))
            n += some
        skipped = {Fault(cause + 1): many for cause, many in enumerate(counts) if many}
        return skipped, kept[:n].copy().view(np.recarray)


cdef list cuts_of(const Leaves *s):
    # (address, rows before it, at most): between two page tables each, and the end. None: there is too much to tell
    cdef Leaves *other = <Leaves *> malloc(sizeof(Leaves))
    cdef uint64_t total = 0, at
    cdef list cuts = []
    if other == NULL:
        raise OutOfMemoryError("no memory for the state of an enumeration")
    other[0] = s[0]
    other.loose = other.survey = True
    other.kept = NULL
    other.n_kept = KEPT_FAULTS
    try:
        while not other.done and total <= MOST:
            with nogil:
                leaves_run(other, NULL, GRAIN, TABLES)
            total += other.n
            if other.level and not other.ept_level:
                at = other.guest[other.level].base
                at += <uint64_t> other.guest[other.level].next << guest_level_shift(&other.g, other.level)
                if other.first < at <= other.last:
                    cuts.append((at, total))
            PyErr_CheckSignals()
        return [*cuts, (0, total)] if other.done else None
    finally:
        other.region = NULL             # shared: what it holds is so for both
        leaves_free(other)
        free(other)


cdef Parts parts_of(const Leaves *s, uint64_t threads, owner):
    cdef Parts parts
    cdef uint64_t first = s.first, each, before = 0
    cdef list cuts = None if s.done or s.m.segments != NULL else cuts_of(s)
    if not cuts or len(cuts) < 2:
        return None
    parts = Parts.__new__(Parts)
    parts.owner = owner
    parts.threads = min(threads, <uint64_t> MAX_THREADS, <uint64_t> len(cuts))
    parts.part = <Part *> calloc(len(cuts), sizeof(Part))
    if s.nested:
        parts.regions = <EptRegion *> calloc(parts.threads * REGIONS, sizeof(EptRegion))
    if parts.part == NULL or (s.nested and parts.regions == NULL):
        raise OutOfMemoryError(f"no memory for the state of {parts.threads} threads; ask for fewer")
    _, total = cuts.pop()
    each = max(<uint64_t> total // (parts.threads * SHARES), <uint64_t> GRAIN)
    for at, total in cuts:
        if total - before >= each:
            parts.add(s, first, at - 1)
            first, before = at, total
    parts.add(s, first, s.last)
    return parts if parts.n > 1 else None

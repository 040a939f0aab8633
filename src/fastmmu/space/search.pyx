"""The search for root tables, for Python: threads that scan, and what is judged of what they find."""

import threading

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from fastmmu._arguments cimport within
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.space.facts cimport Facts, Judge, judge_free, judge_pdptes, judge_table
from fastmmu.space.scan cimport (
    FORM_EPT, FORM_LONG, FORM_PAE, FORM_TWO, FORMS, SCAN_BYTES, Candidate, Candidates, Scan, Stretch, scan_step,
)
from fastmmu.threads.turns cimport SIGNALS_EVERY, nanoseconds
from fastmmu.dtypes import ROOT_DTYPE
from fastmmu.errors import ConfigError, OutOfMemoryError

cdef struct Row:                # fastmmu.dtypes.ROOT_DTYPE
    uint64_t address
    uint64_t form
    uint64_t levels
    Facts facts

assert sizeof(Row) == ROOT_DTYPE.itemsize

LONG, PAE, TWO, EPT = range(FORMS)


cdef class _Search:
    # One call; each thread runs a bound method of it.
    cdef Scan scan
    cdef Stretch *stretch
    cdef Candidates *found      # of each thread
    cdef int threads
    cdef object memory

    def __dealloc__(self):
        cdef int i
        for i in range(self.threads):
            free(self.found[i].row)
        free(self.found)
        free(self.stretch)

    cdef int begin(self, PhysicalMemory memory, uint64_t forms, int threads) except -1:
        cdef Scan *s = &self.scan
        cdef uint64_t i = 0, start, end
        ranges = memory.ranges.tolist()
        self.memory = memory
        self.found = <Candidates *> calloc(threads, sizeof(Candidates))
        self.stretch = <Stretch *> calloc(len(ranges) + 1, sizeof(Stretch))
        if self.found == NULL or self.stretch == NULL:
            raise OutOfMemoryError("no memory for a search")
        self.threads = threads
        for start, end in ranges:
            start = (start + 4095) >> 12
            end >>= 12
            if start < end:
                self.stretch[i].start = start << 12
                self.stretch[i].pages = end - start
                self.stretch[i].before = s.pages
                s.pages += end - start
                i += 1
        s.m = &memory.mem
        s.placed = memory.placed
        s.stretch = self.stretch
        s.n_stretches = i
        s.forms = forms
        s.high = 0xFFFFFFFFFF000ULL & ~((<uint64_t> 1 << (<object> memory.top - 1).bit_length()) - 1)
        return 0

    def run(self, int thread):
        # of a thread that this module started
        cdef uint8_t *buffer = <uint8_t *> malloc(SCAN_BYTES)
        if buffer == NULL:
            self.found[thread].failed = True
            return
        with nogil:
            while scan_step(&self.scan, self.found + thread, buffer):
                pass
        free(buffer)

    cdef int work(self) except -1:
        # of the caller's, which a signal can end
        cdef uint64_t since = nanoseconds()
        cdef bint more = True
        cdef uint8_t[::1] buffer = bytearray(SCAN_BYTES)
        while more:
            with nogil:
                while more and nanoseconds() - since < SIGNALS_EVERY:
                    more = scan_step(&self.scan, self.found, &buffer[0])
            PyErr_CheckSignals()
            since = nanoseconds()
        return 0

    cdef int share(self) except -1:
        others = [threading.Thread(target=self.run, args=(i,), name="fastmmu.find_roots")
                  for i in range(1, self.threads)]
        started = []
        try:
            for thread in others:
                thread.start()
                started.append(thread)
        except RuntimeError:            # the caller works, too
            pass
        try:
            self.work()
        finally:
            self.scan.stopped = True
            for thread in started:
                thread.join()
        return 0


def root_rows(PhysicalMemory memory not None, forms=0xF, *, threads=1, maxphyaddr=52):
    """What may be root tables, each by itself, in the order of their addresses (``ROOT_DTYPE``): pages that pass for a
    top table, lead to plausible tables and map some page of memory. Of :func:`find_roots`, which chooses among them.

    :param forms: bit n: form n is looked for; 0 long mode, 1 PAE, 2 32-bit paging, 3 EPT.
    :param threads: how many threads scan; the result does not depend on it. :param maxphyaddr: 32..52.
    """
    cdef uint64_t wanted = within("forms", forms, 0, 15, ConfigError), i, k, n = 0, most
    cdef int workers = <int> within("threads", threads, 1, 1 << 10, ConfigError), thread, level
    cdef int width = <int> within("maxphyaddr", maxphyaddr, 32, 52)
    cdef _Search search = _Search.__new__(_Search)
    cdef Judge judge
    cdef Facts facts
    cdef const Candidate *c
    cdef Row[::1] rows
    cdef bint had
    search.begin(memory, wanted, workers)
    search.share()
    memory.settle()
    most = 0
    for thread in range(workers):
        if search.found[thread].failed:
            raise OutOfMemoryError("no memory for what a search finds")
        most += search.found[thread].n
    out = np.zeros(2 * most, ROOT_DTYPE)
    if not most:
        return out.view(np.recarray)
    rows = out
    memset(&judge, 0, sizeof(Judge))
    judge.m = &memory.mem
    judge.placed = memory.placed
    judge.reserved = 0xFFFFFFFFFF000ULL & ~((<uint64_t> 1 << width) - 1)
    try:
        for thread in range(workers):
            i = 0
            while i < search.found[thread].n:
                with nogil:
                    for k in range(min(search.found[thread].n - i, <uint64_t> 64)):
                        c = search.found[thread].row + i + k
                        for level in range(5, 1, -1):
                            if c.form == FORM_TWO and level == 2 or c.form == FORM_PAE and level == 3 \
                                    or (c.form == FORM_LONG or c.form == FORM_EPT) and level >= 4:
                                had = judge_pdptes(&judge, c.address, &facts) if c.form == FORM_PAE else \
                                    judge_table(&judge, <int> c.form, level, c.address, &facts)
                                if had and facts.plausible and facts.inside:
                                    rows[n].address = c.address
                                    rows[n].form = c.form
                                    rows[n].levels = level
                                    rows[n].facts = facts
                                    rows[n].facts.key = 0
                                    n += 1
                memory.settle()
                PyErr_CheckSignals()
                i += 64
    finally:
        judge_free(&judge)
    return np.sort(out[:n], order=("address", "form", "levels")).view(np.recarray)

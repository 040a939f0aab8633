"""Every mapping of an address space, as record arrays."""

import copy

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from fastmmu._arguments cimport counted, shown, whole, within
from fastmmu.arch.types cimport FAULT_NPF, MODE_4, Walk
from fastmmu.paging.guest cimport PDPT
from fastmmu.paging.leaves cimport (
    CAUSES, KEPT_FAULTS, REGIONS, EptRegion, LeafFault, LeafRow, Leaves, leaves_fault, leaves_free, leaves_range,
    leaves_run, leaves_types,
)
from fastmmu.paging.mapping_parts cimport Parts, parts_of
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState, SecondLevel, as_eptp, prepare
from fastmmu.threads.turns cimport Turn, Turns
from fastmmu.dtypes import EPT_MAPPING_DTYPE, MAPPING_DTYPE, MAPPING_FAULT_DTYPE, Fault
from fastmmu.errors import BusError, ConfigError, OutOfMemoryError, StateError, WrongTypeError

__all__ = ["MAX_ROWS", "MappingArray", "MappingIterator", "ept_mappings", "iter_ept_mappings", "iter_mappings",
           "mappings"]

MAX_ROWS = 1 << 24
"""Rows that :func:`mappings` collects where no ``limit`` is given: 64 GB of 4 KB pages, 0.9 GB of rows."""

assert sizeof(LeafRow) == MAPPING_DTYPE.itemsize == EPT_MAPPING_DTYPE.itemsize
assert sizeof(LeafFault) == MAPPING_FAULT_DTYPE.itemsize

cdef enum:
    FIRST_ROWS = 1 << 12
    WORK = 1 << 14              # tables read between two looks for signals


class MappingArray(np.recarray):
    """The rows of :func:`mappings`, and what is not among them. (``size`` of an array is its length; the column is
    ``rows["size"]``.)

    ``.truncated``: ``limit`` cut the list off, there is at least one mapping more. ``.skipped``: {:class:`Fault`:
    how often} of the places where tables lead nowhere. ``.faults``: record array (``MAPPING_FAULT_DTYPE``) of the
    first 4096 of those. Arrays made from this one (slices, ``.copy()``) have None for the three; what the modules copy
    and pickle make has them.

    Threads: a result; as any array.
    """

    truncated = None
    skipped = None
    faults = None

    def __reduce__(self):
        make, arguments, rows = super().__reduce__()
        return make, arguments, (rows, self.truncated, self.skipped, self.faults)

    def __setstate__(self, state):
        rows, self.truncated, self.skipped, self.faults = state
        super().__setstate__(rows)

    def __copy__(self):
        other = super().__copy__()
        other.truncated, other.skipped, other.faults = self.truncated, self.skipped, self.faults
        return other

    def __deepcopy__(self, memo):
        other = self.__copy__()
        other.skipped, other.faults = copy.deepcopy((self.skipped, self.faults), memo)
        return other


cdef class MappingIterator:
    """Mappings in arrays of up to ``chunk`` rows; see :func:`iter_mappings`.

    ``.skipped``, ``.faults`` and ``.truncated`` as those of :class:`MappingArray`, so far; ``.rows``: rows handed out.
    Only :func:`iter_mappings` and :func:`iter_ept_mappings` make one.

    Threads: several may take arrays from one iterator, each array goes to one of them.
    """

    cdef Leaves s
    cdef PhysicalMemory memory
    cdef GuestState state
    cdef object dtype
    cdef object left                # rows that the limit still allows; None: no limit
    cdef uint64_t chunk
    cdef bint busy
    cdef Turns turns                # of the threads that advance it
    cdef readonly object truncated
    cdef readonly object rows

    def __cinit__(self):
        self.turns = Turns()
        self.s.done = True                  # until _begin sets it up
        self.dtype = MAPPING_DTYPE
        self.truncated, self.rows = False, 0

    def __init__(self):
        raise WrongTypeError("a MappingIterator is what iter_mappings() returns; it is not made by hand")

    def __dealloc__(self):
        leaves_free(&self.s)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Turn _turn = self.turns.take()
        cdef uint64_t n = self.chunk if self.left is None else min(self.chunk, self.left)
        rows = np.empty(n, self.dtype)
        cdef uint64_t got = self.fill(rows, 0, n)
        if not got:
            raise StopIteration
        return (rows if got == n else rows[:got].copy()).view(np.recarray)

    @property
    def skipped(self):
        return {Fault(i + 1 if i + 1 < CAUSES else FAULT_NPF): int(self.s.count[i]) for i in range(CAUSES)
                if self.s.count[i]}

    @property
    def faults(self):
        if self.s.kept == NULL:
            return np.empty(0, MAPPING_FAULT_DTYPE).view(np.recarray)
        kept = <const char *> self.s.kept
        return np.frombuffer(kept[:self.s.n_kept * sizeof(LeafFault)], MAPPING_FAULT_DTYPE).view(np.recarray)

    cdef uint64_t fill(self, rows, uint64_t at, uint64_t n) except? 0:
        # up to n rows from index `at` on; fewer only at the end
        cdef LeafRow *out = <LeafRow *> <uintptr_t> rows.ctypes.data + at
        cdef LeafRow one
        cdef uint64_t got = self.run(out, n)
        self.rows += got
        if self.left is not None:
            self.left -= got
            if self.left == 0 and not self.truncated:
                self.truncated = self.run(&one, 1) == 1
        return got

    cdef uint64_t ahead(self, uint64_t most, bint loose) except? 0:
        # how many rows are still to come, up to `most`: on a copy of the state
        cdef uint64_t got = 0
        cdef Leaves *other = <Leaves *> malloc(sizeof(Leaves))
        if other == NULL:
            raise OutOfMemoryError("no memory for the state of an enumeration")
        other[0] = self.s
        other.loose = loose
        other.kept = NULL
        other.n_kept = KEPT_FAULTS
        memset(&other.barren, 0, sizeof(other.barren))
        try:
            while got < most and not other.done:
                with nogil:
                    leaves_run(other, NULL, most - got, WORK)
                self.memory.settle()
                got += other.n
                PyErr_CheckSignals()
        finally:
            other.region = NULL          # shared: what it holds is so for both
            leaves_free(other)
            free(other)
        return min(got, most)

    cdef uint64_t run(self, LeafRow *out, uint64_t n) except? 0:
        cdef uint64_t got = 0
        if self.busy:
            raise ConfigError("this iterator is being advanced, and was interrupted for this; go on with it afterwards")
        self.busy = True
        try:
            while got < n and not self.s.done:
                with nogil:
                    leaves_run(&self.s, out + got, n - got, WORK)
                self.memory.settle()
                got += self.s.n
                PyErr_CheckSignals()
        finally:
            self.busy = False
        return got


cdef MappingIterator _begin(PhysicalMemory mem, GuestState state, eptp, start, stop, limit, chunk, bint bare):
    cdef MappingIterator it = MappingIterator.__new__(MappingIterator)
    cdef Leaves *s = &it.s
    cdef Walk w
    cdef int fault = 0
    memset(s, 0, sizeof(Leaves))
    it.memory = mem
    it.state = state
    it.dtype = EPT_MAPPING_DTYPE if bare else MAPPING_DTYPE
    it.left = None if limit is None else min(_count("limit", limit, 0), 1 << 62)
    it.chunk = min(_count("chunk", chunk, 1), MAX_ROWS)
    it.rows = 0
    it.truncated = False
    first = 0 if start is None else _address("start", start, (1 << 64) - 1)
    last = (1 << 64) - 1 if stop is None else _address("stop", stop, 1 << 64) - 1
    s.m = &mem.mem
    s.mtrrs = &state.mtrrs.state
    s.bare = bare
    s.nested = eptp is not None
    if bare:
        s.e = (<SecondLevel> eptp).ept
        if not mem.has_table(s.e.root):
            mem.settle()
            raise BusError(f"{'ncr3' if s.e.npt else 'eptp'}={(<SecondLevel> eptp).value:#x}: its table lies outside "
                           f"memory of {mem.nbytes:#x} bytes")
    else:
        fault = prepare(mem, state, eptp, False, NULL, &s.g, &s.e, &w)
        s.sign = s.g.la_bits - 1 if s.g.mode >= MODE_4 else 0
    s.kept = <LeafFault *> calloc(KEPT_FAULTS, sizeof(LeafFault))
    if s.nested:
        s.region = <EptRegion *> calloc(REGIONS, sizeof(EptRegion))
    if s.kept == NULL or (s.nested and s.region == NULL):
        raise OutOfMemoryError("no memory for the state of an enumeration")
    leaves_types(s)
    s.done = last < first or not leaves_range(s, first, last)
    if fault and not s.done:                # of the load of the PDPTE registers: there is no address space
        leaves_fault(s, 0, 1 << 32, s.g.cr3 & PDPT, w.ept_entry, fault, 0, s.nested)
        s.done = True
    return it


def _count(name, value, least):
    number = whole(name, value)
    if number < least:
        raise ConfigError(f"{name} must be an integer >= {least}, not {counted(number)}")
    return number


def _address(name, value, most):
    number = whole(name, value)
    if not 0 <= number <= most:
        raise StateError(f"{name} must be an address, 0..{most:#x}, not {shown(number)}; addresses are unsigned")
    return number


cdef _collect(MappingIterator it, remedy):
    # The first rows are taken at once. If there are more, they are counted before there is memory for them: loosely
    # at first, which is quick and never too low.
    cdef uint64_t most = MAX_ROWS + 1 if it.left is None else it.left, n = min(most, <uint64_t> FIRST_ROWS), more = 0
    rows = np.empty(n, it.dtype)
    n = it.fill(rows, 0, n)
    if not it.s.done:
        more = it.ahead(min(most - n, <uint64_t> MAX_ROWS + 1), True)
        if n + more > MAX_ROWS:
            more = it.ahead(most - n, False)
    if it.left is None and n + more > MAX_ROWS:
        raise OutOfMemoryError(f"more than {MAX_ROWS} mappings, {MAX_ROWS * MAPPING_DTYPE.itemsize >> 20} MB of rows; "
                               f"give limit= or start= and stop=, or take them in parts from {remedy}")
    if more:
        first, rows = rows, np.empty(n + more, it.dtype)
        rows[:n] = first
        n += it.fill(rows, n, more)
    if it.left is None:
        it.fill(np.empty(1, it.dtype), 0, 1)    # faults behind the last row
    rows = (rows[:n] if 2 * n > <uint64_t> len(rows) else rows[:n].copy()).view(MappingArray)
    rows.truncated = it.truncated
    rows.skipped = it.skipped
    rows.faults = it.faults
    return rows


cdef _collect_shared(MappingIterator it, uint64_t threads):
    # None: it is left to one thread. Rows are counted first; over EPT that may be too many.
    cdef Parts parts = parts_of(&it.s, threads, it)
    cdef uint64_t total, n
    if parts is None:
        return None
    total = parts.count()
    if total > <uint64_t> MAX_ROWS or (it.left is not None and total > it.left):
        return None
    rows = np.empty(total, it.dtype)
    n = parts.fill(rows)
    rows = (rows[:n] if 2 * n > total else rows[:n].copy()).view(MappingArray)
    rows.truncated = False
    rows.skipped, rows.faults = parts.faults()
    return rows


# ---- for Python -------------------------------------------------------------------------------------------

def iter_mappings(PhysicalMemory mem not None, GuestState state not None, eptp=None, *, start=None, stop=None,
                  limit=None, chunk=1 << 16):
    """:func:`mappings` in arrays of up to ``chunk`` rows, one after the other: memory is bounded, whatever the tables.

    The rows do not depend on ``chunk``. Memory must not change between the first array and the last.

    :returns: :class:`MappingIterator`; for other parameters and errors see :func:`mappings`.
    """
    return _begin(mem, state, eptp, start, stop, limit, chunk, False)


def mappings(PhysicalMemory mem not None, GuestState state not None, eptp=None, *, start=None, stop=None, limit=None,
             threads=1):
    """Every mapping of an address space.

    A row for each page, never merged with its neighbour, so huge pages stay visible; under EPT for each part of a page
    that one EPT page maps. Rows are in the order of table indices, which is that of addresses as unsigned numbers: in
    long mode the kernel's half comes last. Entries with reserved bits, misconfigured EPT entries, pages without EPT
    and tables outside memory map nothing; they are counted (``.skipped``) and described (``.faults``). Rights are
    reported, not judged: a page that nobody may read is a row. With paging off there is one page of 4 GB.

    Tables that point at themselves are no trouble: a table without mappings is read once and not again, so the time
    is in proportion to the rows and to the tables in memory.

    :param mem: host physical memory; it is not written. :param state: registers; CPL, AC and keys play no part.
    :param eptp: EPT pointer (int or :class:`Eptp`), or :class:`Npt`, AMD's nested paging; None = neither.
    :param start, stop: only pages that meet the linear addresses start..stop-1, unsigned; None = the whole space.
    :param limit: most rows to return; the result's ``.truncated`` says whether there are more. None = 2**24 rows, and
        an error above that.
    :param threads: how many threads share the work; the result does not depend on it. One reads memory with holes.
    :returns: :class:`MappingArray`, a NumPy record array of dtype ``MAPPING_DTYPE``, 56 bytes a row.
    :raises StateError: an EPTP, start or stop that is none. :raises BusError: a root table outside memory.
    :raises OutOfMemoryError: more rows than 2**24, where no limit was given. :raises ConfigError: a limit, or a number
        of threads, that is none.
    """
    cdef MappingIterator it = _begin(mem, state, eptp, start, stop, limit, 1, False)
    cdef uint64_t most = within("threads", threads, 1, 1 << 62, ConfigError)
    rows = _collect_shared(it, most) if most > 1 else None
    return _collect(it, "iter_mappings()") if rows is None else rows


def iter_ept_mappings(PhysicalMemory mem not None, eptp, *, start=None, stop=None, limit=None, chunk=1 << 16):
    """:func:`ept_mappings` in arrays of up to ``chunk`` rows; see :func:`iter_mappings`."""
    return _begin(mem, _ANY, as_eptp(eptp), start, stop, limit, chunk, True)


def ept_mappings(PhysicalMemory mem not None, eptp, *, start=None, stop=None, limit=None):
    """Every mapping of a guest-physical address space: the leaves of an EPT, or of AMD's nested page tables, in the
    order of their addresses.

    :param eptp: EPT pointer (int or :class:`Eptp`), or :class:`Npt`. Addresses go up to 2**48 with 4 levels, up to
        2**52 with 5.
    :param start, stop: only pages that meet the guest-physical addresses start..stop-1.
    :returns: :class:`MappingArray` of dtype ``EPT_MAPPING_DTYPE``; for the rest see :func:`mappings`. Entries that are
        not present are counted as ``Fault.EPT_VIOLATION``, side by side in one table as one; of an
        NPT as ``Fault.NESTED_PAGE_FAULT``.
    """
    return _collect(_begin(mem, _ANY, as_eptp(eptp), start, stop, limit, 1, True), "iter_ept_mappings()")


_ANY = GuestState(cr0=0x10)             # an EPT needs no registers

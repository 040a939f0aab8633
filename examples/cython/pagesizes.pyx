# cython: language_level=3, boundscheck=False, wraparound=False
"""Addresses by the size of the page that maps them, counted without the interpreter."""

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport ACC_R, FAULT_NONE, Ept, Mem, Paging, Walk
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState, prepare
from fastmmu.paging.walk cimport walk_silent


cdef void count(Mem *m, const Paging *g, const Ept *e, const uint64_t *la, Py_ssize_t n,
                uint64_t *by_shift) noexcept nogil:
    cdef Walk w
    cdef Py_ssize_t i
    for i in range(n):
        if walk_silent(m, g, e, la[i], ACC_R, &w) == FAULT_NONE:
            by_shift[w.guest_shift] += 1
        else:
            by_shift[63] += 1


def page_sizes(PhysicalMemory memory not None, GuestState state not None, const uint64_t[::1] addresses not None,
               eptp=None):
    """{page size in bytes: addresses that such a page maps}; None stands for those that a read does not reach.

    With paging off, all count as pages of one byte. It is a query: neither A flags nor anything else is written.
    """
    cdef Paging g
    cdef Ept ept
    cdef Ept *e = NULL if eptp is None else &ept
    cdef Walk w
    cdef uint64_t[64] by_shift = [0] * 64
    if addresses.shape[0] == 0:
        return {}
    if prepare(memory, state, eptp, False, NULL, &g, &ept, &w):     # no PDPTE registers: nothing translates
        return {None: addresses.shape[0]}
    with nogil:
        count(&memory.mem, &g, e, &addresses[0], addresses.shape[0], by_shift)
    return {None if shift == 63 else 1 << shift: by_shift[shift] for shift in range(64) if by_shift[shift]}

# The hyperthreads of a core, a Tlb each, and what they share of it.
#
# Each entry has a tag for its hyperthread: the number of its context, which belongs to one. No hyperthread finds or
# invalidates an entry of another (SDM vol. 3A, "Processor Translation Lookaside Buffers" of the chapter on multiple
# processors: only entries with the tag of the logical processor that invalidates are sure to go; it may let go of more,
# vol. 3A 4.10.4.1, and none more do here). What they contend for is room: a fill displaces whichever entry is due.

from libc.stdint cimport uint32_t

from fastmmu.tlb.entries cimport Tlb

cdef class _Core:
    cdef Tlb *t[8]
    cdef uint32_t n
    cdef void add(self, Tlb *t) noexcept
    cdef int join(self, tuple shared) except -1

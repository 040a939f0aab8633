# Host physical memory: one buffer from address 0, which may have holes. The kernels see it as the struct Mem.
#
# An address is used as `base` + address everywhere, and mem_holds is asked before. In memory with holes that is also
# when a page is put in place. Nothing takes it away again, so whoever has asked for a whole table may keep its address.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem, Segments
from fastmmu.paging.segments cimport Placed

cdef extern from *:
    """
    #define FM_SELDOM(x) __builtin_expect(!!(x), 0)
    """
    bint seldom "FM_SELDOM"(bint) noexcept nogil


cdef inline bint mem_holds(const Mem *m, uint64_t pa, uint64_t n) noexcept nogil:
    # n is small, so pa + n overflows only where pa itself is out of range
    return pa < m.nbytes and m.nbytes - pa >= n or seldom(m.segments != NULL) and segments_hold(m.segments, pa, n)


cdef inline bint segments_hold(Segments *s, uint64_t pa, uint64_t n) noexcept nogil:
    # within a page that is in place there is nothing else to ask
    if pa >> 12 < s.pages and (pa & 0xFFF) + n <= 4096 and s.ready[pa >> 18] >> (pa >> 12 & 63) & 1:
        return True
    return s.hold(s, pa, n)


cdef inline uint64_t mem_read64(const Mem *m, uint64_t pa) noexcept nogil:
    return (<const uint64_t *> (m.base + pa))[0]


cdef inline uint32_t mem_read32(const Mem *m, uint64_t pa) noexcept nogil:
    return (<const uint32_t *> (m.base + pa))[0]


cdef inline void mem_write64(Mem *m, uint64_t pa, uint64_t value) noexcept nogil:
    (<uint64_t *> (m.base + pa))[0] = value


cdef inline void mem_write32(Mem *m, uint64_t pa, uint32_t value) noexcept nogil:
    (<uint32_t *> (m.base + pa))[0] = value


cdef class PhysicalMemory:
    cdef Mem mem
    cdef uint64_t top           # end of the last of memory
    cdef object _u8, _u64       # None: it has holes
    cdef readonly bint writable
    cdef uint64_t looked_up     # addresses translated in it
    cdef uint64_t next_look     # when as many are, it is looked where the tables are (walked_tables.pyx); ONES: never
    cdef object _owner
    cdef Placed *placed         # NULL: no holes
    cdef object _data, _fetch, _failure
    cdef void _bind(self, object u8) except *
    cdef int forget(self, uint64_t start, uint64_t n) except -1
    cdef uint64_t place(self, address) except? 0xBAD
    cdef uint64_t into(self, uint64_t at, uint8_t[::1] out) except? 0xBAD
    cdef bint has_table(self, uint64_t at) noexcept     # a page, with holes at least a word of it
    cdef int settle(self) except -1     # after a call that read memory: raises why a page could not be had

# Host physical memory: one buffer from address 0. The kernels see it as the struct Mem.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Mem


cdef inline bint mem_holds(const Mem *m, uint64_t pa, uint64_t n) noexcept nogil:
    # n is small, so pa + n overflows only where pa itself is out of range
    return pa < m.nbytes and m.nbytes - pa >= n


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
    cdef readonly object u8
    cdef readonly object u64
    cdef readonly bint writable
    cdef uint64_t looked_up     # addresses translated in it
    cdef uint64_t next_look     # when as many are, it is looked where the tables are (walked_tables.pyx); ONES: never
    cdef object _owner
    cdef void _bind(self, object u8) except *
    cdef int forget(self, uint64_t start, uint64_t n) except -1
    cdef uint64_t place(self, address) except? 0xBAD

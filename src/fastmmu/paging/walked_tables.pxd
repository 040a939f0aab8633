# Where tables lie that many translations go through: huge pages of the host for those.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging

cdef uint32_t huge_where_walked(Mem *m, const Paging *g, const Ept *e, int acc, const uint64_t *va, uint64_t n,
                                uint32_t most) noexcept nogil

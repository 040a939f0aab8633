# Memory types: PAT, MTRRs, EPT type, and how they combine (paging.md §8, ept.md §8).

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Ept, Paging, Walk

cdef enum MemoryTypeCode:
    MT_UC = 0
    MT_WC = 1
    MT_WT = 4
    MT_WP = 5
    MT_WB = 6
    MT_UC_MINUS = 7             # in the PAT only


cdef struct MtrrState:
    uint8_t enabled, fixed_enabled, default_type
    uint8_t fixed[88]           # 8 x 64K from 0, 16 x 16K from 80000H, 64 x 4K from C0000H
    uint64_t base[32]
    uint64_t mask[32]
    int n


cdef int mtrr_type(const MtrrState *s, uint64_t pa) noexcept nogil
cdef int combined_type(int below, int pat) noexcept nogil
cdef int nested_type(int host, int pat) noexcept nogil
cdef int effective_type(const Paging *g, const MtrrState *s, const Walk *w, const Ept *e) noexcept nogil

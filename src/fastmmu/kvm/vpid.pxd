# The host's VPIDs (tlb.md §6): a bitmap of 65,536, the lowest free number first; 0 is the host's own.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    VPIDS = 1 << 16

cdef struct VpidMap:
    uint64_t free[1024]         # bit per VPID: nobody has it
    uint64_t some[16]           # bit per word of `free`: it is not 0
    uint32_t used               # VPIDs given out, not the host's

cdef void vpid_init(VpidMap *m) noexcept nogil
cdef uint32_t vpid_alloc(VpidMap *m) noexcept nogil     # 0: there is none left
cdef uint32_t vpid_first(const VpidMap *m) noexcept nogil       # the lowest that is free; VPIDS: there is none
cdef bint vpid_is_free(const VpidMap *m, uint32_t vpid) noexcept nogil  # below VPIDS
cdef bint vpid_take(VpidMap *m, uint32_t vpid) noexcept nogil   # below VPIDS; False: somebody has it
cdef bint vpid_free(VpidMap *m, uint32_t vpid) noexcept nogil   # False: nobody has it

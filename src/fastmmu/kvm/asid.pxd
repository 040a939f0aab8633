# The ASIDs of a physical CPU as KVM gives them out (svm_cpu_data, new_asid; tlb.md §11): the next number that this
# generation has left. Where there is none a new generation begins, whose first VM entry flushes all of them. Nothing is
# given back: what has an ASID of an older generation asks again. 0 is the host's.

from libc.stdint cimport uint32_t, uint64_t

cdef struct SvmCpu:
    uint64_t asid_generation    # from 1 on
    uint32_t next_asid
    uint32_t max_asid
    uint32_t min_asid           # those below are of encrypted guests

cdef void asid_init(SvmCpu *sd, uint32_t asids, uint32_t min_asid) noexcept nogil
# True: a generation has begun, and all ASIDs are to be flushed
cdef bint asid_new(SvmCpu *sd, uint32_t *asid, uint64_t *generation) noexcept nogil

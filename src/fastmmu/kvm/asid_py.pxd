from libc.stdint cimport uint32_t

from fastmmu.kvm.asid cimport SvmCpu


cdef class AsidAllocator:
    cdef SvmCpu *cpu            # [n]
    cdef uint32_t n

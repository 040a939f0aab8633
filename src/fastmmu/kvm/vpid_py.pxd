# `VpidAllocator`: the VPIDs of one host.

from fastmmu.kvm.vpid cimport VpidMap


cdef class VpidAllocator:
    cdef VpidMap map

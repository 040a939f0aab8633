# The VPIDs of a host in the hands of a VMM in Python.

from libc.stdint cimport uint32_t

from fastmmu.kvm.vm_port cimport VmPort
from fastmmu.kvm.vpid_py cimport VpidAllocator


cdef class VpidBitmap:
    cdef VmPort vm
    cdef VpidAllocator host
    cdef set given              # bits set since allocate_vpid() was asked; None: it is not
    cdef uint32_t ends          # VPID of the vCPU for which free_vpid() is asked; 0: it is not
    cdef void undo(self)
    cdef uint32_t granted(self, answer, bint enabled) except? 0xBAD


cdef VpidBitmap vpids_of(VmPort vm, VpidAllocator host)

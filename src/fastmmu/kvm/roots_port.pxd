# The roots of a vCPU's tables, for a VMM in Python.

from fastmmu.kvm.vcpu_port cimport VcpuPort


cdef class Roots:
    cdef VcpuPort port
    cdef int shadow(self) except -1


cdef Roots roots_of(VcpuPort port)

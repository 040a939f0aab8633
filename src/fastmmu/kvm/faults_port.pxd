# A fault of the guest's, and the tables that it was about, for a VMM in Python.

from fastmmu.kvm.vcpu_port cimport VcpuPort
from fastmmu.mmu.mmu cimport Mmu


cdef class Faults:
    cdef VcpuPort port
    cdef Mmu *shadows(self, given, bint table) except NULL


cdef Faults faults_of(VcpuPort port)

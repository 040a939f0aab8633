# A fault of the guest's, and the tables that it was about, for a VMM in Python.

from fastmmu.kvm.vcpu_port cimport VcpuPort
from fastmmu.mmu.mmu cimport Mmu
from fastmmu.mmu.tables_port cimport TableWalk


cdef class Faults:
    cdef VcpuPort port
    cdef Mmu *shadows(self, TableWalk walk, bint table) except NULL


cdef Faults faults_of(VcpuPort port)

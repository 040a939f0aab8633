# What a VMM in Python finds of a vCPU.

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.kvm.vm_port cimport VmPort
from fastmmu.mmu.mmu cimport Mmu


cdef class VcpuPort:
    cdef readonly VmPort vm     # the VirtualMachine
    cdef KvmVcpu *vcpu
    cdef Vcpu *v
    cdef Mmu *loaded(self, str what) except NULL
    cdef int placed(self) except -1
    cdef int amd(self) except -1

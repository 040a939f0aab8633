# What a VMM in Python finds of a vCPU.

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.kvm.vm_port cimport VmPort


cdef class VcpuPort:
    cdef readonly VmPort vm     # the VirtualMachine
    cdef KvmVcpu *vcpu
    cdef Vcpu *v
    cdef int placed(self) except -1

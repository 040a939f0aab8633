# A virtual machine and its vCPUs in the hands of a VMM in Python.

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm, KvmVcpu
from fastmmu.threads.turns cimport Turns, this_thread


cdef class VirtualMachine:
    cdef object board           # keeps alive what the pointers point into
    cdef Turns turns
    cdef Kvm *kvm
    cdef uint64_t active        # thread in which the VMM works, between a VM exit and VM entry; 0: none
    cdef readonly list vcpus    # VirtualCpu, by number
    cdef VirtualCpu of(self, KvmVcpu *vcpu)
    cdef int refuse(self) except -1

    cdef inline int inside(self) except -1:
        # first line of every call: the VMM may only work while the guest stands still for it
        return 0 if self.active == this_thread() else self.refuse()


cdef class VirtualCpu:
    cdef readonly VirtualMachine vm
    cdef KvmVcpu *vcpu
    cdef Vcpu *v


cdef VirtualMachine vm_of(object board, Turns turns, Kvm *kvm)

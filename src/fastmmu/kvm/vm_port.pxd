# What a VMM in Python finds of its virtual machine.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.kvm.kvm cimport Kvm
from fastmmu.threads.turns cimport this_thread


cdef class VmPort:
    cdef object board           # keeps alive what the pointers point into
    cdef Kvm *kvm
    cdef uint64_t active        # thread in which the VMM works, between a VM exit and VM entry; 0: none
    cdef bint exiting           # what it works on is a VM exit, and no call of the host's or of user space
    cdef readonly object vpids  # VpidBitmap of its host
    cdef readonly object rules  # KvmRules: what its version of KVM does
    cdef object _modes          # Modes, once asked for
    cdef uint32_t placing       # physical CPU that the host puts a vCPU on, or takes it from; NOWHERE: it does neither
    cdef int refuse(self) except -1

    cdef inline int inside(self) except -1:
        # first line of every call: the VMM may only work while the guest stands still for it
        return 0 if self.active == this_thread() else self.refuse()


cdef object word_of_board()
cdef int made_of(made, str what) except -1

# One machine: memory, physical CPU, VMM, guest.

from libc.stdint cimport uint64_t

from fastmmu._events cimport Run
from fastmmu._guest_kernel cimport GuestKernel
from fastmmu._kvm cimport Kvm
from fastmmu._memory cimport PhysicalMemory
from fastmmu._tlb_py cimport TLB
from fastmmu._types cimport Mem
from fastmmu._vcpu cimport Vcpu


cdef class Machine:
    cdef readonly object config
    cdef readonly PhysicalMemory memory
    cdef readonly TLB tlb
    cdef readonly object policy
    cdef Mem guest              # guest-physical memory as a window of host memory
    cdef Vcpu v
    cdef Kvm kvm
    cdef GuestKernel kernel
    cdef Run loop
    cdef bint handling          # a Python handler runs: the guest stands still
    cdef bint running           # run() is under way, without the GIL
    cdef object raised          # exception of a Python handler
    cdef object handlers        # exit reason → bound method of the policy
    cdef _boot(self)
    cdef _build_vmm(self, uint64_t pool_end, state)
    cdef _raise(self, uint64_t n)
    cdef _outcome(self, la, int outcome, uint64_t hpa)
    cdef _guest_runs(self)
    cdef _canonical(self, uint64_t la)

# The tables that the VMM owns, written and read.

from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.machine.checkpoint.archive cimport _Archive

cdef int keep_mmu(_Archive a, KvmVcpu *vcpu) except -1

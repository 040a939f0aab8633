# The tables that the VMM owns, written and read.

from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.machine.checkpoint.archive cimport Archive

cdef int keep_mmu(Archive a, KvmVcpu *vcpu) except -1

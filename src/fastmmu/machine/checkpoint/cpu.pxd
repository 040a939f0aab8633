# A vCPU, written and read: the processor's part, and what KVM keeps of it.

from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.machine.checkpoint.archive cimport _Archive

cdef int keep_vcpu(_Archive a, KvmVcpu *vcpu) except -1

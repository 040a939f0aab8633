# Faults of the guest that exit.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Walk
from fastmmu.kvm.kvm cimport KvmVcpu

cdef int kvm_page_fault(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_ept_violation(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_ept_misconfig(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_premap(KvmVcpu *vcpu, uint64_t la, const Walk *w) noexcept nogil

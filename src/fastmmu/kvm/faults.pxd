# Faults of the guest that exit.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Walk
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm

cdef int kvm_page_fault(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_ept_violation(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_ept_misconfig(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_premap(Kvm *kvm, Vcpu *v, uint64_t la, const Walk *w) noexcept nogil

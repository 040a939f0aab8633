# Faults of the guest that exit.

from fastmmu.arch.types cimport Walk, gpa_t, gva_t
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu

cdef int kvm_page_fault(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_ept_violation(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_ept_misconfig(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_npf(KvmVcpu *vcpu) noexcept nogil          # of AMD
cdef int inject_no_table(Vcpu *v) noexcept nogil
cdef void emulate_store(KvmVcpu *vcpu, gpa_t gpa) noexcept nogil
cdef int kvm_premap(KvmVcpu *vcpu, gva_t la, const Walk *w) noexcept nogil

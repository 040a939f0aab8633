# The root that a vCPU runs on (kvm_policy.md §2.4).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Paging
from fastmmu.kvm.kvm cimport KvmVcpu

cdef int kvm_set_root(KvmVcpu *vcpu, uint64_t cr3) noexcept nogil
cdef int kvm_load_root(KvmVcpu *vcpu, uint64_t cr3) noexcept nogil
cdef int kvm_resume_root(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_new_role(KvmVcpu *vcpu, const Paging *guest, const Paging *hardware) noexcept nogil
cdef int kvm_reload(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_zap_all(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_out_of_tables(KvmVcpu *vcpu) noexcept nogil

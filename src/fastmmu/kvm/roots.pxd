# The root that a vCPU runs on (kvm_policy.md §2.4).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Paging
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm

cdef int kvm_set_root(Kvm *kvm, Vcpu *v, uint64_t cr3) noexcept nogil
cdef int kvm_load_root(Kvm *kvm, Vcpu *v, uint64_t cr3) noexcept nogil
cdef int kvm_resume_root(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_new_role(Kvm *kvm, Vcpu *v, const Paging *guest, const Paging *hardware) noexcept nogil
cdef int kvm_reload(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_out_of_tables(Kvm *kvm, Vcpu *v) noexcept nogil

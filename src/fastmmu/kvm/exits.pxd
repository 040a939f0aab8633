# What KVM does at each VM exit, for exits that no Python policy takes over (kvm_policy.md §2-§3).

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu

cdef int kvm_handle(Vcpu *v) noexcept nogil
cdef int kvm_default(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_drain(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_arm(KvmVcpu *vcpu) noexcept nogil
cdef void read_full_ring(KvmVcpu *vcpu) noexcept nogil

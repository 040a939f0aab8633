# A vCPU of a VM: made, loaded, in and out of guest mode.

from libc.stdint cimport uint32_t

from fastmmu.kvm.kvm cimport Kvm, KvmVcpu

cdef int kvm_vcpu_create(Kvm *kvm, KvmVcpu *vcpu) noexcept nogil
cdef void kvm_vcpu_vpid(KvmVcpu *vcpu, uint32_t vpid) noexcept nogil   # which the host gave it
cdef void kvm_vcpu_destroy(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_vcpu_current(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_vcpu_load(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_vcpu_put(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_vcpu_enter(KvmVcpu *vcpu, uint32_t pcpu) noexcept nogil
cdef void kvm_vcpu_exit(KvmVcpu *vcpu, uint32_t reason) noexcept nogil

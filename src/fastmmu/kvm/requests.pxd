# What is asked of a vCPU before its next VM entry (KVM_REQ_...), and the flushes that serve it (tlb.md §7).

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.kvm.kvm cimport Kvm, KvmVcpu

cdef void kvm_serve(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_flush_all(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_flush(KvmVcpu *vcpu) noexcept nogil       # all that the vCPU may have cached where it is now
cdef void kvm_flush_gva(KvmVcpu *vcpu, uint64_t la) noexcept nogil      # of one address
cdef void kvm_moved(KvmVcpu *vcpu) noexcept nogil       # it runs on a physical CPU for the first time, or again
cdef void kvm_entered(Kvm *kvm) noexcept nogil
cdef void kvm_count_flushes(Kvm *kvm) noexcept nogil


cdef inline void kvm_make_request(KvmVcpu *vcpu, uint32_t request) noexcept nogil:
    vcpu.requests |= request


cdef inline void kvm_flush_remote_tlbs(KvmVcpu *vcpu) noexcept nogil:
    # at the end of what user space does, and before a root is given up: where rights were taken away, every vCPU
    # flushes, the one that is loaded at once
    if vcpu.kvm.mmu.flush:
        kvm_flush_all(vcpu)


cdef inline void kvm_serve_requests(KvmVcpu *vcpu) noexcept nogil:
    # before each VM entry
    if vcpu.kvm.mmu.flush or vcpu.requests:
        kvm_serve(vcpu)

# Flushes that the VMM pays (tlb.md §7).

from fastmmu.kvm.kvm cimport KvmVcpu

cdef void kvm_flush(KvmVcpu *vcpu) noexcept nogil   # all that the vCPU may have cached where it is now
cdef void kvm_moved(KvmVcpu *vcpu) noexcept nogil   # it runs on a physical CPU for the first time, or again
cdef void kvm_flush_current(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_entered(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_count_flushes(KvmVcpu *vcpu) noexcept nogil
cdef void kvm_pay_flush(KvmVcpu *vcpu) noexcept nogil


cdef inline void kvm_owed_flush(KvmVcpu *vcpu) noexcept nogil:
    # the MMU took rights away: cached translations may be stale
    if vcpu.kvm.mmu.flush:
        kvm_pay_flush(vcpu)

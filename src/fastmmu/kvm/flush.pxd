# Flushes that the VMM pays (tlb.md §7).

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm

cdef void kvm_flush(Kvm *kvm, Vcpu *v) noexcept nogil   # all that the vCPU may have cached where it is now
cdef void kvm_moved(Kvm *kvm, Vcpu *v) noexcept nogil   # it runs on a physical CPU for the first time, or again
cdef void kvm_flush_current(Vcpu *v) noexcept nogil
cdef void kvm_entered(Kvm *kvm) noexcept nogil
cdef void kvm_count_flushes(Kvm *kvm) noexcept nogil
cdef void kvm_pay_flush(Kvm *kvm, Vcpu *v) noexcept nogil


cdef inline void kvm_owed_flush(Kvm *kvm, Vcpu *v) noexcept nogil:
    # the MMU took rights away: cached translations may be stale
    if kvm.mmu.flush:
        kvm_pay_flush(kvm, v)

# What the VMM made of an exit, in the log of exits.

from fastmmu.kvm.kvm cimport CLASS_NONE, KvmVcpu

cdef enum Priced:               # classes of exits that the cost model tells apart: fastmmu.exits.PRICED
    PRICED_PF_FIXED = 0
    PRICED_PF_GUEST = 1
    PRICED_PF_EMULATE = 2
    PRICED_MMIO = 3
    PRICED_PF_SPURIOUS = 4
    PRICED_PF_RETRY = 5
    PRICED_EPT_BUILD = 6
    PRICED_PF_FAST = 7
    PRICED_EPT_SPURIOUS = 8

cdef void log_before(const KvmVcpu *vcpu) noexcept nogil
cdef void log_after(const KvmVcpu *vcpu) noexcept nogil


cdef inline void kvm_log_begin(KvmVcpu *vcpu) noexcept nogil:
    # an exit will be handled: its class is not known
    vcpu.fault_class = CLASS_NONE
    if vcpu.cpu.log != NULL:
        log_before(vcpu)


cdef inline void kvm_log_end(const KvmVcpu *vcpu) noexcept nogil:
    if vcpu.cpu.log != NULL:
        log_after(vcpu)

# Control registers and EFER of a guest, in the VMM's hands.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.kvm.kvm cimport KvmVcpu

cdef int kvm_registers(KvmVcpu *vcpu) noexcept nogil
cdef int kvm_emulate(KvmVcpu *vcpu, uint32_t instruction, uint32_t cr, uint64_t source) noexcept nogil
cdef int kvm_cr_access(KvmVcpu *vcpu) noexcept nogil

# Control registers and EFER of a guest, in the VMM's hands.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm

cdef int kvm_registers(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_emulate(Kvm *kvm, Vcpu *v, uint32_t instruction, uint32_t cr, uint64_t source) noexcept nogil
cdef int kvm_cr_access(Kvm *kvm, Vcpu *v) noexcept nogil

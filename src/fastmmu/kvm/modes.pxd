# How KVM runs a guest in each paging mode (kvm_policy.md §3.4).

from libc.stdint cimport uint64_t

from fastmmu.arch.registers cimport Registers, pages
from fastmmu.arch.types cimport Mem
from fastmmu.kvm.kvm cimport KvmVcpu, Modes


cdef inline bint modes_own_cr3(const KvmVcpu *vcpu) noexcept nogil:
    # the CR3 of the hardware is the guest's own
    cdef const Modes *m = &vcpu.kvm.modes
    return m.ept and (m.unrestricted or m.amd or pages(&vcpu.arch))


cdef void modes_tables(Mem *mem, uint64_t identity, uint64_t task) noexcept nogil
cdef int modes_load(KvmVcpu *vcpu) noexcept nogil
cdef void modes_save(KvmVcpu *vcpu) noexcept nogil
cdef int modes_cr4(const Modes *m, uint64_t cr4) noexcept nogil
cdef void modes_shadow(const Modes *m, const Registers *guest, Registers *hardware) noexcept nogil

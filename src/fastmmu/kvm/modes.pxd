# How KVM runs a guest in each paging mode (kvm_policy.md §3.4).

from libc.stdint cimport uint64_t

from fastmmu.arch.registers cimport Registers, pages
from fastmmu.arch.types cimport Mem
from fastmmu.cpu.vcpu cimport Vcpu

cdef struct Modes:
    bint ept                    # else shadow paging
    bint amd                    # nested paging runs every mode, and CR0, CR4 are intercepted otherwise
    bint unrestricted           # the processor runs a guest without paging
    uint64_t identity           # guest-physical address of the identity table, which has its slot; 0: there is none
    bint keys                   # shadow tables carry the guest's protection keys
    bint pcid                   # translations of shadow tables are tagged by the guest's PCID


cdef inline bint modes_own_cr3(const Modes *m, const Vcpu *v) noexcept nogil:
    # the CR3 of the hardware is the guest's own
    return m.ept and (m.unrestricted or m.amd or pages(&v.arch))


cdef void modes_tables(Mem *mem, uint64_t identity, uint64_t task) noexcept nogil
cdef int modes_load(const Modes *m, Vcpu *v) noexcept nogil
cdef void modes_save(const Modes *m, Vcpu *v) noexcept nogil
cdef void modes_shadow(const Modes *m, const Registers *guest, Registers *hardware) noexcept nogil

# The VMM: what KVM does at each VM exit, for exits that no Python policy takes over (kvm_policy.md §2-§3).

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._interrupts cimport Interrupts
from fastmmu._mmu cimport Mmu
from fastmmu._types cimport Paging, Walk
from fastmmu._vcpu cimport Vcpu

ctypedef int (*Surface)(void *machine, Vcpu *v) noexcept nogil

cdef struct Kvm:
    Mmu mmu
    bint shadow                 # shadow paging; else EPT
    Paging guest                # the guest's own registers, under shadow paging
    uint8_t surfaced[80]        # [exit reason] a Python policy handles it
    Surface surface
    void *machine
    Interrupts *irq             # the guest's local APIC; NULL: it has none

cdef int kvm_reload(Kvm *kvm, Vcpu *v) noexcept nogil
cdef void kvm_owed_flush(Kvm *kvm, Vcpu *v) noexcept nogil
cdef void kvm_drain(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_handle(Vcpu *v) noexcept nogil
cdef int kvm_default(Kvm *kvm, Vcpu *v) noexcept nogil
cdef int kvm_premap(Kvm *kvm, Vcpu *v, uint64_t la, const Walk *w) noexcept nogil
cdef int kvm_new_role(Kvm *kvm, Vcpu *v, const Paging *guest, const Paging *hardware) noexcept nogil
cdef int kvm_load_root(Kvm *kvm, Vcpu *v, uint64_t cr3) noexcept nogil

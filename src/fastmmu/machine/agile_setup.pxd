# A machine with agile paging: the EPT beside its shadow tables, and the policy (agile.md §4).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Ept, hpa_t
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm

cdef hpa_t shadow_end(config, hpa_t origin, hpa_t guest_base) except 0
cdef Ept agile_build(Kvm *kvm, Vcpu *v, config, hpa_t origin, hpa_t guest_base) except *
cdef void agile_gone(Kvm *kvm) noexcept nogil

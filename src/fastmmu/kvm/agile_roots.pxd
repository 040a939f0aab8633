# Roots of agile paging: the guest's own in the place of a shadow root, the root of the EPT (agile.md §4).

from libc.stdint cimport uint64_t

from fastmmu.kvm.kvm cimport KvmVcpu

cdef bint agile_nested_root(KvmVcpu *vcpu, uint64_t cr3, int role) noexcept nogil
cdef int kvm_agile_zap(KvmVcpu *vcpu) noexcept nogil    # every table of the EPT goes

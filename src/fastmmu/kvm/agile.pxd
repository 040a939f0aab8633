# The VMM of agile paging: the ends of intervals, what the processor has of the tables (agile.md §4).

from fastmmu.kvm.kvm cimport Kvm, KvmVcpu
from fastmmu.mmu.mmu cimport MmuCounters

cdef int kvm_agile_exit(KvmVcpu *vcpu) noexcept nogil   # before VM entry, last; -1: the run ends
cdef MmuCounters kvm_mmu_counters(Kvm *kvm) noexcept nogil     # of all tables that there are

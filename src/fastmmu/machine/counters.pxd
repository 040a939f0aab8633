# Counters of a run as a dict.

from fastmmu.cpu.vcpu cimport Counters
from fastmmu.kvm.kvm cimport Kvm
from fastmmu.tlb.lookup cimport TlbCounters

cdef dict counters_of(Counters *c, TlbCounters *t, Kvm *kvm)

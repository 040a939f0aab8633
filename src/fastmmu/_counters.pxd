# Counters of a run as a dict.

from fastmmu._kvm cimport Kvm
from fastmmu._tlb cimport TlbCounters
from fastmmu._vcpu cimport Counters

cdef dict counters_of(Counters *c, TlbCounters *t, Kvm *kvm)

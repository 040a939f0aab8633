# Counters of a run as a dict.

from fastmmu.machine.events cimport Run
from fastmmu.tlb.lookup cimport TlbCounters

cdef dict counters_of(Run *run, TlbCounters *t)

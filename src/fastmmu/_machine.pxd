# One machine, with its policy and its results.

from fastmmu._control_py cimport RegisterInstructions
from fastmmu._interrupts cimport Interrupts
from fastmmu._tlb cimport TlbCounters
from fastmmu._vcpu cimport Counters


cdef class Machine(RegisterInstructions):
    cdef readonly object policy
    cdef object handlers        # exit reason → bound method of the policy
    cdef _counters(self, Counters *c, TlbCounters *t, Interrupts *irq)

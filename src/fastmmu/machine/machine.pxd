# One machine, with its policy and its results.

from fastmmu.machine.control_instructions cimport RegisterInstructions
from fastmmu.machine.events cimport Run
from fastmmu.tlb.lookup cimport TlbCounters


cdef class Machine(RegisterInstructions):
    cdef readonly object policy
    cdef object handlers        # exit reason → bound method of the policy
    cdef _counters(self, Run *run, TlbCounters *t)

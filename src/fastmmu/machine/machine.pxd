# One machine, with its policy and its results.

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport Counters
from fastmmu.machine.control_instructions cimport RegisterInstructions
from fastmmu.tlb.lookup cimport TlbCounters


cdef class Machine(RegisterInstructions):
    cdef readonly object policy
    cdef object handlers        # exit reason → bound method of the policy
    cdef _counters(self, Counters *c, TlbCounters *t, Interrupts *irq)

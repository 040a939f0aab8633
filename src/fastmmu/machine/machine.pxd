# One machine, with its policy and its results.

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.machine.control_instructions cimport RegisterInstructions
from fastmmu.machine.events cimport Run
from fastmmu.tlb.lookup cimport TlbCounters


cdef class Machine(RegisterInstructions):
    cdef readonly object policy
    cdef object handlers        # exit reason → bound method of the policy
    cdef _counters(self, Run *run, TlbCounters *t)


# ---- for other packages (fastmmu/__init__.pxd) --------------------------------------------------------------

cdef inline Vcpu *machine_vcpu(Machine machine) except NULL:
    # the virtual CPU of a guest that may run now: no exit is being handled, no other thread runs it
    machine._guest_runs()
    return machine.v


cdef inline int machine_raise(Machine machine) except -1:
    # the exception that a DONE_ABORT stands for
    machine._raise(0)
    return -1

# The guest's local APIC as the caller's to use: its instructions and the interrupts that arrive.

from fastmmu.machine.board cimport Board


cdef class GuestApic:
    cdef Board board            # whose loaded vCPU it is of
    cdef _done(self, int outcome, str what=*)

# The guest's local APIC as the caller's to use: its instructions and the interrupts that arrive.

from fastmmu.cpu.interrupts cimport Interrupts


cdef class GuestApic:
    cdef object machine         # keeps alive what the pointer below points into
    cdef Interrupts **irq       # of the vCPU that the machine holds now
    cdef _done(self, int outcome)

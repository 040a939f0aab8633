# The interrupt side of a vCPU, written and read.

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.machine.checkpoint.archive cimport _Archive

cdef int keep_interrupts(_Archive a, Interrupts *irq) except -1

# What a bare guest does to its control registers.

from fastmmu.machine.instructions cimport Instructions
from fastmmu.arch.registers cimport Registers


cdef class RegisterInstructions(Instructions):
    cdef _written(self, int outcome, str name, value)
    cdef void _registers(self, Registers *r)

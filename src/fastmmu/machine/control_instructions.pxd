# What a bare guest does to its control registers.

from fastmmu.arch.registers cimport Registers
from fastmmu.machine.instructions cimport Instructions


cdef class RegisterInstructions(Instructions):
    cdef _written(self, int outcome, str name, value)
    cdef void _registers(self, Registers *r)

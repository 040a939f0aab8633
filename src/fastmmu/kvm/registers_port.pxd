# Control registers as a value, for a VMM in Python.

from fastmmu.arch.registers cimport Registers as RegistersState


cdef class Registers:
    cdef RegistersState r


cdef Registers registers_of(const RegistersState *r)

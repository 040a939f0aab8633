# What a bare guest does.

from libc.stdint cimport uint64_t

from fastmmu.arch.registers cimport Registers
from fastmmu.cpu.access cimport Data
from fastmmu.machine.board cimport Board
from fastmmu.threads.turns cimport Turn


cdef class Guest:
    cdef Board board
    cdef _gpa(self, uint64_t hpa)
    cdef Turn _begin(self, Data *d)
    cdef _came(self, Data *d)
    cdef _canonical(self, uint64_t la)
    cdef _access(self, la, access, user, size)
    cdef _load(self, la, size, user)
    cdef _store(self, la, value, size, user)
    cdef _lmsw(self, source, memory)
    cdef _written(self, int outcome, str name, value)
    cdef void _registers(self, Registers *r)
    cpdef exit_instruction(self, reason)
    cpdef invlpg(self, la)
    cpdef mov_cr0(self, value)
    cpdef clts(self)
    cpdef mov_cr3(self, value)
    cpdef mov_cr4(self, value)
    cpdef wrmsr_efer(self, value)
    cpdef mov_from_cr0(self)
    cpdef mov_from_cr3(self)
    cpdef mov_from_cr4(self)
    cpdef rdmsr_efer(self)

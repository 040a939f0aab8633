# The registers that paging depends on, derived once into the structs that the walkers read.

from libc.stdint cimport uint16_t, uint64_t

from fastmmu.arch.memtype_py cimport Mtrrs
from fastmmu.arch.registers cimport Registers
from fastmmu.arch.types cimport Ept, Paging, PmlQuery, Walk
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.threads.turns cimport Turns


cdef class GuestState:
    cdef Registers regs
    cdef Paging paging          # what they come to
    cdef readonly object registers      # read-only mapping
    cdef readonly Mtrrs mtrrs


cdef class Pml:
    cdef uint16_t next
    cdef readonly uint64_t base
    cdef Turns turns            # of accesses that log


cdef class SecondLevel:         # the tables of a VMM
    cdef Ept ept
    cdef readonly object value
    cdef readonly object options        # read-only mapping
    cdef readonly Pml pml


cdef class Eptp(SecondLevel):
    pass


cdef class Npt(SecondLevel):
    pass


cdef SecondLevel as_eptp(object eptp)
cpdef int access_code(object access) except -1
cdef int pdpt_within(PhysicalMemory mem, GuestState state, object eptp) except -1
cdef int prepare(PhysicalMemory mem, GuestState state, object eptp, object set_ad, PmlQuery *log, Paging *paging,
                 Ept *ept, Walk *w) except -1

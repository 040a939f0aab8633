# The registers that paging depends on, derived once into the structs that the walkers read.

from libc.stdint cimport uint16_t, uint64_t

from fastmmu.arch.memtype cimport Mtrrs
from fastmmu.arch.registers cimport Registers
from fastmmu.arch.types cimport Ept, Paging


cdef class GuestState:
    cdef Registers regs
    cdef Paging paging          # what they come to
    cdef readonly dict registers
    cdef readonly Mtrrs mtrrs


cdef class Pml:
    cdef uint16_t next
    cdef readonly uint64_t base


cdef class Eptp:
    cdef Ept ept
    cdef readonly object value
    cdef readonly dict options
    cdef readonly Pml pml


cdef enum EptpDefect:
    EPTP_VALID = 0
    EPTP_TYPE = 1
    EPTP_LENGTH = 2
    EPTP_AD = 3
    EPTP_RESERVED = 4
    EPTP_ADDRESS = 5


cdef int eptp_defect(uint64_t value, int maxphyaddr, bint ad_supported, bint five_levels) noexcept nogil
cdef Eptp as_eptp(object eptp)
cpdef int access_code(object access) except -1

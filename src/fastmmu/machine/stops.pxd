# Errors of a machine that stopped.

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu

cdef object stop(const Vcpu *v, uint64_t n)

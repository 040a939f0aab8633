# Errors of a machine that stopped.

from libc.stdint cimport uint64_t

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport Vcpu

cdef object stop(const Vcpu *v, const Interrupts *irq, uint64_t n)
cdef object refused(const Interrupts *irq)

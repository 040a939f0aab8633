# What a VMM in Python puts into the VMCS for the APIC of a vCPU.

from libc.stdint cimport uint64_t

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.kvm.vm_port cimport VmPort


cdef class ApicEntry:
    cdef VmPort vm
    cdef Interrupts *irq
    cdef uint64_t record(self) except? 0xBAD

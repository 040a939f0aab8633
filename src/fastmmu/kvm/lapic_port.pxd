# The local APIC of a vCPU in the hands of a VMM in Python.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.kvm.apic_entry_port cimport ApicEntry
from fastmmu.kvm.vm_port cimport VmPort


cdef class Lapic(ApicEntry):
    cdef int take(self, uint32_t msr, bint write, uint64_t value) except -1
    cdef uint32_t register(self, msr) except? 0xBAD


cdef Lapic lapic_of(VmPort vm, Interrupts *irq)

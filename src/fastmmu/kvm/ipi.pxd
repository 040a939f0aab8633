# Interprocessor interrupts between the vCPUs of a VM, and what a vCPU finds when it gets a physical CPU.

from libc.stdint cimport uint32_t

from fastmmu.cpu.apic cimport Ipi
from fastmmu.cpu.interrupts cimport Interrupts

cdef enum:
    NOTIFICATION_VECTOR = 0xF2
    NO_EXIT = 0xFFFFFFFF

cdef void ipi_send(Interrupts *irq, const Ipi *ipi) noexcept nogil
cdef uint32_t ipi_arrived(Interrupts *irq) noexcept nogil
cdef void ipi_routed(Interrupts *irq, uint32_t cpu) noexcept nogil

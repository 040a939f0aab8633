# What the guest does with its local APIC, and the interrupts that it gets between two instructions.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.cpu.access cimport Data
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.tpr_patch cimport Site

cdef int irq_mmio(Interrupts *irq, uint32_t offset, uint32_t size, bint write, uint64_t value) noexcept nogil
cdef int irq_data(Interrupts *irq, Data *d) noexcept nogil
cdef int irq_fetch_site(Interrupts *irq, uint64_t ip, Site *found) noexcept nogil
cdef int irq_run_site(Interrupts *irq, const Site *found, bint write, uint64_t value) noexcept nogil
cdef int irq_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil
cdef int irq_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil
cdef int irq_flag(Interrupts *irq, bint on) noexcept nogil
cdef int irq_arrive(Interrupts *irq, uint8_t vector, bint level, uint32_t reason) noexcept nogil
cdef int irq_due(Interrupts *irq) noexcept nogil
cdef int irq_wait(Interrupts *irq, uint64_t accesses) noexcept nogil
cdef int irq_boundary(Interrupts *irq) noexcept nogil
cdef int irq_event(Interrupts *irq, int op, uint64_t addr) noexcept nogil

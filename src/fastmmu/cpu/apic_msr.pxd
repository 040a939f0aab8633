# CR8 and the APIC's model-specific registers: the instructions that reach them, without what comes at their end.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.interrupts cimport Interrupts

cdef int cr8_access(Interrupts *irq, bint write, uint64_t value) noexcept nogil
cdef int msr_access(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil
cdef bint irq_msr_taken(const Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil
cdef void irq_deadline_msr(Interrupts *irq, bint write, uint64_t value) noexcept nogil

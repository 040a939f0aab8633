# The APIC's model-specific registers: IA32_APIC_BASE, IA32_TSC_DEADLINE, and 800H-8FFH, the registers in x2APIC mode.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.apic cimport Apic, Ipi

cdef bint x2apic_msr(uint32_t msr) noexcept nogil               # one of these, in any mode
cdef bint x2apic_readable(uint32_t msr) noexcept nogil          # of 800H-8FFH, in x2APIC mode
cdef bint x2apic_writable(uint32_t msr) noexcept nogil
cdef uint64_t x2apic_reserved(uint32_t msr, int maxphyaddr) noexcept nogil
cdef bint x2apic_read_taken(const Apic *a, uint32_t msr) noexcept nogil
cdef bint x2apic_write_taken(const Apic *a, uint32_t msr, uint64_t value, int maxphyaddr) noexcept nogil
cdef uint64_t x2apic_read(Apic *a, uint32_t msr) noexcept nogil
cdef Ipi x2apic_write(Apic *a, uint32_t msr, uint64_t value) noexcept nogil

# What KVM does at the VM exits that concern the APIC, and before each VM entry.

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport Vcpu

cdef enum:
    NOT_OF_APIC = -1            # the exit under way does not concern the APIC

cdef void kvm_apic_init(Interrupts *irq) noexcept nogil
cdef int kvm_apic_exit(Interrupts *irq) noexcept nogil      # Action, or NOT_OF_APIC
cdef void kvm_apic_begin(Interrupts *irq) noexcept nogil
cdef void kvm_apic_entry(Interrupts *irq) noexcept nogil
cdef void kvm_apic_end(Interrupts *irq, int action) noexcept nogil

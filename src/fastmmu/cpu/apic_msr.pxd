# CR8 and the APIC's model-specific registers: what the processor does before anything is emulated, and what it does
# without a VMM.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.msr cimport X2_CURRENT_COUNT, X2_EOI, X2_SELF_IPI, X2_TPR, msr_of_x2apic
from fastmmu.cpu.apic cimport APIC_ENABLED, APIC_SVR, apic_word
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport ACT_ABORT, ACT_INJECT_GP, DONE_ABORT, DONE_GP, DONE_OK
from fastmmu.cpu.x2apic cimport x2apic_read_taken, x2apic_readable, x2apic_write_taken


cdef inline int exited(int action) noexcept nogil:
    # what the handler of an exit came to
    if action == ACT_ABORT:
        return DONE_ABORT
    return DONE_GP if action == ACT_INJECT_GP else DONE_OK


cdef inline bint irq_msr_taken(const Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # not refused with #GP(0)
    if write:
        return x2apic_write_taken(&irq.apic, msr, value, irq.v.r.maxphyaddr)
    return x2apic_read_taken(&irq.apic, msr)


cdef inline bint msr_exits(const Interrupts *irq, uint32_t msr, bint write) noexcept nogil:
    # KVM's MSR bitmap (vmx_update_msr_bitmap_x2apic): what the processor virtualizes in x2APIC mode passes, all else
    # exits, what is no register of the x2APIC among it. [C] An interrupt to itself exits, too, while software has the
    # APIC disabled: the processor does not look at SVR, and would take it.
    if not irq.virt.x2apic or not msr_of_x2apic(msr):
        return True
    if msr == X2_TPR:
        return False
    if not irq.virt.delivery:
        return True
    if not write:
        return msr == X2_CURRENT_COUNT or not x2apic_readable(msr)
    if msr == X2_SELF_IPI:
        return not apic_word(irq.apic.page, APIC_SVR) & <uint32_t> APIC_ENABLED
    return msr != X2_EOI


cdef int record_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil
cdef int physical_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil
cdef int physical_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil
cdef void irq_deadline_msr(Interrupts *irq, bint write, uint64_t value) noexcept nogil

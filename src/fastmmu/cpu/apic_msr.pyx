"""CR8 and the APIC's model-specific registers without a VMM, and what KVM's emulation of them shares."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.msr cimport MSR_APIC_BASE, MSR_TSC_DEADLINE
from fastmmu.arch.vmx cimport EXIT_VMCALL, clear_exit_information
from fastmmu.cpu.apic cimport APIC_LVT_TIMER, APIC_TPR, Ipi, apic_on, apic_set_base, apic_word, apic_write
from fastmmu.cpu.interrupts cimport Interrupts, irq_accept, irq_deadline, irq_elapse, irq_sent
from fastmmu.cpu.tpr_patch cimport patch_polls
from fastmmu.cpu.vcpu cimport DONE_GP, DONE_OK, vcpu_exit
from fastmmu.cpu.x2apic cimport x2apic_msr, x2apic_read, x2apic_write
from fastmmu.paging.memory cimport mem_read64, mem_write64


# ---- CR8 --------------------------------------------------------------------------------------------------

cdef int record_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    # The guest was patched, so its TPR is in a record, and no threshold applies. (The guests that are patched have 32
    # bits, and no CR8; a trace may have both, and one TPR.)
    cdef uint64_t hpa = irq.patch.record_hpa, old = mem_read64(irq.v.mem, hpa)
    if not write:
        irq.value = old >> 4 & 15
        return DONE_OK
    mem_write64(irq.v.mem, hpa, (old & ~(<uint64_t> 0xFF)) | value << 4)
    if not patch_polls(old, value << 4):
        return DONE_OK
    irq.c.polls += 1
    clear_exit_information(&irq.v.vmcs)
    return exited(vcpu_exit(irq.v, EXIT_VMCALL))


cdef int physical_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    if write:
        apic_write(&irq.apic, APIC_TPR, value << 4)
    else:
        irq.value = irq.apic.page[<int> APIC_TPR] >> 4
    return DONE_OK


# ---- model-specific registers -----------------------------------------------------------------------------

cdef void irq_deadline_msr(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    if write and irq_deadline(irq, value):
        irq_accept(irq, apic_word(irq.apic.page, APIC_LVT_TIMER), False)
    irq.value = irq.apic.deadline if apic_on(&irq.apic) else 0


cdef int physical_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # without a VMM: the APIC itself. Nothing is known of the other MSRs.
    cdef Ipi ipi
    irq.value = 0
    if not x2apic_msr(msr):
        return DONE_OK
    if not irq_msr_taken(irq, msr, write, value):
        return DONE_GP
    if msr == MSR_TSC_DEADLINE:
        irq_deadline_msr(irq, write, value)
    elif msr == MSR_APIC_BASE:
        if write:
            apic_set_base(&irq.apic, value)
        irq.value = irq.apic.base
    else:
        irq_elapse(irq)
        if not write:
            irq.value = x2apic_read(&irq.apic, msr)
            return DONE_OK
        ipi = x2apic_write(&irq.apic, msr, value)
        if ipi.valid:
            irq_sent(irq, &ipi)
    return DONE_OK

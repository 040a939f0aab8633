"""MOV to and from CR8, RDMSR and WRMSR of the APIC, by a guest or without a VMM.

    CR8 ──► exits? ──► TPR shadow │ KVM
    MSR ──► MSR bitmap ──► virtualized │ KVM

What the register refuses ends in DONE_GP, wherever that is found: by the processor or by KVM's emulation.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.msr cimport (
    MSR_APIC_BASE, MSR_TSC_DEADLINE, X2_CURRENT_COUNT, X2_EOI, X2_SELF_IPI, X2_TPR, msr_of_x2apic,
)
from fastmmu.arch.vmx cimport EXIT_RDMSR, EXIT_VMCALL, EXIT_WRMSR, clear_exit_information
from fastmmu.cpu.apic cimport (
    APIC_ENABLED, APIC_LVT_TIMER, APIC_SVR, APIC_TPR, Ipi, apic_on, apic_set_base, apic_word, apic_write,
)
from fastmmu.cpu.interrupts cimport (
    NUMBER_CR8, Interrupts, irq_accept, irq_deadline, irq_elapse, irq_noted, irq_sent,
)
from fastmmu.cpu.tpr_patch cimport patch_polls
from fastmmu.cpu.vapic cimport (
    VAPIC_DONE, VAPIC_GP, vapic_rdmsr, vapic_read_cr8, vapic_write_cr8, vapic_wrmsr,
)
from fastmmu.cpu.vcpu cimport ACT_ABORT, ACT_INJECT_GP, DONE_ABORT, DONE_GP, DONE_OK, Vcpu, vcpu_exit
from fastmmu.cpu.x2apic cimport (
    x2apic_msr, x2apic_read, x2apic_read_taken, x2apic_readable, x2apic_write, x2apic_write_taken,
)
from fastmmu.paging.memory cimport mem_read64, mem_write64


cdef inline int exited(int action) noexcept nogil:
    if action == ACT_ABORT:
        return DONE_ABORT
    return DONE_GP if action == ACT_INJECT_GP else DONE_OK


cdef int ended(Interrupts *irq, int outcome) noexcept nogil:
    # of an operation that the processor virtualizes: its VM exit
    cdef Vcpu *v = irq.v
    if outcome == VAPIC_GP:
        return DONE_GP
    if outcome == VAPIC_DONE:
        irq.value = irq.virt.data
        return DONE_OK
    clear_exit_information(&v.vmcs)
    v.vmcs.exit_qualification = irq.virt.qualification
    v.vmcs.operand = v.store_value
    return exited(vcpu_exit(v, irq.virt.reason))


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


cdef int cr8_access(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    # MOV to or from CR8 by way of RDI or RAX. It is there in every mode of the APIC, and when that is disabled.
    cdef Vcpu *v = irq.v
    irq.c.writes += write
    irq.c.reads += not write
    irq.c.tpr_writes += write
    irq.c.tpr_reads += not write
    v.store_value = value
    irq.number = NUMBER_CR8
    irq.writes = write
    if v.guest and not (irq.patch.in_use and irq.tpr_shadow):
        return ended(irq, vapic_write_cr8(&irq.virt, value, 7) if write else vapic_read_cr8(&irq.virt, 0))
    if write and value >> 4:
        return DONE_GP
    return record_cr8(irq, write, value) if v.guest else physical_cr8(irq, write, value)


# ---- model-specific registers -----------------------------------------------------------------------------

cdef bint irq_msr_taken(const Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # not refused with #GP(0)
    if write:
        return x2apic_write_taken(&irq.apic, msr, value, irq.v.r.maxphyaddr)
    return x2apic_read_taken(&irq.apic, msr)


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


cdef bint msr_exits(Interrupts *irq, uint32_t msr, bint write) noexcept nogil:
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


cdef int msr_access(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # RDMSR or WRMSR of the APIC
    cdef Vcpu *v = irq.v
    cdef int outcome
    irq.c.writes += write
    irq.c.reads += not write
    if msr == X2_TPR:
        irq.c.tpr_writes += write
        irq.c.tpr_reads += not write
    v.store_value = value
    irq.number = msr
    irq.writes = write
    if not v.guest:
        return physical_msr(irq, msr, write, value)
    if msr_exits(irq, msr, write):
        clear_exit_information(&v.vmcs)
        v.vmcs.operand = msr
        return exited(vcpu_exit(v, EXIT_WRMSR if write else EXIT_RDMSR))
    outcome = vapic_wrmsr(&irq.virt, msr, value) if write else vapic_rdmsr(&irq.virt, msr)
    if outcome == VAPIC_DONE and write and msr == X2_SELF_IPI:
        irq_noted(irq, value)
    return ended(irq, outcome)

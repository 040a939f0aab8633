"""The interrupt side of a vCPU: requests that reach its registers, its timer."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmmu.arch.vmx cimport EXIT_EXTERNAL_INTERRUPT
from fastmmu.cpu.apic cimport (
    APIC_LVT_TIMER, APIC_NONE, LVT_MASKED, MODE_LOWEST, Ipi, apic_addressed, apic_elapse, apic_on, apic_request,
    apic_reset, apic_set_deadline, apic_word,
)
from fastmmu.cpu.vcpu cimport Vcpu


cdef void irq_init(Interrupts *irq, Vcpu *v, uint8_t *page, uint64_t *descriptor) noexcept nogil:
    # page: the virtual-APIC page, 4096 bytes that are 0; NULL: there is no VMM. descriptor: of posted interrupts
    memset(irq, 0, sizeof(Interrupts))
    irq.v = v
    irq.timer_reason = EXIT_EXTERNAL_INTERRUPT
    irq.descriptor = descriptor if descriptor != NULL else irq.own_descriptor
    irq.inject = irq.arriving = APIC_NONE
    irq.tpr_shadow = irq.interrupts_on = True
    if page == NULL:
        page = &irq.own_page[0]
    apic_reset(&irq.apic, page, 0)
    irq.virt.page = irq.apic.page


cdef void irq_free(Interrupts *irq) noexcept nogil:
    free(irq.log)
    irq.log = NULL


# ---- interrupts -------------------------------------------------------------------------------------------

cdef void irq_accept(Interrupts *irq, uint8_t vector, bint level) noexcept nogil:
    # an interrupt reaches the registers
    irq.c.requested += 1
    irq.arrival[vector] = irq.now
    apic_request(&irq.apic, vector, level)
    irq.request_event = True


cdef void irq_sent(Interrupts *irq, const Ipi *ipi) noexcept nogil:
    # An interprocessor interrupt of a vCPU that is alone. SMI, NMI, INIT and start-up are counted, and that is all: a
    # vCPU runs from the beginning.
    irq.c.ipis += 1
    if ipi.mode > MODE_LOWEST:
        irq.c.ipis_other += 1
    elif apic_addressed(&irq.apic, ipi):
        irq_accept(irq, ipi.vector, False)


cdef void irq_noted(Interrupts *irq, uint8_t vector) noexcept nogil:
    # the processor itself put a request into the registers: an interrupt of the vCPU to itself
    irq.c.ipis += 1
    irq.c.ipis_virtualized += 1
    irq.c.requested += 1
    irq.arrival[vector] = irq.now


# ---- the timer --------------------------------------------------------------------------------------------
# Its clock, and the time-stamp counter, is the accesses of the trace: of all vCPUs of the VM, so that it goes on while
# others run, and the same whatever handles the TPR.

cdef bint irq_elapse(Interrupts *irq) noexcept nogil:
    # the timer up to now: did it run out? What it asks for arrives with the exit that is owed (irq.arriving).
    cdef uint32_t lvt = apic_word(irq.apic.page, APIC_LVT_TIMER)
    cdef uint64_t fired, due = irq.timed + irq.apic.ticks_left
    fired = apic_elapse(&irq.apic, irq.now - irq.timed)
    irq.timed = irq.now
    if not fired:
        return False
    irq.c.timer += fired
    if not lvt & <uint32_t> LVT_MASKED and apic_on(&irq.apic):
        irq.arriving = lvt & 0xFF
        irq.arriving_level = False
        irq.arrived = due
    return True


cdef bint irq_deadline(Interrupts *irq, uint64_t value) noexcept nogil:
    # WRMSR of IA32_TSC_DEADLINE: is it time for the vector of the LVT at once?
    irq_elapse(irq)
    if not apic_set_deadline(&irq.apic, value, irq.now):
        return False
    irq.c.timer += 1
    return not apic_word(irq.apic.page, APIC_LVT_TIMER) & <uint32_t> LVT_MASKED

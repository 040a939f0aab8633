"""Interprocessor interrupts between the vCPUs of a VM (kvm_irq_delivery_to_apic, __apic_accept_irq of Linux 6.1).

    ICR ──► who is addressed ──► running on another CPU ──► request in IRR, kick: it exits and is injected
                             │                          └─► APICv: posted, notification vector: no exit
                             └──► waiting for a CPU ──► request in IRR, or posted: seen at its next VM entry

A vCPU that stands still on its CPU sees the kick, or the notification, before its next instruction.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.vmx cimport EXIT_EXTERNAL_INTERRUPT
from fastmmu.cpu.apic cimport (
    APIC_ENABLED, APIC_ISR, APIC_SVR, APIC_TPR, MODE_LOWEST, Ipi, apic_addressed, apic_highest, apic_priority,
    apic_receives, apic_request, apic_word,
)
from fastmmu.cpu.interrupts cimport Interrupts, irq_accept, irq_elapse, irq_sent
from fastmmu.cpu.vapic cimport vapic_posted
from fastmmu.kvm.kvm cimport EXITING_GUEST_MODE, IN_GUEST_MODE, OUTSIDE_GUEST_MODE, Kvm, KvmVcpu, to_kvm_vcpu
from fastmmu.paging.memory cimport mem_read32

cdef enum:
    NOBODY = 0xFFFFFFFF


cdef uint8_t priority(const Interrupts *irq) noexcept nogil:
    # PPR as the vCPU has it: where its instructions are patched, the TPR is in its record
    cdef uint8_t tpr = irq.apic.page[<int> APIC_TPR]
    if irq.patch.in_use:
        tpr = mem_read32(irq.v.mem, irq.patch.record_hpa) & 0xFF
    return apic_priority(tpr, apic_highest(irq.apic.page, APIC_ISR))


cdef void ipi_send(Interrupts *irq, const Ipi *ipi) noexcept nogil:
    # what the ICR of a vCPU sends to those of its VM
    cdef Kvm *kvm = to_kvm_vcpu(irq.v).kvm
    cdef Interrupts *other
    cdef uint32_t i, chosen = NOBODY
    if kvm.n_vcpus == 1 or ipi.mode > MODE_LOWEST:
        irq_sent(irq, ipi)
        return
    irq.c.ipis += 1
    for i in range(kvm.n_vcpus):
        other = kvm.vcpu[i].irq
        if not apic_addressed(&other.apic, ipi):
            continue
        if ipi.mode != MODE_LOWEST:
            deliver(irq, other, ipi.vector)
        elif apic_word(other.apic.page, APIC_SVR) & <uint32_t> APIC_ENABLED:
            # lowest priority: the lowest PPR, the first among equals
            if chosen == NOBODY or priority(other) < priority(kvm.vcpu[chosen].irq):
                chosen = i
    if chosen != NOBODY:
        deliver(irq, kvm.vcpu[chosen].irq, ipi.vector)


cdef void deliver(Interrupts *irq, Interrupts *to, uint8_t vector) noexcept nogil:
    cdef KvmVcpu *vcpu = to_kvm_vcpu(to.v)
    cdef bint running = vcpu.mode == IN_GUEST_MODE
    if to == irq:
        irq_accept(irq, vector, False)
        return
    to.c.requested += 1
    to.arrival[vector] = irq.now
    if not apic_receives(&to.apic, vector):
        return
    if not to.posting:
        apic_request(&to.apic, vector, False)
        to.request_event = True
        if running:
            vcpu.mode = EXITING_GUEST_MODE
            irq.c.kicks += 1
        return
    to.descriptor[vector >> 6] |= 1ULL << (vector & 63)
    if to.descriptor[4] & 1:                    # ON: a notification is on its way, or VM entry will look
        return
    to.descriptor[4] |= 1
    if running:
        to.notified = True
        to.c.posted += 1
        irq.c.notifications += 1


cdef uint32_t ipi_arrived(Interrupts *irq) noexcept nogil:
    # The vCPU is about to run on a physical CPU: what came while it did not. Reason of the VM exit that this takes if
    # it is in guest mode there, else NO_EXIT; the notification vector takes none.
    cdef uint32_t reason = NO_EXIT
    cdef int mode = to_kvm_vcpu(irq.v).mode
    cdef uint64_t stood = irq.now
    cdef int vector
    irq.now = irq.clock[0]
    if mode != OUTSIDE_GUEST_MODE:                    # it stood still on its CPU: what came meanwhile did not wait
        for vector in range(256):
            if irq.arrival[vector] >= stood:
                irq.arrival[vector] = irq.now
    if irq.notified:
        irq.notified = False
        vapic_posted(&irq.virt, irq.descriptor)
    if irq_elapse(irq):
        reason = irq.timer_reason
        if mode != OUTSIDE_GUEST_MODE:
            irq.arrived = irq.now
    if mode == EXITING_GUEST_MODE:
        reason = EXIT_EXTERNAL_INTERRUPT
    return reason


cdef void ipi_routed(Interrupts *irq, uint32_t cpu) noexcept nogil:
    # notifications go to this physical CPU: NDST of the descriptor, an id of x2APIC mode (vmx_vcpu_pi_load)
    if irq.posting:
        irq.descriptor[4] = (irq.descriptor[4] & 0xFFFFFFFFU) | <uint64_t> cpu << 32

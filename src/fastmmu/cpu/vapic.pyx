"""APIC virtualization: what the processor does with an access to the APIC in VMX non-root operation."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.msr cimport X2_EOI, X2_SELF_IPI, X2_TPR, msr_of_x2apic
from fastmmu.arch.vmx cimport (
    EXIT_APIC_ACCESS, EXIT_APIC_WRITE, EXIT_CR_ACCESS, EXIT_TPR_BELOW_THRESHOLD, EXIT_VIRTUALIZED_EOI, PRIMARY_CR8_LOAD,
    PRIMARY_CR8_STORE, PRIMARY_INTERRUPT_WINDOW, PRIMARY_TPR_SHADOW, SECONDARY_APIC_ACCESSES, SECONDARY_APIC_REGISTERS,
    SECONDARY_VIRTUAL_INTERRUPTS, SECONDARY_X2APIC, Vmcs, secondary_control,
)
from fastmmu.cpu.apic cimport (
    APIC_EOI, APIC_ICR_HIGH, APIC_ICR_LOW, APIC_IRR, APIC_ISR, APIC_PPR, APIC_SELF_IPI, APIC_TPR, apic_clear,
    apic_highest, apic_priority, apic_put, apic_set, apic_word,
)

cdef extern from *:
    """
    #define FM_SLOT(offset) (1ULL << ((offset) >> 4))
    #define FM_SLOTS(first, last) ((FM_SLOT(last) << 1) - FM_SLOT(first))
    #define FM_VAPIC_WRITTEN (FM_SLOT(0x20) | FM_SLOT(0x80) | FM_SLOT(0xB0) | FM_SLOTS(0xD0, 0xF0) | FM_SLOT(0x280) \
        | FM_SLOT(0x300) | FM_SLOT(0x310) | FM_SLOTS(0x320, 0x370) | FM_SLOT(0x380) | FM_SLOT(0x3E0))
    #define FM_VAPIC_READ (FM_VAPIC_WRITTEN | FM_SLOT(0x30) | FM_SLOTS(0x100, 0x270))
    """
    const uint64_t REGISTERS_WRITTEN "FM_VAPIC_WRITTEN"
    const uint64_t REGISTERS_READ "FM_VAPIC_READ"


cdef inline int leave(Vapic *a, int how, uint32_t reason, uint64_t qualification) noexcept nogil:
    a.reason = reason
    a.qualification = qualification
    return how


# ---- what follows a write ---------------------------------------------------------------------------------

cdef void update_vppr(Vapic *a) noexcept nogil:
    a.vppr = apic_priority(a.page[<int> APIC_TPR], a.svi)
    apic_put(a.page, APIC_PPR, a.vppr)


cdef void vapic_evaluate(Vapic *a) noexcept nogil:
    # is a virtual interrupt pending?
    a.pending = not a.window_exiting and a.rvi >> 4 > a.vppr >> 4


cdef int tpr_changed(Vapic *a) noexcept nogil:
    if a.delivery:
        update_vppr(a)
        vapic_evaluate(a)
        return VAPIC_DONE
    if a.page[<int> APIC_TPR] >> 4 < a.threshold:
        return leave(a, VAPIC_TRAP, EXIT_TPR_BELOW_THRESHOLD, 0)
    return VAPIC_DONE


cdef int end_of_interrupt(Vapic *a) noexcept nogil:
    cdef uint8_t vector = a.svi
    cdef int next
    apic_clear(a.page, APIC_ISR, vector)
    next = apic_highest(a.page, APIC_ISR)
    a.svi = next if next > 0 else 0
    update_vppr(a)
    if a.eoi_exit[vector >> 6] >> (vector & 63) & 1:
        return leave(a, VAPIC_TRAP, EXIT_VIRTUALIZED_EOI, vector)
    vapic_evaluate(a)
    return VAPIC_DONE


cdef int self_ipi(Vapic *a, uint8_t vector) noexcept nogil:
    apic_set(a.page, APIC_IRR, vector)
    if vector > a.rvi:
        a.rvi = vector
    vapic_evaluate(a)
    return VAPIC_DONE


cdef int vapic_deliver(Vapic *a) noexcept nogil:
    # the pending virtual interrupt, at an instruction boundary: its vector
    cdef uint8_t vector = a.rvi
    cdef int next
    apic_set(a.page, APIC_ISR, vector)
    a.svi = vector
    a.vppr = vector & 0xF0
    apic_put(a.page, APIC_PPR, a.vppr)
    apic_clear(a.page, APIC_IRR, vector)
    next = apic_highest(a.page, APIC_IRR)
    a.rvi = next if next > 0 else 0
    a.pending = False
    return vector


cdef void vapic_controls(Vapic *a, const Vmcs *v) noexcept nogil:
    # what VM entry loads of the VMCS; the page is set by who knows where it lies
    cdef int i
    a.tpr_shadow = v.primary & PRIMARY_TPR_SHADOW != 0
    a.cr8_load_exiting = v.primary & PRIMARY_CR8_LOAD != 0
    a.cr8_store_exiting = v.primary & PRIMARY_CR8_STORE != 0
    a.window_exiting = v.primary & PRIMARY_INTERRUPT_WINDOW != 0
    a.accesses = secondary_control(v, SECONDARY_APIC_ACCESSES)
    a.x2apic = secondary_control(v, SECONDARY_X2APIC)
    a.registers = secondary_control(v, SECONDARY_APIC_REGISTERS)
    a.delivery = secondary_control(v, SECONDARY_VIRTUAL_INTERRUPTS)
    a.threshold = v.tpr_threshold & 15
    a.rvi = v.guest_interrupt_status & 0xFF
    a.svi = v.guest_interrupt_status >> 8
    for i in range(4):
        a.eoi_exit[i] = v.eoi_exit_bitmap[i]


cdef bint vapic_entered(Vapic *a) noexcept nogil:
    # VM entry has loaded the state; does a TPR-below-threshold exit follow at once (vmx.md §4.3)?
    a.pending = False
    if a.delivery:
        update_vppr(a)
        vapic_evaluate(a)
        return False
    return a.tpr_shadow and a.accesses and a.page[<int> APIC_TPR] >> 4 < a.threshold


cdef void vapic_posted(Vapic *a, uint64_t *descriptor) noexcept nogil:
    # the notification vector arrived: requests (8 qwords: 4 of requests, then ON in bit 0) move into IRR
    cdef int word, bit, top = -1
    cdef uint64_t bits
    descriptor[4] &= ~(<uint64_t> 1)
    for word in range(4):
        bits = descriptor[word]
        descriptor[word] = 0
        for bit in range(64):
            if bits >> bit & 1:
                top = 64 * word + bit
                apic_set(a.page, APIC_IRR, top)
    if top > a.rvi:
        a.rvi = top
    vapic_evaluate(a)


# ---- MOV to and from CR8 ----------------------------------------------------------------------------------

cdef int vapic_read_cr8(Vapic *a, int reg) noexcept nogil:
    if a.cr8_store_exiting:
        return leave(a, VAPIC_EXIT, EXIT_CR_ACCESS, 0x18 | <uint64_t> reg << 8)
    if not a.tpr_shadow:
        return VAPIC_PASS
    a.data = a.page[<int> APIC_TPR] >> 4
    return VAPIC_DONE


cdef int vapic_write_cr8(Vapic *a, uint64_t value, int reg) noexcept nogil:
    if a.cr8_load_exiting:
        return leave(a, VAPIC_EXIT, EXIT_CR_ACCESS, 8 | <uint64_t> reg << 8)
    if value >> 4:
        return VAPIC_GP
    if not a.tpr_shadow:
        return VAPIC_PASS
    apic_put(a.page, APIC_TPR, value << 4)
    return tpr_changed(a)


# ---- the APIC-access page ---------------------------------------------------------------------------------

cdef inline bint inside_register(uint32_t offset, uint32_t size) noexcept nogil:
    return size <= 4 and (offset & 15) + size <= 4


cdef int vapic_other(Vapic *a, uint32_t offset, int kind) noexcept nogil:
    # an access that is never virtualized: a fetch, or by guest-physical address
    if not a.accesses:
        return VAPIC_PASS
    return leave(a, VAPIC_EXIT, EXIT_APIC_ACCESS, (offset & 0xFFF) | <uint64_t> kind << 12)


cdef int vapic_read(Vapic *a, uint32_t offset, uint32_t size, bint event) noexcept nogil:
    # size: 1, 2, 4, 8 or 16. event: during event delivery
    cdef uint64_t slots = REGISTERS_READ if a.registers else 1ULL << (APIC_TPR >> 4)
    offset &= 0xFFF
    if (not a.accesses or not a.tpr_shadow or not inside_register(offset, size) or offset >= 0x400
            or not slots >> (offset >> 4) & 1 or (not a.registers and offset & 15)):
        return vapic_other(a, offset, LINEAR_EVENT if event else LINEAR_READ)
    a.data = 0
    memcpy(&a.data, a.page + offset, size)
    return VAPIC_DONE


cdef int vapic_write(Vapic *a, uint32_t offset, uint32_t size, uint64_t value, bint event) noexcept nogil:
    cdef uint64_t slots = 1ULL << (APIC_TPR >> 4)
    offset &= 0xFFF
    if a.registers:
        slots = REGISTERS_WRITTEN
    elif a.delivery:
        slots |= 1ULL << (APIC_EOI >> 4) | 1ULL << (APIC_ICR_LOW >> 4)
    if (not a.accesses or not a.tpr_shadow or not inside_register(offset, size) or offset >= 0x400
            or not slots >> (offset >> 4) & 1 or (not a.registers and offset & 15)):
        return vapic_other(a, offset, LINEAR_EVENT if event else LINEAR_WRITE)
    memcpy(a.page + offset, &value, size)
    return written(a, offset)


cdef int vapic_modify(Vapic *a, uint32_t offset, uint32_t size, uint64_t value) noexcept nogil:
    # read-modify-write that stores `value`; where the read is not virtualized it exits as a write does
    cdef uint64_t before
    if vapic_read(a, offset, size, False) != VAPIC_DONE:
        return vapic_other(a, offset, LINEAR_WRITE)
    before = a.data
    cdef int outcome = vapic_write(a, offset, size, value, False)
    a.data = before
    return outcome


cdef int written(Vapic *a, uint32_t offset) noexcept nogil:
    # APIC-write emulation, after the instruction
    cdef uint32_t icr
    if offset == APIC_TPR:
        apic_put(a.page, APIC_TPR, a.page[<int> APIC_TPR])
        return tpr_changed(a)
    if offset == APIC_EOI and a.delivery:
        apic_put(a.page, APIC_EOI, 0)
        return end_of_interrupt(a)
    if offset == APIC_ICR_LOW and a.delivery:
        icr = apic_word(a.page, APIC_ICR_LOW)
        if not icr & 0xFFF3B700U and icr >> 18 & 3 == 1 and icr >> 4 & 15:
            return self_ipi(a, icr & 0xFF)
    if offset & ~3U == APIC_ICR_HIGH:
        apic_put(a.page, APIC_ICR_HIGH, apic_word(a.page, APIC_ICR_HIGH) & 0xFF000000U)
        return VAPIC_DONE
    return leave(a, VAPIC_TRAP, EXIT_APIC_WRITE, offset)


# ---- x2APIC MSRs that the MSR bitmap lets through ---------------------------------------------------------

cdef int vapic_rdmsr(Vapic *a, uint32_t msr) noexcept nogil:
    if not a.x2apic or not msr_of_x2apic(msr) or not (a.registers or msr == X2_TPR):
        return VAPIC_PASS
    memcpy(&a.data, a.page + ((msr & 0xFF) << 4), 8)
    return VAPIC_DONE


cdef int vapic_wrmsr(Vapic *a, uint32_t msr, uint64_t value) noexcept nogil:
    if not a.x2apic or not (msr == X2_TPR or (a.delivery and (msr == X2_EOI or msr == X2_SELF_IPI))):
        return VAPIC_PASS
    if value >> 8 or (msr == X2_EOI and value):
        return VAPIC_GP
    memcpy(a.page + ((msr & 0xFF) << 4), &value, 8)
    if msr == X2_TPR:
        return tpr_changed(a)
    if msr == X2_EOI:
        return end_of_interrupt(a)
    return self_ipi(a, value) if value >> 4 else leave(a, VAPIC_TRAP, EXIT_APIC_WRITE, APIC_SELF_IPI)

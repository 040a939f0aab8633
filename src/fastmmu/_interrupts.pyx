"""How the guest reaches its local APIC, and how interrupts reach the guest.

    guest ──► page (TLB, walk, EPT) ──► APIC-access page? ──► virtualized │ VM exit │ plain memory
          ──► CR8, MSR ────────────────────────────────────►
    device ──► posted, or an external-interrupt exit ──► the VMM's APIC ──► injected at VM entry

Interrupts are taken at instruction boundaries: after each of these operations, see `irq_boundary`.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from fastmmu._apic cimport (
    APIC_EOI, APIC_ICR_LOW, APIC_NONE, APIC_SELF_IPI, APIC_TPR, Ipi, apic_acknowledge, apic_addressed, apic_read,
    apic_request, apic_reset, apic_write,
)
from fastmmu._memory cimport mem_holds
from fastmmu._patch cimport HIGH_HALF, SITE_BYTES, Patch, Site, patch_decode, patch_place, patch_polls, patch_record
from fastmmu._types cimport ACC_R, ACC_W, ACC_X
from fastmmu._vapic cimport (
    VAPIC_DONE, VAPIC_GP, vapic_deliver, vapic_posted, vapic_rdmsr, vapic_read, vapic_read_cr8, vapic_wrmsr,
    vapic_write, vapic_write_cr8,
)
from fastmmu._vcpu cimport (
    ABORT_BUS, ABORT_HOST_MEMORY, ABORT_NO_PROGRESS, ACT_ABORT, DONE_ABORT, DONE_EMULATED, DONE_GP, DONE_OK, Vcpu,
    vcpu_abort, vcpu_access, vcpu_exit, vcpu_load, vcpu_store,
)
from fastmmu._vmx cimport (
    EXIT_EXTERNAL_INTERRUPT, EXIT_INTERRUPT_WINDOW, EXIT_RDMSR, EXIT_VMCALL, EXIT_WRMSR, PRIMARY_INTERRUPT_WINDOW,
    clear_exit_information,
)

cdef enum:
    X2_FIRST = 0x800
    X2_TPR = 0x808
    X2_EOI = 0x80B
    X2_CURRENT_COUNT = 0x839
    X2_SELF_IPI = 0x83F
    MSR_APIC_BASE = 0x1B
    MAX_DELIVERIES = 512        # at one boundary: more is a storm without an end


cdef enum:                      # fastmmu.ops.Op
    OP_APIC_READ = 21
    OP_APIC_WRITE = 22
    OP_CR8_READ = 23
    OP_CR8_WRITE = 24
    OP_MSR_READ = 25
    OP_MSR_WRITE = 26
    OP_INTERRUPT_FLAG = 27


cdef void irq_init(Interrupts *irq, Vcpu *v, uint8_t *page) noexcept nogil:
    # page: the virtual-APIC page, 4096 bytes that are 0; NULL: there is no VMM
    memset(irq, 0, sizeof(Interrupts))
    irq.v = v
    irq.inject = irq.arriving = APIC_NONE
    irq.tpr_shadow = irq.interrupts_on = True
    if page == NULL:
        page = &irq.own_page[0]
    apic_reset(&irq.apic, page, 0)
    irq.virt.page = irq.apic.page


cdef void irq_free(Interrupts *irq) noexcept nogil:
    free(irq.log)
    irq.log = NULL


# ---- the guest's accesses ---------------------------------------------------------------------------------

cdef inline int exited(int action) noexcept nogil:
    return DONE_ABORT if action == ACT_ABORT else DONE_OK


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


cdef int physical(Interrupts *irq, uint32_t offset, bint write, uint64_t value) noexcept nogil:
    # without a VMM: the APIC itself
    cdef Ipi ipi
    if not write:
        irq.value = apic_read(&irq.apic, offset)
        return DONE_OK
    if offset == APIC_SELF_IPI:
        irq_accept(irq, value, False)
        return DONE_OK
    ipi = apic_write(&irq.apic, offset, value)
    if ipi.valid and ipi.mode < 2 and apic_addressed(&irq.apic, &ipi):
        irq_accept(irq, ipi.vector, False)
    return DONE_OK


cdef int irq_mmio(Interrupts *irq, uint32_t offset, uint32_t size, bint write, uint64_t value) noexcept nogil:
    # an access by the supervisor to the page of the APIC; irq.value: what it read
    cdef int outcome
    offset &= 0xFFF
    size = size if size in (1, 2, 4, 8) else 4
    irq.c.writes += write
    irq.c.reads += not write
    if offset == APIC_TPR:
        irq.c.tpr_writes += write
        irq.c.tpr_reads += not write
    if irq.way == WAY_PATCH and offset == APIC_TPR and irq.patch.code_la:
        outcome = site(irq, write, value)
    else:
        outcome = page_access(irq, irq.la + offset, size, write, value)
    return outcome if outcome else irq_boundary(irq)


cdef int page_access(Interrupts *irq, uint64_t la, uint32_t size, bint write, uint64_t value) noexcept nogil:
    cdef Vcpu *v = irq.v
    cdef uint32_t offset = la & 0xFFF
    cdef uint64_t hpa = 0
    cdef int outcome
    v.c.kernel_accesses += 1
    v.store_bytes = size if write else 0
    v.store_value = value
    outcome = vcpu_access(v, la, ACC_W if write else ACC_R, False, &hpa)
    if outcome == DONE_OK:
        if not v.guest:
            outcome = physical(irq, offset, write, value)
        elif irq.virt.accesses and hpa & ~(<uint64_t> 0xFFF) == v.vmcs.apic_access_address:
            if write:
                outcome = vapic_write(&irq.virt, offset, size, value, False)
                if outcome == VAPIC_DONE and offset == APIC_ICR_LOW:
                    noted(irq, value)
                outcome = ended(irq, outcome)
            else:
                outcome = ended(irq, vapic_read(&irq.virt, offset, size, False))
        elif mem_holds(v.mem, hpa, size) and offset + size <= 0x1000:     # memory like any other
            if write:
                memcpy(v.mem.base + hpa, &value, size)
            else:
                irq.value = 0
                memcpy(&irq.value, v.mem.base + hpa, size)
    elif outcome == DONE_EMULATED:
        outcome = DONE_OK
    v.store_bytes = 0
    return outcome


# ---- instructions that the VMM replaces (apic.md §2.2) ----------------------------------------------------

cdef int site(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    # run the instruction at irq.patch.number that reads or writes the TPR: the original one, or the call that the VMM
    # put in its place
    cdef Vcpu *v = irq.v
    cdef Patch *p = &irq.patch
    cdef Site found
    cdef uint64_t hpa = 0
    cdef int outcome
    p.ip = p.code_la + patch_place(p.number, write)
    v.c.kernel_accesses += 1
    outcome = vcpu_access(v, p.ip, ACC_X, False, &hpa)
    if outcome:
        return outcome
    if not mem_holds(v.mem, hpa, SITE_BYTES):
        return vcpu_abort(v, ABORT_BUS, p.ip)
    p.ip_hpa = hpa
    patch_decode(v.mem.base + hpa, p.ip, &found)
    if not found.call:
        p.at_site = True
        outcome = page_access(irq, HIGH_HALF | found.address, 4, write, value)
        p.at_site = False
        return outcome
    return replacement(irq, found.address, write, value)


cdef int replacement(Interrupts *irq, uint32_t target, bint write, uint64_t value) noexcept nogil:
    # the routine of the option ROM: the TPR is in a record in memory, and the VMM is called only where an interrupt
    # that waits becomes deliverable
    cdef Vcpu *v = irq.v
    cdef Patch *p = &irq.patch
    cdef uint64_t hpa = 0, old = 0
    cdef int outcome
    v.c.kernel_accesses += 1
    outcome = vcpu_access(v, HIGH_HALF | target, ACC_X, False, &hpa)
    if not outcome:
        outcome = vcpu_load(v, patch_record(p), &old)
    if outcome:
        return outcome
    if not write:
        irq.value = old & 0xFF
        return DONE_OK
    outcome = vcpu_store(v, patch_record(p), (old & ~(<uint64_t> 0xFF)) | (value & 0xFF), 8, &hpa)
    if outcome:
        return outcome
    if not patch_polls(old, value):
        return DONE_OK
    irq.c.polls += 1
    clear_exit_information(&v.vmcs)
    return exited(vcpu_exit(v, EXIT_VMCALL))


cdef int irq_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    # MOV to or from CR8 by way of RDI or RAX
    cdef int outcome
    irq.c.writes += write
    irq.c.reads += not write
    irq.c.tpr_writes += write
    irq.c.tpr_reads += not write
    irq.v.store_value = value
    if not irq.v.guest:
        if write and value >> 4:
            return DONE_GP
        outcome = physical(irq, APIC_TPR, write, value << 4)
        irq.value >>= 4
    else:
        outcome = ended(irq, vapic_write_cr8(&irq.virt, value, 7) if write else vapic_read_cr8(&irq.virt, 0))
    return outcome if outcome else irq_boundary(irq)


cdef bint msr_exits(Interrupts *irq, uint32_t msr, bint write) noexcept nogil:
    # KVM's MSR bitmap: what the processor virtualizes in x2APIC mode passes, all else exits
    if not irq.virt.x2apic or msr >> 8 != X2_FIRST >> 8:
        return True
    if msr == X2_TPR:
        return False
    if not irq.virt.delivery:
        return True
    return msr != X2_EOI and msr != X2_SELF_IPI if write else msr == X2_CURRENT_COUNT


cdef int irq_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # RDMSR or WRMSR of the APIC
    cdef Vcpu *v = irq.v
    cdef uint32_t offset = (msr & 0xFF) << 4
    cdef int outcome
    irq.c.writes += write
    irq.c.reads += not write
    if msr == X2_TPR:
        irq.c.tpr_writes += write
        irq.c.tpr_reads += not write
    v.store_value = value
    if not v.guest:
        if msr == MSR_APIC_BASE:
            irq.x2apic = value >> 10 & 1
            outcome = DONE_OK
        else:
            outcome = physical(irq, offset, write, value)
    elif msr_exits(irq, msr, write):
        clear_exit_information(&v.vmcs)
        v.vmcs.operand = msr
        outcome = exited(vcpu_exit(v, EXIT_WRMSR if write else EXIT_RDMSR))
    else:
        outcome = vapic_wrmsr(&irq.virt, msr, value) if write else vapic_rdmsr(&irq.virt, msr)
        if outcome == VAPIC_DONE and write and msr == X2_SELF_IPI:
            noted(irq, value)
        outcome = ended(irq, outcome)
    return outcome if outcome else irq_boundary(irq)


cdef int irq_flag(Interrupts *irq, bint on) noexcept nogil:
    # CLI, or STI and the instruction that follows it
    irq.interrupts_on = on
    return irq_boundary(irq)


# ---- interrupts -------------------------------------------------------------------------------------------

cdef void irq_accept(Interrupts *irq, uint8_t vector, bint level) noexcept nogil:
    # an interrupt reaches the registers
    irq.c.requested += 1
    irq.arrival[vector] = irq.now
    apic_request(irq.apic.page, vector, level)
    irq.request_event = True


cdef void noted(Interrupts *irq, uint8_t vector) noexcept nogil:
    # the processor itself put a request into the registers
    irq.c.requested += 1
    irq.arrival[vector] = irq.now


cdef int irq_arrive(Interrupts *irq, uint8_t vector, bint level, uint32_t reason) noexcept nogil:
    # a device asks for an interrupt of the guest: posted where that is possible, else with a VM exit for `reason`
    cdef Vcpu *v = irq.v
    if not v.guest:
        irq_accept(irq, vector, level)
        return irq_boundary(irq)
    if irq.posting and not level and reason == EXIT_EXTERNAL_INTERRUPT:
        irq.c.requested += 1
        irq.c.posted += 1
        irq.arrival[vector] = irq.now
        irq.descriptor[vector >> 6] |= 1ULL << (vector & 63)
        irq.descriptor[4] |= 1
        vapic_posted(&irq.virt, irq.descriptor)
        return irq_boundary(irq)
    irq.arriving = vector
    irq.arriving_level = level
    clear_exit_information(&v.vmcs)
    if vcpu_exit(v, reason) == ACT_ABORT:
        return DONE_ABORT
    return irq_boundary(irq)


cdef int record(Interrupts *irq, uint8_t vector) noexcept nogil:
    cdef uint64_t waited = irq.now - irq.arrival[vector]
    cdef void *grown
    irq.c.delivered += 1
    irq.c.latency += waited
    if waited > irq.c.latency_max:
        irq.c.latency_max = waited
    if irq.log_n == irq.log_room:
        grown = realloc(irq.log, (2 * irq.log_room + 64) * sizeof(Delivery))
        if grown == NULL:
            return vcpu_abort(irq.v, ABORT_HOST_MEMORY, irq.log_n)
        irq.log = <Delivery *> grown
        irq.log_room = 2 * irq.log_room + 64
    irq.log[irq.log_n].vector = vector
    irq.log[irq.log_n].at = irq.now
    irq.log_n += 1
    return DONE_OK


cdef int handle(Interrupts *irq, uint8_t vector) noexcept nogil:
    # the guest's handler, with RFLAGS.IF = 0, to its IRET
    cdef uint64_t tpr = 0
    cdef int outcome = record(irq, vector)
    irq.interrupts_on = False
    if irq.handler == HANDLER_IRQL and not outcome:
        outcome = irq_mmio(irq, APIC_TPR, 4, False, 0)
        tpr = irq.value
        if not outcome and (vector & 0xF0) > tpr:
            outcome = irq_mmio(irq, APIC_TPR, 4, True, vector & 0xF0)
    if not outcome:
        outcome = irq_msr(irq, X2_EOI, True, 0) if irq.x2apic else irq_mmio(irq, APIC_EOI, 4, True, 0)
    if irq.handler == HANDLER_IRQL and not outcome and (vector & 0xF0) > tpr:
        outcome = irq_mmio(irq, APIC_TPR, 4, True, tpr)
    irq.interrupts_on = True
    return outcome


cdef int irq_boundary(Interrupts *irq) noexcept nogil:
    # what comes before the next instruction of the guest, highest priority first
    cdef Vcpu *v = irq.v
    cdef int vector, _
    for _ in range(MAX_DELIVERIES):
        if irq.inject >= 0:                     # by the VM entry, whatever RFLAGS.IF is by now
            vector = irq.inject
            irq.inject = APIC_NONE
        elif not irq.interrupts_on:
            return DONE_OK
        elif not v.guest:
            vector = apic_acknowledge(irq.apic.page)
            if vector < 0:
                return DONE_OK
        elif irq.virt.delivery and irq.virt.pending:
            vector = vapic_deliver(&irq.virt)
        elif v.vmcs.primary & PRIMARY_INTERRUPT_WINDOW:
            clear_exit_information(&v.vmcs)
            if vcpu_exit(v, EXIT_INTERRUPT_WINDOW) == ACT_ABORT:
                return DONE_ABORT
            continue
        else:
            return DONE_OK
        if handle(irq, vector):
            return DONE_ABORT
    return vcpu_abort(v, ABORT_NO_PROGRESS, irq.la)


# ---- events of a trace ------------------------------------------------------------------------------------

cdef int irq_event(Interrupts *irq, int op, uint64_t addr) noexcept nogil:
    # `addr` as fastmmu.ops says; DONE_GP: a value that the register refuses
    if op == OP_APIC_READ or op == OP_APIC_WRITE:
        irq.patch.number = addr >> 48
        return irq_mmio(irq, addr >> 32, 4, op == OP_APIC_WRITE, addr & 0xFFFFFFFFU)
    if op == OP_CR8_READ or op == OP_CR8_WRITE:
        return irq_cr8(irq, op == OP_CR8_WRITE, addr)
    if op == OP_MSR_READ or op == OP_MSR_WRITE:
        return irq_msr(irq, addr >> 32, op == OP_MSR_WRITE, addr & 0xFFFFFFFFU)
    if op == OP_INTERRUPT_FLAG:
        return irq_flag(irq, addr != 0)
    return irq_arrive(irq, addr & 0xFF, addr >> 8 & 1, EXIT_EXTERNAL_INTERRUPT)

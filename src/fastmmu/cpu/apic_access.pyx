"""What the guest does with its local APIC, and the interrupts that it gets between two instructions.

    guest ──► page (TLB, walk, EPT) ──► APIC-access page? ──► virtualized │ VM exit │ plain memory
          ──► CR8, MSR ────────────────────────────────────►
    device, timer, other vCPU ──► posted, or a VM exit ──► the VMM's APIC ──► injected at VM entry

Interrupts are taken at instruction boundaries: after each of these operations, see `irq_boundary`. Their handlers
use the APIC in turn.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset

from fastmmu.arch.msr cimport MSR_TSC_DEADLINE, X2_FIRST, X2_ICR, X2_SELF_IPI, X2_TPR
from fastmmu.arch.ops cimport (
    OP_APIC_READ, OP_APIC_WRITE, OP_CR8_READ, OP_CR8_WRITE, OP_INTERRUPT_FLAG, OP_IPI, OP_MSR_READ, OP_MSR_WRITE,
    OP_TSC_DEADLINE,
)
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X
from fastmmu.arch.vmx cimport (
    EXIT_EXTERNAL_INTERRUPT, EXIT_INTERRUPT_WINDOW, EXIT_IO_INSTRUCTION, EXIT_RDMSR, EXIT_VMCALL, EXIT_WRMSR,
    PRIMARY_INTERRUPT_WINDOW, clear_exit_information,
)
from fastmmu.cpu.access cimport Data, data_access, data_begin, data_size, data_store, data_value
from fastmmu.cpu.apic cimport (
    APIC_BASE, APIC_EOI, APIC_ICR_HIGH, APIC_ICR_LOW, APIC_NONE, APIC_TPR, Ipi, apic_acknowledge, apic_mapped,
    apic_read, apic_receives, apic_write, apic_x2apic,
)
from fastmmu.cpu.apic_msr cimport exited, msr_exits, physical_cr8, physical_msr, record_cr8
from fastmmu.cpu.interrupts cimport (
    HANDLER_IRQL, MAX_FRAMES, NUMBER_CR8, WAY_PATCH, Delivery, Frame, Interrupts, irq_accept, irq_elapse, irq_left,
    irq_noted, irq_pass, irq_sent,
)
from fastmmu.cpu.tpr_patch cimport (
    HIGH_HALF, SITE_BYTES, Patch, Site, patch_decode, patch_place, patch_polls, patch_record,
)
from fastmmu.cpu.vapic cimport (
    VAPIC_DONE, VAPIC_GP, vapic_deliver, vapic_posted, vapic_rdmsr, vapic_read_cr8, vapic_write_cr8, vapic_wrmsr,
)
from fastmmu.cpu.vcpu cimport (
    ABORT_APIC_GP, ABORT_APIC_PF, ABORT_BUS, ABORT_HOST_MEMORY, ABORT_NO_PROGRESS, ACT_ABORT, DONE_ABORT,
    DONE_EMULATED, DONE_GP, DONE_OK, DONE_PF, Vcpu, vcpu_abort, vcpu_access, vcpu_exit, vcpu_load, vcpu_store,
    vcpu_touches,
)
from fastmmu.paging.memory cimport mem_holds

cdef enum:
    SHORTHAND = 3 << 18         # in the ICR
    MAX_DELIVERIES = 512        # at one boundary: more is a storm without an end


# ---- the guest's accesses ---------------------------------------------------------------------------------

cdef int physical(Interrupts *irq, uint32_t offset, bint write, uint64_t value) noexcept nogil:
    # without a VMM: the page of the APIC itself
    cdef Ipi ipi
    irq_elapse(irq)
    if not write:
        irq.value = apic_read(&irq.apic, offset)
    else:
        ipi = apic_write(&irq.apic, offset, value)
        if ipi.valid:
            irq_sent(irq, &ipi)
    return DONE_OK


cdef int irq_mmio(Interrupts *irq, uint32_t offset, uint32_t size, bint write, uint64_t value) noexcept nogil:
    # an access by the supervisor to the page of the APIC; irq.value: what it read
    cdef uint64_t read
    cdef int outcome
    offset &= 0xFFF
    size = size if data_size(size) else 4
    irq.number = 0
    irq.c.writes += write
    irq.c.reads += not write
    if offset == APIC_TPR:
        irq.c.tpr_writes += write
        irq.c.tpr_reads += not write
    if irq.way == WAY_PATCH and offset == APIC_TPR and irq.patch.code_la:
        outcome = site(irq, write, value)
    else:
        outcome = page_access(irq, irq.la + offset, size, write, value)
    if outcome:
        return outcome
    read = irq.value                            # the handlers of interrupts read, too
    outcome = irq_boundary(irq)
    irq.value = read
    return outcome


cdef int register_access(Interrupts *irq, Data *d) noexcept nogil:
    # an access to data that may meet the page of the APIC; irq.value: what it read
    cdef Vcpu *v = irq.v
    cdef int outcome = data_access(v, d)
    if outcome > DONE_EMULATED or d.acc == ACC_X:
        return outcome
    if outcome == DONE_EMULATED and d.emulated >> 12 == APIC_BASE >> 12:
        d.apic = True
    if not v.guest and d.hpa >> 12 == APIC_BASE >> 12:
        d.apic = True
        if not apic_mapped(&irq.apic):          # in x2APIC mode, or disabled: nothing is there
            if d.acc != ACC_W:
                memset(&d.bytes[0], 0xFF, sizeof(d.bytes))
                d.known = True
            irq.value = data_value(d) if d.known else 0
            return outcome
        if d.acc != ACC_W:
            if physical(irq, d.hpa & 0xFFF, False, 0):
                return DONE_ABORT
            memcpy(&d.bytes[0], &irq.value, 8)
            d.known = True
        if d.acc != ACC_R and physical(irq, d.hpa & 0xFFF, True, data_value(d)):
            return DONE_ABORT
    if d.sent >= 0:
        irq_noted(irq, d.sent)
    irq.value = data_value(d) if d.known else 0
    return outcome


cdef int irq_data(Interrupts *irq, Data *d) noexcept nogil:
    # an access to data by the guest, and what comes before its next instruction
    cdef int outcome = register_access(irq, d)
    cdef bint write = d.acc == ACC_W or d.acc == ACC_RW
    cdef bint read = d.acc == ACC_R or d.acc == ACC_RW
    if outcome == DONE_ABORT:
        return outcome
    if outcome <= DONE_EMULATED and d.apic:
        irq.c.writes += write
        irq.c.reads += read
        if (d.hpa if outcome == DONE_OK else d.emulated) & 0xFFF == APIC_TPR:
            irq.c.tpr_writes += write
            irq.c.tpr_reads += read
    return DONE_ABORT if irq_boundary(irq) else outcome


cdef int page_access(Interrupts *irq, uint64_t la, uint32_t size, bint write, uint64_t value) noexcept nogil:
    # by the supervisor
    cdef Data d
    cdef int outcome
    irq.v.c.kernel_accesses += 1
    if write:
        data_store(&d, la, False, size, value)
    else:
        data_begin(&d, la, ACC_R, False, size)
        d.moves = True
    outcome = register_access(irq, &d)
    return DONE_OK if outcome == DONE_EMULATED else outcome


# ---- instructions that the VMM replaces (apic.md §2.2) ----------------------------------------------------

cdef int site(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    # run the instruction at irq.patch.number that reads or writes the TPR
    cdef Site found
    cdef int outcome = irq_fetch_site(irq, irq.patch.code_la + patch_place(irq.patch.number, write), &found)
    return outcome if outcome else run_site(irq, &found, write, value)


cdef int irq_fetch_site(Interrupts *irq, uint64_t ip, Site *found) noexcept nogil:
    # the instruction there: the original one, or the call that the VMM put in its place
    cdef Vcpu *v = irq.v
    cdef Patch *p = &irq.patch
    cdef uint64_t hpa = 0
    cdef int outcome
    p.ip = ip
    v.c.kernel_accesses += 1
    outcome = vcpu_access(v, ip, ACC_X, False, &hpa)
    if outcome:
        return outcome
    vcpu_touches(v, hpa, SITE_BYTES, ACC_X)
    if not mem_holds(v.mem, hpa, SITE_BYTES):
        return vcpu_abort(v, ABORT_BUS, ip)
    p.ip_hpa = hpa
    patch_decode(v.mem.base + hpa, ip, found)
    return DONE_OK


cdef int run_site(Interrupts *irq, const Site *found, bint write, uint64_t value) noexcept nogil:
    cdef Patch *p = &irq.patch
    cdef uint64_t high = p.ip & HIGH_HALF
    cdef int outcome
    if found.call:
        return replacement(irq, high | found.address, write, value)
    p.at_site = p.rom_la != 0
    outcome = page_access(irq, high | found.address, 4, write, value)
    p.at_site = False
    return outcome


cdef int irq_run_site(Interrupts *irq, const Site *found, bint write, uint64_t value) noexcept nogil:
    # of a bare guest, once it is fetched; irq.value: what it read
    cdef uint64_t read
    cdef int outcome
    irq.number = 0
    irq.c.writes += write
    irq.c.reads += not write
    irq.c.tpr_writes += write
    irq.c.tpr_reads += not write
    outcome = run_site(irq, found, write, value)
    if outcome:
        return outcome
    read = irq.value
    outcome = irq_boundary(irq)
    irq.value = read
    return outcome


cdef int replacement(Interrupts *irq, uint64_t target, bint write, uint64_t value) noexcept nogil:
    # the routine of the option ROM: the TPR is in a record in memory, and the VMM is called only where an interrupt
    # that waits becomes deliverable
    cdef Vcpu *v = irq.v
    cdef Patch *p = &irq.patch
    cdef uint64_t hpa = 0, old = 0
    cdef int outcome
    v.c.kernel_accesses += 1
    outcome = vcpu_access(v, target, ACC_X, False, &hpa)
    if not outcome:
        vcpu_touches(v, hpa, 8, ACC_X)
        outcome = vcpu_load(v, patch_record(p), &old)
    if not outcome and not old >> 32 & 1:       # another vCPU's access was patched: this one's record is not in use yet
        p.enabling = True
        clear_exit_information(&v.vmcs)
        outcome = exited(vcpu_exit(v, EXIT_IO_INSTRUCTION))
        p.enabling = False
        if not outcome:
            outcome = vcpu_load(v, patch_record(p), &old)
    if outcome:
        return outcome
    if not old >> 32 & 1:                       # in x2APIC mode, or disabled: nothing is there
        irq.value = 0xFFFFFFFF
        return DONE_OK
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


cdef int irq_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil:
    # MOV to or from CR8 by way of RDI or RAX. It is there in every mode of the APIC, and when that is disabled.
    cdef Vcpu *v = irq.v
    cdef int outcome
    irq.c.writes += write
    irq.c.reads += not write
    irq.c.tpr_writes += write
    irq.c.tpr_reads += not write
    v.store_value = value
    irq.number = NUMBER_CR8
    irq.writes = write
    if v.guest and not (irq.patch.in_use and irq.tpr_shadow):
        outcome = ended(irq, vapic_write_cr8(&irq.virt, value, 7) if write else vapic_read_cr8(&irq.virt, 0))
    elif write and value >> 4:
        outcome = DONE_GP
    else:
        outcome = record_cr8(irq, write, value) if v.guest else physical_cr8(irq, write, value)
    return outcome if outcome else irq_boundary(irq)


cdef int irq_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
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
        outcome = physical_msr(irq, msr, write, value)
    elif msr_exits(irq, msr, write):
        clear_exit_information(&v.vmcs)
        v.vmcs.operand = msr
        outcome = exited(vcpu_exit(v, EXIT_WRMSR if write else EXIT_RDMSR))
    else:
        outcome = vapic_wrmsr(&irq.virt, msr, value) if write else vapic_rdmsr(&irq.virt, msr)
        if outcome == VAPIC_DONE and write and msr == X2_SELF_IPI:
            irq_noted(irq, value)
        outcome = ended(irq, outcome)
    return outcome if outcome else irq_boundary(irq)


cdef int irq_flag(Interrupts *irq, bint on) noexcept nogil:
    # CLI, or STI and the instruction that follows it
    irq.interrupts_on = on
    return irq_boundary(irq)


# ---- arrival, time ----------------------------------------------------------------------------------------

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
        if apic_receives(&irq.apic, vector):
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


cdef int irq_due(Interrupts *irq) noexcept nogil:
    # as many accesses passed as irq_left said: handlers return, the timer runs out. The timer counts first, for the
    # accesses of the handlers to the APIC look at it, too.
    cdef bint fired = irq_elapse(irq)
    while irq.n_frames and not irq.frame[irq.n_frames - 1].left:
        if stopped(irq, returned(irq)):
            return DONE_ABORT
    if fired:
        if irq.v.guest:
            clear_exit_information(&irq.v.vmcs)
            if vcpu_exit(irq.v, irq.timer_reason) == ACT_ABORT:
                return DONE_ABORT
        elif irq.arriving >= 0:
            irq_accept(irq, irq.arriving, False)
            irq.arriving = APIC_NONE
    return irq_boundary(irq)


cdef int irq_wait(Interrupts *irq, uint64_t accesses) noexcept nogil:
    # time passes without an access
    cdef uint64_t left = irq_left(irq), step
    while accesses:
        step = min(left, accesses) if left else accesses
        irq_pass(irq, step)
        irq.clock[0] += step
        accesses -= step
        if step == left and irq_due(irq):
            return DONE_ABORT
        left = irq_left(irq)
    return DONE_OK


# ---- handlers ---------------------------------------------------------------------------------------------

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


cdef int reach(Interrupts *irq, uint32_t offset, bint write, uint64_t value) noexcept nogil:
    # an access of the handler, by the way that the mode has
    if apic_x2apic(&irq.apic):
        return irq_msr(irq, X2_FIRST | offset >> 4, write, value)
    return irq_mmio(irq, offset, 4, write, value)


cdef int handle(Interrupts *irq, uint8_t vector) noexcept nogil:
    # the guest's handler, entered with RFLAGS.IF = 0. Of KeRaiseIrql's kind it raises the TPR and lets higher classes
    # interrupt it. It lasts `handler_length` accesses of the trace.
    cdef Frame *frame = &irq.frame[irq.n_frames]
    cdef int outcome = record(irq, vector)
    if irq.n_frames == MAX_FRAMES - 1:
        return vcpu_abort(irq.v, ABORT_NO_PROGRESS, irq.la)
    irq.c.nested += irq.n_frames != 0
    irq.n_frames += 1
    frame.vector = vector
    frame.left = irq.handler_length
    frame.raised = False
    irq.interrupts_on = False
    if irq.handler == HANDLER_IRQL and not outcome:
        outcome = reach(irq, APIC_TPR, False, 0)
        frame.tpr = irq.value
        frame.raised = (vector & 0xF0) > frame.tpr
        if not outcome and frame.raised:
            outcome = reach(irq, APIC_TPR, True, vector & 0xF0)
        if not outcome:
            outcome = irq_flag(irq, True)
    if not outcome and not irq.handler_length:
        outcome = returned(irq)
    return outcome


cdef int returned(Interrupts *irq) noexcept nogil:
    # the end of the handler that runs: CLI, end of interrupt, the TPR as it was, IRET
    cdef Frame *frame = &irq.frame[irq.n_frames - 1]
    cdef int outcome
    irq.interrupts_on = False
    outcome = reach(irq, APIC_EOI, True, 0)
    if frame.raised and not outcome:
        outcome = reach(irq, APIC_TPR, True, frame.tpr)
    irq.n_frames -= 1
    irq.interrupts_on = True
    return outcome


cdef int stopped(Interrupts *irq, int outcome) noexcept nogil:
    # DONE_ABORT where an access of a handler to its APIC ended in a fault, to which nothing in the guest answers
    if outcome == DONE_PF:
        return vcpu_abort(irq.v, ABORT_APIC_PF, irq.v.cr2)
    if outcome == DONE_GP:
        return vcpu_abort(irq.v, ABORT_APIC_GP, irq.v.store_value)
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
            vector = apic_acknowledge(&irq.apic)
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
        if stopped(irq, handle(irq, vector)):
            return DONE_ABORT
    return vcpu_abort(v, ABORT_NO_PROGRESS, irq.la)


# ---- events of a trace ------------------------------------------------------------------------------------

cdef int irq_event(Interrupts *irq, int op, uint64_t addr) noexcept nogil:
    # `addr` as fastmmu.ops says; DONE_GP: a value that the register refuses
    cdef int outcome
    if op == OP_APIC_READ or op == OP_APIC_WRITE:
        irq.patch.number = addr >> 48
        return irq_mmio(irq, addr >> 32, 4, op == OP_APIC_WRITE, addr & 0xFFFFFFFFU)
    if op == OP_CR8_READ or op == OP_CR8_WRITE:
        return irq_cr8(irq, op == OP_CR8_WRITE, addr)
    if op == OP_MSR_READ or op == OP_MSR_WRITE:
        return irq_msr(irq, addr >> 32, op == OP_MSR_WRITE, addr & 0xFFFFFFFFU)
    if op == OP_INTERRUPT_FLAG:
        return irq_flag(irq, addr != 0)
    if op == OP_TSC_DEADLINE:
        return irq_msr(irq, MSR_TSC_DEADLINE, True, irq.now + addr if addr else 0)
    if op == OP_IPI:
        if apic_x2apic(&irq.apic):
            return irq_msr(irq, X2_ICR, True, addr)
        outcome = DONE_OK
        if not addr & SHORTHAND:                # else the destination does not count
            outcome = irq_mmio(irq, APIC_ICR_HIGH, 4, True, (addr >> 32 & 0xFF) << 24)
        return outcome if outcome else irq_mmio(irq, APIC_ICR_LOW, 4, True, addr & 0xFFFFFFFFU)
    return irq_arrive(irq, addr & 0xFF, addr >> 8 & 1, EXIT_EXTERNAL_INTERRUPT)

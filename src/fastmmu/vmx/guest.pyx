"""The guest's operations in VMX non-root operation. Header: vmx/guest.pxd.

    operation ──► first-level TLB ──miss──► vcpu_slow ──► walk ──► VM exit │ #PF
        │  └──► APIC-access page ──► virtualized │ VM exit                  │
        └──► instructions, interrupts ──► VM exit │ done                    ▼
                                    └──► next boundary: window, virtual interrupt ──► event

An operation that ends in a VM exit is not done, and comes again after VM entry, unless the VMM has moved RIP on: RIP is
the number of the next operation. What follows an operation (a trap-like exit, an interrupt that came) leaves it done.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.msr cimport MSR_EFER, MSR_PAT
from fastmmu.arch.ops cimport (
    GUEST_CLTS, GUEST_CPL, GUEST_EVENT_WRITE, GUEST_INVPCID, GUEST_LMSW, GUEST_MOV_FROM_CR0, GUEST_MOV_FROM_CR3,
    GUEST_MOV_FROM_CR4, GUEST_MOV_TO_CR0, GUEST_MOV_TO_CR3, GUEST_MOV_TO_CR4, GUEST_WRPKRU, LAST_ACCESS,
    OP_APIC_READ, OP_APIC_WRITE, OP_CR8_READ, OP_CR8_WRITE, OP_DEVICE_INTERRUPT, OP_EXIT, OP_INTERRUPT,
    OP_INTERRUPT_FLAG, OP_INVLPG, OP_MSR_READ, OP_MSR_WRITE,
)
from fastmmu.arch.registers cimport CR0_PE, CR0_PG
from fastmmu.arch.types cimport ACC_R, ACC_W, ACC_X
from fastmmu.arch.vmx cimport (
    EXIT_ACK_INTERRUPT, EXIT_EXCEPTION_NMI, EXIT_EXTERNAL_INTERRUPT, EXIT_INTERRUPT_WINDOW, EXIT_INVPCID,
    EXIT_MONITOR_TRAP, EXIT_NMI_WINDOW, EXIT_RDMSR, EXIT_WRMSR, PIN_EXTERNAL_INTERRUPT, PIN_POSTED,
    PRIMARY_INTERRUPT_WINDOW, PRIMARY_INVLPG, PRIMARY_MSR_BITMAPS, PRIMARY_NMI_WINDOW, SECONDARY_INVPCID,
    SECONDARY_UNRESTRICTED, VECTOR_GP, VECTOR_PF, VECTOR_UD, clear_exit_information, secondary_control,
)
from fastmmu.cpu.access cimport Data, data_access, data_begin, data_size, data_value
from fastmmu.cpu.control cimport (
    vcpu_clts, vcpu_invlpg, vcpu_invpcid, vcpu_lmsw, vcpu_mov_cr0, vcpu_mov_cr3, vcpu_mov_cr4, vcpu_mov_from_cr,
    vcpu_rdmsr_efer, vcpu_wrmsr_efer,
)
from fastmmu.cpu.inv_operands cimport (
    IN_64_BIT, INV_EXIT, INV_GP, INV_UD, VMX_NON_ROOT, Executing, InvOperands, invpcid_check,
)
from fastmmu.cpu.vapic cimport (
    VAPIC_DONE, VAPIC_EXIT, VAPIC_GP, VAPIC_TRAP, vapic_deliver, vapic_posted, vapic_rdmsr, vapic_read,
    vapic_read_cr8, vapic_write, vapic_write_cr8, vapic_wrmsr,
)
from fastmmu.cpu.vcpu cimport (
    ABORT_BUS, BY_SUPERVISOR, BY_SYSTEM, BY_USER, DONE_ABORT, DONE_EMULATED, DONE_GP, DONE_OK, DONE_PF, Vcpu,
    vcpu_abort, vcpu_access, vcpu_eptrta, vcpu_exit, vcpu_set_pkru, vcpu_slow, vcpu_vpid,
)
from fastmmu.paging.guest cimport reachable
from fastmmu.paging.memory cimport mem_holds
from fastmmu.tlb.lookup cimport tlb_l1, tlb_pa, tlb_switch
from fastmmu.vmx.entry cimport BLOCKED_BY_MOV_SS, BLOCKED_BY_STI, event_delivered, processor_left
from fastmmu.vmx.operations cimport instruction_exits, instruction_privileged
from fastmmu.vmx.processor cimport RUN_ALL, RUN_EVENT, RUN_EXIT, RUN_STOP, Processor

cdef enum:
    DONE_EVENT = 16             # an Outcome of this loop: an event is on its way to the caller
    INFO_EXCEPTION = 3 << 8     # of an interruption-information field
    INFO_CODE = 1 << 11
    NOTIFICATION = 1            # of a posted-interrupt descriptor's fifth qword: outstanding, suppressed
    SUPPRESSED = 2

cdef uint64_t VALID = 0x80000000ULL

# ---- exits and events -------------------------------------------------------------------------------------

cdef int leave(Processor *p, uint32_t reason) noexcept nogil:
    # the exit information is written
    vcpu_exit(&p.cpu, reason)
    return DONE_ABORT


cdef int leave_plainly(Processor *p, uint32_t reason) noexcept nogil:
    clear_exit_information(&p.cpu.vmcs)
    return leave(p, reason)


cdef int exception(Processor *p, uint32_t vector, bint coded, uint32_t error_code) noexcept nogil:
    # but #PF, of which vcpu_slow knows whether it exits
    cdef uint32_t info = VALID | INFO_EXCEPTION | vector | (INFO_CODE if coded else 0)
    if p.cpu.vmcs.exception_bitmap >> vector & 1:
        clear_exit_information(&p.cpu.vmcs)
        p.cpu.vmcs.exit_interruption_info = info
        p.cpu.vmcs.exit_interruption_error = error_code
        return leave(p, EXIT_EXCEPTION_NMI)
    event_delivered(p, info, error_code, 0)
    return DONE_EVENT


cdef inline int protection(Processor *p) noexcept nogil:
    return exception(p, VECTOR_GP, True, 0)


cdef int virtual(Processor *p, int outcome) noexcept nogil:
    # of an operation that the processor virtualizes
    if outcome == VAPIC_GP:
        return DONE_GP
    if outcome == VAPIC_TRAP or outcome == VAPIC_EXIT:
        clear_exit_information(&p.cpu.vmcs)
        p.cpu.vmcs.exit_qualification = p.apic.qualification
        p.cpu.vmcs.operand = p.cpu.store_value
        p.complete = outcome == VAPIC_TRAP
        return leave(p, p.apic.reason)
    return DONE_OK


cdef int boundary(Processor *p) noexcept nogil:
    # what comes before the next operation (vmx.md §4.3, apic.md §6)
    cdef Vcpu *v = &p.cpu
    cdef int word, bit, vector = -1
    p.executing = False
    if v.vmcs.primary & PRIMARY_NMI_WINDOW and not p.rest.interruptibility & 0xB:
        return leave_plainly(p, EXIT_NMI_WINDOW)
    if not p.interrupts_on or p.rest.interruptibility & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS):
        return DONE_OK
    if v.vmcs.primary & PRIMARY_INTERRUPT_WINDOW:
        return leave_plainly(p, EXIT_INTERRUPT_WINDOW)
    if p.apic.delivery and p.apic.pending:
        vector = vapic_deliver(&p.apic)
    elif not v.vmcs.pin_based & PIN_EXTERNAL_INTERRUPT:
        for word in range(3, -1, -1):
            if p.held[word] and vector < 0:
                for bit in range(64):
                    if p.held[word] >> bit & 1:
                        vector = 64 * word + bit
                p.held[word] &= ~(1ULL << (vector & 63))
    if vector < 0:
        return DONE_OK
    event_delivered(p, VALID | <uint32_t> vector, 0, 0)
    return DONE_EVENT


cdef int behind(Processor *p) noexcept nogil:
    # an operation is done, after which something may be due
    p.rest.interruptibility &= ~<uint32_t> (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS)
    p.attention = p.trap
    if p.trap:
        p.executing = False
        return leave_plainly(p, EXIT_MONITOR_TRAP)
    return boundary(p)


# ---- accesses ---------------------------------------------------------------------------------------------

cdef inline uint64_t linear(const Processor *p, uint64_t la) noexcept nogil:
    # outside 64-bit mode addresses have 32 bits
    return la & 0xFFFFFFFFULL if p.cpu.hw.la_bits == 32 else la


cdef inline bint in_reach(const Processor *p, uint64_t la, uint32_t size) noexcept nogil:
    return (reachable(la, p.cpu.hw.la_bits)
            and (size < 2 or p.cpu.hw.la_bits == 32 or reachable(la + size - 1, p.cpu.hw.la_bits)))


cdef int access_data(Processor *p, uint64_t la, int acc, int who, uint32_t size, bint moves,
                     uint64_t *value) noexcept nogil:
    # of known size: to memory or the APIC-access page
    cdef Data d
    cdef int outcome
    if not data_size(size):                     # of a trace: where it begins is what counts
        size = 16 if size > 8 else 8 if size > 4 else 4 if size else 1
    la = linear(p, la)
    if not in_reach(p, la, size):
        return DONE_GP
    data_begin(&d, la, acc, who, size)
    d.moves = moves and acc != ACC_X
    if d.moves and acc != ACC_R:
        memcpy(&d.bytes[0], value, min(size, 8))
    outcome = data_access(&p.cpu, &d)
    if d.apic:
        p.attention = True
    if outcome <= DONE_EMULATED and d.known and acc != ACC_W:
        p.value = data_value(&d)
        if d.moves and acc == ACC_R:
            value[0] = p.value
    return outcome


cdef int access_event(Processor *p, uint64_t la, int acc, uint32_t size, uint64_t *value) noexcept nogil:
    # by the processor, which delivers an event: a VM exit says so
    cdef Vcpu *v = &p.cpu
    cdef uint64_t hpa = 0, zero = 0
    cdef int outcome
    size = size if data_size(size) else 8
    value = value if value != NULL else &zero
    la = linear(p, la)
    if not in_reach(p, la, size):
        return DONE_GP
    p.delivering = True
    outcome = vcpu_access(v, la, acc, BY_SYSTEM, &hpa)
    if not outcome and p.apic.accesses and hpa & ~0xFFFULL == v.vmcs.apic_access_address:
        p.attention = True
        if acc == ACC_R:
            outcome = virtual(p, vapic_read(&p.apic, hpa & 0xFFF, size, True))
            if not outcome:
                value[0] = p.value = p.apic.data
        else:
            outcome = virtual(p, vapic_write(&p.apic, hpa & 0xFFF, size, value[0], True))
    elif not outcome and (hpa & 0xFFF) + size <= 4096 and mem_holds(v.mem, hpa, size) and value != &zero:
        if acc == ACC_R:
            p.value = 0
            memcpy(&p.value, v.mem.base + hpa, min(size, 8))
            value[0] = p.value
        else:
            memcpy(v.mem.base + hpa, value, min(size, 8))
    p.delivering = False
    return outcome


# ---- instructions, interrupts -----------------------------------------------------------------------------

cdef bint msr_exits(Processor *p, uint32_t msr, bint write, bint *missing) noexcept nogil:
    # SDM, "MSR-bitmap address"
    cdef uint64_t at = p.rest.msr_bitmap + (0x800 if write else 0)
    if not p.cpu.vmcs.primary & PRIMARY_MSR_BITMAPS:
        return True
    if msr >> 13 and msr >> 13 != 0xC0000000U >> 13:
        return True
    at += 0x400 if msr >> 13 else 0
    at += (msr & 0x1FFF) >> 3
    missing[0] = not mem_holds(p.cpu.mem, at, 1)
    return missing[0] or p.cpu.mem.base[at] >> (msr & 7) & 1


cdef int access_msr(Processor *p, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # of those that reach the processor EFER and PAT are modelled; others read 0
    cdef Vcpu *v = &p.cpu
    cdef bint missing = False
    cdef int outcome
    if p.cpl:
        return DONE_GP
    v.store_value = value
    if msr_exits(p, msr, write, &missing):
        if missing:
            return vcpu_abort(v, ABORT_BUS, p.rest.msr_bitmap)
        clear_exit_information(&v.vmcs)
        v.vmcs.operand = msr
        p.exit_value = value if write else 0
        return leave(p, EXIT_WRMSR if write else EXIT_RDMSR)
    outcome = vapic_wrmsr(&p.apic, msr, value) if write else vapic_rdmsr(&p.apic, msr)
    if outcome <= VAPIC_GP:
        p.attention = True
        if not write:
            p.value = p.apic.data
        return virtual(p, outcome)
    if not write:
        p.value = 0
    if msr == MSR_EFER:
        v.guest = False                         # the bitmap lets it through: the processor does it
        outcome = vcpu_wrmsr_efer(v, value) if write else vcpu_rdmsr_efer(v, &p.value)
        v.guest = True
        return outcome
    if msr == MSR_PAT and write:
        v.r.pat = v.hw.pat = value
    elif msr == MSR_PAT:
        p.value = v.r.pat
    return DONE_OK


cdef int access_cr8(Processor *p, bint write, uint64_t value, int reg) noexcept nogil:
    cdef int outcome
    if p.cpl:
        return DONE_GP
    p.cpu.store_value = value
    p.attention = True
    if write:
        return virtual(p, vapic_write_cr8(&p.apic, value, reg))
    outcome = vapic_read_cr8(&p.apic, reg)
    p.value = p.apic.data if outcome == VAPIC_DONE else 0
    return virtual(p, outcome)


cdef int instruction_exit(Processor *p, uint64_t reason) noexcept nogil:
    if instruction_privileged(reason) and p.cpl:
        return DONE_GP
    return leave_plainly(p, reason) if instruction_exits(&p.cpu.vmcs, reason) else <int> DONE_OK


cdef inline bint fixed(uint64_t value, uint64_t real, uint64_t mask, uint64_t shadow, uint64_t must,
                       uint64_t may) noexcept nogil:
    # MOV to CR0 or CR4 that does not exit, and would give a bit a value that VMX operation does not support
    if (value ^ shadow) & mask:
        return False
    value = (real & mask) | (value & ~mask)
    return must & ~value or value & ~may


cdef int mov_to_cr(Processor *p, int number, uint64_t value) noexcept nogil:
    cdef Vcpu *v = &p.cpu
    cdef uint64_t exempt = 0
    if number == 3:
        return vcpu_mov_cr3(v, value)
    if number == 0:
        if secondary_control(&v.vmcs, SECONDARY_UNRESTRICTED):
            exempt = CR0_PE | CR0_PG
        if fixed(value, v.r.cr0, v.vmcs.cr0_mask, v.vmcs.cr0_shadow, p.caps.cr0_must & ~exempt, ONES):
            return DONE_GP
        return vcpu_mov_cr0(v, value)
    if fixed(value, v.r.cr4, v.vmcs.cr4_mask, v.vmcs.cr4_shadow, p.caps.cr4_must, p.caps.cr4_may):
        return DONE_GP
    return vcpu_mov_cr4(v, value)


cdef int invpcid(Processor *p, int type, uint64_t operand) noexcept nogil:
    cdef Vcpu *v = &p.cpu
    cdef Executing x
    cdef InvOperands d
    cdef int ends
    d.type, d.low, d.high = type, operand & 0xFFF, operand & ~0xFFFULL
    x.caps = p.caps.ept
    x.mode, x.vmx, x.cpl = IN_64_BIT, VMX_NON_ROOT, p.cpl
    x.maxphyaddr = p.caps.maxphyaddr
    x.la_bits = max(v.hw.la_bits, 48)
    x.pcide, x.current_vmcs, x.invpcid = v.hw.pcid_on, True, True
    x.enable_invpcid = secondary_control(&v.vmcs, SECONDARY_INVPCID)
    x.invlpg_exiting = v.vmcs.primary & PRIMARY_INVLPG != 0
    ends = invpcid_check(&x, d)
    if ends == INV_UD:
        return exception(p, VECTOR_UD, False, 0)
    if ends == INV_GP:
        return DONE_GP
    if ends == INV_EXIT:
        clear_exit_information(&v.vmcs)
        v.vmcs.operand = type
        p.exit_value = operand
        return leave(p, EXIT_INVPCID)
    return vcpu_invpcid(v, type, d.low, d.high)


cdef int notified(Processor *p) noexcept nogil:
    # posted-interrupt processing
    cdef uint64_t at = p.cpu.vmcs.posted_descriptor_address
    if not mem_holds(p.cpu.mem, at, 64):
        return vcpu_abort(&p.cpu, ABORT_BUS, at)
    vapic_posted(&p.apic, <uint64_t *> (p.cpu.mem.base + at))
    p.attention = True
    return DONE_OK


cdef int interrupt(Processor *p, uint32_t vector) noexcept nogil:
    # an external interrupt arrives: it is no instruction, and never comes again
    cdef Vcpu *v = &p.cpu
    v.c.interrupts += 1
    p.complete = True
    if not v.vmcs.pin_based & PIN_EXTERNAL_INTERRUPT:
        p.held[vector >> 6] |= 1ULL << (vector & 63)
        p.attention = True
        return DONE_OK
    if v.vmcs.pin_based & PIN_POSTED and vector == v.vmcs.posted_vector & 0xFF:
        return notified(p)
    clear_exit_information(&v.vmcs)
    if v.vmcs.vm_exit & EXIT_ACK_INTERRUPT:
        v.vmcs.exit_interruption_info = VALID | vector
    return leave(p, EXIT_EXTERNAL_INTERRUPT)


cdef int device(Processor *p, uint32_t vector, bint level) noexcept nogil:
    # a device's: posted by the interrupt-remapping hardware where interrupts are posted, else an external interrupt
    cdef uint64_t at = p.cpu.vmcs.posted_descriptor_address
    cdef uint64_t *descriptor
    if level or not p.cpu.vmcs.pin_based & PIN_POSTED:
        return interrupt(p, vector)
    if not mem_holds(p.cpu.mem, at, 64):
        return vcpu_abort(&p.cpu, ABORT_BUS, at)
    descriptor = <uint64_t *> (p.cpu.mem.base + at)
    descriptor[vector >> 6] |= 1ULL << (vector & 63)
    if descriptor[4] & (NOTIFICATION | SUPPRESSED):
        return DONE_OK
    descriptor[4] |= NOTIFICATION
    return notified(p)


cdef int operate(Processor *p, int o, uint8_t size, uint64_t addr, uint64_t *value) noexcept nogil:
    # anything but a plain access. value: of the operation, or NULL
    cdef Vcpu *v = &p.cpu
    cdef uint64_t written = value[0] if value != NULL else addr & 0xFFFFFFFFULL
    cdef int who = BY_USER if p.cpl == 3 else BY_SUPERVISOR
    cdef bint privileged = GUEST_MOV_TO_CR0 <= o <= GUEST_INVPCID or o == OP_INVLPG
    cdef int outcome = DONE_OK
    p.complete = False
    if privileged and p.cpl and o != GUEST_INVPCID:
        return DONE_GP
    if o <= LAST_ACCESS:
        v.c.ops[o] += 1
        return access_data(p, addr, o, who, size, value != NULL, value)
    if o == OP_APIC_READ or o == OP_APIC_WRITE:
        outcome = access_data(p, p.apic_la + (addr >> 32 & 0xFFF), ACC_W if o == OP_APIC_WRITE else ACC_R, who,
                              size if data_size(size) else 4, True, &written)
    elif o == OP_CR8_READ or o == OP_CR8_WRITE:
        outcome = access_cr8(p, o == OP_CR8_WRITE, addr, size & 15)
    elif o == OP_MSR_READ or o == OP_MSR_WRITE:
        outcome = access_msr(p, addr >> 32, o == OP_MSR_WRITE, written)
    elif o == OP_INVLPG:
        outcome = vcpu_invlpg(v, linear(p, addr))
    elif o == OP_EXIT:
        outcome = instruction_exit(p, addr)
    elif o == OP_INTERRUPT:
        outcome = interrupt(p, addr & 0xFF)
    elif o == OP_DEVICE_INTERRUPT:
        outcome = device(p, addr & 0xFF, addr >> 8 & 1)
    elif o == OP_INTERRUPT_FLAG:
        if p.cpl > p.iopl:
            return DONE_GP
        p.interrupts_on = addr != 0
        p.attention = True
    elif o == GUEST_MOV_TO_CR0 or o == GUEST_MOV_TO_CR3 or o == GUEST_MOV_TO_CR4:
        outcome = mov_to_cr(p, 0 if o == GUEST_MOV_TO_CR0 else 3 if o == GUEST_MOV_TO_CR3 else 4, addr)
    elif o == GUEST_MOV_FROM_CR0 or o == GUEST_MOV_FROM_CR3 or o == GUEST_MOV_FROM_CR4:
        outcome = vcpu_mov_from_cr(v, 0 if o == GUEST_MOV_FROM_CR0 else 3 if o == GUEST_MOV_FROM_CR3 else 4, &p.value)
    elif o == GUEST_CLTS:
        outcome = vcpu_clts(v)
    elif o == GUEST_LMSW:
        outcome = vcpu_lmsw(v, addr, False)
    elif o == GUEST_INVPCID:
        outcome = invpcid(p, size, addr)
    elif o == GUEST_WRPKRU:
        vcpu_set_pkru(v, addr)
    elif o == GUEST_CPL:
        p.cpl = addr & 3
    else:
        return access_event(p, addr, ACC_W if o == GUEST_EVENT_WRITE else ACC_R, size, value)
    if value != NULL and not outcome and (o in (OP_APIC_READ, OP_CR8_READ, OP_MSR_READ)
                                          or GUEST_MOV_FROM_CR0 <= o <= GUEST_MOV_FROM_CR4):
        value[0] = p.value
    return outcome


# ---- the loop ---------------------------------------------------------------------------------------------

cdef inline int plain_access(Processor *p, int acc, uint32_t size, uint64_t la, int who,
                             uint64_t apic_page) noexcept nogil:
    # no data move
    cdef Vcpu *v = &p.cpu
    cdef uint64_t value, hpa = 0
    cdef int outcome
    la = linear(p, la)
    if not reachable(la, v.hw.la_bits):
        return DONE_GP
    v.c.ops[acc] += 1
    v.tlb.c.lookups[v.tlb.port[acc].l1.id] += 1
    value = tlb_l1(v.tlb, acc, la)
    if value and not v.need[who][acc] & ~value:
        hpa = tlb_pa(value, la)
    else:
        outcome = vcpu_slow(v, la, acc, who, value, &hpa)
        if outcome:
            return outcome
    if hpa & ~0xFFFULL == apic_page:
        return access_data(p, la, acc, who, size, False, NULL)
    if (la & 0xFFF) + size > 0x1000:
        la = linear(p, (la | 0xFFF) + 1)
        if not reachable(la, v.hw.la_bits):
            return DONE_GP
        v.c.page_crossings += 1
        return vcpu_access(v, la, acc, who, &hpa)
    return DONE_OK


cdef int guest_run(Processor *p) noexcept nogil:
    cdef Vcpu *v = &p.cpu
    cdef int outcome, o
    cdef int who = BY_USER if p.cpl == 3 else BY_SUPERVISOR
    cdef uint64_t apic_page = v.vmcs.apic_access_address if p.apic.accesses else ONES
    tlb_switch(v.tlb, vcpu_vpid(v), v.hw.pcid, vcpu_eptrta(v))     # another processor may share it
    outcome = boundary(p)
    while not outcome and p.i < p.pause:
        o = p.op[p.i]
        p.executing = True
        if o <= LAST_ACCESS and p.data == NULL:
            outcome = plain_access(p, o, p.size[p.i], p.addr[p.i], who, apic_page)
        else:
            outcome = operate(p, o, p.size[p.i], p.addr[p.i], NULL if p.data == NULL else p.data + p.i)
            who = BY_USER if p.cpl == 3 else BY_SUPERVISOR
            p.complete = False
        if outcome:
            break
        p.i += 1
        if p.attention:
            outcome = behind(p)
    if outcome == DONE_PF:
        event_delivered(p, VALID | INFO_EXCEPTION | INFO_CODE | VECTOR_PF, v.error_code, v.cr2)
        return RUN_EVENT
    if outcome == DONE_GP:
        outcome = protection(p)
    if outcome == DONE_EVENT:
        return RUN_EVENT
    if outcome == DONE_OK:
        p.executing = False
        return RUN_ALL
    return RUN_EXIT if processor_left(p) else <int> RUN_STOP

"""The event loop: a trace on a virtual CPU, with the guest kernel under it.

    trace ──► run_events ──► first-level TLB ──miss──► vcpu_slow ──► walk
                  │                                      │ exit
                  ├── #PF ──► guest kernel               └──► handler: KVM's, or a Python policy's
                  └── system events ──► guest kernel, VM exits
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.ops cimport (
    FIRST_OF_APIC, LAST_ACCESS, LAST_OF_APIC, OP_COLLAPSE, OP_DEVICE_INTERRUPT, OP_EXIT, OP_FORK, OP_INTERRUPT,
    OP_INTERRUPT_FLAG, OP_INVLPG, OP_MADVISE_HUGE, OP_MADVISE_NOHUGE, OP_MUNMAP, OP_PLACE, OP_PROTECT, OP_SWITCH,
    OP_UNMAP,
)
from fastmmu.arch.pferr cimport PF_P
from fastmmu.arch.registers cimport RULE_INJECTED, RULE_NONE
from fastmmu.arch.types cimport FAULT_PF, Walk
from fastmmu.arch.vmx cimport EXIT_CPUID, VMX_REASONS, clear_exit_information
from fastmmu.cache.sets cimport seldom
from fastmmu.cpu.apic_access cimport irq_boundary, irq_due, irq_event
from fastmmu.cpu.control cimport vcpu_invlpg
from fastmmu.cpu.exit_log cimport exit_log_done, exit_log_events
from fastmmu.cpu.interrupts cimport irq_left, irq_pass, irq_waits
from fastmmu.cpu.quick cimport vcpu_quick
from fastmmu.cpu.vcpu cimport (
    ABORT_ADDRESS, ABORT_APIC, ABORT_APIC_ADDR, ABORT_APIC_GP, ABORT_APIC_PF, ABORT_BUS, ABORT_GUEST_FAULT,
    ABORT_INJECTED, ABORT_NO_PROGRESS, ABORT_OP, ABORT_VECTOR, ACT_ABORT, ACT_EMULATED, ACT_RETRY, BY_USER,
    DONE_ABORT, DONE_EMULATED, DONE_GP, DONE_OK, DONE_PF, MAX_RETRIES, Vcpu, vcpu_abort, vcpu_access, vcpu_exit,
    vcpu_interrupt, vcpu_slow,
)
from fastmmu.kvm.faults cimport kvm_premap
from fastmmu.machine.events_cached cimport access_cached, run_held_cached
from fastmmu.machine.guest_kernel cimport (
    kernel_collapse, kernel_fork, kernel_page_fault, kernel_place, kernel_switch, kernel_unmap,
)
from fastmmu.machine.guest_ranges cimport RANGE_READ_ONLY, RANGE_UNMAP, RANGE_WRITABLE, ranges_change
from fastmmu.machine.kernel_state cimport GuestKernel
from fastmmu.machine.op_counts cimport count_ops
from fastmmu.machine.thp cimport thp_advise, thp_scan
from fastmmu.mmu.direct cimport RET_PF_EMULATE, RET_PF_INJECT
from fastmmu.paging.quick_walk cimport Quick, quick_begin
from fastmmu.tlb.held cimport MISSED, Held, held_begin, held_first, held_second
from fastmmu.tlb.lookup cimport tlb_l1, tlb_pa

cdef uint64_t NO_ADDRESS = ~(<uint64_t> 0)


cdef int demand_page(Run *m, uint64_t la, int acc, int outcome, uint64_t *hpa) noexcept nogil:
    # what the guest kernel does about a fault of the program, and the access again
    cdef int tries = 0
    while outcome == DONE_PF:
        if m.kernel == NULL or tries > 4:
            return vcpu_abort(&m.vcpu.cpu, ABORT_GUEST_FAULT, la)
        m.vcpu.cpu.rule = RULE_NONE
        if kernel_page_fault(m.kernel, m.vcpu.cpu.cr2, m.vcpu.cpu.error_code):
            if m.vcpu.cpu.rule == RULE_INJECTED:    # into an access of the guest kernel's
                return vcpu_abort(&m.vcpu.cpu, ABORT_INJECTED, 0)
            return vcpu_abort(&m.vcpu.cpu, ABORT_GUEST_FAULT, la)
        tries += 1
        m.vcpu.cpu.c.retries += 1
        outcome = vcpu_access(&m.vcpu.cpu, la, acc, True, hpa)
    if outcome == DONE_GP:                      # of an address of the lower half
        return vcpu_abort(&m.vcpu.cpu, ABORT_INJECTED, la)
    return outcome


cdef int second_page(Run *m, uint64_t first, uint64_t second, int acc, uint64_t *at) noexcept nogil:
    # Of an access to two pages, the first of which is there. A fault or VM exit on one of them begins the instruction
    # anew (SDM vol. 3, "Faults"; cpu/access.pyx): the other is looked up again, as what was cached of it may have gone.
    # at: host-physical address of the second
    cdef Vcpu *v = &m.vcpu.cpu
    cdef uint64_t la = second, hpa = 0, faults
    cdef int outcome, _
    for _ in range(MAX_RETRIES + 1):
        faults = v.c.vm_exits + v.c.guest_faults
        outcome = vcpu_access(v, la, acc, True, &hpa)
        if outcome > DONE_EMULATED:
            outcome = demand_page(m, la, acc, outcome, &hpa)
        if la == second:
            at[0] = hpa
        if outcome != DONE_OK or v.c.vm_exits + v.c.guest_faults == faults:
            return outcome                      # what the VMM completes it does on both pages
        la = first if la == second else second
        v.c.retries += 1
    return vcpu_abort(v, ABORT_NO_PROGRESS, first)


cdef int answered(Vcpu *v, int outcome) noexcept nogil:
    # nothing answers a fault of the guest kernel's own
    if outcome != DONE_OK and v.rule == RULE_INJECTED:
        return vcpu_abort(v, ABORT_INJECTED, 0)
    return vcpu_abort(v, ABORT_GUEST_FAULT, v.cr2) if outcome == DONE_PF or outcome == DONE_GP else outcome


cdef int memory_event(GuestKernel *k, int op, uint64_t addr) noexcept nogil:
    if op == OP_FORK:
        return kernel_fork(k, addr)
    if op == OP_COLLAPSE:
        return kernel_collapse(k, addr)
    if op > OP_COLLAPSE:
        return thp_advise(k, op == OP_MADVISE_HUGE, addr)
    return ranges_change(k, RANGE_UNMAP if op == OP_MUNMAP else RANGE_READ_ONLY if op == OP_PROTECT else RANGE_WRITABLE,
                         addr)


cdef int system_event(Run *m, int op, int size, uint64_t addr) noexcept nogil:
    cdef int outcome
    m.vcpu.cpu.rule = RULE_NONE
    if op == OP_SWITCH:
        return answered(&m.vcpu.cpu, kernel_switch(m.kernel, addr))
    if op == OP_INVLPG:
        return answered(&m.vcpu.cpu, vcpu_invlpg(&m.vcpu.cpu, addr))
    if op == OP_UNMAP:
        m.c.unmaps += 1
        # premapped tables stand from the first access to the last
        return DONE_OK if m.vcpu.cpu.premap != NULL else answered(&m.vcpu.cpu, kernel_unmap(m.kernel, addr))
    if op == OP_PLACE:
        return answered(&m.vcpu.cpu, kernel_place(m.kernel, size, addr))
    if op == OP_EXIT:
        return exit_instruction(m, addr)
    if op == OP_INTERRUPT:
        return vcpu_abort(&m.vcpu.cpu, ABORT_VECTOR, addr) if addr > 255 else vcpu_interrupt(&m.vcpu.cpu)
    if FIRST_OF_APIC <= op <= LAST_OF_APIC and m.vcpu.irq != NULL:
        if (op == OP_DEVICE_INTERRUPT and addr >> 9) or (op == OP_INTERRUPT_FLAG and addr >> 1):
            return vcpu_abort(&m.vcpu.cpu, ABORT_APIC_ADDR, addr)
        outcome = irq_event(m.vcpu.irq, op, addr)
        if outcome == DONE_GP:
            return vcpu_abort(&m.vcpu.cpu, ABORT_APIC_GP, m.vcpu.cpu.store_value)
        return vcpu_abort(&m.vcpu.cpu, ABORT_APIC_PF, m.vcpu.cpu.cr2) if outcome == DONE_PF else outcome
    if OP_MUNMAP <= op <= OP_MADVISE_NOHUGE:
        return DONE_OK if m.vcpu.cpu.premap != NULL else answered(&m.vcpu.cpu, memory_event(m.kernel, op, addr))
    return vcpu_abort(&m.vcpu.cpu, ABORT_APIC if FIRST_OF_APIC <= op <= LAST_OF_APIC else ABORT_OP, op)


cdef int exit_instruction(Run *m, uint64_t reason) noexcept nogil:
    # an instruction that exits unconditionally; without a VMM it is just executed
    cdef int action
    if reason >= VMX_REASONS:
        return vcpu_abort(&m.vcpu.cpu, ABORT_OP, reason)
    m.c.exit_instructions += 1
    if m.vcpu.cpu.guest:
        clear_exit_information(&m.vcpu.cpu.vmcs)
        m.vcpu.cpu.event = True
        action = vcpu_exit(&m.vcpu.cpu, reason)
        m.vcpu.cpu.event = False
        if action == ACT_ABORT:
            return DONE_ABORT
        if m.vcpu.irq != NULL:                       # the handler of the exit can have asked for an interrupt
            return irq_boundary(m.vcpu.irq)
    return DONE_OK


cdef inline void elapse(Run *m, uint64_t accesses) noexcept nogil:
    # so many were made since the last time; not more than next_stop said
    if m.until_exit:
        m.until_exit -= accesses
    if m.kernel.thp.scan_every:
        m.kernel.thp.scan_left -= accesses
    if m.vcpu.irq != NULL:
        irq_pass(m.vcpu.irq, accesses)


cdef inline uint64_t next_stop(const Run *m) noexcept nogil:
    # accesses until something is due: a periodic exit, khugepaged, the timer, the end of a handler; 0: nothing is
    cdef uint64_t stop = m.until_exit, left
    if m.kernel.thp.scan_every and (not stop or m.kernel.thp.scan_left < stop):
        stop = m.kernel.thp.scan_left
    if m.vcpu.irq != NULL:
        left = irq_left(m.vcpu.irq)
        if left and (not stop or left < stop):
            return left
    return stop


cdef int due(Run *m) noexcept nogil:
    if m.kernel.thp.scan_every and not m.kernel.thp.scan_left:
        m.vcpu.cpu.rule = RULE_NONE
        if answered(&m.vcpu.cpu, thp_scan(m.kernel)):
            return DONE_ABORT
    if m.exit_every and not m.until_exit:
        m.until_exit = m.exit_every
        if exit_instruction(m, EXIT_CPUID):
            return DONE_ABORT
    return irq_due(m.vcpu.irq) if m.vcpu.irq != NULL else <int> DONE_OK


cdef uint64_t run_held(Vcpu *v, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t i, uint64_t end,
                       uint64_t *out, uint64_t guest_base, uint64_t *found) noexcept nogil:
    # the accesses from event i on that the TLB holds and allows; the first event that is none of these, or the end.
    # found: MISSED where neither level holds it, 0 where that has still to be seen
    cdef Held h[LAST_ACCESS + 1]
    cdef Quick q
    cdef uint64_t need[LAST_ACCESS + 1]
    cdef uint64_t la, value
    cdef int o
    found[0] = 0
    for o in range(LAST_ACCESS + 1):
        held_begin(&h[o], v.tlb, o, True)
        need[o] = v.need[<int> BY_USER][o]
    quick_begin(&q, v.mem, &v.hw, &v.ept if v.ept_on else NULL, v.tlb)
    while i < end:
        o = op[i]
        la = addr[i]
        if o > LAST_ACCESS or la >> 47 or (la & 0xFFF) + size[i] > 0x1000:
            break
        value = held_first(&h[o], la)
        if not value:
            value = held_second(v.tlb, &h[o], la)
        if need[o] & ~value:            # some of it where the value is 0 or MISSED
            if value == MISSED and q.on:
                value = vcpu_quick(v, &q, la, o)
            if value == MISSED or need[o] & ~value:
                found[0] = value & MISSED
                break
        if out != NULL:
            out[i] = tlb_pa(value, la) - guest_base
        i += 1
    return i


cdef uint64_t run_events(Run *m, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                         uint64_t *out) noexcept nogil:
    # events done; fewer than n where m.vcpu.cpu.abort says why. out: guest-physical address of each access, or NULL.
    # Counts of operations and of first-level lookups are added afterwards: they would cost a store each.
    cdef Vcpu *v = &m.vcpu.cpu
    cdef uint64_t i = 0, la, value, hpa = 0, until = next_stop(m), begun = 0, others = 0, told = 0, first
    cdef uint64_t found = 0
    cdef int outcome, o
    cdef uint64_t *need = v.need[<int> BY_USER]
    if v.log != NULL:
        exit_log_events(v.log, op, 1, addr, 8, m.first, n, False)
    while i < n:
        if v.detector == NULL and op[i] <= LAST_ACCESS:     # the detector looks at each access
            first = i
            if not seldom(v.caches != NULL):
                i = run_held(v, op, size, addr, i, min(n, i + until - 1) if until else n, out, m.guest_base, &found)
            else:
                i = run_held_cached(v, op, size, addr, i, min(n, i + until - 1) if until else n, out, m.guest_base,
                                    &found)
            if until:
                until -= i - first
            if i == n:
                break
        o = op[i]
        la = addr[i]
        if o > LAST_ACCESS:
            if m.vcpu.irq != NULL:
                elapse(m, i - others - told)
                told = i - others
            v.now = m.first + i
            if system_event(m, o, size[i], la):
                break
            others += 1
            if m.vcpu.irq != NULL:
                until = next_stop(m)
            if out != NULL:
                out[i] = NO_ADDRESS
            i += 1
            continue
        if la >> 47:
            vcpu_abort(v, ABORT_ADDRESS, la)
            break
        value = found if found else tlb_l1(v.tlb, o, la)
        if not value or need[o] & ~value:
            v.now = m.first + i
            if m.vcpu.irq != NULL:
                elapse(m, i - others - told)
                told = i - others
            outcome = vcpu_slow(v, la, o, True, value, &hpa)
            if outcome > DONE_EMULATED:
                outcome = demand_page(m, la, o, outcome, &hpa)
                if outcome > DONE_EMULATED:
                    begun = 1
                    break
            if out != NULL:
                out[i] = hpa - m.guest_base if outcome == DONE_OK else NO_ADDRESS
            if seldom(v.caches != NULL) and outcome == DONE_OK:
                access_cached(v, hpa, la, size[i], o)
            if m.vcpu.irq != NULL and irq_waits(m.vcpu.irq):
                until = 1                       # it is due after this access
        else:
            if out != NULL:
                out[i] = tlb_pa(value, la) - m.guest_base
            if seldom(v.caches != NULL):
                access_cached(v, tlb_pa(value, la), la, size[i], o)
        if (la & 0xFFF) + size[i] > 0x1000:
            la = (la | 0xFFF) + 1
            if la >> 47:
                vcpu_abort(v, ABORT_ADDRESS, la)
                begun = 1
                break
            v.c.page_crossings += 1
            v.now = m.first + i
            outcome = second_page(m, addr[i], la, o, &hpa)
            if outcome > DONE_EMULATED:
                begun = 1
                break
            if seldom(v.caches != NULL) and outcome == DONE_OK:
                access_cached(v, hpa, la, <uint32_t> (addr[i] + size[i] - la), o)
        if until:
            until -= 1
            if not until:
                elapse(m, i + 1 - others - told)
                told = i + 1 - others
                v.now = m.first + i
                if due(m):
                    begun = 1
                    break
                until = next_stop(m)
        i += 1
    elapse(m, max(told, i - others) - told)     # without an access that ended the run
    m.clock[0] += max(told, i - others)
    count_accesses(m, op, i + begun)        # one that was looked up counts, even if it ended the run
    if v.log != NULL:
        exit_log_done(v.log, i)
    return i


cdef void count_accesses(Run *m, const uint8_t *op, uint64_t n) noexcept nogil:
    cdef uint64_t found[LAST_ACCESS + 1]
    cdef int k
    count_ops(op, n, found)
    for k in range(LAST_ACCESS + 1):
        m.vcpu.cpu.c.ops[k] += found[k]
        m.vcpu.cpu.tlb.c.lookups[m.vcpu.cpu.tlb.port[k].l1.id] += found[k]


cdef int premap(Vcpu *v, uint64_t la, int fault, const Walk *w) noexcept nogil:
    # map what a premapped run finds in place, without a trace of it in the counters
    cdef Run *m = to_run(v)
    cdef int result = RET_PF_INJECT, outcome
    if m.vcpu.cpu.guest:
        result = kvm_premap(&m.vcpu, la, w)
    elif fault != FAULT_PF:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return ACT_ABORT
    if result == RET_PF_INJECT:
        m.kernel.silent = True
        outcome = kernel_page_fault(m.kernel, la, w.error_code & ~<uint32_t> PF_P)
        m.kernel.silent = False
        return ACT_ABORT if outcome else ACT_RETRY
    return ACT_ABORT if result < 0 else ACT_EMULATED if result == RET_PF_EMULATE else ACT_RETRY

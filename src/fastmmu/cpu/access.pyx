"""A guest's access to data, of known size.

    la ──► each page that it touches: TLB, walk, faults, VM exits ──► host-physical
                  │ completed by the VMM                                   │
                  ▼                               APIC-access page? ──► virtualized │ VM exit (apic.md §4)
             what it read                                 no ──► memory

What lies on two pages is translated for both before anything is stored: a VM exit on one of them begins the instruction
anew, so that what the VMM took from the other meanwhile (a dirty log that was read) is asked for again. On the
APIC-access page such an access is never virtualized; it exits with the first offset there, and the VMM that emulates it
does its other part, too.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.registers cimport RULE_INJECTED
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X
from fastmmu.arch.vmx cimport clear_exit_information
from fastmmu.cache.hierarchy cimport caches_touch
from fastmmu.cache.sets cimport seldom
from fastmmu.cpu.apic cimport APIC_ICR_LOW
from fastmmu.cpu.stale cimport stale_stored
from fastmmu.cpu.vapic cimport (
    LINEAR_FETCH, VAPIC_DONE, VAPIC_TRAP, Vapic, vapic_modify, vapic_other, vapic_read, vapic_write,
)
from fastmmu.cpu.vcpu cimport (
    ABORT_NO_PROGRESS, ACT_ABORT, ACT_INJECT_GP, ACT_INJECT_PF, ACT_RETRY, DONE_ABORT, DONE_EMULATED, DONE_GP, DONE_OK,
    DONE_PF, MAX_RETRIES, Vcpu, cause_of, vcpu_abort, vcpu_access, vcpu_exit,
)
from fastmmu.paging.memory cimport mem_holds

cdef struct Part:               # of an access, on one page
    uint64_t la
    uint32_t first, n           # bytes of the access
    uint64_t hpa
    bint there                  # hpa holds; else the VMM completed it
    bint known                  # what it loaded


cdef void data_begin(Data *d, uint64_t la, int acc, int user, uint32_t size) noexcept nogil:
    memset(d, 0, sizeof(Data))
    d.la = la
    d.acc = acc
    d.user = user
    d.size = size
    d.sent = -1


cdef void data_store(Data *d, uint64_t la, int user, uint32_t size, uint64_t value) noexcept nogil:
    data_begin(d, la, ACC_W, user, size)
    d.moves = True
    memcpy(&d.bytes[0], &value, 8)


cdef uint64_t data_value(const Data *d) noexcept nogil:
    cdef uint64_t value = 0
    memcpy(&value, &d.bytes[0], min(d.size, 8))
    return value


cdef void announce(Vcpu *v, const Data *d, const Part *p) noexcept nogil:
    # what the VMM finds if it has to emulate the access
    v.access_la = p.la
    v.access = d.acc
    v.access_bytes = p.n
    v.loaded = 0
    v.store_bytes = 0
    v.store_value = v.store_high = 0
    if d.moves and d.acc != ACC_R:
        v.store_bytes = p.n
        memcpy(&v.store_value, &d.bytes[p.first], min(p.n, 8))
        if p.n > 8:
            memcpy(&v.store_high, &d.bytes[p.first + 8], p.n - 8)


cdef void completed(const Vcpu *v, Data *d, Part *p) noexcept nogil:
    # what the VMM read
    p.known = v.loaded >= p.n
    if p.known:
        memcpy(&d.bytes[p.first], &v.load_value, min(p.n, 8))
        if p.n > 8:
            memcpy(&d.bytes[p.first + 8], &v.load_high, p.n - 8)


cdef inline void over(Vcpu *v) noexcept nogil:
    v.store_bytes = v.access_bytes = 0


cdef int translate(Vcpu *v, Data *d, Part *p) noexcept nogil:
    cdef int outcome
    announce(v, d, p)
    outcome = vcpu_access(v, p.la, d.acc, d.user, &p.hpa)
    p.there = outcome == DONE_OK
    if outcome == DONE_EMULATED:
        if p.first == 0:
            d.emulated = v.emulated
        completed(v, d, p)
    over(v)
    return outcome


cdef int translate_all(Vcpu *v, Data *d, Part *part, int n, int *first) noexcept nogil:
    # DONE_OK, or what ends the access; first: of the first page. What the VMM completes it does on both by itself.
    cdef uint64_t exits
    cdef int outcome, i = 0, _
    first[0] = outcome = translate(v, d, &part[0])
    if n == 1 or outcome > DONE_EMULATED:
        return outcome if outcome > DONE_EMULATED else <int> DONE_OK
    for _ in range(MAX_RETRIES + 1):
        i = 1 - i
        exits = v.c.vm_exits
        outcome = translate(v, d, &part[i])
        if outcome > DONE_EMULATED:
            return outcome
        if i == 0:
            first[0] = outcome
        if v.c.vm_exits == exits or not part[0].there or not part[1].there:
            return DONE_OK
    return vcpu_abort(v, ABORT_NO_PROGRESS, d.la)


cdef inline bint virtual_page(const Vcpu *v, uint64_t hpa) noexcept nogil:
    return (v.guest and v.apic != NULL and v.apic.accesses
            and hpa & ~(<uint64_t> 0xFFF) == v.vmcs.apic_access_address)


cdef void move(Vcpu *v, Data *d, Part *p) noexcept nogil:
    # between the access and memory
    cdef uint64_t at
    if seldom(v.caches != NULL) and p.there and not virtual_page(v, p.hpa):
        caches_touch(v.caches, p.hpa, p.n, d.acc, cause_of(d.acc))
    if not d.moves or not p.there or virtual_page(v, p.hpa) or not mem_holds(v.mem, p.hpa, p.n):
        return
    if d.acc == ACC_R:
        memcpy(&d.bytes[p.first], v.mem.base + p.hpa, p.n)
        p.known = True
        return
    memcpy(v.mem.base + p.hpa, &d.bytes[p.first], p.n)
    if v.detector != NULL:
        for at in range(p.hpa & ~(<uint64_t> 7), p.hpa + p.n, 8):
            stale_stored(v.detector, at, v.now)


cdef int virtualize(Vapic *a, Data *d, Part *p) noexcept nogil:
    # the processor's part, a VapicOutcome; what crosses is in no register that it virtualizes
    cdef uint64_t value = data_value(d) if d.moves else 0
    cdef uint32_t offset = p.hpa & 0xFFF
    cdef int outcome
    if d.acc == ACC_X:
        return vapic_other(a, offset, LINEAR_FETCH)
    if d.acc == ACC_W:
        outcome = vapic_write(a, offset, d.size, value, False)
    else:
        outcome = vapic_read(a, offset, d.size, False)
        if d.acc == ACC_RW:
            outcome = vapic_modify(a, offset, d.size, a.data if outcome == VAPIC_DONE else 0)
        if outcome == VAPIC_DONE or outcome == VAPIC_TRAP:
            memcpy(&d.bytes[0], &a.data, 8)
            p.known = True
    if outcome == VAPIC_DONE and d.acc != ACC_R and offset == APIC_ICR_LOW:
        d.sent = a.page[<int> APIC_ICR_LOW]
    return outcome


cdef int on_page(Vcpu *v, Data *d, Part *p, int *action) noexcept nogil:
    # part p is on the APIC-access page. DONE_OK: the processor has done the access; DONE_EMULATED: the VMM was asked,
    # and said `action`
    cdef int outcome = virtualize(v.apic, d, p)
    d.apic = True
    if outcome == VAPIC_DONE:
        return DONE_OK
    announce(v, d, p)
    clear_exit_information(&v.vmcs)
    v.vmcs.exit_qualification = v.apic.qualification
    v.vmcs.operand = v.store_value
    action[0] = vcpu_exit(v, v.apic.reason)
    if p.first == 0:
        d.emulated = v.emulated
    if outcome != VAPIC_TRAP:
        completed(v, d, p)
    over(v)
    if action[0] == ACT_ABORT:
        return DONE_ABORT
    return DONE_OK if outcome == VAPIC_TRAP else DONE_EMULATED


cdef int data_access(Vcpu *v, Data *d) noexcept nogil:
    cdef Part part[2]
    cdef int outcome = DONE_OK, first = DONE_OK, action = ACT_RETRY, i, _, n
    memset(part, 0, sizeof(part))
    part[0].la = d.la
    part[0].n = min(d.size, 0x1000 - <uint32_t> (d.la & 0xFFF))
    part[1].la = (d.la | 0xFFF) + 1
    part[1].first = part[0].n
    part[1].n = d.size - part[0].n
    n = 2 if part[1].n else 1
    for _ in range(MAX_RETRIES + 1):
        d.emulated = ONES
        outcome = translate_all(v, d, part, n, &first)
        if outcome != DONE_OK:
            return outcome
        d.hpa = part[0].hpa
        for i in range(n):
            if part[i].there and virtual_page(v, part[i].hpa):
                break
        else:
            i = -1
        if i >= 0:
            outcome = on_page(v, d, &part[i], &action)
            if outcome == DONE_ABORT:
                return outcome
            if outcome == DONE_EMULATED and action == ACT_RETRY:
                continue
            if outcome == DONE_EMULATED and action == ACT_INJECT_PF:
                v.c.guest_faults += 1
                return DONE_PF
            if outcome == DONE_EMULATED and action == ACT_INJECT_GP:
                v.rule = RULE_INJECTED
                return DONE_GP
            if i == 0:
                first = outcome
        for i in range(n):
            move(v, d, &part[i])
        d.known = part[0].known and (n == 1 or part[1].known)
        return first
    return vcpu_abort(v, ABORT_NO_PROGRESS, d.la)

"""The loop over the records of a system trace.

    record ──► first-level TLB ──miss──► vcpu_slow ──► walk of the guest's own tables
       │                                     │ #PF, VM exit
       ├── the physical address, the #PF: compared with the record
       └── stores to page tables go into simulated memory; registers and invalidations to the vCPU

Of several CPUs: system_judged.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.types cimport ACC_X
from fastmmu.arch.vmx cimport VECTOR_PF
from fastmmu.cpu.control cimport (
    vcpu_invlpg, vcpu_invpcid, vcpu_mov_cr0, vcpu_mov_cr3, vcpu_mov_cr4, vcpu_wrmsr_efer,
)
from fastmmu.cpu.exit_log cimport exit_log_done, exit_log_events
from fastmmu.cpu.vcpu cimport (
    DONE_ABORT, DONE_EMULATED, DONE_OK, DONE_PF, Vcpu, vcpu_access, vcpu_interrupt, vcpu_set_pkru, vcpu_slow,
)
from fastmmu.kvm.kvm cimport to_kvm_vcpu
from fastmmu.machine.events_cached cimport access_cached
from fastmmu.machine.records cimport (
    REC_CPU, REC_CR0, REC_CR3, REC_CR4, REC_DATA, REC_EFER, REC_EXCEPTION, REC_INITIAL, REC_INTERRUPT, REC_INVLPG,
    REC_INVPCID, REC_IPI, REC_PKRU, REC_TABLE, REC_WALK, REC_X, record_fault,
)
from fastmmu.mmu.sync cimport guest_wrote
from fastmmu.paging.guest cimport canonical
from fastmmu.paging.memory cimport mem_holds
from fastmmu.tlb.lookup cimport tlb_l1, tlb_pa


cdef void differs(Replay *p, uint64_t record, int kind, uint64_t expected, uint64_t got) noexcept nogil:
    cdef Mismatch *m
    if p.found < EXAMPLES:
        m = &p.example[p.found]
        m.record = record
        m.kind = kind
        m.expected = expected
        m.got = got
    p.found += 1
    p.differences[kind] += 1


cdef int access(Replay *p, uint64_t record, const Record *r, const uint64_t *data, uint64_t n_data) noexcept nogil:
    cdef Vcpu *v = p.v
    cdef int acc = r.op, outcome = DONE_OK, user = who(p, r, r.cpl == 3)
    cdef uint64_t value = 0, got = 0, stored = 0
    if r.flags & REC_DATA:
        if p.data_at == n_data:
            return STOP_DATA
        stored = data[p.data_at]
        p.data_at += 1
        v.store_bytes = r.size
        v.store_value = stored
    v.c.ops[acc] += 1
    v.tlb.c.lookups[v.tlb.port[acc].l1.id] += 1
    value = tlb_l1(v.tlb, acc, r.lin)
    if value and not v.need[user][acc] & ~value:
        got = tlb_pa(value, r.lin) - p.guest_base
    else:
        v.access_bytes = r.size if acc != ACC_X else 0
        outcome = vcpu_slow(v, r.lin, acc, user, value, &got)
        v.access_bytes = 0
        got = v.emulated if outcome == DONE_EMULATED else got - p.guest_base
    if v.caches != NULL and outcome == DONE_OK:
        access_cached(v, got + p.guest_base, r.lin, r.size, acc)
    v.store_bytes = 0
    if outcome == DONE_ABORT:
        return STOP_ABORT
    if outcome == DONE_PF:
        differs(p, record, DIFF_FAULTED, r.val, v.error_code)
    elif outcome > DONE_EMULATED:
        return STOP_ADDRESS
    elif got != r.val:
        differs(p, record, DIFF_ADDRESS, r.val, got)
    if r.flags & REC_DATA:
        return store(p, r, stored, r.val)
    return STOP_NONE


cdef int page_fault(Replay *p, uint64_t record, const Record *r) noexcept nogil:
    # the access that the error code and CR2 tell of, which has no record of its own
    cdef int acc = fault_access(r), user = fault_user(p, r)
    cdef uint64_t hpa = 0
    cdef int outcome = vcpu_access(p.v, r.lin, acc, user, &hpa)
    p.faults += 1
    if outcome == DONE_ABORT:
        return STOP_ABORT
    if outcome == DONE_OK or outcome == DONE_EMULATED:
        differs(p, record, DIFF_NO_FAULT, r.aux, 0)
    elif outcome != DONE_PF:
        return STOP_ADDRESS
    elif p.v.error_code != r.aux or p.v.cr2 != r.lin:
        differs(p, record, DIFF_FAULT, r.aux, p.v.error_code)
    return STOP_NONE


cdef int walk_alone(Replay *p, uint64_t record, const Record *r) noexcept nogil:
    # of one CPU: a walk that set A and D, and no access
    cdef uint64_t hpa = 0
    cdef int outcome = vcpu_access(p.v, r.lin, r.size, who(p, r, r.cpl == 3), &hpa)
    p.walks += 1
    if outcome == DONE_ABORT or outcome > DONE_PF:
        return STOP_ABORT if outcome == DONE_ABORT else STOP_ADDRESS
    if outcome == DONE_PF:
        differs(p, record, DIFF_FAULTED, r.val, p.v.error_code)
    elif outcome == DONE_OK and hpa - p.guest_base != r.val:
        differs(p, record, DIFF_ADDRESS, r.val, hpa - p.guest_base)
    return STOP_NONE


cdef int other(Replay *p, uint64_t record, const Record *r, const uint8_t *pages, uint64_t n_pages) noexcept nogil:
    cdef Vcpu *v = p.v
    cdef int op = r.op
    if record_fault(r):
        return STOP_RECORD
    if op == REC_EXCEPTION:
        if r.size != VECTOR_PF:
            return STOP_NONE
        return page_fault(p, record, r) if canonical(r.lin, v.hw.la_bits) else STOP_ADDRESS
    if op == REC_TABLE:
        if p.page_at == n_pages:
            return STOP_DATA
        if not mem_holds(&p.guest, r.val, 4096):
            return STOP_TABLE
        memcpy(p.guest.base + r.val, pages + 4096 * p.page_at, 4096)
        p.page_at += 1
        p.tables += 1
        p.t.changes += 1
        if v.guest:             # what the guest wrote before, unseen by the trace
            guest_wrote(&to_kvm_vcpu(v).kvm.mmu, r.val, 4096)
        return STOP_NONE
    if r.flags & REC_INITIAL:
        return STOP_NONE
    if op == REC_CPU:
        return STOP_CPU
    if op == REC_WALK:
        return walk_alone(p, record, r) if canonical(r.lin, v.hw.la_bits) else STOP_ADDRESS
    if op == REC_IPI:
        p.ipis += 1
        return STOP_NONE
    if op == REC_CR3:
        return STOP_ABORT if not p.omit & OMIT_CR3 and vcpu_mov_cr3(v, r.val) != DONE_OK else STOP_NONE
    if op == REC_INVLPG:
        return STOP_ABORT if vcpu_invlpg(v, r.lin) != DONE_OK else STOP_NONE
    if op == REC_INVPCID:
        if r.size == 0 and not canonical(r.lin, v.hw.la_bits):
            return STOP_ADDRESS
        return STOP_ABORT if vcpu_invpcid(v, r.size, r.aux, r.lin) != DONE_OK else STOP_NONE
    if op == REC_PKRU:
        p.pkru = r.val
        vcpu_set_pkru(v, p.pkru if p.keys else 0)
        return STOP_NONE
    if op == REC_INTERRUPT:
        return STOP_ABORT if vcpu_interrupt(v) != DONE_OK else STOP_NONE
    if op == REC_CR0 or op == REC_CR4 or op == REC_EFER:
        return STOP_REGISTER
    return STOP_NONE


cdef int replay_register(Vcpu *v, const Record *r) noexcept nogil:
    if r.op == REC_CR0:
        return vcpu_mov_cr0(v, r.val)
    return vcpu_mov_cr4(v, r.val) if r.op == REC_CR4 else vcpu_wrmsr_efer(v, r.val)


cdef uint64_t replay_records(Replay *p, uint64_t first, const Record *rows, uint64_t n, const uint64_t *data,
                             uint64_t n_data, const uint8_t *pages, uint64_t n_pages, int *stop) noexcept nogil:
    # records done; fewer than n where `stop` says why
    cdef uint64_t i
    cdef Record record          # the caller's may change meanwhile
    cdef const Record *r = &record
    if n and p.v.log != NULL:
        exit_log_events(p.v.log, &rows[0].op, sizeof(Record), &rows[0].lin, sizeof(Record), first, n, True)
    for i in range(n):
        record = rows[i]
        p.v.now = first + i
        if record_fault(r):
            stop[0] = STOP_RECORD
        elif r.op > REC_X:
            stop[0] = other(p, first + i, r, pages, n_pages)
        elif canonical(r.lin, p.v.hw.la_bits):
            stop[0] = access(p, first + i, r, data, n_data)
        else:
            stop[0] = STOP_ADDRESS
        if stop[0]:
            break
    else:
        i = n
    if p.v.log != NULL:
        exit_log_done(p.v.log, i)
    return i

"""The loop over the records of a system trace of several CPUs: what is done, and what the trace has, is compared with a
walk now and with what the CPU may still hold (cpu/may_hold.pxd). Header: machine/system_judged.pxd."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.pferr cimport PF_P
from fastmmu.arch.types cimport ACC_RW, ACC_W, ACC_X, FAULT_NONE, FAULT_PF
from fastmmu.arch.vmx cimport VECTOR_PF
from fastmmu.cpu.exit_log cimport exit_log_done, exit_log_events
from fastmmu.cpu.may_hold cimport (
    STANDS_HELD, STANDS_NOT, STANDS_NOW, may_hold_allows, may_hold_could, may_hold_cr3, may_hold_fault, may_hold_flags,
    may_hold_invlpg, may_hold_invpcid, may_hold_page_fault, may_hold_pkru, may_hold_used, tables_store,
)
from fastmmu.cpu.stale cimport Detector, stale_forgive
from fastmmu.cpu.vcpu cimport DONE_ABORT, DONE_EMULATED, DONE_OK, DONE_PF, Vcpu, vcpu_access, vcpu_slow
from fastmmu.machine.events_cached cimport access_cached
from fastmmu.machine.records cimport (
    REC_AC, REC_CR3, REC_DATA, REC_EXCEPTION, REC_INITIAL, REC_INVLPG, REC_INVPCID, REC_PKRU, REC_WALK, REC_WALKED,
    REC_X, access_fault, record_fault,
)
from fastmmu.machine.system_loop cimport (
    DIFF_ADDRESS, DIFF_FAULT, DIFF_FAULTED, DIFF_FLAGS, DIFF_NO_FAULT, HELD_BOTH, HELD_FAULT, HELD_HERE, HELD_NO_FAULT,
    HELD_TRACE, OMIT_STORES, STOP_ABORT, STOP_ADDRESS, STOP_DATA, STOP_NONE, STOP_RECORD, differs, fault_access,
    fault_user, other, store, who,
)
from fastmmu.paging.guest cimport canonical
from fastmmu.tlb.lookup cimport tlb_l1, tlb_pa


cdef void stood(Replay *p, int standing, int use) noexcept nogil:
    p.standing[standing] += 1
    if standing == STANDS_HELD:
        p.held[use] += 1


cdef void judge(Replay *p, uint64_t record, const Record *r, int acc, int user, int standing, int outcome,
                uint64_t got) noexcept nogil:
    # standing: of the address that the trace has. What was done here must be legal, too.
    cdef int here
    if outcome == DONE_PF:
        if standing == STANDS_HELD and p.h.w.fault == FAULT_PF and p.h.w.error_code == p.v.error_code:
            stood(p, STANDS_HELD, HELD_FAULT)
        else:
            stood(p, STANDS_NOT, 0)
            differs(p, record, DIFF_FAULTED, r.val, p.v.error_code)
        return
    if got == r.val:
        here = standing
    else:
        here = may_hold_could(p.h, r.lin, acc, user, got)
    if standing == STANDS_NOT or here == STANDS_NOT:
        stood(p, STANDS_NOT, 0)
        differs(p, record, DIFF_ADDRESS, r.val, got)
    elif here == STANDS_NOW:
        stood(p, standing, HELD_TRACE)
    else:
        stood(p, STANDS_HELD, HELD_BOTH if standing == STANDS_HELD else HELD_HERE)


cdef inline int carry_out(Replay *p, const Record *r, int acc, int user, uint64_t *got) noexcept nogil:
    # the access of a record: Outcome, and its guest-physical address
    cdef Vcpu *v = p.v
    cdef uint64_t value
    cdef int outcome = DONE_OK
    v.tlb.c.lookups[v.tlb.port[acc].l1.id] += 1
    value = tlb_l1(v.tlb, acc, r.lin)
    if value and not v.need[user][acc] & ~value:
        got[0] = tlb_pa(value, r.lin) - p.guest_base
    else:
        v.access_bytes = r.size if acc != ACC_X and r.op <= REC_X else 0
        outcome = vcpu_slow(v, r.lin, acc, user, value, got)
        v.access_bytes = 0
        got[0] = v.emulated if outcome == DONE_EMULATED else got[0] - p.guest_base
    v.store_bytes = 0
    return outcome


cdef int judged_access(Replay *p, uint64_t record, const Record *r, int acc, const uint64_t *data,
                       uint64_t n_data) noexcept nogil:
    # an access, or a walk alone
    cdef Vcpu *v = p.v
    cdef Detector *d = v.detector
    cdef int outcome, user = who(p, r, r.cpl == 3), standing
    cdef uint64_t got = 0, stored = 0, found = 0, wrong = p.found
    cdef bint pending = False, changes = False
    cdef int flags
    if r.flags & REC_DATA:
        if p.data_at == n_data:
            return STOP_DATA
        stored = data[p.data_at]
        p.data_at += 1
        v.store_bytes = r.size
        v.store_value = stored
        # before it is carried out here: a VMM that emulates it stores it, too
        if not p.omit & OMIT_STORES:
            changes = tables_store(&p.t, r.val, &stored, r.size)
    if d != NULL:               # before this use: of a write it makes the flag D be held
        found = d.found
        pending = may_hold_allows(p.h, r.lin, acc, user, r.flags & REC_AC != 0)
    standing = may_hold_used(p.h, r.lin, acc, user, r.flags & REC_AC != 0, r.val)
    if r.op == REC_WALK:
        p.walks += 1
    else:
        v.c.ops[acc] += 1
    outcome = carry_out(p, r, acc, user, &got)
    if v.caches != NULL and outcome == DONE_OK and r.op != REC_WALK:
        access_cached(v, got + p.guest_base, r.lin, r.size, acc)
    if outcome == DONE_ABORT:
        return STOP_ABORT
    if outcome > DONE_PF:
        return STOP_ADDRESS
    if standing == STANDS_NOW and outcome <= DONE_EMULATED and got == r.val:
        p.standing[<int> STANDS_NOW] += 1
    else:
        judge(p, record, r, acc, user, standing, outcome, got)
    if standing == STANDS_NOW and outcome <= DONE_EMULATED and (r.flags & REC_WALKED or r.op == REC_WALK):
        flags = may_hold_flags(p.h, r.lin, acc, user, r.flags & REC_AC != 0)
        p.flags += flags == STANDS_HELD
        if flags == STANDS_NOT:
            differs(p, record, DIFF_FLAGS, r.val, got)
    if d != NULL and d.found > found and pending and p.found == wrong:
        stale_forgive(d)
    if (acc == ACC_W or acc == ACC_RW) and p.written != NULL and outcome <= DONE_EMULATED and r.op != REC_WALK:
        if got >> 12 < p.n_written:
            p.written[got >> 12] = 1
    p.t.changes += changes
    if r.flags & REC_DATA:
        return store(p, r, stored, r.val)
    return STOP_NONE


cdef void judge_fault(Replay *p, uint64_t record, const Record *r, int acc, int user, int outcome) noexcept nogil:
    cdef int standing = may_hold_fault(p.h, r.lin, acc, user, r.flags & REC_AC != 0, r.aux)
    if standing == STANDS_NOT:
        stood(p, STANDS_NOT, 0)
        differs(p, record, DIFF_FAULT, r.aux, p.h.w.error_code if p.h.w.fault == FAULT_PF else 0)
    elif outcome == DONE_PF and p.v.error_code == r.aux and p.v.cr2 == r.lin:
        stood(p, standing, HELD_BOTH)
    elif (outcome == DONE_PF and standing == STANDS_HELD and p.h.w.fault == FAULT_PF
            and p.v.error_code == p.h.w.error_code):
        stood(p, standing, HELD_FAULT)
    elif outcome != DONE_PF and (may_hold_allows(p.h, r.lin, acc, user, r.flags & REC_AC != 0)
                                 or p.h.w.fault == FAULT_NONE):
        stood(p, STANDS_HELD, HELD_NO_FAULT)
    else:
        stood(p, STANDS_NOT, 0)
        differs(p, record, DIFF_FAULT if outcome == DONE_PF else DIFF_NO_FAULT, r.aux,
                p.v.error_code if outcome == DONE_PF else 0)
    # KVM's shadow tables keep what they hold where the guest's entry is not present (kvm_inject_emulated_page_fault)
    may_hold_page_fault(p.h, r.lin, outcome == DONE_PF and (p.v.ept_on or not p.v.guest or r.aux & PF_P != 0))


cdef int judged_page_fault(Replay *p, uint64_t record, const Record *r) noexcept nogil:
    cdef int acc = fault_access(r), user = fault_user(p, r), outcome
    cdef uint64_t hpa = 0, wrong = p.found, found = 0
    cdef Detector *d = p.v.detector
    if not canonical(r.lin, p.v.hw.la_bits):
        return STOP_ADDRESS
    if d != NULL:
        found = d.found
    outcome = vcpu_access(p.v, r.lin, acc, user, &hpa)
    p.faults += 1
    if outcome == DONE_ABORT:
        return STOP_ABORT
    if outcome > DONE_PF:
        return STOP_ADDRESS
    judge_fault(p, record, r, acc, user, outcome)
    if d != NULL and d.found > found and p.found == wrong:
        stale_forgive(d)
    return STOP_NONE


cdef int judged_other(Replay *p, uint64_t record, const Record *r, const uint8_t *pages,
                      uint64_t n_pages) noexcept nogil:
    # any other record: what it invalidates is not held any more, whatever is left out here
    cdef int stop
    if record_fault(r):
        return STOP_RECORD
    if r.op == REC_EXCEPTION and r.size == VECTOR_PF:
        return judged_page_fault(p, record, r)
    if r.op == REC_CR3 and not r.flags & REC_INITIAL:
        may_hold_cr3(p.h, r.val)
    elif r.op == REC_INVLPG:
        may_hold_invlpg(p.h, r.lin)
    elif r.op == REC_INVPCID:
        may_hold_invpcid(p.h, r.size, r.aux, r.lin)
    stop = other(p, record, r, pages, n_pages)
    if r.op == REC_PKRU:
        may_hold_pkru(p.h, p.pkru if p.keys else 0)
    return stop


cdef uint64_t judged_records(Replay *p, uint64_t first, const Record *rows, uint64_t n, const uint64_t *data,
                             uint64_t n_data, const uint8_t *pages, uint64_t n_pages, int *stop) noexcept nogil:
    # as replay_records
    cdef uint64_t i
    cdef Record record
    cdef const Record *r = &record
    if n and p.v.log != NULL:
        exit_log_events(p.v.log, &rows[0].op, sizeof(Record), &rows[0].lin, sizeof(Record), first, n, True)
    for i in range(n):
        record = rows[i]
        p.v.now = first + i
        if r.op > REC_X and r.op != REC_WALK:
            stop[0] = judged_other(p, first + i, r, pages, n_pages)
        elif access_fault(r) if r.op <= REC_X else record_fault(r):
            stop[0] = STOP_RECORD
        elif canonical(r.lin, p.v.hw.la_bits):
            stop[0] = judged_access(p, first + i, r, r.size if r.op == REC_WALK else r.op, data, n_data)
        else:
            stop[0] = STOP_ADDRESS
        if stop[0]:
            break
    else:
        i = n
    if p.v.log != NULL:
        exit_log_done(p.v.log, i)
    return i

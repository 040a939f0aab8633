"""The loop over the records of a system trace.

    record ──► first-level TLB ──miss──► vcpu_slow ──► walk of the guest's own tables
       │                                     │ #PF, VM exit
       ├── the physical address, the #PF: compared with the record
       ├── of several CPUs: where they differ, or a walk now differs, with what this CPU may still hold (MayHold)
       └── stores to page tables go into simulated memory; registers and invalidations to the vCPU
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.pferr cimport PF_ID, PF_P, PF_U, PF_W
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X, FAULT_NONE, FAULT_PF
from fastmmu.arch.vmx cimport VECTOR_PF
from fastmmu.cpu.control cimport (
    vcpu_invlpg, vcpu_invpcid, vcpu_mov_cr0, vcpu_mov_cr3, vcpu_mov_cr4, vcpu_wrmsr_efer,
)
from fastmmu.cpu.exit_log cimport exit_log_done, exit_log_events
from fastmmu.cpu.may_hold cimport (
    STANDS_HELD, STANDS_NOT, STANDS_NOW, may_hold_allows, may_hold_could, may_hold_cr3, may_hold_fault, may_hold_flags,
    may_hold_invlpg, may_hold_invpcid, may_hold_page_fault, may_hold_pkru, may_hold_used, tables_store,
)
from fastmmu.cpu.stale cimport Detector, stale_forgive, stale_stored
from fastmmu.cpu.vcpu cimport (
    BY_SUPERVISOR, BY_SYSTEM, BY_USER, DONE_ABORT, DONE_EMULATED, DONE_OK, DONE_PF, Vcpu, vcpu_access, vcpu_interrupt,
    vcpu_set_ac, vcpu_set_pkru, vcpu_slow,
)
from fastmmu.kvm.kvm cimport to_kvm_vcpu
from fastmmu.machine.records cimport (
    REC_AC, REC_CPU, REC_CR0, REC_CR3, REC_CR4, REC_DATA, REC_EFER, REC_EXCEPTION, REC_IMPLICIT, REC_INITIAL,
    REC_INTERRUPT, REC_INVLPG, REC_INVPCID, REC_IPI, REC_PKRU, REC_TABLE, REC_WALK, REC_WALKED, REC_X,
    record_fault,
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


cdef inline int who(Replay *p, const Record *r, bint user) noexcept nogil:
    # by whose rights, after AC is what the record says
    cdef bint ac = r.flags & REC_AC != 0
    if user:
        return BY_USER
    if r.flags & REC_IMPLICIT:
        return BY_SYSTEM
    if ac != p.v.hw.ac:
        vcpu_set_ac(p.v, ac)
    return BY_SUPERVISOR


cdef int store(Replay *p, const Record *r, uint64_t value, uint64_t gpa) noexcept nogil:
    # A store into a page table. One that went astray is put where the trace has it: what it breaks later would be
    # counted twice.
    cdef uint32_t i
    p.stores += 1
    if p.omit & OMIT_STORES:
        return STOP_NONE
    if not mem_holds(&p.guest, gpa, r.size):
        return STOP_TABLE
    memcpy(p.guest.base + gpa, &value, r.size)
    for i in range(p.n_detectors):
        stale_stored(p.detectors[i], p.guest_base + gpa, p.v.now)
    return STOP_NONE


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


cdef int access(Replay *p, uint64_t record, const Record *r, const uint64_t *data, uint64_t n_data) noexcept nogil:
    cdef Vcpu *v = p.v
    cdef int acc = r.op, outcome, user = who(p, r, r.cpl == 3)
    cdef uint64_t got = 0, stored = 0
    if r.flags & REC_DATA:
        if p.data_at == n_data:
            return STOP_DATA
        stored = data[p.data_at]
        p.data_at += 1
        v.store_bytes = r.size
        v.store_value = stored
    v.c.ops[acc] += 1
    outcome = carry_out(p, r, acc, user, &got)
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


# ---- several CPUs -------------------------------------------------------------------------------------------------

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


# ---- other records --------------------------------------------------------------------------------------------------

cdef int page_fault(Replay *p, uint64_t record, const Record *r) noexcept nogil:
    # the access that the error code and CR2 tell of, which has no record of its own
    cdef int acc = ACC_X if r.aux & PF_ID else ACC_W if r.aux & PF_W else ACC_R
    cdef int user = BY_SYSTEM if r.cpl == 3 and not r.aux & PF_U else who(p, r, r.aux & PF_U)
    cdef uint64_t hpa = 0, wrong = p.found
    cdef Detector *d = p.v.detector
    cdef uint64_t found = d.found if d != NULL else 0
    cdef int outcome = vcpu_access(p.v, r.lin, acc, user, &hpa)
    p.faults += 1
    if outcome == DONE_ABORT:
        return STOP_ABORT
    if outcome > DONE_PF:
        return STOP_ADDRESS
    if p.h != NULL:
        judge_fault(p, record, r, acc, user, outcome)
        if d != NULL and d.found > found and p.found == wrong:
            stale_forgive(d)
    elif outcome != DONE_PF:
        differs(p, record, DIFF_NO_FAULT, r.aux, 0)
    elif p.v.error_code != r.aux or p.v.cr2 != r.lin:
        differs(p, record, DIFF_FAULT, r.aux, p.v.error_code)
    return STOP_NONE


cdef int other(Replay *p, uint64_t record, const Record *r, const uint8_t *pages, uint64_t n_pages) noexcept nogil:
    cdef Vcpu *v = p.v
    cdef int op = r.op
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
    if op == REC_IPI:
        p.ipis += 1
        return STOP_NONE
    if op == REC_CR3:
        if p.h != NULL:
            may_hold_cr3(p.h, r.val)
        return STOP_ABORT if not p.omit & OMIT_CR3 and vcpu_mov_cr3(v, r.val) != DONE_OK else STOP_NONE
    if op == REC_INVLPG:
        if p.h != NULL:
            may_hold_invlpg(p.h, r.lin)
        return STOP_ABORT if vcpu_invlpg(v, r.lin) != DONE_OK else STOP_NONE
    if op == REC_INVPCID:
        if r.size == 0 and not canonical(r.lin, v.hw.la_bits):
            return STOP_ADDRESS
        if p.h != NULL:
            may_hold_invpcid(p.h, r.size, r.aux, r.lin)
        return STOP_ABORT if vcpu_invpcid(v, r.size, r.aux, r.lin) != DONE_OK else STOP_NONE
    if op == REC_PKRU:
        p.pkru = r.val
        vcpu_set_pkru(v, p.pkru if p.keys else 0)
        if p.h != NULL:
            may_hold_pkru(p.h, p.pkru if p.keys else 0)
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
        elif r.op > REC_X and r.op != REC_WALK:
            stop[0] = other(p, first + i, r, pages, n_pages)
        elif not canonical(r.lin, p.v.hw.la_bits):
            stop[0] = STOP_ADDRESS
        elif p.h != NULL:
            stop[0] = judged_access(p, first + i, r, r.size if r.op == REC_WALK else r.op, data, n_data)
        elif r.op <= REC_X:
            stop[0] = access(p, first + i, r, data, n_data)
        else:                   # a walk, of a trace of one CPU
            stop[0] = STOP_RECORD
        if stop[0]:
            break
    else:
        i = n
    if p.v.log != NULL:
        exit_log_done(p.v.log, i)
    return i

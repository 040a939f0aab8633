"""One access of a virtual CPU: TLB, walk, fault, VM exit and entry."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.registers cimport EFER_LMA, EFER_LME, RFLAGS_VM, RULE_INJECTED, paging_of
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, FAULT_APIC, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_GP, FAULT_NONE, FAULT_NPF,
    FAULT_PF, FAULT_PML_FULL, MODE_PAE, STEP_EPT, STEP_GUEST, Ept, Steps, Walk,
)
from fastmmu.arch.vmx cimport (
    ENTRY_LOAD_EFER, ENTRY_LONG_MODE, ERROR_CONTROL_FIELDS, EXIT_APIC_ACCESS, EXIT_ENTRY_FAILURE_GUEST_STATE,
    EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION, EXIT_EXCEPTION_NMI, EXIT_EXTERNAL_INTERRUPT, EXIT_NPF, EXIT_PML_FULL,
    EXIT_TPR_BELOW_THRESHOLD, INTERRUPTION_PF, PIN_EXTERNAL_INTERRUPT, SECONDARY_EPT, SECONDARY_VPID,
    clear_exit_information, page_fault_exits, secondary_control,
)
from fastmmu.cache.hierarchy cimport (
    CAUSE_BACKGROUND, CAUSE_EXTENSION, CAUSE_VMM, Caches, caches_use, caches_walk,
)
from fastmmu.cache.sets cimport seldom
from fastmmu.cpu.apic cimport APIC_TPR
from fastmmu.cpu.exit_log cimport exit_log_add
from fastmmu.cpu.stale cimport stale_stored, stale_use, stale_walked
from fastmmu.cpu.vapic cimport vapic_controls, vapic_entered
from fastmmu.cpu.vmentry cimport ENTRY_FAILURE, MACHINE, invalid_controls, invalid_registers
from fastmmu.paging.agile_walks cimport agile_cached, agile_silent
from fastmmu.paging.memory cimport mem_holds, mem_read64, mem_write32, mem_write64
from fastmmu.paging.unasked cimport walk_unasked
from fastmmu.paging.walk cimport walk_cached, walk_silent
from fastmmu.tlb.extension cimport Queried, aim_queries, extensions_of, fill_walked
from fastmmu.tlb.held cimport MISSED
from fastmmu.tlb.invalidate cimport inv_ept_violation, inv_page_fault, inv_tlb_control, inv_transition
from fastmmu.tlb.lookup cimport (
    F_D, F_EW, F_G, F_K, F_LOOK, F_R, F_S, F_U, F_W, F_X, NO_EPT, Tlb, tlb_fill, tlb_l1, tlb_l2, tlb_pa,
    tlb_switch, tlb_value, tlb_value_of_walk,
)

cdef uint64_t HOST_PAGES = 0xFFFF888000000000ULL
cdef uint64_t VMM_MEMORY = 0x3F0000000000ULL    # above all machines: VMCS, structures of a vCPU, pages of the VMM
cdef uint64_t VMM_FURTHER = 0x3F8000000000ULL   # and of further vCPUs


cdef void vcpu_derive(Vcpu *v) noexcept nogil:
    derive_needs(v)
    tlb_switch(v.tlb, vcpu_vpid(v), v.hw.pcid, vcpu_eptrta(v))


cdef void derive_needs(Vcpu *v) noexcept nogil:
    # rights that each kind of access needs, from the registers in force (tlb.md §1.1 R5)
    cdef uint64_t key = F_K if v.hw.pkr_user | v.hw.pkr_super else 0, look = F_LOOK if v.detector != NULL else 0
    cdef uint64_t write
    cdef uint64_t no_user = F_S if v.hw.smap else 0, wp = F_W if v.hw.wp else 0
    cdef int r = ACC_R, w = ACC_W, rw = ACC_RW, x = ACC_X, user = BY_USER, system = BY_SYSTEM, kernel = BY_SUPERVISOR
    key |= look
    write = F_R | F_EW | F_D | key
    v.need[user][r] = F_U | F_R | key
    v.need[user][w] = v.need[user][rw] = F_U | F_W | write
    v.need[user][x] = F_U | F_X | look
    v.need[system][r] = F_R | key | no_user
    v.need[system][w] = v.need[system][rw] = write | wp | no_user
    v.need[system][x] = v.need[kernel][x] = F_X | look | (F_S if v.hw.smep else 0)
    if v.hw.ac:
        no_user = 0
    v.need[kernel][r] = F_R | key | no_user
    v.need[kernel][w] = v.need[kernel][rw] = write | wp | no_user
    if v.vm86:                  # CPL 3, whatever the guest takes itself for
        for r in range(4):
            v.need[kernel][r] = v.need[user][r]


cdef inline bint key_allows(const Vcpu *v, uint64_t value, int acc, int user) noexcept nogil:
    # paging.md §4.2, of a page that has a protection key; a write needs more than a read only where R/W counts
    cdef uint32_t key = (v.hw.pkr_user if value & F_U else v.hw.pkr_super) >> (2 * (value >> 52 & 15)) & 3
    return not (key & 1 or (key & 2 and acc != ACC_R and (user == BY_USER or v.hw.wp)))


cdef inline bint allows(const Vcpu *v, uint64_t value, int acc, int user) noexcept nogil:
    cdef uint64_t lacking = v.need[user][acc] & ~value & ~F_LOOK
    return lacking == 0 or (lacking == F_K and key_allows(v, value, acc, user))


cdef void vcpu_set_ac(Vcpu *v, bint ac) noexcept nogil:
    v.hw.ac = ac
    derive_needs(v)


cdef void vcpu_set_pkru(Vcpu *v, uint32_t pkru) noexcept nogil:
    # no cached translation changes: rights are stored without the key's (tlb.md §1.1 R5)
    v.hw.pkr_user = v.r.pkru = pkru
    derive_needs(v)


cdef void vcpu_registers(Vcpu *v) noexcept nogil:
    # what paging derives from the processor's registers, which are new; AC is not among them
    cdef uint8_t ac = v.hw.ac
    paging_of(&v.r, &v.hw)
    v.hw.ac = ac
    v.hw.write_ad = 1


cdef inline bint plain(const Vcpu *v) noexcept nogil:
    # guest state that passes G1 to G6 at sight: in long mode, no control loads EFER or PAT, no reserved bit in CR3
    return (not v.fresh and v.vmcs.vm_entry & ~ENTRY_LOAD_EFER == ENTRY_LONG_MODE and v.hw.lma
            and not v.hw.cr3 & ~(v.hw.frame | 0xFFF))


cdef void load_guest_state(Vcpu *v) noexcept nogil:
    # vmx.md §4.1: the control says whether it is long mode, whatever EFER says of it
    v.fresh = False
    v.r.cr0 = v.vmcs.guest_cr0
    v.r.cr3 = v.vmcs.guest_cr3
    v.r.cr4 = v.vmcs.guest_cr4
    v.r.efer = v.vmcs.guest_efer & ~(<uint64_t> EFER_LMA | EFER_LME)
    if v.vmcs.vm_entry & ENTRY_LONG_MODE:
        v.r.efer |= EFER_LMA | EFER_LME
    memcpy(v.r.pdpte, v.vmcs.guest_pdpte, sizeof(v.r.pdpte))
    v.vm86 = v.vmcs.guest_rflags & RFLAGS_VM != 0
    vcpu_registers(v)


cdef inline void save_guest_state(Vcpu *v) noexcept nogil:
    v.vmcs.guest_cr0 = v.r.cr0
    v.vmcs.guest_cr3 = v.hw.cr3
    v.vmcs.guest_cr4 = v.r.cr4
    if v.hw.mode == MODE_PAE and v.ept_on:
        memcpy(v.vmcs.guest_pdpte, v.hw.pdpte, sizeof(v.hw.pdpte))


cdef int vcpu_enter(Vcpu *v) noexcept nogil:
    # VM entry (vmx.md §3, §4.1): controls and guest state are checked, EPT becomes active; without VPID nothing cached
    # survives
    cdef uint64_t qualification
    cdef uint8_t vtpr = v.apic.page[<int> APIC_TPR] if v.apic != NULL else 0
    if invalid_controls(&v.vmcs, vtpr, &MACHINE):
        return vcpu_abort(v, ABORT_ENTRY, ERROR_CONTROL_FIELDS)
    if not plain(v) and invalid_registers(&v.vmcs, &v.hw, v.mem, &qualification):
        clear_exit_information(&v.vmcs)
        v.vmcs.exit_reason = EXIT_ENTRY_FAILURE_GUEST_STATE | ENTRY_FAILURE
        v.vmcs.exit_qualification = qualification
        return vcpu_abort(v, ABORT_ENTRY, v.vmcs.exit_reason)
    if v.fresh:
        load_guest_state(v)
    vcpu_entered(v)
    return DONE_OK


cdef void vcpu_entered(Vcpu *v) noexcept nogil:
    # VM entry, its checks passed and registers loaded
    v.outside = False
    if v.apic != NULL:
        vapic_controls(v.apic, &v.vmcs)
        v.below_threshold = vapic_entered(v.apic)
        v.ept.apic_access = v.vmcs.apic_access_address | 0xFFF if v.apic.accesses else 0
    v.ept_on = secondary_control(&v.vmcs, SECONDARY_EPT)
    v.vpid_on = secondary_control(&v.vmcs, SECONDARY_VPID)
    inv_transition(v.tlb, v.vpid_on)
    if v.tlb_control:
        inv_tlb_control(v.tlb, v.tlb_control, v.vmcs.vpid)
    vcpu_derive(v)


cdef void vcpu_leave(Vcpu *v, uint32_t reason) noexcept nogil:
    v.outside = True
    v.vmcs.exit_reason = reason
    v.c.vm_exits += 1
    v.c.exits[reason] += 1
    if v.log != NULL:
        exit_log_add(v.log, &v.vmcs, v.c.ops, v.now)
    inv_transition(v.tlb, v.vpid_on)
    save_guest_state(v)
    v.ept_on = v.vpid_on = False
    v.emulated = ONES
    if v.apic != NULL and v.apic.delivery:
        v.vmcs.guest_interrupt_status = v.apic.rvi | <uint16_t> v.apic.svi << 8
    if v.exit_touches:
        exit_touches(v)


cdef void exit_touches(Vcpu *v) noexcept nogil:
    # what any exit and entry reads and writes of the VMM's own structures (docs/caches-in-runs.md)
    cdef uint64_t number = v.exit_touches - 1, own = VMM_FURTHER + 0x2000 * number if number else VMM_MEMORY
    cdef uint32_t i
    if v.host_pages:
        host_runs(v)
    if v.caches == NULL:
        return
    for i in range(VMCS_LINES):
        caches_use(v.caches, own + 64 * i, ACC_W, CAUSE_VMM)
    for i in range(VCPU_LINES):
        caches_use(v.caches, own + 0x1000 + 64 * i, ACC_W, CAUSE_VMM)
    for i in range(v.host_pages):
        caches_use(v.caches, VMM_MEMORY + 0x2000 + (<uint64_t> i << 12), ACC_R, CAUSE_VMM)


cdef void host_runs(Vcpu *v) noexcept nogil:
    # The host reads pages of its own, global ones, under VPID 0. Its tables are not modelled: a miss is counted and
    # filled, not walked.
    cdef uint64_t la, value
    cdef uint32_t i
    # it finds nothing here; the one before may be of a vCPU that is gone
    aim_queries(v.tlb, unasked, referred, v, v.now)
    tlb_switch(v.tlb, 0, 0, NO_EPT)
    v.c.host_accesses += v.host_pages
    for i in range(v.host_pages):
        la = HOST_PAGES + (<uint64_t> i << 12)
        v.tlb.c.lookups[v.tlb.port[<int> ACC_R].l1.id] += 1
        value = tlb_l1(v.tlb, ACC_R, la)
        if not value and not tlb_l2(v.tlb, ACC_R, la):
            v.c.host_misses += 1
            tlb_fill(v.tlb, ACC_R, la, tlb_value(<uint64_t> i << 12, 0, 0, F_S | F_R | F_W | F_EW | F_D | F_G | F_K))


cdef int vcpu_exit(Vcpu *v, uint32_t reason) noexcept nogil:
    # VM exit, the VMM's handler, VM entry
    cdef int action = leave_and_enter(v, reason)
    cdef uint64_t emulated
    if v.below_threshold and action != ACT_ABORT:
        emulated = v.emulated
        if exits_at_once(v):
            return ACT_ABORT
        v.emulated = emulated
    return action


cdef int exits_at_once(Vcpu *v) noexcept nogil:
    # the VM exits that follow a VM entry before any instruction (vmx.md §4.3)
    cdef int tries = 0
    while v.below_threshold:
        v.below_threshold = False
        tries += 1
        if tries > MAX_RETRIES:
            return vcpu_abort(v, ABORT_NO_PROGRESS, 0)
        clear_exit_information(&v.vmcs)
        if leave_and_enter(v, EXIT_TPR_BELOW_THRESHOLD) == ACT_ABORT:
            return DONE_ABORT
    return DONE_OK


cdef int vcpu_enter_again(Vcpu *v) noexcept nogil:
    return DONE_ABORT if vcpu_enter(v) else exits_at_once(v)


cdef int leave_and_enter(Vcpu *v, uint32_t reason) noexcept nogil:
    cdef int action
    vcpu_leave(v, reason)
    action = v.handler(v)
    if v.abort == ABORT_ROOT_OPERATION:
        return ACT_ABORT
    # also where the run ends here: it may go on after the error, and nothing runs with the state of an exit
    return ACT_ABORT if vcpu_enter(v) else action


cdef int handle_cached(Vcpu *v) noexcept nogil:
    # the VMM's accesses go through the caches while it handles the exit, which may be within that of another vCPU
    cdef int action
    cdef Caches *before = v.vmm_caches[0]
    v.vmm_caches[0] = v.caches
    action = v.handled(v)
    v.vmm_caches[0] = before
    return action


cdef void vcpu_use_caches(Vcpu *v, Caches *c, Caches **vmm) noexcept nogil:
    v.caches, v.records = c, True
    if v.guest:
        v.vmm_caches, v.exit_touches = vmm, max(v.exit_touches, 1)
        v.handled, v.handler = v.handler, handle_cached


cdef int vcpu_abort(Vcpu *v, int why, uint64_t address) noexcept nogil:
    if not v.abort:
        v.abort = why
        v.abort_address = address
    return DONE_ABORT


cdef void look(Vcpu *v, uint64_t la, int acc, int user, uint64_t value, uint64_t hpa) noexcept nogil:
    v.hw.user = user == BY_USER
    v.hw.implicit = user == BY_SYSTEM
    stale_use(v.detector, v.mem, v.tlb, &v.hw, &v.ept if v.ept_on else NULL, la, acc, value & F_G != 0, hpa, v.now)


cdef int vcpu_access(Vcpu *v, uint64_t la, int acc, int user, uint64_t *hpa) noexcept nogil:
    cdef uint64_t value
    v.tlb.c.lookups[v.tlb.port[acc].l1.id] += 1
    value = tlb_l1(v.tlb, acc, la)
    if value and not v.need[user][acc] & ~value:
        hpa[0] = tlb_pa(value, la)
        return DONE_OK
    return vcpu_slow(v, la, acc, user, value, hpa)


cdef int put_in_place(Vcpu *v, uint64_t la, int acc) noexcept nogil:
    # of a premapped run: what an access lacks is mapped by queries of memory, so that its one walk finds caches as they
    # were; -1: aborted
    cdef Walk w
    cdef Paging hw = v.hw
    cdef Ept ept = v.ept
    cdef int fault, action, _tries
    hw.write_ad = ept.write_ad = False
    for _tries in range(MAX_RETRIES + 1):
        fault = (walk_silent(v.mem, &hw, &ept if v.ept_on else NULL, la, acc, &w) if v.agile == NULL
                 else agile_silent(v.mem, &v.hw, v.agile, la, acc, &w))
        if not fault:
            return 0
        action = v.premap(v, la, fault, &w)
        if action == ACT_ABORT:
            return -1
        if action == ACT_EMULATED:              # nothing to map
            return 0
    vcpu_abort(v, ABORT_NO_PROGRESS, la)
    return -1


cdef void unasked(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil:
    # a query of the TLB's extensions; nothing is found where the context in force is not this one's
    cdef Vcpu *v = <Vcpu *> walker
    if not (v.outside or v.tlb != t or t.vpid != vcpu_vpid(v) or t.pcid != v.hw.pcid or t.eptrta != vcpu_eptrta(v)):
        walk_unasked(v.mem, &v.hw, &v.ept if v.ept_on else NULL, v.ept.mbec, la, out,
                     v.caches if extensions_of(t).prefetching else NULL)


cdef void referred(void *walker, uint64_t hpa, bint store, bint waited) noexcept nogil:
    # to what an extension keeps in memory
    cdef Vcpu *v = <Vcpu *> walker
    if v.caches != NULL:
        caches_use(v.caches, hpa, ACC_W if store else ACC_R, CAUSE_EXTENSION if waited else CAUSE_BACKGROUND)


cdef void walked(Vcpu *v, Steps *steps, const Walk *w) noexcept nogil:
    # The references of a walk go through the caches. Of one that failed twice those count that walk_cached() counts,
    # the first; flags that the second set are set.
    cdef uint32_t left = w.guest_refs + w.ept_refs
    cdef int i, n = 0
    if w.fault:
        for i in range(steps.n):
            if steps.step[i].kind == STEP_GUEST or steps.step[i].kind == STEP_EPT:
                if not left:
                    continue
                left -= 1
            steps.step[n] = steps.step[i]
            n += 1
        steps.n = n
    caches_walk(v.caches, steps)


cdef bint interval_ends(Vcpu *v) noexcept nogil:
    # of agile paging: the host's timer (agile.md §4); True: the run ends
    clear_exit_information(&v.vmcs)
    return vcpu_exit(v, EXIT_EXTERNAL_INTERRUPT) == ACT_ABORT


cdef int vcpu_slow(Vcpu *v, uint64_t la, int acc, int user, uint64_t value, uint64_t *hpa) noexcept nogil:
    # after the first level missed (value 0; MISSED: the second as well) or denied; lookups so far have been counted
    cdef Walk w
    cdef const Ept *e
    cdef Steps steps
    cdef Steps *into = &steps if v.records else NULL
    cdef int fault, action, tries = 0
    aim_queries(v.tlb, unasked, referred, v, v.now)
    while True:
        if value == MISSED:
            value = 0
            v.c.tlb_misses += 1
        elif not value:
            value = tlb_l2(v.tlb, acc, la)
            if not value:
                v.c.tlb_misses += 1
        if value and allows(v, value, acc, user):
            hpa[0] = tlb_pa(value, la)
            if v.detector != NULL:
                look(v, la, acc, user, value, hpa[0])
            return DONE_OK
        # cached rights deny: memory decides (tlb.md §1.1)
        if v.agile != NULL and v.c.walks >= v.agile.due and interval_ends(v):
            return vcpu_abort(v, ABORT_NO_PROGRESS, la)
        e = &v.ept if v.ept_on else NULL
        v.hw.user = user == BY_USER or v.vm86
        v.hw.implicit = user == BY_SYSTEM
        steps.n = 0
        if v.premap != NULL and put_in_place(v, la, acc):
            return DONE_ABORT
        fault = (walk_cached(v.mem, &v.hw, e, v.tlb, la, acc, &w, into) if v.agile == NULL
                 else agile_cached(v.mem, &v.hw, v.agile, v.tlb, la, acc, &w, into, v.c.walks_nested))
        v.c.walks += 1
        v.c.guest_walk_refs += w.guest_refs
        v.c.ept_walk_refs += w.ept_refs
        v.c.ad_writes += w.ad_writes
        if seldom(into != NULL) and v.caches != NULL:
            walked(v, &steps, &w)
        if fault == FAULT_NONE:
            fill_walked(v.tlb, acc, la, tlb_value_of_walk(&w, v.ept.mbec), value != 0)
            hpa[0] = w.pa
            if v.detector != NULL:
                stale_walked(v.detector, v.tlb, &v.hw, la, &steps, v.now)
                look(v, la, acc, user, F_G if w.global_page else 0, w.pa)
            return DONE_OK
        v.access_la = la
        v.access = acc
        if fault == FAULT_PF:
            inv_page_fault(v.tlb, vcpu_vpid(v), v.hw.pcid, la)
            v.error_code = w.error_code
            if not (v.guest and page_fault_exits(&v.vmcs, w.error_code)) or (v.agile != NULL and v.agile.nested):
                v.cr2 = la
                v.c.guest_faults += 1
                return DONE_PF
            clear_exit_information(&v.vmcs)
            v.vmcs.exit_qualification = la
            v.vmcs.exit_interruption_info = INTERRUPTION_PF
            v.vmcs.exit_interruption_error = w.error_code
            action = vcpu_exit(v, EXIT_EXCEPTION_NMI)
        elif fault == FAULT_EPT_VIOLATION:
            inv_ept_violation(v.tlb, vcpu_vpid(v), v.hw.pcid, vcpu_eptrta(v), w.gpa, w.qual >> 8 & 1, la)
            clear_exit_information(&v.vmcs)
            v.vmcs.exit_qualification = w.qual
            v.vmcs.guest_physical_address = w.gpa
            v.vmcs.guest_linear_address = la
            action = vcpu_exit(v, EXIT_EPT_VIOLATION)
        elif fault == FAULT_EPT_MISCONFIG:
            clear_exit_information(&v.vmcs)
            v.vmcs.guest_physical_address = w.gpa
            action = vcpu_exit(v, EXIT_EPT_MISCONFIG)
        elif fault == FAULT_NPF:                # EXITINFO1 and EXITINFO2 (npt.md §4)
            inv_ept_violation(v.tlb, vcpu_vpid(v), v.hw.pcid, vcpu_eptrta(v), w.gpa, w.qual >> 32 & 1, la)
            clear_exit_information(&v.vmcs)
            v.vmcs.exit_qualification = w.qual
            v.vmcs.guest_physical_address = w.gpa
            action = vcpu_exit(v, EXIT_NPF)
        elif fault == FAULT_PML_FULL:
            clear_exit_information(&v.vmcs)
            action = vcpu_exit(v, EXIT_PML_FULL)
        elif fault == FAULT_APIC:
            clear_exit_information(&v.vmcs)
            v.vmcs.exit_qualification = w.qual
            action = vcpu_exit(v, EXIT_APIC_ACCESS)
        elif fault == FAULT_GP:
            return DONE_GP
        else:
            return vcpu_abort(v, ABORT_BUS, la)

        if action == ACT_EMULATED:
            return DONE_EMULATED
        if action == ACT_INJECT_PF:
            v.c.guest_faults += 1
            return DONE_PF
        if action == ACT_INJECT_GP:
            v.rule = RULE_INJECTED
            return DONE_GP
        if action == ACT_ABORT:
            return vcpu_abort(v, ABORT_NO_PROGRESS, la)
        tries += 1
        if tries > MAX_RETRIES:
            return vcpu_abort(v, ABORT_NO_PROGRESS, la)
        v.c.retries += 1
        v.tlb.c.lookups[v.tlb.port[acc].l1.id] += 1
        value = tlb_l1(v.tlb, acc, la)


cdef int vcpu_load(Vcpu *v, uint64_t la, uint64_t *value) noexcept nogil:
    # an aligned 64-bit load by the supervisor
    cdef uint64_t hpa = 0
    cdef int outcome
    v.c.kernel_accesses += 1
    value[0] = 0
    outcome = vcpu_access(v, la, ACC_R, False, &hpa)
    if outcome == DONE_OK:
        vcpu_touches(v, hpa, 8, ACC_R)
        if mem_holds(v.mem, hpa, 8):
            value[0] = mem_read64(v.mem, hpa)
    return outcome


cdef int vcpu_store(Vcpu *v, uint64_t la, uint64_t value, uint32_t nbytes, uint64_t *hpa) noexcept nogil:
    # an aligned store of 4 or 8 bytes by the supervisor; the VMM sees the value if it has to emulate it
    cdef int outcome
    v.c.kernel_accesses += 1
    v.store_bytes = nbytes
    v.store_value = value
    outcome = vcpu_access(v, la, ACC_W, False, hpa)
    v.store_bytes = 0
    if outcome == DONE_OK:
        vcpu_touches(v, hpa[0], nbytes, ACC_W)
    if outcome == DONE_OK and mem_holds(v.mem, hpa[0], nbytes):
        if nbytes == 4:
            mem_write32(v.mem, hpa[0], <uint32_t> value)
        else:
            mem_write64(v.mem, hpa[0], value)
        if v.detector != NULL:
            stale_stored(v.detector, hpa[0], v.now)
    return outcome


cdef int vcpu_interrupt(Vcpu *v) noexcept nogil:
    v.c.interrupts += 1
    if v.guest and v.vmcs.pin_based & PIN_EXTERNAL_INTERRUPT:
        clear_exit_information(&v.vmcs)
        if vcpu_exit(v, EXIT_EXTERNAL_INTERRUPT) == ACT_ABORT:
            return DONE_ABORT
    return DONE_OK

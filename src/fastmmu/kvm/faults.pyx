"""What KVM does at #PF, EPT violation, misconfiguration, nested page fault (kvm_policy.md §2.1, §3.2; npt.md §7)."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.pferr cimport PF_ID, PF_P, PF_RSVD, PF_U, PF_W
from fastmmu.arch.registers cimport RULE_PDPTE
from fastmmu.arch.types cimport (
    ACC_R, ACC_W, ACC_X, FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_NPF, FAULT_PF, Paging, Walk,
    gfn_t, gpa_t, gva_t,
)
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.cpu.vcpu cimport (
    ABORT_AWAY, ABORT_BUS, ABORT_MISCONFIG, ACC_PDPTES, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP, ACT_INJECT_PF,
    ACT_RETRY, Vcpu, vcpu_abort,
)
from fastmmu.kvm.kvm cimport (
    CLASS_BUILD, CLASS_DIRTY, CLASS_GUEST, CLASS_MMIO, CLASS_PROTECTED, CLASS_SPURIOUS, CLASS_SWAPPED_IN, Kvm, KvmVcpu,
    kvm_second, to_kvm_vcpu,
)
from fastmmu.kvm.modes cimport modes_own_cr3
from fastmmu.kvm.roots cimport kvm_out_of_tables
from fastmmu.mmu.agile cimport agile_move, agile_wrote
from fastmmu.mmu.direct cimport (
    RET_PF_BUS, RET_PF_EMULATE, RET_PF_FIXED, RET_PF_INJECT, RET_PF_INVALID, RET_PF_NO_TABLES, RET_PF_RETRY,
    RET_PF_SPURIOUS, RET_PF_WRITE_PROTECTED, Fault, direct_page_fault,
)
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, mark_dirty, slot_away
from fastmmu.mmu.mmu cimport Mmu, mmu_touches_guest
from fastmmu.mmu.pages cimport mmu_tracked
from fastmmu.mmu.reclaim cimport host_wrote
from fastmmu.mmu.shadow cimport shadow_fault
from fastmmu.mmu.spte cimport spte_is_mmio, spte_mmio_current, spte_mmio_gfn
from fastmmu.mmu.sync cimport guest_wrote, shadow_drop
from fastmmu.mmu.table_iter cimport TableIter, iter_find
from fastmmu.paging.ept cimport QUAL_TRANSLATED
from fastmmu.paging.guest cimport page_fault
from fastmmu.paging.memory cimport mem_holds
from fastmmu.paging.npt cimport NPF_FINAL
from fastmmu.paging.walk cimport walk_silent

cdef inline int access_of(uint64_t error_code) noexcept nogil:
    return ACC_W if error_code & PF_W else ACC_X if error_code & PF_ID else ACC_R


cdef gfn_t mmio_gfn(Mmu *mmu, gva_t address) noexcept nogil:
    # the gfn of the MMIO SPTE at an address; all ones: there is none, or one of an older layout
    cdef TableIter it
    iter_find(mmu, &it, address)
    if not spte_is_mmio(mmu.format, it.entry) or not spte_mmio_current(it.entry, mmu.slots.generation):
        return ONES
    return spte_mmio_gfn(it.entry)


cdef int retry(KvmVcpu *vcpu, gpa_t gpa) noexcept nogil:
    # the fault begins anew; where the host is not done yet only its end can let the guest go on
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Memslot *slot = gfn_to_memslot(&kvm.mmu.slots, gpa >> 12)
    vcpu.c.pf_retry += 1
    if slot == NULL or not slot_away(slot, gpa >> 12):
        return ACT_RETRY
    vcpu_abort(v, ABORT_AWAY, gpa)
    return ACT_ABORT


cdef inline bint no_memory(const Memslot *slot) noexcept nogil:
    # an access there is a device's
    return slot == NULL or slot.emulated


cdef struct Before:             # what the MMU had counted before a fault
    uint64_t dirty, swapped


cdef inline Before before_fault(const Mmu *mmu) noexcept nogil:
    cdef Before b
    b.dirty, b.swapped = mmu.counters.dirty_faults, mmu.counters.swap_ins
    return b


cdef int class_of(Mmu *mmu, int result, gpa_t gpa, bint denied, Before b) noexcept nogil:
    # FaultClass of a fault that the MMU has dealt with; `denied`: an entry refused a store, or a right was given back
    if result == RET_PF_INJECT:
        return CLASS_GUEST
    if result == RET_PF_EMULATE and no_memory(gfn_to_memslot(&mmu.slots, gpa >> 12)):
        return CLASS_MMIO
    if mmu.counters.swap_ins != b.swapped:
        return CLASS_SWAPPED_IN
    if result == RET_PF_SPURIOUS or result < 0:
        return CLASS_SPURIOUS
    if mmu.counters.dirty_faults != b.dirty:
        return CLASS_DIRTY
    if denied or result == RET_PF_EMULATE or result == RET_PF_WRITE_PROTECTED:
        return CLASS_PROTECTED
    return CLASS_BUILD if result == RET_PF_FIXED else <int> CLASS_SPURIOUS


cdef bint load_again(KvmVcpu *vcpu, const Memslot *slot, gpa_t gpa) noexcept nogil:
    # a load that is to be emulated runs once more, for its fault might not come back; not where the entry, or what KVM
    # has noted, says that no memory is there (retry_instruction; kvm_policy.md §14)
    if (slot == NULL or not slot.emulated or not vcpu.kvm.mmu.policy.apic_load_retried or vcpu.cpu.access != ACC_R
            or vcpu.last_retry == gpa):
        return False
    vcpu.kvm.stats.insn_emulation += 1
    vcpu.last_retry = gpa
    return True


cdef void decoded(KvmVcpu *vcpu, gpa_t gpa, bint mmio) noexcept nogil:
    # an instruction is emulated; where it accesses no memory, and not the APIC, user space has its part in it
    cdef Kvm *kvm = vcpu.kvm
    vcpu.last_retry = 0
    kvm.stats.insn_emulation += 1
    kvm.stats.mmio_exits += mmio and gpa >> 12 != APIC_BASE >> 12


# ---- shadow paging --------------------------------------------------------------------------------------

cdef void emulate_store(KvmVcpu *vcpu, gpa_t gpa) noexcept nogil:
    # the store into a shadowed table, and what it makes of the shadow entries
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Memslot *slot = gfn_to_memslot(&kvm.mmu.slots, gpa >> 12)
    if slot != NULL:
        host_wrote(&kvm.mmu, slot, gpa >> 12)
        mark_dirty(slot, gpa >> 12)
    mmu_touches_guest(&kvm.mmu, gpa, max(v.store_bytes, 1), ACC_W)
    if 0 < v.store_bytes <= 16 and (gpa & 0xFFF) + v.store_bytes <= 4096:
        if mem_holds(&kvm.mmu.guest, gpa, v.store_bytes):
            memcpy(kvm.mmu.guest.base + gpa, &v.store_value, min(v.store_bytes, 8))
            if v.store_bytes > 8:
                memcpy(kvm.mmu.guest.base + gpa + 8, &v.store_high, v.store_bytes - 8)
        guest_wrote(&kvm.mmu, gpa, v.store_bytes)
    else:
        if v.store_bytes == 4096:
            memset(kvm.mmu.guest.base + (gpa & ~(<uint64_t> 0xFFF)), 0, 4096)
        guest_wrote(&kvm.mmu, gpa & ~(<uint64_t> 0xFFF), 4096)
    if kvm.agile != NULL and vcpu.guest.levels >= 4:
        agile_wrote(kvm.agile, &kvm.mmu, gpa >> 12)


cdef int kvm_page_fault(KvmVcpu *vcpu) noexcept nogil:
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Walk w
    cdef Before before
    cdef uint64_t code = v.vmcs.exit_interruption_error, la = v.vmcs.exit_qualification, known = ONES
    cdef int result, action
    vcpu.guest.user = code & PF_U != 0
    vcpu.guest.ac = v.hw.ac
    vcpu.guest.implicit = v.hw.implicit
    vcpu.guest.pkr_user = v.hw.pkr_user
    if code & PF_RSVD:                          # an MMIO SPTE (kvm_policy.md §4.4)
        known = mmio_gfn(&kvm.mmu, la)
    kvm.stats.pf_taken += known == ONES
    before = before_fault(&kvm.mmu)
    result = shadow_fault(&kvm.mmu, &vcpu.guest, la, access_of(code), code & PF_P, known, &w)
    vcpu.fault_class = class_of(&kvm.mmu, result, w.gpa, code & PF_P and code & PF_W, before)
    if result == RET_PF_NO_TABLES:
        return kvm_out_of_tables(vcpu)
    if result == RET_PF_INJECT:
        vcpu.c.pf_guest += 1
        v.cr2 = la
        v.error_code = w.error_code
        if w.error_code & PF_P and not w.error_code & PF_RSVD:
            shadow_drop(&kvm.mmu, &vcpu.guest, la)       # like the processor, which drops the translation that denied
        return ACT_INJECT_PF
    if result == RET_PF_BUS:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return ACT_ABORT
    action = retry(vcpu, w.gpa) if result == RET_PF_RETRY else ACT_RETRY
    if result == RET_PF_FIXED:
        vcpu.c.pf_fixed += 1
        kvm.stats.pf_fixed += 1
    elif result == RET_PF_SPURIOUS:
        vcpu.c.pf_spurious += 1
    elif result == RET_PF_EMULATE or result == RET_PF_WRITE_PROTECTED:
        kvm.stats.pf_emulate += known == ONES
        if result == RET_PF_EMULATE and load_again(vcpu, gfn_to_memslot(&kvm.mmu.slots, w.gpa >> 12), w.gpa):
            return ACT_RETRY
        action = ACT_EMULATED
        v.emulated = w.gpa
        decoded(vcpu, w.gpa, result == RET_PF_EMULATE)
        if result == RET_PF_EMULATE:
            vcpu.c.mmio += 1
        else:
            vcpu.c.pf_emulate += 1
            emulate_store(vcpu, w.gpa)
    return action


# ---- EPT ------------------------------------------------------------------------------------------------

cdef Paging guest_of(KvmVcpu *vcpu) noexcept nogil:
    # what the guest's tables mean to the access under way; of agile paging the processor has the shadows' registers
    cdef Vcpu *v = &vcpu.cpu
    cdef Paging guest = v.hw
    if vcpu.kvm.agile != NULL:
        guest = vcpu.guest
        guest.user, guest.implicit, guest.ac = v.hw.user, v.hw.implicit, v.hw.ac
        guest.pkr_user, guest.pkr_super = v.hw.pkr_user, v.hw.pkr_super
    return guest


cdef int no_table(KvmVcpu *vcpu) noexcept nogil:
    # A table of the guest's lies where no memory is. KVM emulates the instruction.
    decoded(vcpu, 0, False)
    return inject_no_table(&vcpu.cpu)


cdef int inject_no_table(Vcpu *v) noexcept nogil:
    # to the emulator's own walk the entry there is not present, and PDPTEs that it cannot read are refused
    cdef Walk w
    cdef Paging guest = guest_of(to_kvm_vcpu(v))
    if v.access == ACC_PDPTES:
        v.rule = RULE_PDPTE
        return ACT_INJECT_GP
    page_fault(&guest, &w, v.access, 0)
    v.cr2 = v.access_la
    v.error_code = w.error_code
    return ACT_INJECT_PF


cdef bint of_table(KvmVcpu *vcpu, gpa_t gpa) noexcept nogil:
    # an MMIO SPTE that the processor met does not tell: where the walk of the access ends for want of memory
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Paging guest = guest_of(vcpu)
    cdef Walk w
    guest.write_ad = 0
    if v.access == ACC_PDPTES:
        return True
    if kvm.agile == NULL and not modes_own_cr3(vcpu):        # the identity table has its slot
        return False
    return (walk_silent(&kvm.mmu.guest, &guest, NULL, v.access_la, v.access, &w) == FAULT_BUS
            and w.gpa >> 12 == gpa >> 12)


cdef int mmio(KvmVcpu *vcpu, gpa_t gpa) noexcept nogil:
    cdef Vcpu *v = &vcpu.cpu
    if of_table(vcpu, gpa):
        return no_table(vcpu)
    v.emulated = gpa
    vcpu.c.mmio += 1
    decoded(vcpu, gpa, True)
    return ACT_EMULATED


cdef int tdp_fault(KvmVcpu *vcpu, bint write, bint fetch, bint present, bint final) noexcept nogil:
    # of the tables that the VMM owns; final: of the data, not of a table of the guest's
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Fault f
    cdef Mmu *mmu = kvm_second(kvm)
    cdef Before before = before_fault(mmu)
    cdef int result
    f.la = f.gpa = v.vmcs.guest_physical_address
    f.write = write
    f.fetch = fetch
    f.present = present
    kvm.stats.pf_taken += 1
    if kvm.agile != NULL and not final and mmu_tracked(mmu, f.gpa >> 12):
        agile_move(kvm.agile, &kvm.mmu, f.gpa >> 12, 1)         # no instruction writes there that could be emulated
    result = direct_page_fault(mmu, &f)
    vcpu.c.pf_fast += f.fast
    vcpu.fault_class = class_of(mmu, result, f.gpa, f.fast or (f.write and f.present), before)
    vcpu.c.violations[vcpu.fault_class] += 1
    if result == RET_PF_NO_TABLES:
        return kvm_out_of_tables(vcpu)
    if result == RET_PF_EMULATE:
        if not final and f.slot == NULL:
            kvm.stats.pf_emulate += 1
            return no_table(vcpu)
        if not final:                           # a write to A or D in a read-only slot
            vcpu_abort(v, ABORT_BUS, f.gpa)
            return ACT_ABORT
        kvm.stats.pf_emulate += 1
        if load_again(vcpu, f.slot, f.gpa):
            return ACT_RETRY
        v.emulated = f.gpa
        vcpu.c.mmio += 1
        decoded(vcpu, f.gpa, True)
        return ACT_EMULATED
    if result == RET_PF_WRITE_PROTECTED and kvm.agile != NULL:
        kvm.stats.pf_emulate += 1
        v.emulated = f.gpa
        vcpu.c.pf_emulate += 1
        decoded(vcpu, f.gpa, False)
        emulate_store(vcpu, f.gpa)
        return ACT_EMULATED
    if result == RET_PF_FIXED:
        kvm.stats.pf_fixed += 1
        vcpu.c.ept_build += not f.fast and mmu.counters.dirty_faults == before.dirty
    elif result != RET_PF_RETRY:
        vcpu.c.ept_spurious += 1
    return retry(vcpu, f.gpa) if result == RET_PF_RETRY else ACT_RETRY


cdef int tdp_mmio(KvmVcpu *vcpu, bint write, bint fetch) noexcept nogil:
    # a malformed entry was met, as an MMIO SPTE is
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Mmu *mmu = kvm_second(kvm)
    cdef Before before = before_fault(mmu)
    cdef Fault f
    cdef int result
    f.la = f.gpa = v.vmcs.guest_physical_address
    f.write = write
    f.fetch = fetch
    f.present = False
    vcpu.fault_class = CLASS_MMIO
    if mmio_gfn(kvm_second(kvm), f.gpa) != ONES:
        return mmio(vcpu, f.gpa)
    kvm.stats.pf_taken += 1
    result = direct_page_fault(mmu, &f) if mmu.policy.mmio_caching else RET_PF_INVALID
    vcpu.fault_class = class_of(mmu, result, f.gpa, False, before)
    kvm.stats.pf_fixed += result == RET_PF_FIXED and not f.fast
    if result == RET_PF_EMULATE:                # an MMIO SPTE anew
        kvm.stats.pf_emulate += 1
        return mmio(vcpu, f.gpa)
    if result == RET_PF_SPURIOUS or result == RET_PF_INVALID:
        vcpu_abort(v, ABORT_MISCONFIG, f.gpa)   # nobody made this entry
        return ACT_ABORT
    return retry(vcpu, f.gpa) if result == RET_PF_RETRY else ACT_RETRY  # memory by now


cdef int kvm_ept_violation(KvmVcpu *vcpu) noexcept nogil:
    cdef uint64_t q = vcpu.cpu.vmcs.exit_qualification
    return tdp_fault(vcpu, q >> 1 & 1, q >> 2 & 1, q >> 3 & 7, q & QUAL_TRANSLATED)


cdef int kvm_ept_misconfig(KvmVcpu *vcpu) noexcept nogil:
    return tdp_mmio(vcpu, False, False)


cdef int kvm_npf(KvmVcpu *vcpu) noexcept nogil:
    # EXITINFO1 is the error code of a #PF of these tables (npf_interception; npt.md §7)
    cdef uint64_t code = vcpu.cpu.vmcs.exit_qualification
    if code & PF_RSVD:
        return tdp_mmio(vcpu, code & PF_W, code & PF_ID)
    return tdp_fault(vcpu, code & PF_W, code & PF_ID, code & PF_P, code & NPF_FINAL != 0)


# ---- premapped runs -------------------------------------------------------------------------------------

cdef int out_of_tables(KvmVcpu *vcpu) noexcept nogil:
    return RET_PF_RETRY if kvm_out_of_tables(vcpu) == ACT_RETRY else RET_PF_NO_TABLES


cdef int kvm_premap(KvmVcpu *vcpu, gva_t la, const Walk *w) noexcept nogil:
    # the VMM's part of what a premapped run finds in place: RET_PF_INJECT where the guest's own table lacks it,
    # RET_PF_EMULATE where there is nothing to map, so that the access exits as ever: MMIO
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Walk guest
    cdef Fault f
    cdef int result
    cdef bint final
    if w.fault == FAULT_EPT_VIOLATION or (w.fault == FAULT_NPF and not w.qual & PF_RSVD):
        f.la = f.gpa = w.gpa
        f.write = f.fetch = f.present = False
        result = direct_page_fault(kvm_second(kvm), &f)
        kvm_second(kvm).flush = False
        if result == RET_PF_NO_TABLES:
            return out_of_tables(vcpu)
        final = w.qual & (NPF_FINAL if w.fault == FAULT_NPF else <uint64_t> QUAL_TRANSLATED) != 0
        if result == RET_PF_EMULATE and not final:
            vcpu_abort(v, ABORT_BUS, w.gpa)
            return RET_PF_BUS
        return result
    if w.fault == FAULT_EPT_MISCONFIG or w.fault == FAULT_NPF:
        return RET_PF_EMULATE
    if w.fault != FAULT_PF:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return RET_PF_BUS
    if not kvm.shadow or (kvm.agile != NULL and v.agile.nested):
        return RET_PF_INJECT
    if w.error_code & PF_RSVD:
        return RET_PF_EMULATE
    vcpu.guest.user = w.error_code & PF_U != 0
    vcpu.guest.ac = v.hw.ac
    result = shadow_fault(&kvm.mmu, &vcpu.guest, la, access_of(w.error_code), w.error_code & PF_P, ONES,
                          &guest)
    kvm.mmu.flush = False
    if result == RET_PF_NO_TABLES:
        return out_of_tables(vcpu)
    if result == RET_PF_WRITE_PROTECTED or result == RET_PF_RETRY or result == RET_PF_BUS:
        vcpu_abort(v, ABORT_BUS, guest.gpa)
        return RET_PF_BUS
    return result

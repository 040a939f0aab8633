"""The default handlers of VM exits, in the kernel layer.

A handler fills, zaps or write-protects through the MMU, pays the invalidation that the change owes (tlb.md §7, column
of the slides) and says what the processor does next.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastmmu._bits cimport FRAME
from fastmmu._ept cimport QUAL_TRANSLATED
from fastmmu._guest cimport canonical
from fastmmu._invalidate cimport inv_invept, inv_invvpid
from fastmmu._memory cimport mem_holds, mem_write64
from fastmmu._mmu cimport (
    FILL_MAPPED, FILL_NO_SLOT, FILL_NO_TABLES, mmu_direct, mmu_guest_wrote, mmu_set_root,
    mmu_zap_all,
)
from fastmmu._shadow cimport (
    SHADOW_BUS, SHADOW_FIXED, SHADOW_MMIO, SHADOW_NO_TABLES, SHADOW_REFLECT, SHADOW_SPURIOUS,
    shadow_fault,
)
from fastmmu._types cimport ACC_R, ACC_W, ACC_X, FAULT_EPT_VIOLATION, FAULT_PF, Walk
from fastmmu._vcpu cimport (
    ABORT_BUS, ABORT_MISCONFIG, ABORT_TABLES, ACT_ABORT, ACT_EMULATED, ACT_INJECT_PF, ACT_RETRY, Vcpu, vcpu_abort,
)
from fastmmu._vmx cimport (
    EXIT_CR_ACCESS, EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION, EXIT_EXCEPTION, EXIT_INVLPG, SECONDARY_VPID,
    secondary_control,
)

cdef uint64_t CR3_NO_FLUSH = 1ULL << 63


cdef int kvm_handle(Vcpu *v) noexcept nogil:
    cdef Kvm *kvm = <Kvm *> v.owner
    if kvm.surfaced[v.vmcs.exit_reason]:
        return kvm.surface(kvm.machine, v)
    return kvm_default(kvm, v)


cdef int kvm_default(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef uint64_t reason = v.vmcs.exit_reason
    if v.event:
        return ACT_EMULATED
    if reason == EXIT_EXCEPTION:
        return on_page_fault(kvm, v)
    if reason == EXIT_EPT_VIOLATION:
        return on_ept_violation(kvm, v)
    if reason == EXIT_CR_ACCESS:
        return on_mov_cr3(kvm, v)
    if reason == EXIT_INVLPG:
        # synced shadow tables hold nothing stale; only the processor's copies go
        if secondary_control(&v.vmcs, SECONDARY_VPID) and canonical(v.vmcs.exit_qualification, v.hw.la_bits):
            v.c.invvpid += 1
            inv_invvpid(v.tlb, 0, v.vmcs.vpid, v.vmcs.exit_qualification)
        return ACT_EMULATED
    if reason == EXIT_EPT_MISCONFIG:
        vcpu_abort(v, ABORT_MISCONFIG, v.vmcs.guest_physical_address)
        return ACT_ABORT
    return ACT_EMULATED                         # CPUID, external interrupt and the like: no state of ours changes


cdef void owed_flush(Kvm *kvm, Vcpu *v) noexcept nogil:
    # the MMU took rights away: cached translations may be stale. Without VPID the transitions flush them.
    if not kvm.mmu.flush:
        return
    kvm.mmu.flush = False
    if not kvm.shadow:
        v.c.invept += 1
        inv_invept(v.tlb, 1, v.vmcs.eptp & FRAME)
    elif secondary_control(&v.vmcs, SECONDARY_VPID):
        v.c.invvpid += 1
        inv_invvpid(v.tlb, 1, v.vmcs.vpid, 0)


cdef int out_of_tables(Kvm *kvm, Vcpu *v) noexcept nogil:
    # start over with empty tables; the access faults them in again
    mmu_zap_all(&kvm.mmu)
    owed_flush(kvm, v)                          # while the old root is still in force
    if kvm.shadow:
        if kvm_load_root(kvm, v, kvm.guest.cr3):
            return ACT_ABORT
    elif mmu_set_root(&kvm.mmu, 0, True):
        vcpu_abort(v, ABORT_TABLES, kvm.mmu.pool_end)
        return ACT_ABORT
    else:
        v.ept.root = kvm.mmu.sp[kvm.mmu.root].hpa
        v.vmcs.eptp = (v.vmcs.eptp & 0xFFF) | v.ept.root
    return ACT_RETRY


cdef int kvm_load_root(Kvm *kvm, Vcpu *v, uint64_t cr3) noexcept nogil:
    # the shadow root of a guest CR3, which the hardware uses in its place
    if mmu_set_root(&kvm.mmu, (cr3 & kvm.guest.frame) >> 12, False):
        if not kvm.mmu.out_of_tables:
            return vcpu_abort(v, ABORT_BUS, cr3)
        mmu_zap_all(&kvm.mmu)
        if mmu_set_root(&kvm.mmu, (cr3 & kvm.guest.frame) >> 12, False):
            return vcpu_abort(v, ABORT_TABLES, kvm.mmu.pool_end)
    kvm.guest.cr3 = cr3
    kvm.guest.root = cr3 & kvm.guest.frame
    v.hw.root = v.hw.cr3 = kvm.mmu.sp[kvm.mmu.root].hpa
    return 0


# ---- shadow paging ----------------------------------------------------------------------------------------

cdef inline int access_of(uint64_t error_code) noexcept nogil:
    return ACC_W if error_code & 2 else ACC_X if error_code & 16 else ACC_R


cdef int on_page_fault(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef Walk w
    cdef uint64_t code = v.vmcs.exit_interruption_error
    cdef int result, action
    kvm.guest.user = code >> 2 & 1
    result = shadow_fault(&kvm.mmu, &kvm.guest, v.vmcs.exit_qualification, access_of(code), &w)
    if result == SHADOW_NO_TABLES:
        return out_of_tables(kvm, v)
    if result == SHADOW_REFLECT:
        v.c.pf_guest += 1
        v.cr2 = v.vmcs.exit_qualification
        v.error_code = w.error_code
        return ACT_INJECT_PF
    if result == SHADOW_BUS:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return ACT_ABORT
    action = ACT_RETRY
    if result == SHADOW_FIXED:
        v.c.pf_fixed += 1
    elif result == SHADOW_SPURIOUS:
        v.c.pf_spurious += 1
    else:
        action = ACT_EMULATED
        v.emulated = w.gpa
        if result == SHADOW_MMIO:
            v.c.mmio += 1
        else:
            v.c.pf_emulate += 1
            emulate_store(kvm, v, w.gpa)
    owed_flush(kvm, v)
    return action


cdef void emulate_store(Kvm *kvm, Vcpu *v, uint64_t gpa) noexcept nogil:
    # the store into a shadowed table, and what it makes of the shadow entries
    if v.store_bytes == 8:
        if mem_holds(&kvm.mmu.guest, gpa, 8):
            mem_write64(&kvm.mmu.guest, gpa, v.store_value)
        mmu_guest_wrote(&kvm.mmu, gpa, 8)
    else:
        if v.store_bytes == 4096:
            memset(kvm.mmu.guest.base + (gpa & ~(<uint64_t> 0xFFF)), 0, 4096)
        mmu_guest_wrote(&kvm.mmu, gpa & ~(<uint64_t> 0xFFF), 4096)


cdef int on_mov_cr3(Kvm *kvm, Vcpu *v) noexcept nogil:
    if kvm.shadow:
        if kvm_load_root(kvm, v, v.vmcs.operand & ~CR3_NO_FLUSH):
            return ACT_ABORT
        kvm.mmu.flush = True                    # linear mappings are tagged by VPID alone: the old root's must go
        owed_flush(kvm, v)
    return ACT_EMULATED


# ---- EPT --------------------------------------------------------------------------------------------------

cdef int on_ept_violation(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef int result = mmu_direct(&kvm.mmu, v.vmcs.guest_physical_address)
    if result == FILL_NO_TABLES:
        return out_of_tables(kvm, v)
    if result == FILL_NO_SLOT:
        if not v.vmcs.exit_qualification & QUAL_TRANSLATED:     # a paging structure of the guest, not its data
            vcpu_abort(v, ABORT_BUS, v.vmcs.guest_linear_address)
            return ACT_ABORT
        v.emulated = v.vmcs.guest_physical_address
        v.c.mmio += 1
        return ACT_EMULATED
    if result == FILL_MAPPED:
        v.c.ept_build += 1
    else:
        v.c.ept_spurious += 1
    owed_flush(kvm, v)
    return ACT_RETRY


# ---- premapped runs ---------------------------------------------------------------------------------------

cdef int kvm_premap(Kvm *kvm, Vcpu *v, uint64_t la, const Walk *w) noexcept nogil:
    # the VMM's part of what a premapped run finds in place: ACT_INJECT_PF where the guest's own table lacks it
    cdef Walk guest
    cdef int result
    if w.fault == FAULT_EPT_VIOLATION:
        result = mmu_direct(&kvm.mmu, w.gpa)
        kvm.mmu.flush = False
        if result == FILL_NO_TABLES:
            return out_of_tables(kvm, v)
        if result == FILL_NO_SLOT:
            vcpu_abort(v, ABORT_BUS, w.gpa)
            return ACT_ABORT
        return ACT_RETRY
    if w.fault != FAULT_PF:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return ACT_ABORT
    if not kvm.shadow:
        return ACT_INJECT_PF
    kvm.guest.user = w.error_code >> 2 & 1
    result = shadow_fault(&kvm.mmu, &kvm.guest, la, access_of(w.error_code), &guest)
    kvm.mmu.flush = False
    if result == SHADOW_NO_TABLES:
        return out_of_tables(kvm, v)
    if result == SHADOW_REFLECT:
        return ACT_INJECT_PF
    if result == SHADOW_FIXED or result == SHADOW_SPURIOUS:
        return ACT_RETRY
    vcpu_abort(v, ABORT_BUS, guest.gpa)
    return ACT_ABORT

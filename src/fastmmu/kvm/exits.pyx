"""The default handlers of VM exits, in the kernel layer.

A handler fills, zaps or write-protects through the MMU, pays the invalidation that the change owes (tlb.md §7, column
that the configuration names) and says what the processor does next.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.msr cimport MSR_EFER
from fastmmu.arch.vmx cimport (
    EXIT_CR_ACCESS, EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION, EXIT_EXCEPTION_NMI, EXIT_INVLPG, EXIT_INVPCID,
    EXIT_NPF, EXIT_PML_FULL, EXIT_RDMSR, EXIT_WRMSR, INTERRUPTION_GP, N_REASONS, SECONDARY_PML,
)
from fastmmu.cpu.vcpu cimport ACT_ABORT, ACT_EMULATED, ACT_RETRY, INS_RDMSR, INS_WRMSR, Vcpu
from fastmmu.kvm.agile cimport kvm_agile_exit
from fastmmu.kvm.exit_log cimport kvm_log_begin, kvm_log_end
from fastmmu.kvm.faults cimport kvm_ept_misconfig, kvm_ept_violation, kvm_npf, kvm_page_fault
from fastmmu.kvm.kvm cimport OMIT_INVLPG, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST, Kvm, KvmVcpu, to_kvm_vcpu
from fastmmu.kvm.lapic cimport NOT_OF_APIC, kvm_apic_begin, kvm_apic_end, kvm_apic_exit
from fastmmu.kvm.modes cimport modes_save
from fastmmu.kvm.registers cimport kvm_cr_access, kvm_emulate
from fastmmu.kvm.requests cimport (
    kvm_count_flushes, kvm_entered, kvm_flush_gva, kvm_flush_remote_tlbs, kvm_serve_requests,
)
from fastmmu.kvm.svm cimport svm_pre_run
from fastmmu.mmu.dirty_log cimport dirty_collect, dirty_drain
from fastmmu.mmu.roots cimport mmu_forget_previous
from fastmmu.mmu.sync cimport shadow_invlpg, sync_roots
from fastmmu.paging.guest cimport reachable


ctypedef int (*KvmExit)(KvmVcpu *vcpu) noexcept nogil


cdef int kvm_handle(Vcpu *v) noexcept nogil:
    cdef KvmVcpu *vcpu = to_kvm_vcpu(v)
    cdef Kvm *kvm = vcpu.kvm
    cdef int action
    kvm_log_begin(vcpu)
    v.tlb_control = 0
    if v.ept.pml_index != NULL:
        kvm_drain(vcpu)
    kvm_entered(kvm)
    if kvm.agile != NULL:
        kvm.agile.ept.caches = kvm.mmu.caches
    modes_save(vcpu)
    if vcpu.irq != NULL:
        kvm_apic_begin(vcpu.irq)
    if kvm.surfaced[v.vmcs.exit_reason]:
        action = kvm.surface(kvm.machine, v)
    else:
        action = kvm_default(vcpu)
    kvm_log_end(vcpu)
    if kvm.agile != NULL:
        if kvm_agile_exit(vcpu):
            action = ACT_ABORT
        kvm.agile.ept.caches = NULL
    kvm_serve_requests(vcpu)
    read_full_ring(vcpu)
    if vcpu.irq != NULL:
        kvm_apic_end(vcpu.irq, action)
    if kvm.modes.amd:
        svm_pre_run(vcpu)
    return action


cdef int kvm_default(KvmVcpu *vcpu) noexcept nogil:
    cdef int action
    if vcpu.cpu.event:
        return ACT_EMULATED
    if vcpu.irq != NULL:
        action = kvm_apic_exit(vcpu.irq)
        if action != NOT_OF_APIC:
            return action
    return kvm_exit[vcpu.cpu.vmcs.exit_reason](vcpu)


cdef int go_on(KvmVcpu *vcpu) noexcept nogil:
    # CPUID, external interrupt and the like: no state of ours changes
    return ACT_EMULATED


cdef int exception(KvmVcpu *vcpu) noexcept nogil:
    cdef Vcpu *v = &vcpu.cpu
    if v.vmcs.exit_interruption_info == INTERRUPTION_GP:
        return kvm_emulate(vcpu, v.instruction, v.instruction_cr, v.source)
    return kvm_page_fault(vcpu)


cdef int invlpg(KvmVcpu *vcpu) noexcept nogil:
    return invalidate_page(vcpu, vcpu.cpu.vmcs.exit_qualification)


cdef int msr(KvmVcpu *vcpu) noexcept nogil:
    # of those that the machine has EFER alone is no APIC's
    cdef Vcpu *v = &vcpu.cpu
    if v.vmcs.operand != MSR_EFER:
        return ACT_EMULATED
    return kvm_emulate(vcpu, INS_WRMSR if v.vmcs.exit_reason == EXIT_WRMSR else INS_RDMSR, 0, v.source)


cdef int pml_full(KvmVcpu *vcpu) noexcept nogil:
    # the log was read at the exit, like at every other
    return ACT_RETRY


# ---- invalidations of a shadowed guest ------------------------------------------------------------------

cdef int invalidate_page(KvmVcpu *vcpu, uint64_t la) noexcept nogil:
    # below every root that is kept, whichever PCID the guest has for it
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    shadow_invlpg(&kvm.mmu, &vcpu.guest, la)
    kvm_flush_remote_tlbs(vcpu)
    if not kvm.omit & OMIT_INVLPG and reachable(la, v.hw.la_bits):
        kvm_flush_gva(vcpu, la)
    return ACT_EMULATED


cdef int invpcid(KvmVcpu *vcpu) noexcept nogil:
    # tlb.md §4: type 0 one page, 1 one PCID, 2 and 3 all of them
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef uint32_t type = v.instruction_cr
    if type == 0 and kvm.mmu.policy.invpcid_page:
        kvm.stats.tlb_flush += 1
        return invalidate_page(vcpu, v.source)
    if type > 1:
        kvm.stats.owed |= REQ_TLB_FLUSH_GUEST
    elif type == 1 and v.invpcid_pcid == v.hw.pcid:
        kvm.stats.owed |= REQ_TLB_FLUSH_CURRENT
    kvm_count_flushes(kvm)
    sync_roots(&kvm.mmu, &vcpu.guest)
    mmu_forget_previous(&kvm.mmu, <int> v.invpcid_pcid if type == 1 else -1)
    kvm.mmu.flush = True
    return ACT_EMULATED


# ---- the table ------------------------------------------------------------------------------------------

cdef KvmExit kvm_exit[N_REASONS]                # [exit reason]


cdef void handles(int reason, KvmExit handler) noexcept nogil:
    kvm_exit[reason] = handler

for _reason in range(N_REASONS):
    handles(_reason, go_on)
handles(EXIT_EXCEPTION_NMI, exception)
handles(EXIT_INVLPG, invlpg)
handles(EXIT_CR_ACCESS, kvm_cr_access)
handles(EXIT_RDMSR, msr)
handles(EXIT_WRMSR, msr)
handles(EXIT_EPT_VIOLATION, kvm_ept_violation)
handles(EXIT_EPT_MISCONFIG, kvm_ept_misconfig)
handles(EXIT_NPF, kvm_npf)
handles(EXIT_INVPCID, invpcid)
handles(EXIT_PML_FULL, pml_full)


# ---- the page-modification log --------------------------------------------------------------------------

cdef void kvm_drain(KvmVcpu *vcpu) noexcept nogil:
    # the page-modification log into the dirty log
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    if v.ept.pml_index == NULL or v.vmcs.pml_index == 511:
        return
    dirty_drain(&kvm.mmu, v.vmcs.pml_address, v.vmcs.pml_index)
    v.vmcs.pml_index = 511
    read_full_ring(vcpu)


cdef void read_full_ring(KvmVcpu *vcpu) noexcept nogil:
    # an exit to user space, which reads the rings, before the guest runs on
    cdef Kvm *kvm = vcpu.kvm
    if kvm.mmu.slots.ring.size and kvm.mmu.slots.ring.used >= kvm.mmu.slots.ring.room:
        kvm.mmu.counters.ring_full += 1
        dirty_collect(&kvm.mmu)
        kvm_flush_remote_tlbs(vcpu)


cdef void kvm_arm(KvmVcpu *vcpu) noexcept nogil:
    # the processor logs while any slot is logged; each vCPU has its own index, and its log is read at every exit
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef int i
    cdef bint logged = False
    if not kvm.mmu.policy.pml:
        return
    for i in range(kvm.mmu.slots.n):
        logged = logged or kvm.mmu.slots.slot[i].dirty != NULL
    if logged and v.ept.pml_index == NULL:
        v.vmcs.pml_index = 511
    v.ept.pml_index = &v.vmcs.pml_index if logged else NULL
    v.ept.pml_base = v.vmcs.pml_address
    if logged:
        v.vmcs.secondary |= SECONDARY_PML
    else:
        v.vmcs.secondary &= ~SECONDARY_PML

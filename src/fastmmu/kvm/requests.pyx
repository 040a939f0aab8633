"""Requests: raised by the MMU and by KVM, served before VM entry (kvm_make_request, vcpu_enter_guest of Linux 6.1).

Flushes are for entries and roots that changed, on a new CPU, by other vCPUs (tlb.md §7). What KVM counts of them is the
matter of `kvm_entered`: the kinds of flushes that it would ask for are not those that are needed.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.vmx cimport SECONDARY_VPID, secondary_control
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport (
    EXITING_GUEST_MODE, IN_GUEST_MODE, OMIT_MOVED, OMIT_PV, OMIT_REMOTE, OMIT_TABLES, OUTSIDE_GUEST_MODE,
    REQ_STEAL_UPDATE, REQ_TLB_FLUSH, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST, Kvm, KvmStats, KvmVcpu,
)
from fastmmu.kvm.svm cimport svm_flush_gva, svm_flush_tlb, svm_moved
from fastmmu.mmu.sync cimport sync_every_root
from fastmmu.tlb.invalidate cimport inv_invept, inv_invvpid, inv_transition


cdef void kvm_flush(KvmVcpu *vcpu) noexcept nogil:
    # tlb.md §7: of its context, or of all of them. Without VPID the transitions flush linear mappings; the one after
    # which user space was reached, and the VM entry to come.
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef int every = kvm.mmu.policy.flush_all_contexts
    if kvm.modes.amd:
        svm_flush_tlb(vcpu)
    elif not kvm.shadow:
        vcpu.c.invept += 1
        inv_invept(v.tlb, 1 + every, v.vmcs.eptp & FRAME)
    elif kvm.agile != NULL and kvm.agile.ept.flush:     # all that is cached is of its root
        kvm.agile.ept.flush = False
        vcpu.c.invept += 1
        inv_invept(v.tlb, 1 + every, v.vmcs.eptp & FRAME)
    elif secondary_control(&v.vmcs, SECONDARY_VPID):
        vcpu.c.invvpid += 1
        inv_invvpid(v.tlb, 1 + every, v.vmcs.vpid, 0)
    else:
        inv_transition(v.tlb, False)


cdef void kvm_moved(KvmVcpu *vcpu) noexcept nogil:
    # What it cached there before may be stale, and its VPID may have been another's (vmx_vcpu_load_vmcs).
    cdef Kvm *kvm = vcpu.kvm
    if kvm.modes.amd:
        svm_moved(vcpu)
        return
    vcpu.requests &= ~<uint32_t> REQ_TLB_FLUSH
    if kvm.omit & OMIT_MOVED:
        return
    if not kvm.mmu.policy.flush_all_contexts and not kvm.shadow:
        kvm_make_request(vcpu, REQ_TLB_FLUSH_CURRENT)
    kvm_make_request(vcpu, REQ_TLB_FLUSH)


cdef void flush_current(KvmVcpu *vcpu) noexcept nogil:
    # Linear mappings are tagged by VPID alone, the hardware's PCID is 0 whatever the guest's: the old root's must go.
    cdef Vcpu *v = &vcpu.cpu
    if vcpu.kvm.modes.amd:
        svm_flush_tlb(vcpu)
    elif secondary_control(&v.vmcs, SECONDARY_VPID):
        vcpu.c.invvpid += 1
        inv_invvpid(v.tlb, 1, v.vmcs.vpid, 0)


cdef void kvm_flush_gva(KvmVcpu *vcpu, uint64_t la) noexcept nogil:
    # without VPID the exit has flushed it
    cdef Vcpu *v = &vcpu.cpu
    if vcpu.kvm.modes.amd:
        svm_flush_gva(vcpu, la)
    elif secondary_control(&v.vmcs, SECONDARY_VPID):
        vcpu.c.invvpid += 1
        inv_invvpid(v.tlb, 0, v.vmcs.vpid, la)


cdef void request_remote(KvmVcpu *vcpu) noexcept nogil:
    # The other vCPUs flush before they enter the guest again; one that is in it is made to exit, one that has no
    # physical CPU (OUTSIDE_GUEST_MODE) flushes when it gets one, without an IPI.
    cdef Kvm *kvm = vcpu.kvm
    cdef KvmVcpu *other
    cdef uint32_t i
    kvm.remote_flushes += 1
    vcpu.c.remote_sent += 1
    for i in range(kvm.n_vcpus):
        other = kvm.vcpu[i]
        if other != vcpu:
            kvm.flush_requests += 1
            other.c.remote_asked += 1
            other.c.remote_deferred += other.mode == OUTSIDE_GUEST_MODE
            kvm_make_request(other, REQ_TLB_FLUSH)
            if other.mode == IN_GUEST_MODE:
                other.mode = EXITING_GUEST_MODE
                kvm.ipis += 1
                vcpu.c.remote_ipis += 1
                other.c.remote_kicked += 1


cdef void kvm_flush_all(KvmVcpu *vcpu) noexcept nogil:
    cdef Kvm *kvm = vcpu.kvm
    kvm.mmu.flush = False
    if not kvm.omit & OMIT_TABLES:
        kvm_flush(vcpu)
    if kvm.n_vcpus > 1 and not kvm.omit & OMIT_REMOTE:
        request_remote(vcpu)


cdef void kvm_serve(KvmVcpu *vcpu) noexcept nogil:
    cdef uint32_t requests = vcpu.requests
    vcpu.requests = 0
    if requests & REQ_TLB_FLUSH_CURRENT:
        flush_current(vcpu)
    kvm_flush_remote_tlbs(vcpu)
    if requests & REQ_TLB_FLUSH:
        kvm_flush(vcpu)
    if requests & REQ_STEAL_UPDATE and not vcpu.kvm.omit & OMIT_PV:
        flush_guest(vcpu)


cdef void flush_guest(KvmVcpu *vcpu) noexcept nogil:
    # The guest took rights away in its own tables while the vCPU had no physical CPU, and left the flush to the VMM
    # (record_steal_time, kvm_vcpu_flush_tlb_guest).
    vcpu.kvm.stats.tlb_flush += 1
    if vcpu.kvm.shadow:
        sync_every_root(&vcpu.kvm.mmu, &vcpu.guest)
        kvm_flush_remote_tlbs(vcpu)
    flush_current(vcpu)


# ---- what KVM counts (kvm_policy.md §12) --------------------------------------------------------------------

cdef void kvm_entered(Kvm *kvm) noexcept nogil:
    # what the VM entry did from which this exit is the way back: roots that went while in use are freed, and flushes
    # that were requested are done
    cdef KvmStats *s = &kvm.stats
    s.tables_early = 0
    if s.roots_gone:
        kvm.mmu.counters.zaps += s.roots_gone
        kvm.mmu.counters.flush_requests += 1
        s.roots_gone = 0
    kvm_count_flushes(kvm)


cdef void kvm_count_flushes(Kvm *kvm) noexcept nogil:
    # each kind that is owed, once; a flush of all includes that of the current root
    cdef KvmStats *s = &kvm.stats
    if s.served != kvm.mmu.counters.flush_requests:
        s.served = kvm.mmu.counters.flush_requests
        s.owed = s.owed & ~<uint32_t> REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH
    s.tlb_flush += ((s.owed & REQ_TLB_FLUSH != 0) + (s.owed & REQ_TLB_FLUSH_CURRENT != 0)
                    + (s.owed & REQ_TLB_FLUSH_GUEST != 0))
    s.owed = 0

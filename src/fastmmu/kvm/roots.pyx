"""The root of the VMM's tables that a vCPU runs on, from the guest's registers (kvm_policy.md §1, §2.4)."""

from libc.stdint cimport uint64_t, uint8_t

from fastmmu.arch.bits cimport ONES, P
from fastmmu.arch.types cimport MODE_32, MODE_NONE, MODE_PAE, Paging
from fastmmu.arch.vmx cimport ENTRY_LONG_MODE
from fastmmu.cpu.vcpu cimport ABORT_ROOT, ABORT_TABLES, ACT_ABORT, ACT_RETRY, Vcpu, vcpu_abort
from fastmmu.kvm.kvm cimport REQ_TLB_FLUSH_CURRENT, Kvm, KvmVcpu
from fastmmu.kvm.agile_roots cimport agile_nested_root, kvm_agile_zap
from fastmmu.kvm.requests cimport kvm_flush_remote_tlbs, kvm_make_request
from fastmmu.mmu.mmu cimport (
    PAE_LEVELS, ROLE_4_BYTE, ROLE_KEYS, ROLE_NXE, ROLE_PAE, ROLE_PSE, ROLE_SMAP, ROLE_SMEP, ROLE_WP,
)
from fastmmu.mmu.pages cimport mmu_forget_roots, mmu_zap_all
from fastmmu.mmu.roots cimport mmu_roots, mmu_set_pae_roots, mmu_set_role, mmu_set_root, mmu_write_pdptes
from fastmmu.mmu.sync cimport sync_roots
from fastmmu.paging.guest cimport root_address
from fastmmu.paging.memory cimport mem_read64


cdef int role_of(const Paging *guest, bint keys) noexcept nogil:
    # What the guest's registers make of its tables (kvm_policy.md §1). Linux leaves PSE and PAE out: a guest that turns
    # PSE off goes on with its 4 MB pages there.
    cdef int role
    if guest.mode == MODE_NONE:
        return 0
    role = (ROLE_NXE if guest.nxe else 0) | (ROLE_WP if guest.wp else 0)
    if keys and guest.lma:
        role |= ROLE_KEYS
    if guest.mode == MODE_32:
        role |= ROLE_4_BYTE | (ROLE_PSE if guest.large_ok[2] else 0)
    elif guest.mode == MODE_PAE:
        role |= ROLE_PAE
    if guest.wp:
        return role
    return role | (ROLE_SMEP if guest.smep else 0) | (ROLE_SMAP if guest.smap else 0)


cdef int shadow_root(KvmVcpu *vcpu, uint64_t cr3) noexcept nogil:
    # a guest whose addresses have 32 bits is shadowed by PAE tables: direct ones, four quadrants of its page directory,
    # or the page directories of its own PDPTEs
    cdef Kvm *kvm = vcpu.kvm
    cdef const Paging *guest = &vcpu.guest
    cdef uint64_t i
    cdef uint64_t gfn[4]
    mmu_set_role(&kvm.mmu, role_of(guest, kvm.modes.keys), guest.levels if guest.levels >= 4 else PAE_LEVELS)
    if guest.levels >= 4:
        return mmu_set_root(&kvm.mmu, root_address(guest, cr3) >> 12, False)
    for i in range(4):
        if guest.mode == MODE_NONE:
            gfn[i] = i << 18
        elif guest.mode == MODE_32:
            gfn[i] = root_address(guest, cr3) >> 12
        else:
            gfn[i] = (guest.pdpte[i] & guest.frame) >> 12 if guest.pdpte[i] & P else ONES
    return mmu_set_pae_roots(&kvm.mmu, gfn, guest.mode == MODE_NONE)


cdef int kvm_set_root(KvmVcpu *vcpu, uint64_t cr3) noexcept nogil:
    # the shadow root of a guest CR3 and of its PDPTE registers, which the hardware uses in its place
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef int i
    if kvm.agile != NULL and agile_nested_root(vcpu, cr3, role_of(&vcpu.guest, kvm.modes.keys)):
        return 0
    if shadow_root(vcpu, cr3):
        if not kvm.mmu.out_of_tables:
            return vcpu_abort(v, ABORT_ROOT, cr3)
        mmu_zap_all(&kvm.mmu)
        if shadow_root(vcpu, cr3):
            return vcpu_abort(v, ABORT_TABLES, kvm.mmu.pool_end)
    vcpu.guest.cr3 = cr3
    vcpu.guest.root = root_address(&vcpu.guest, cr3)
    if kvm.mmu.vcpu.root_level == PAE_LEVELS:
        v.hw.root = v.hw.cr3 = kvm.mmu.pdpt
        for i in range(4):
            v.hw.pdpte[i] = mem_read64(kvm.mmu.mem, kvm.mmu.pdpt + 8 * i)
    else:
        kvm.mmu.vcpu.root_pcid = v.hw.pcid = cr3 & 0xFFF if v.hw.pcid_on else 0
        v.hw.root = kvm.mmu.sp[kvm.mmu.vcpu.root].hpa
        v.hw.cr3 = v.hw.root | v.hw.pcid
    return 0


cdef int kvm_load_root(KvmVcpu *vcpu, uint64_t cr3) noexcept nogil:
    # in sync with what the guest's tables say
    cdef Kvm *kvm = vcpu.kvm
    if kvm_set_root(vcpu, cr3):
        return -1
    sync_roots(&kvm.mmu, &vcpu.guest)
    return 0


cdef int kvm_resume_root(KvmVcpu *vcpu) noexcept nogil:
    # a vCPU runs on, with its own roots; those that another one zapped are made anew
    cdef Kvm *kvm = vcpu.kvm
    if not kvm.mmu.vcpu.rooted:
        if kvm_load_root(vcpu, vcpu.guest.cr3):
            return -1
        kvm_make_request(vcpu, REQ_TLB_FLUSH_CURRENT)
    elif kvm.mmu.vcpu.root_level == PAE_LEVELS:
        mmu_write_pdptes(&kvm.mmu)
    return 0


cdef int kvm_new_role(KvmVcpu *vcpu, const Paging *guest, const Paging *hardware) noexcept nogil:
    # registers of a shadowed guest other than CR3 are new: what they make of its tables has pages of its own
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef uint64_t cr3 = vcpu.guest.cr3
    cdef uint8_t ac = v.hw.ac
    if (guest.smep != vcpu.guest.smep or guest.smap != vcpu.guest.smap or guest.wp != vcpu.guest.wp
            or guest.nxe != vcpu.guest.nxe):
        mmu_forget_roots(kvm.mmu.vcpu)              # Linux keeps none, whether or not the role is another
    vcpu.guest = guest[0]
    v.hw = hardware[0]
    vcpu.guest.ac = v.hw.ac = ac
    vcpu.guest.write_ad = v.hw.write_ad = 1
    v.vmcs.vm_entry = v.vmcs.vm_entry & ~ENTRY_LONG_MODE | (ENTRY_LONG_MODE if v.hw.lma else 0)
    if kvm_load_root(vcpu, cr3):
        return -1
    kvm.mmu.flush = True
    return 0


cdef int kvm_zap_all(KvmVcpu *vcpu) noexcept nogil:
    # Every table goes, and another root takes the place of the one in use. Linux makes it at the next VM entry, and
    # counts those in use once more there (KVM_REQ_MMU_FREE_OBSOLETE_ROOTS). Of the TDP MMU it flushes nothing: no root
    # leads to those tables.
    cdef Kvm *kvm = vcpu.kvm
    cdef uint64_t made
    if not kvm.mmu.policy.tdp:
        kvm.stats.roots_gone += mmu_roots(&kvm.mmu)
        kvm.mmu.counters.flush_requests += 1
    mmu_zap_all(&kvm.mmu)
    made = kvm.mmu.counters.tables_made
    if kvm_reload(vcpu):
        return -1
    kvm.stats.tables_early = kvm.mmu.counters.tables_made - made
    return 0


cdef int kvm_reload(KvmVcpu *vcpu) noexcept nogil:
    # every table goes, the guest goes on with an empty root
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    mmu_zap_all(&kvm.mmu)
    if kvm.agile != NULL and kvm_agile_zap(vcpu):
        return -1
    kvm_flush_remote_tlbs(vcpu)                 # while the old root is still in force
    if kvm.shadow:
        return kvm_load_root(vcpu, vcpu.guest.cr3)
    if mmu_set_root(&kvm.mmu, 0, True):
        return vcpu_abort(v, ABORT_TABLES, kvm.mmu.pool_end)
    v.ept.root = kvm.mmu.sp[kvm.mmu.vcpu.root].hpa
    v.vmcs.eptp = (v.vmcs.eptp & 0xFFF) | v.ept.root
    return 0


cdef int kvm_out_of_tables(KvmVcpu *vcpu) noexcept nogil:
    # start over with empty tables; the access faults them in again
    return ACT_ABORT if kvm_reload(vcpu) else ACT_RETRY

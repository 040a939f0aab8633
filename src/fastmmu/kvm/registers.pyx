"""What KVM does when the guest writes and reads control registers and EFER (kvm_policy.md §2.4, §3.4)."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.bits cimport FRAME, ONES
from fastmmu.arch.registers cimport (
    CR0_CD, CR0_PG, CR0_TS, CR3_NO_FLUSH, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_SMEP, RULE_NONE, RULE_PDPTE, Registers,
    pae_paging, paging_of, registers_cr0, registers_cr3, registers_cr4, registers_efer, registers_lmsw,
    registers_load_pdptes, registers_pdptes,
)
from fastmmu.arch.types cimport Paging
from fastmmu.cpu.vcpu cimport (
    ABORT_IDENTITY, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP, INS_CLTS, INS_INVLPG, INS_LMSW, INS_MOV_FROM_CR,
    INS_MOV_TO_CR, INS_RDMSR, INS_WRMSR, Vcpu, vcpu_abort,
)
from fastmmu.kvm.kvm cimport (
    OMIT_REGISTERS, OMIT_TABLES, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST, Kvm, KvmVcpu,
)
from fastmmu.kvm.modes cimport modes_cr4, modes_load, modes_shadow
from fastmmu.kvm.requests cimport kvm_count_flushes, kvm_flush_gva, kvm_flush_remote_tlbs, kvm_make_request
from fastmmu.kvm.roots cimport kvm_new_role, kvm_reload, kvm_set_root
from fastmmu.kvm.svm cimport svm_flush_tlb
from fastmmu.mmu.pages cimport mmu_hpa
from fastmmu.mmu.roots cimport mmu_forget_previous, mmu_root_found, mmu_root_kept
from fastmmu.mmu.sync cimport sync_every_root, sync_roots
from fastmmu.paging.guest cimport root_address
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.tlb.invalidate cimport inv_invept


cdef int kvm_registers(KvmVcpu *vcpu) noexcept nogil:
    # the guest's registers, vcpu.arch, are new: hardware state and controls, and under shadow paging the root
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Registers registers
    cdef Paging guest, hardware
    if modes_load(vcpu):
        return vcpu_abort(v, ABORT_IDENTITY, vcpu.arch.cr0)
    if not kvm.shadow:
        return 0
    modes_shadow(&kvm.modes, &vcpu.arch, &registers)
    paging_of(&vcpu.arch, &guest)
    paging_of(&registers, &hardware)
    vcpu.guest.cr3 = vcpu.arch.cr3
    return kvm_new_role(vcpu, &guest, &hardware)


cdef int load_cr3(KvmVcpu *vcpu, const Registers *new, bint no_flush) noexcept nogil:
    # MOV to CR3, which exits where CR3 is the VMM's: under shadow paging, and while a guest over EPT does not page.
    # Where the guest flushes nothing and the root is one of those kept, neither does the VMM: what may be stale then is
    # what may be stale without it.
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef bint kept = (no_flush and v.hw.pcid_on
                      and mmu_root_kept(&kvm.mmu, root_address(&vcpu.guest, new.cr3) >> 12, new.cr3 & 0xFFF))
    vcpu.arch = new[0]
    if not kvm.shadow:                          # the value counts when paging is on again
        kvm.stats.owed |= REQ_TLB_FLUSH_GUEST
        return ACT_ABORT if kvm_registers(vcpu) else ACT_EMULATED
    if not (no_flush and v.hw.pcid_on):
        kvm.stats.owed |= REQ_TLB_FLUSH_CURRENT
    if not mmu_root_found(&kvm.mmu, root_address(&vcpu.guest, new.cr3) >> 12):
        kvm_count_flushes(kvm)                  # before the root is made, which is another round to the VM entry
    memcpy(vcpu.guest.pdpte, new.pdpte, sizeof(new.pdpte))
    if kvm_set_root(vcpu, new.cr3):
        return ACT_ABORT
    if not kept:
        sync_roots(&kvm.mmu, &vcpu.guest)
    if v.hw.pcid_on and not no_flush:
        mmu_forget_previous(&kvm.mmu, v.hw.pcid)
    # else all is flushed: tables had to go, or were brought in sync
    if (not kvm.mmu.flush or kvm.omit & OMIT_TABLES) and not kept and not kvm.omit & OMIT_REGISTERS:
        kvm_make_request(vcpu, REQ_TLB_FLUSH_CURRENT)
    return ACT_EMULATED


cdef int adopt(KvmVcpu *vcpu, const Registers *new) noexcept nogil:
    # CR0, CR4 or EFER has changed. Under EPT: what the old registers made of linear addresses is cached (tlb.md §7).
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Registers old = vcpu.arch
    cdef uint64_t cr4 = old.cr4 ^ new.cr4
    if cr4 & CR4_PGE or cr4 & old.cr4 & CR4_PCIDE or (old.cr0 & ~new.cr0) & CR0_PG:
        kvm.stats.owed |= REQ_TLB_FLUSH_GUEST
    elif cr4 & CR4_PAE or cr4 & new.cr4 & CR4_SMEP:
        kvm.stats.owed |= REQ_TLB_FLUSH_CURRENT
    kvm_count_flushes(kvm)                      # what brings roots in sync asks for another
    if kvm.shadow and cr4 & (CR4_PGE | CR4_PCIDE):
        sync_every_root(&kvm.mmu, &vcpu.guest)   # a new role has pages of its own
    vcpu.arch = new[0]
    if kvm_registers(vcpu):
        return ACT_ABORT
    if (old.cr0 ^ new.cr0) & CR0_CD:
        kvm.mmu.uncached = new.cr0 & CR0_CD != 0
        kvm_flush_remote_tlbs(vcpu)             # the flush for the registers is one of its own
        if kvm.mmu.noncoherent and not kvm.mmu.ignore_cd and kvm_reload(vcpu):
            return ACT_ABORT
    if kvm.shadow:
        return ACT_EMULATED
    if (old.cr0 ^ new.cr0) & CR0_PG or cr4 & CR4_PAE or cr4 & new.cr4 & CR4_SMEP:
        if kvm.modes.amd:
            svm_flush_tlb(vcpu)
        else:
            vcpu.c.invept += 1
            inv_invept(v.tlb, 1, v.vmcs.eptp & FRAME)
    elif cr4 & CR4_PGE or cr4 & old.cr4 & CR4_PCIDE:
        kvm_make_request(vcpu, REQ_TLB_FLUSH_CURRENT)
    return ACT_EMULATED


cdef int read_pdptes(KvmVcpu *vcpu, Registers *new) noexcept nogil:
    # RULE_NONE or a rule; KVM cannot read those that lie outside memory, and so refuses them
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef uint64_t loaded[4]
    cdef uint64_t at = mmu_hpa(&kvm.mmu, new.cr3 & 0xFFFFFFE0U)
    cdef int i
    if at == ONES or not mem_holds(v.mem, at, sizeof(loaded)):
        return RULE_PDPTE
    for i in range(4):
        loaded[i] = mem_read64(v.mem, at + 8 * i)
    return registers_pdptes(new, loaded)


cdef int kvm_emulate(KvmVcpu *vcpu, uint32_t instruction, uint32_t cr, uint64_t source) noexcept nogil:
    # an instruction on a control register or EFER, on the guest's own registers
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef Registers *a = &vcpu.arch
    cdef Registers new = vcpu.arch
    cdef int rule = RULE_NONE
    if instruction == INS_MOV_FROM_CR:
        v.result = a.cr0 if cr == 0 else a.cr3 if cr == 3 else a.cr4
        return ACT_EMULATED
    if instruction == INS_RDMSR:
        v.result = a.efer
        return ACT_EMULATED
    if instruction == INS_INVLPG:
        kvm_flush_gva(vcpu, source)
        return ACT_EMULATED
    if instruction == INS_WRMSR:
        rule = registers_efer(a, source, &new)
    elif instruction == INS_CLTS:
        rule = registers_cr0(a, a.cr0 & ~<uint64_t> CR0_TS, &new)
    elif instruction == INS_LMSW:
        rule = registers_cr0(a, registers_lmsw(a, source), &new)
    elif instruction != INS_MOV_TO_CR:
        return ACT_EMULATED
    elif cr == 0:
        rule = registers_cr0(a, source, &new)
    elif cr == 3:
        rule = registers_cr3(a, source, &new)
    elif cr == 4:
        rule = registers_cr4(a, source, &new) or modes_cr4(&kvm.modes, source)
    cr = cr if instruction == INS_MOV_TO_CR else 0
    if not rule and (pae_paging(&new) if cr == 3 else registers_load_pdptes(a, &new)):
        rule = read_pdptes(vcpu, &new)
    if rule:
        v.rule = rule
        return ACT_INJECT_GP
    if cr == 3:
        return load_cr3(vcpu, &new, a.cr4 & CR4_PCIDE != 0 and source & CR3_NO_FLUSH != 0)
    return adopt(vcpu, &new)


cdef int kvm_cr_access(KvmVcpu *vcpu) noexcept nogil:
    # vmx.md §5.1: what the qualification says
    cdef Vcpu *v = &vcpu.cpu
    cdef uint64_t q = v.vmcs.exit_qualification
    cdef int type = q >> 4 & 3
    if type == 3:
        return kvm_emulate(vcpu, INS_LMSW, 0, q >> 16 & 0xFFFF)
    return kvm_emulate(vcpu, INS_CLTS if type == 2 else INS_MOV_FROM_CR if type == 1 else INS_MOV_TO_CR, q & 15,
                       v.vmcs.operand)

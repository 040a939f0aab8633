"""Instructions that write and read control registers, and EFER.

Each goes the same way: in a virtual-8086 task #GP, in VMX non-root operation the exit that the controls ask for, else
the processor does it: the rules of paging.md §1.2, the load of the PDPTE registers (§3.2), the invalidations of
tlb.md §3. MOV to CR3, which a guest kernel does all the time, is in cpu/vcpu.pyx.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.msr cimport MSR_EFER
from fastmmu.arch.registers cimport (
    CR0_PE, CR0_PG, CR0_TS, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_SMEP, CR4_VMXE, RULE_CR4_RESERVED, RULE_INJECTED,
    Registers, registers_cr0, registers_cr4, registers_efer, registers_lmsw, registers_load_pdptes,
)
from fastmmu.arch.vmx cimport EXIT_CR_ACCESS, EXIT_RDMSR, EXIT_WRMSR, PRIMARY_CR3_STORE, clear_exit_information
from fastmmu.cpu.vcpu cimport (
    DONE_GP, DONE_OK, INS_CLTS, INS_LMSW, INS_MOV_FROM_CR, INS_MOV_TO_CR, INS_RDMSR, INS_WRMSR, Vcpu, vcpu_completed,
    vcpu_derive, vcpu_exit, vcpu_pdptes, vcpu_privileged, vcpu_registers,
)
from fastmmu.tlb.invalidate cimport inv_cr0_pg, inv_cr4_all, inv_cr4_pcid

cdef enum CrAccess:             # exit qualification 5:4 of a CR access (vmx.md §5.1)
    TYPE_MOV_TO = 0 << 4
    TYPE_MOV_FROM = 1 << 4
    TYPE_CLTS = 2 << 4
    TYPE_LMSW = 3 << 4
    LMSW_MEMORY = 1 << 6
    LMSW_SOURCE = 16            # bit at which the source begins


cdef inline void current(const Vcpu *v, Registers *r) noexcept nogil:
    # the processor's registers with those that are kept in hw
    r[0] = v.r
    r.cr3 = v.hw.cr3
    memcpy(r.pdpte, v.hw.pdpte, sizeof(r.pdpte))


cdef int exit_cr(Vcpu *v, uint64_t qualification, uint64_t operand) noexcept nogil:
    clear_exit_information(&v.vmcs)
    v.vmcs.exit_qualification = qualification
    v.vmcs.operand = operand
    v.rule = RULE_INJECTED
    return vcpu_completed(vcpu_exit(v, EXIT_CR_ACCESS))


cdef int exit_msr(Vcpu *v, int reason, uint64_t value) noexcept nogil:
    # KVM's MSR bitmap lets no access to EFER through
    clear_exit_information(&v.vmcs)
    v.vmcs.operand = MSR_EFER
    v.source = value
    v.rule = RULE_INJECTED
    return vcpu_completed(vcpu_exit(v, reason))


cdef void load(Vcpu *v, const Registers *new) noexcept nogil:
    v.r = new[0]
    vcpu_registers(v)


cdef int refuse(Vcpu *v, int rule) noexcept nogil:
    v.rule = rule
    return DONE_GP


# ---- CR0 --------------------------------------------------------------------------------------------------

cdef int write_cr0(Vcpu *v, uint64_t value) noexcept nogil:
    # by the processor. Translations made without paging are not for a guest that pages, so PG flushes both ways.
    cdef Registers old, new
    cdef int rule, outcome
    current(v, &old)
    rule = registers_cr0(&old, value, &new)
    if rule:
        return refuse(v, rule)
    if registers_load_pdptes(&old, &new):
        outcome = vcpu_pdptes(v, &new)
        if outcome:
            return outcome
    if (old.cr0 ^ new.cr0) & CR0_PG:
        inv_cr0_pg(v.tlb, v.vmcs.vpid if v.vpid_on else 0)
    load(v, &new)
    vcpu_derive(v)
    return DONE_OK


cdef int vcpu_mov_cr0(Vcpu *v, uint64_t value) noexcept nogil:
    if v.vm86:
        return vcpu_privileged(v, INS_MOV_TO_CR, 0, value)
    if v.guest:
        if (value ^ v.vmcs.cr0_shadow) & v.vmcs.cr0_mask:
            return exit_cr(v, TYPE_MOV_TO | 0, value)
        value = (v.r.cr0 & v.vmcs.cr0_mask) | (value & ~v.vmcs.cr0_mask)
    return write_cr0(v, value)


cdef int vcpu_lmsw(Vcpu *v, uint64_t source, bint memory) noexcept nogil:
    # bits 3:0 of CR0; it can set PE but not clear it, so PE exits only where it would be set
    cdef uint64_t asked, mask = v.vmcs.cr0_mask & 0xF
    source &= 0xFFFF
    if v.vm86:
        return vcpu_privileged(v, INS_LMSW, 0, source)
    if v.guest:
        asked = (source ^ v.vmcs.cr0_shadow) & mask
        if asked & ~<uint64_t> CR0_PE or (asked & CR0_PE and source & CR0_PE):
            return exit_cr(v, TYPE_LMSW | (LMSW_MEMORY if memory else 0) | source << LMSW_SOURCE, 0)
        source = (v.r.cr0 & mask) | (source & ~mask)
    return write_cr0(v, registers_lmsw(&v.r, source))


cdef int vcpu_clts(Vcpu *v) noexcept nogil:
    # a VMM that owns TS and shows 0 has it done already
    if v.vm86:
        return vcpu_privileged(v, INS_CLTS, 0, 0)
    if v.guest and v.vmcs.cr0_mask & CR0_TS:
        return exit_cr(v, TYPE_CLTS, 0) if v.vmcs.cr0_shadow & CR0_TS else DONE_OK
    return write_cr0(v, v.r.cr0 & ~<uint64_t> CR0_TS)


# ---- CR4 --------------------------------------------------------------------------------------------------

cdef int write_cr4(Vcpu *v, uint64_t value) noexcept nogil:
    cdef Registers old, new
    cdef int rule, outcome
    cdef uint64_t changed
    cdef uint32_t vpid = v.vmcs.vpid if v.vpid_on else 0
    current(v, &old)
    rule = registers_cr4(&old, value, &new)
    if rule:
        return refuse(v, rule)
    if registers_load_pdptes(&old, &new):
        outcome = vcpu_pdptes(v, &new)
        if outcome:
            return outcome
    changed = old.cr4 ^ new.cr4
    if changed & CR4_PGE or changed & old.cr4 & CR4_PCIDE:
        inv_cr4_all(v.tlb, vpid)
    elif changed & CR4_PAE or changed & new.cr4 & CR4_SMEP:
        inv_cr4_pcid(v.tlb, vpid, v.hw.pcid)
    load(v, &new)
    vcpu_derive(v)
    return DONE_OK


cdef int vcpu_mov_cr4(Vcpu *v, uint64_t value) noexcept nogil:
    if v.vm86:
        return vcpu_privileged(v, INS_MOV_TO_CR, 4, value)
    if v.guest:
        if (value ^ v.vmcs.cr4_shadow) & v.vmcs.cr4_mask:
            return exit_cr(v, TYPE_MOV_TO | 4, value)
        value = (v.r.cr4 & v.vmcs.cr4_mask) | (value & ~v.vmcs.cr4_mask)
    elif value & CR4_VMXE:                      # natively the guest is no VMM either
        return refuse(v, RULE_CR4_RESERVED)
    return write_cr4(v, value)


# ---- EFER -------------------------------------------------------------------------------------------------

cdef int vcpu_wrmsr_efer(Vcpu *v, uint64_t value) noexcept nogil:
    cdef Registers old, new
    cdef int rule
    if v.vm86:
        return vcpu_privileged(v, INS_WRMSR, 0, value)
    if v.guest:
        return exit_msr(v, EXIT_WRMSR, value)
    current(v, &old)
    rule = registers_efer(&old, value, &new)
    if rule:
        return refuse(v, rule)
    load(v, &new)
    vcpu_derive(v)
    return DONE_OK


cdef int vcpu_rdmsr_efer(Vcpu *v, uint64_t *value) noexcept nogil:
    cdef int outcome = DONE_OK
    v.result = v.r.efer
    if v.vm86:
        outcome = vcpu_privileged(v, INS_RDMSR, 0, 0)
    elif v.guest:
        outcome = exit_msr(v, EXIT_RDMSR, 0)
    value[0] = v.result
    return outcome


# ---- reads ------------------------------------------------------------------------------------------------

cdef int vcpu_mov_from_cr(Vcpu *v, int number, uint64_t *value) noexcept nogil:
    # bits that the VMM owns read as the read shadow says; CR3 exits where the control says so
    cdef uint64_t real = v.r.cr0 if number == 0 else v.r.cr4
    cdef uint64_t mask = v.vmcs.cr0_mask if number == 0 else v.vmcs.cr4_mask
    cdef uint64_t shadow = v.vmcs.cr0_shadow if number == 0 else v.vmcs.cr4_shadow
    cdef int outcome = DONE_OK
    if v.vm86:
        outcome = vcpu_privileged(v, INS_MOV_FROM_CR, number, 0)
        value[0] = v.result
    elif number == 3 and v.guest and v.vmcs.primary & PRIMARY_CR3_STORE:
        outcome = exit_cr(v, TYPE_MOV_FROM | 3, 0)
        value[0] = v.result
    elif number == 3:
        value[0] = v.hw.cr3
    elif v.guest:
        value[0] = (real & ~mask) | (shadow & mask)
    else:
        value[0] = real
    return outcome

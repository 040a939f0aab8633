"""Instructions of CPL 0: those that write and read control registers and EFER, INVLPG, INVPCID.

Each goes the same way: in a virtual-8086 task #GP, in VMX non-root operation the exit that the controls ask for, else
the processor does it: the rules of paging.md §1.2, the load of the PDPTE registers (§3.2), the invalidations of
tlb.md §3.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.msr cimport MSR_EFER
from fastmmu.arch.registers cimport (
    CR0_PE, CR0_PG, CR0_TS, CR3_NO_FLUSH, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_SMEP, CR4_VMXE, RULE_CR3_RESERVED,
    RULE_CR4_RESERVED, RULE_INJECTED, RULE_PDPTE, Registers, paging_of, registers_cr0, registers_cr4, registers_efer,
    registers_lmsw, registers_load_pdptes,
)
from fastmmu.arch.types cimport (
    FAULT_APIC, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_GP, FAULT_NONE, MODE_PAE, Ept, Paging, Walk,
)
from fastmmu.arch.vmx cimport (
    EXIT_APIC_ACCESS, EXIT_CR_ACCESS, EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION, EXIT_EXCEPTION_NMI, EXIT_INVLPG,
    EXIT_INVPCID, EXIT_RDMSR, EXIT_WRMSR, INTERRUPTION_GP, PRIMARY_CR3_STORE, PRIMARY_INVLPG, clear_exit_information,
    cr3_exits,
)
from fastmmu.cpu.vcpu cimport (
    ABORT_BUS, ABORT_NO_PROGRESS, ACC_PDPTES, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP, ACT_RETRY, DONE_ABORT, DONE_GP,
    DONE_OK, INS_CLTS, INS_INVLPG, INS_LMSW, INS_MOV_FROM_CR, INS_MOV_TO_CR, INS_RDMSR, INS_WRMSR, MAX_RETRIES, Vcpu,
    vcpu_abort, vcpu_derive, vcpu_eptrta, vcpu_exit, vcpu_registers, vcpu_vpid,
)
from fastmmu.paging.guest cimport reachable, root_address
from fastmmu.paging.walk cimport load_pdptes
from fastmmu.tlb.invalidate cimport (
    inv_cr0_pg, inv_cr4_all, inv_cr4_pcid, inv_ept_violation, inv_invlpg, inv_invpcid, inv_mov_cr3,
)

cdef enum CrAccess:             # exit qualification 5:4 of a CR access (vmx.md §5.1)
    TYPE_MOV_TO = 0 << 4
    TYPE_MOV_FROM = 1 << 4
    TYPE_CLTS = 2 << 4
    TYPE_LMSW = 3 << 4
    LMSW_MEMORY = 1 << 6
    LMSW_SOURCE = 16            # bit at which the source begins


cdef int completed(int action) noexcept nogil:
    if action == ACT_ABORT:
        return DONE_ABORT
    return DONE_GP if action == ACT_INJECT_GP else DONE_OK


cdef int privileged(Vcpu *v, int instruction, int cr, uint64_t source) noexcept nogil:
    # An instruction of CPL 0 in a guest of which the VMM makes a virtual-8086 task: #GP(0), before any other exit that
    # it might cause. The VMM reads at RIP which one it is, and emulates it (kvm_policy.md §3.4).
    clear_exit_information(&v.vmcs)
    v.vmcs.exit_interruption_info = INTERRUPTION_GP
    v.instruction = instruction
    v.instruction_cr = cr
    v.source = source
    v.rule = RULE_INJECTED
    return completed(vcpu_exit(v, EXIT_EXCEPTION_NMI))


cdef int pdptes(Vcpu *v, Registers *r) noexcept nogil:
    # The PDPTE registers from r.cr3, as the processor loads them: a read through the EPT that translates no linear
    # address (paging.md §3.2). DONE_GP where one is malformed.
    cdef Walk w
    cdef Ept behind
    cdef Paging g
    cdef int fault, action, _
    if v.ept_on and v.ept.npt:                  # walks read the entries where they lie (npt.md §3)
        return DONE_OK
    for _ in range(MAX_RETRIES):
        paging_of(r, &g)
        fault = load_pdptes(v.mem, &g, &v.ept if v.ept_on else NULL, &w, NULL)
        v.c.ept_walk_refs += w.ept_refs
        if fault == FAULT_NONE:
            memcpy(r.pdpte, g.pdpte, sizeof(r.pdpte))
            return DONE_OK
        if fault == FAULT_GP:
            v.rule = RULE_PDPTE
            return DONE_GP
        clear_exit_information(&v.vmcs)
        v.vmcs.guest_physical_address = w.gpa
        v.access = ACC_PDPTES
        if fault == FAULT_EPT_VIOLATION:
            inv_ept_violation(v.tlb, vcpu_vpid(v), v.hw.pcid, vcpu_eptrta(v), w.gpa, False, 0)
            v.vmcs.exit_qualification = w.qual
            action = vcpu_exit(v, EXIT_EPT_VIOLATION)
        elif fault == FAULT_EPT_MISCONFIG:
            action = vcpu_exit(v, EXIT_EPT_MISCONFIG)
        elif fault == FAULT_APIC:
            v.vmcs.guest_physical_address = 0
            v.vmcs.exit_qualification = w.qual
            action = vcpu_exit(v, EXIT_APIC_ACCESS)
            if action == ACT_EMULATED:          # the VMM loads them, from the memory of the page
                behind = v.ept
                behind.apic_access = 0
                behind.write_ad = 0
                if load_pdptes(v.mem, &g, &behind, &w, NULL):
                    v.rule = RULE_PDPTE
                    return DONE_GP
                memcpy(r.pdpte, g.pdpte, sizeof(r.pdpte))
                return DONE_OK
        else:
            action = ACT_ABORT
        if action == ACT_INJECT_GP:
            return DONE_GP
        if action != ACT_RETRY:
            return vcpu_abort(v, ABORT_BUS, r.cr3)
    return vcpu_abort(v, ABORT_NO_PROGRESS, r.cr3)


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
    return completed(vcpu_exit(v, EXIT_CR_ACCESS))


cdef int exit_msr(Vcpu *v, int reason, uint64_t value) noexcept nogil:
    # KVM's MSR bitmap lets no access to EFER through
    clear_exit_information(&v.vmcs)
    v.vmcs.operand = MSR_EFER
    v.source = value
    v.rule = RULE_INJECTED
    return completed(vcpu_exit(v, reason))


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
        outcome = pdptes(v, &new)
        if outcome:
            return outcome
    if (old.cr0 ^ new.cr0) & CR0_PG:
        inv_cr0_pg(v.tlb, vcpu_vpid(v))
    load(v, &new)
    vcpu_derive(v)
    return DONE_OK


cdef int vcpu_mov_cr0(Vcpu *v, uint64_t value) noexcept nogil:
    if v.vm86:
        return privileged(v, INS_MOV_TO_CR, 0, value)
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
        return privileged(v, INS_LMSW, 0, source)
    if v.guest:
        asked = (source ^ v.vmcs.cr0_shadow) & mask
        if asked & ~<uint64_t> CR0_PE or (asked & CR0_PE and source & CR0_PE):
            return exit_cr(v, TYPE_LMSW | (LMSW_MEMORY if memory else 0) | source << LMSW_SOURCE, 0)
        source = (v.r.cr0 & mask) | (source & ~mask)
    return write_cr0(v, registers_lmsw(&v.r, source))


cdef int vcpu_clts(Vcpu *v) noexcept nogil:
    # a VMM that owns TS and shows 0 has it done already
    if v.vm86:
        return privileged(v, INS_CLTS, 0, 0)
    if v.guest and v.vmcs.cr0_mask & CR0_TS:
        return exit_cr(v, TYPE_CLTS, 0) if v.vmcs.cr0_shadow & CR0_TS else DONE_OK
    return write_cr0(v, v.r.cr0 & ~<uint64_t> CR0_TS)


# ---- CR3 --------------------------------------------------------------------------------------------------

cdef int vcpu_mov_cr3(Vcpu *v, uint64_t value) noexcept nogil:
    # bit 63: keep the translations of the new PCID (paging.md §7, vmx.md §6)
    cdef uint64_t stored = value
    cdef Registers new
    cdef int outcome
    v.c.cr3_switches += 1
    if v.vm86:
        return privileged(v, INS_MOV_TO_CR, 3, value)
    if v.guest and cr3_exits(&v.vmcs, value):
        clear_exit_information(&v.vmcs)
        v.vmcs.operand = value
        v.vmcs.exit_qualification = 3       # MOV to CR3 from RAX
        v.rule = RULE_INJECTED
        return completed(vcpu_exit(v, EXIT_CR_ACCESS))
    if v.hw.pcid_on:
        stored &= ~CR3_NO_FLUSH
    if stored & ~(v.hw.frame | 0xFFF if v.hw.lma else <uint64_t> 0xFFFFFFFFU):
        v.rule = RULE_CR3_RESERVED
        return DONE_GP
    if v.hw.mode == MODE_PAE:
        new = v.r
        new.cr3 = stored
        outcome = pdptes(v, &new)
        if outcome:
            return outcome
        memcpy(v.hw.pdpte, new.pdpte, sizeof(new.pdpte))
    v.hw.cr3 = stored
    v.hw.root = root_address(&v.hw, stored)
    if v.hw.pcid_on:
        v.hw.pcid = stored & 0xFFF
    if not (v.hw.pcid_on and value & CR3_NO_FLUSH):
        inv_mov_cr3(v.tlb, vcpu_vpid(v), v.hw.pcid)
    vcpu_derive(v)
    return DONE_OK


# ---- CR4 --------------------------------------------------------------------------------------------------

cdef int write_cr4(Vcpu *v, uint64_t value) noexcept nogil:
    cdef Registers old, new
    cdef int rule, outcome
    cdef uint64_t changed
    cdef uint32_t vpid = vcpu_vpid(v)
    current(v, &old)
    rule = registers_cr4(&old, value, &new)
    if rule:
        return refuse(v, rule)
    if registers_load_pdptes(&old, &new):
        outcome = pdptes(v, &new)
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
        return privileged(v, INS_MOV_TO_CR, 4, value)
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
        return privileged(v, INS_WRMSR, 0, value)
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
        outcome = privileged(v, INS_RDMSR, 0, 0)
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
        outcome = privileged(v, INS_MOV_FROM_CR, number, 0)
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


# ---- invalidations ----------------------------------------------------------------------------------------

cdef int vcpu_invlpg(Vcpu *v, uint64_t la) noexcept nogil:
    v.c.invlpgs += 1
    if v.vm86:
        return privileged(v, INS_INVLPG, 0, la)
    if v.guest and v.vmcs.primary & PRIMARY_INVLPG:
        clear_exit_information(&v.vmcs)
        v.vmcs.exit_qualification = la
        return DONE_ABORT if vcpu_exit(v, EXIT_INVLPG) == ACT_ABORT else DONE_OK
    if reachable(la, v.hw.la_bits):         # else it does nothing
        inv_invlpg(v.tlb, vcpu_vpid(v), v.hw.pcid, la)
    return DONE_OK


cdef int vcpu_invpcid(Vcpu *v, int type, uint32_t pcid, uint64_t la) noexcept nogil:
    # type and operand are valid (tlb.md §4)
    v.c.invpcids += 1
    if v.guest and v.vmcs.primary & PRIMARY_INVLPG:
        clear_exit_information(&v.vmcs)
        v.instruction_cr, v.invpcid_pcid, v.source = type, pcid, la
        return DONE_ABORT if vcpu_exit(v, EXIT_INVPCID) == ACT_ABORT else DONE_OK
    inv_invpcid(v.tlb, type, vcpu_vpid(v), pcid, la)
    return DONE_OK

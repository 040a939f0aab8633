"""VM entry and VM exit. Header: vmx/entry.pxd.

    VMLAUNCH, VMRESUME ──► controls, host state ──► guest state, MSRs ──► load ──► event to inject ──► guest
            │ VMfail 4, 5, 7, 8, 26                   │ VM exit with bit 31           exits at once (vmx.md §4.3) │
            ▼                                         ▼                                                           ▼
         the VMM ◄─────────────────────────────── host state ◄──────────────── save ◄──────────────────── VM exit

Beside the checks C1 to C18 and G1 to G6 (cpu/vmentry) stand those of the SDM, volume 3, chapter "VM entries", on the
event to inject, on host state, on RFLAGS, interruptibility, activity and the VMCS link pointer. Segments have none.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.msr cimport MSR_EFER, MSR_PAT
from fastmmu.arch.registers cimport (
    CR0_PE, CR0_PG, CR0_WP, CR4_CET, CR4_PAE, EFER_DEFINED, EFER_LMA, EFER_LME, RFLAGS_AC, RFLAGS_IF, RFLAGS_IOPL,
    RFLAGS_VM, Registers, registers_efer,
)
from fastmmu.arch.vmx cimport (
    ENTRY_LOAD_EFER, ENTRY_LOAD_PAT, ENTRY_LONG_MODE, EXIT_APIC_ACCESS, EXIT_APIC_WRITE, EXIT_CPUID, EXIT_ENCLS,
    EXIT_ENTRY_FAILURE_GUEST_STATE, EXIT_ENTRY_FAILURE_MSR, EXIT_GDTR_IDTR, EXIT_HOST_64, EXIT_INTERRUPT_WINDOW,
    EXIT_INVEPT, EXIT_INVPCID, EXIT_INVVPID, EXIT_LDTR_TR, EXIT_LOAD_EFER, EXIT_LOAD_PAT, EXIT_MONITOR,
    EXIT_MONITOR_TRAP, EXIT_MWAIT, EXIT_NMI_WINDOW, EXIT_PAUSE, EXIT_RDRAND, EXIT_RDSEED, EXIT_RDTSCP,
    EXIT_SAVE_EFER, EXIT_SAVE_PAT, EXIT_TASK_SWITCH, EXIT_TPR_BELOW_THRESHOLD, EXIT_VIRTUALIZED_EOI, EXIT_VMFUNC,
    EXIT_WBINVD, EXIT_WRMSR, EXIT_XRSTORS, EXIT_XSAVES, EXIT_XSETBV, PIN_VIRTUAL_NMI, PRIMARY_INTERRUPT_WINDOW,
    PRIMARY_MONITOR_TRAP, PRIMARY_NMI_WINDOW, PRIMARY_SECONDARY, PRIMARY_TPR_SHADOW, SECONDARY_EPT, SECONDARY_MBEC,
    SECONDARY_PML, SECONDARY_UNRESTRICTED, clear_exit_information, secondary_control,
)
from fastmmu.cpu.apic cimport APIC_TPR
from fastmmu.cpu.vcpu cimport (
    ABORT_NONE, ABORT_ROOT_OPERATION, ACT_ABORT, Vcpu, vcpu_entered, vcpu_exit, vcpu_registers,
)
from fastmmu.cpu.vmentry cimport ENTRY_FAILURE, GuestFields, invalid_controls, invalid_state
from fastmmu.paging.ept cimport ept_of
from fastmmu.paging.guest cimport canonical
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_read64
from fastmmu.vmx.processor cimport (
    END_BUS, END_DONE, END_EXIT, END_INVALID, END_NOT_MODELLED, ERROR_ENTRY_CONTROLS, ERROR_ENTRY_HOST, ERROR_MOV_SS,
    ERROR_VMLAUNCH_STATE, ERROR_VMRESUME_STATE, N_EVENTS, Processor, Rest, to_processor,
)
from fastmmu.vmx.region cimport region_is_launched, region_launched

cdef enum:
    ERROR_CODE = 1 << 11        # of an interruption-information field
    TYPE_INTERRUPT = 0
    TYPE_NMI = 2
    TYPE_EXCEPTION = 3
    TYPE_OTHER = 7
    CAP_EXECUTE_ONLY = 1 << 0
    CAP_LARGE_1G = 1 << 17
    CAP_ADVANCED = 1 << 22

cdef uint64_t LOADED_CR0 = 0x8005002FULL        # PE, MP, EM, TS, NE, WP, AM, PG; the others stay as they are
cdef uint64_t WITH_ERROR_CODE = 0x227D00        # vectors 8, 10 to 14, 17, 21
cdef uint64_t RESERVED_RFLAGS = ~(<uint64_t> 0x3F7FD7)
# controls that are checked and not carried out (vmx/controls.py, UNMODELLED)
cdef uint32_t UNMODELLED_PIN = 1 << 6
cdef uint32_t UNMODELLED_PRIMARY = 1 << 17 | 1 << 25
cdef uint32_t UNMODELLED_SECONDARY = 1 << 10 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 18 | 1 << 23


# ---- checks -----------------------------------------------------------------------------------------------

cdef bint invalid_event(const Processor *p) noexcept nogil:
    # SDM, "VM-entry controls for event injection"
    cdef uint32_t info = p.rest.entry_event, kind = info >> 8 & 7, vector = info & 0xFF
    cdef bint protected = p.cpu.vmcs.guest_cr0 & CR0_PE or not secondary_control(&p.cpu.vmcs, SECONDARY_UNRESTRICTED)
    cdef bint coded = kind == TYPE_EXCEPTION and vector < 32 and WITH_ERROR_CODE >> vector & 1 and protected
    if not info >> INTERRUPTION_VALID:
        return False
    if kind == 1 or (kind == TYPE_NMI and vector != 2) or (kind == TYPE_EXCEPTION and vector > 31):
        return True
    if kind == TYPE_OTHER and vector:
        return True
    if (info & ERROR_CODE != 0) != coded or info & 0x7FFFF000:
        return True
    if coded and p.rest.entry_event_error >> 16:
        return True
    return 4 <= kind <= 6 and not 1 <= p.rest.entry_event_length <= 15


cdef bint invalid_pat(uint64_t pat) noexcept nogil:
    cdef int i
    cdef uint64_t kind
    for i in range(8):
        kind = pat >> (8 * i) & 0xFF
        if kind > 7 or kind == 2 or kind == 3:
            return True
    return False


cdef uint32_t invalid_host(const Processor *p) noexcept nogil:
    # SDM, "Checks on the host-state area", of a host in 64-bit mode
    cdef const Rest *r = &p.rest
    cdef uint32_t controls = p.cpu.vmcs.vm_exit, failed = 0
    cdef uint64_t long_mode = EFER_LMA | EFER_LME
    if p.caps.cr0_must & ~r.host_cr0 or r.host_cr0 & ~p.caps.cr0_may:
        failed |= 1
    if p.caps.cr4_must & ~r.host_cr4 or r.host_cr4 & ~p.caps.cr4_may or not r.host_cr4 & CR4_PAE or (
            r.host_cr4 & CR4_CET and not r.host_cr0 & CR0_WP):
        failed |= 2
    if r.host_cr3 >> p.caps.maxphyaddr:
        failed |= 4
    if controls & EXIT_LOAD_PAT and invalid_pat(r.host_pat):
        failed |= 8
    if controls & EXIT_LOAD_EFER and (r.host_efer & ~EFER_DEFINED or r.host_efer & long_mode != long_mode):
        failed |= 16
    if not controls & EXIT_HOST_64 or not canonical(r.host_rip, 48):
        failed |= 32
    return failed


cdef int invalid_rest(const Processor *p, uint64_t *qualification) noexcept nogil:
    # guest state beyond G1 to G6; a FailedCheck or 0
    cdef const Rest *r = &p.rest
    cdef uint64_t rflags = p.cpu.vmcs.guest_rflags
    cdef uint32_t event = r.entry_event if r.entry_event >> INTERRUPTION_VALID else 0, kind = event >> 8 & 7
    cdef uint32_t blocked = r.interruptibility
    if rflags & RESERVED_RFLAGS or not rflags & 2 or (event and kind == TYPE_INTERRUPT and not rflags & RFLAGS_IF):
        return FAILED_RFLAGS
    if r.activity > 3 or (r.activity and blocked & 3) or (r.activity == 1 and r.ss_rights >> 5 & 3):
        return FAILED_ACTIVITY
    if blocked >> 5 or blocked & 3 == 3 or (blocked & BLOCKED_BY_STI and not rflags & RFLAGS_IF):
        return FAILED_INTERRUPTIBILITY
    if event and kind == TYPE_INTERRUPT and blocked & 3:
        return FAILED_INTERRUPTIBILITY
    if event and kind == TYPE_NMI:
        if blocked & BLOCKED_BY_STI:
            qualification[0] = 3
            return FAILED_INTERRUPTIBILITY
        if blocked & BLOCKED_BY_MOV_SS or (p.cpu.vmcs.pin_based & PIN_VIRTUAL_NMI and blocked & BLOCKED_BY_NMI):
            return FAILED_INTERRUPTIBILITY
    if r.link_pointer != ONES:                  # there is no VMCS shadowing, so it can name none
        qualification[0] = 4
        return FAILED_LINK
    return 0


cdef uint64_t unmodelled(const Processor *p) noexcept nogil:
    # bits 31:0 of a word of controls whose number is above them; 0: all is carried out
    cdef uint32_t second = p.cpu.vmcs.secondary if p.cpu.vmcs.primary & PRIMARY_SECONDARY else 0
    if p.cpu.vmcs.pin_based & UNMODELLED_PIN:
        return 1ULL << 32 | p.cpu.vmcs.pin_based & UNMODELLED_PIN
    if p.cpu.vmcs.primary & UNMODELLED_PRIMARY:
        return 2ULL << 32 | p.cpu.vmcs.primary & UNMODELLED_PRIMARY
    if second & UNMODELLED_SECONDARY:
        return 3ULL << 32 | second & UNMODELLED_SECONDARY
    if p.rest.exit_msr_store_count or p.rest.exit_msr_load_count:
        return 4ULL << 32
    return 0


cdef int check_controls(Processor *p) noexcept nogil:
    # controls and host state; an absent virtual-APIC page has a TPR that passes
    cdef uint64_t page = p.cpu.vmcs.virtual_apic_address
    cdef bint shadow = p.cpu.vmcs.primary & PRIMARY_TPR_SHADOW != 0, there = mem_holds(p.cpu.mem, page, 4096)
    cdef uint8_t vtpr = 0xFF
    if shadow and there:
        vtpr = p.cpu.mem.base[page + APIC_TPR]
    p.failed = invalid_controls(&p.cpu.vmcs, vtpr, &p.caps)
    if invalid_event(p):
        p.failed |= 1ULL << FAILED_EVENT
    if p.failed:
        return ERROR_ENTRY_CONTROLS
    p.failed = <uint64_t> invalid_host(p) << FAILED_HOST
    if p.failed:
        return ERROR_ENTRY_HOST
    if shadow and not there:
        p.missing = page
        return END_BUS
    p.unmodelled = unmodelled(p)
    return END_NOT_MODELLED if p.unmodelled else END_DONE


# ---- entry ------------------------------------------------------------------------------------------------

cdef int refused(Processor *p, int check, uint32_t reason, uint64_t qualification) noexcept nogil:
    # VM exit in place of the entry: of the fields only the reason and the qualification change
    p.failed = 1ULL << check
    clear_exit_information(&p.cpu.vmcs)
    p.cpu.vmcs.exit_reason = reason | ENTRY_FAILURE
    p.cpu.vmcs.exit_qualification = qualification
    p.rest.exit_length = p.rest.exit_instruction = p.rest.vectoring = p.rest.vectoring_error = 0
    p.exit_value = 0
    p.executing = False
    return END_EXIT


cdef int check_state(Processor *p) noexcept nogil:
    cdef GuestFields g
    cdef uint64_t qualification = 0
    cdef int check
    g.cr0, g.cr3, g.cr4, g.efer = (
        p.cpu.vmcs.guest_cr0, p.cpu.vmcs.guest_cr3, p.cpu.vmcs.guest_cr4, p.cpu.vmcs.guest_efer)
    g.pat = p.rest.guest_pat
    g.rflags = p.cpu.vmcs.guest_rflags
    memcpy(g.pdpte, p.cpu.vmcs.guest_pdpte, sizeof(g.pdpte))
    check = invalid_state(&p.cpu.vmcs, &g, p.cpu.mem, &p.caps, &qualification)
    if check:
        check += FAILED_STATE
    else:
        check = invalid_rest(p, &qualification)
    return refused(p, check, EXIT_ENTRY_FAILURE_GUEST_STATE, qualification) if check else <int> END_DONE


cdef uint32_t load_msrs(Processor *p, Registers *r) noexcept nogil:
    # the VM-entry MSR-load area into r; number of the entry that fails, from 1
    cdef uint64_t at = p.rest.entry_msr_address, value
    cdef uint32_t i, msr
    cdef Registers old
    for i in range(p.rest.entry_msr_count):
        msr = mem_read32(p.cpu.mem, at)
        value = mem_read64(p.cpu.mem, at + 8)
        old = r[0]
        if mem_read32(p.cpu.mem, at + 4) or msr >> 8 == 8 or msr == 0xC0000100U or msr == 0xC0000101U:
            return i + 1                        # reserved bits; x2APIC; the bases of FS and GS
        if msr == MSR_EFER and registers_efer(&old, value, r):
            return i + 1
        if msr == MSR_PAT:
            if invalid_pat(value):
                return i + 1
            r.pat = value
        at += 16
    return 0


cdef void registers(const Processor *p, Registers *r) noexcept nogil:
    # what VM entry makes of the registers of the host (vmx.md §4.1)
    cdef uint64_t efer = p.cpu.vmcs.guest_efer if p.cpu.vmcs.vm_entry & ENTRY_LOAD_EFER else p.cpu.r.efer
    cdef uint64_t base
    cdef int i
    r[0] = p.cpu.r
    r.cr0 = (p.cpu.vmcs.guest_cr0 & LOADED_CR0) | (r.cr0 & ~LOADED_CR0)
    r.cr3 = p.cpu.vmcs.guest_cr3
    r.cr4 = p.cpu.vmcs.guest_cr4
    if p.cpu.vmcs.vm_entry & ENTRY_LONG_MODE:
        r.efer = efer | EFER_LMA | EFER_LME
    elif r.cr0 & CR0_PG:
        r.efer = efer & ~<uint64_t> (EFER_LMA | EFER_LME)
    else:
        r.efer = efer & ~<uint64_t> EFER_LMA
    if p.cpu.vmcs.vm_entry & ENTRY_LOAD_PAT:
        r.pat = p.rest.guest_pat
    memcpy(r.pdpte, p.cpu.vmcs.guest_pdpte, sizeof(r.pdpte))
    if not secondary_control(&p.cpu.vmcs, SECONDARY_EPT) and r.cr0 & CR0_PG and r.cr4 & CR4_PAE:
        base = r.cr3 & 0xFFFFFFE0U
        for i in range(4):
            r.pdpte[i] = mem_read64(p.cpu.mem, base + 8 * i) if mem_holds(p.cpu.mem, base + 8 * i, 8) else 0


cdef void load(Processor *p, const Registers *r) noexcept nogil:
    cdef Vcpu *v = &p.cpu
    cdef uint64_t rflags = v.vmcs.guest_rflags
    v.r = r[0]
    v.vm86 = rflags & RFLAGS_VM != 0
    vcpu_registers(v)
    v.hw.ac = rflags & RFLAGS_AC != 0
    p.cpl = 3 if v.vm86 else p.rest.ss_rights >> 5 & 3
    p.iopl = (rflags & RFLAGS_IOPL) >> 12
    p.interrupts_on = rflags & RFLAGS_IF != 0
    p.trap = v.vmcs.primary & PRIMARY_MONITOR_TRAP != 0
    ept_of(&v.ept, v.vmcs.eptp, p.caps.maxphyaddr, p.caps.ept & <uint64_t> CAP_LARGE_1G != 0,
           secondary_control(&v.vmcs, SECONDARY_MBEC))
    v.ept.xo = p.caps.ept & <uint64_t> CAP_EXECUTE_ONLY != 0
    v.ept.adv_info = p.caps.ept & <uint64_t> CAP_ADVANCED != 0
    v.ept.ad_before_final = 1
    v.ept.write_ad = 1
    if secondary_control(&v.vmcs, SECONDARY_PML):
        v.ept.pml_index = &v.vmcs.pml_index
        v.ept.pml_base = v.vmcs.pml_address
    p.apic.page = v.mem.base + v.vmcs.virtual_apic_address if v.vmcs.primary & PRIMARY_TPR_SHADOW else NULL
    v.guest = p.in_guest = True
    v.below_threshold = False
    vcpu_entered(v)
    p.i = p.rest.guest_rip
    p.executing = p.complete = p.delivering = False
    p.n_events = 0
    p.exit_value = 0
    p.attention = p.trap or p.rest.interruptibility & 3 != 0


cdef int at_once(Processor *p) noexcept nogil:
    # exits before the guest's first instruction, highest priority first (vmx.md §4.3)
    cdef Vcpu *v = &p.cpu
    cdef uint32_t reason
    if v.below_threshold:
        v.below_threshold = False
        reason = EXIT_TPR_BELOW_THRESHOLD
    elif v.vmcs.primary & PRIMARY_NMI_WINDOW and not p.rest.interruptibility & 0xB:
        reason = EXIT_NMI_WINDOW
    elif (v.vmcs.primary & PRIMARY_INTERRUPT_WINDOW and p.interrupts_on
            and not p.rest.interruptibility & 3):
        reason = EXIT_INTERRUPT_WINDOW
    else:
        return END_DONE
    clear_exit_information(&v.vmcs)
    vcpu_exit(v, reason)
    processor_left(p)
    return END_EXIT


cdef int processor_enter(Processor *p, bint resume, bint mov_ss) noexcept nogil:
    cdef Registers r
    cdef uint32_t failed
    cdef int end
    p.failed = 0
    if p.current == ONES:
        return END_INVALID
    if mov_ss:
        return ERROR_MOV_SS
    if region_is_launched(p) != resume:
        return ERROR_VMRESUME_STATE if resume else ERROR_VMLAUNCH_STATE
    end = check_controls(p)
    if end:
        return end
    if p.rest.entry_msr_count and not mem_holds(p.cpu.mem, p.rest.entry_msr_address, 16ULL * p.rest.entry_msr_count):
        p.missing = p.rest.entry_msr_address
        return END_BUS
    end = check_state(p)
    if end:
        return end
    registers(p, &r)
    failed = load_msrs(p, &r)
    if failed:
        return refused(p, FAILED_MSR, EXIT_ENTRY_FAILURE_MSR, failed)
    if not resume:
        region_launched(p)
    load(p, &r)
    if p.rest.entry_event >> INTERRUPTION_VALID:
        if p.rest.entry_event >> 8 & 7 == TYPE_OTHER:           # a pending MTF exit
            clear_exit_information(&p.cpu.vmcs)
            vcpu_exit(&p.cpu, EXIT_MONITOR_TRAP)
            processor_left(p)
            return END_EXIT
        event_delivered(p, p.rest.entry_event, p.rest.entry_event_error if p.rest.entry_event & ERROR_CODE else 0,
                        p.cpu.cr2)
    return at_once(p)


cdef void event_delivered(Processor *p, uint64_t info, uint64_t error_code, uint64_t cr2) noexcept nogil:
    # through the guest's IDT, which is the caller's. Interrupts go through interrupt gates: RFLAGS.IF is 0 behind them.
    cdef uint32_t kind = info >> 8 & 7
    p.last.info = info & ~<uint64_t> 0x1000
    p.last.error_code = error_code
    p.last.cr2 = cr2
    if kind == TYPE_INTERRUPT or kind == TYPE_NMI:
        p.interrupts_on = False
    if kind == TYPE_NMI:
        p.rest.interruptibility |= BLOCKED_BY_NMI
    if p.n_events < N_EVENTS:
        p.event[p.n_events] = p.last
        p.n_events += 1


# ---- exit -------------------------------------------------------------------------------------------------

cdef bint has_length(uint32_t reason) noexcept nogil:
    # exits of an instruction that is not done: the VMM may want to go on behind it
    if reason == EXIT_TASK_SWITCH or EXIT_CPUID <= reason <= EXIT_WRMSR or EXIT_RDTSCP == reason:
        return True
    return (reason in (EXIT_MWAIT, EXIT_MONITOR, EXIT_PAUSE, EXIT_APIC_ACCESS, EXIT_GDTR_IDTR, EXIT_LDTR_TR)
            or reason in (EXIT_INVEPT, EXIT_INVVPID, EXIT_WBINVD, EXIT_XSETBV, EXIT_RDRAND, EXIT_INVPCID)
            or reason in (EXIT_VMFUNC, EXIT_ENCLS, EXIT_RDSEED, EXIT_XSAVES, EXIT_XRSTORS))


cdef inline bint trap_like(uint32_t reason) noexcept nogil:
    return reason in (EXIT_TPR_BELOW_THRESHOLD, EXIT_VIRTUALIZED_EOI, EXIT_APIC_WRITE, EXIT_MONITOR_TRAP)


cdef int processor_exit(Vcpu *v) noexcept nogil:
    # the core has left: CR0, CR3, CR4, PDPTEs and the guest interrupt status are saved (vmx.md §4.2)
    cdef Processor *p = to_processor(v)
    cdef Rest *r = &p.rest
    cdef uint32_t reason = v.vmcs.exit_reason, controls = v.vmcs.vm_exit
    cdef uint64_t rflags = v.vmcs.guest_rflags & ~(<uint64_t> (RFLAGS_IF | RFLAGS_AC))
    if p.executing and (p.complete or trap_like(reason)):
        p.i += 1
        p.executing = False
    r.guest_rip = p.i
    r.exit_length = p.executing and has_length(reason)
    r.exit_instruction = 0
    r.vectoring = p.last.info if p.delivering else 0
    r.vectoring_error = p.last.error_code if p.delivering else 0
    v.vmcs.guest_rflags = rflags | (RFLAGS_IF if p.interrupts_on else 0) | (RFLAGS_AC if v.hw.ac else 0)
    r.activity = 0
    r.ss_rights = (r.ss_rights & ~<uint32_t> 0x60) | (p.cpl & 3) << 5
    r.entry_event &= 0x7FFFFFFFU
    if controls & EXIT_SAVE_EFER:
        v.vmcs.guest_efer = v.r.efer
    if controls & EXIT_SAVE_PAT:
        r.guest_pat = v.r.pat
    v.vmcs.vm_entry = (v.vmcs.vm_entry & ~<uint32_t> ENTRY_LONG_MODE) | (ENTRY_LONG_MODE if v.r.efer & EFER_LMA else 0)
    v.r.cr0 = (r.host_cr0 & LOADED_CR0) | (v.r.cr0 & ~LOADED_CR0)
    v.r.cr3 = r.host_cr3
    v.r.cr4 = r.host_cr4
    v.r.efer = r.host_efer if controls & EXIT_LOAD_EFER else v.r.efer | EFER_LMA | EFER_LME
    if controls & EXIT_LOAD_PAT:
        v.r.pat = r.host_pat
    p.in_guest = p.delivering = p.complete = False
    v.abort = ABORT_ROOT_OPERATION
    return ACT_ABORT


cdef bint processor_left(Processor *p) noexcept nogil:
    if p.cpu.abort != ABORT_ROOT_OPERATION:
        return False
    p.cpu.abort = ABORT_NONE
    return True

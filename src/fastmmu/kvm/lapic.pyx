"""KVM's local APIC: emulation of register accesses, injection, the TPR threshold, patching of the guest.

Every exit passes `kvm_apic_begin` before its handler and `kvm_apic_end` after it. Interrupts are looked at only where
something asked for it (`request_event`), as in KVM.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport ONES, P
from fastmmu.arch.msr cimport MSR_APIC_BASE, MSR_TSC_DEADLINE, X2_EOI, X2_TPR
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, Walk
from fastmmu.arch.vmx cimport (
    EXIT_ACK_INTERRUPT, EXIT_APIC_ACCESS, EXIT_APIC_WRITE, EXIT_CR_ACCESS, EXIT_INTERRUPT_WINDOW, EXIT_IO_INSTRUCTION,
    EXIT_RDMSR, EXIT_TPR_BELOW_THRESHOLD, EXIT_VIRTUALIZED_EOI, EXIT_VMCALL, EXIT_WRMSR, N_REASONS, PIN_POSTED,
    PRIMARY_CR8_LOAD, PRIMARY_CR8_STORE, PRIMARY_INTERRUPT_WINDOW, PRIMARY_TPR_SHADOW, SECONDARY_APIC_ACCESSES,
    SECONDARY_APIC_REGISTERS, SECONDARY_VIRTUAL_INTERRUPTS, SECONDARY_X2APIC,
)
from fastmmu.cpu.apic cimport (
    APIC_BASE, APIC_EOI, APIC_IRR, APIC_ISR, APIC_NONE, APIC_TMR, APIC_TPR, Ipi, apic_acknowledge, apic_deliverable,
    apic_highest, apic_mapped, apic_on, apic_read, apic_set_base, apic_update_ppr, apic_word, apic_write, apic_x2apic,
)
from fastmmu.cpu.apic_msr cimport irq_deadline_msr, irq_msr_taken
from fastmmu.cpu.interrupts cimport (
    RULE_SLIDES, WAY_APICV, WAY_PATCH, Interrupts, irq_accept, irq_elapse,
)
from fastmmu.cpu.tpr_patch cimport SITE_BYTES, patch_dword, patch_replace, patch_windows
from fastmmu.cpu.vapic cimport LINEAR_WRITE, PHYSICAL_OTHER, vapic_posted
from fastmmu.cpu.vcpu cimport (
    ABORT_APIC_TABLE, ACC_PDPTES, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP, ACT_INJECT_PF, Vcpu, vcpu_abort,
)
from fastmmu.cpu.x2apic cimport x2apic_msr, x2apic_read, x2apic_write
from fastmmu.kvm.ipi cimport NOTIFICATION_VECTOR, ipi_send
from fastmmu.kvm.kvm cimport to_kvm_vcpu
from fastmmu.paging.guest cimport page_fault
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_read64, mem_write64

ctypedef int (*ApicExit)(Interrupts *irq) noexcept nogil


cdef void kvm_apic_init(Interrupts *irq) noexcept nogil:
    # controls of the VMCS; its addresses are set by who allocates the pages
    cdef Vcpu *v = irq.v
    if irq.tpr_shadow:
        v.vmcs.primary |= PRIMARY_TPR_SHADOW
    else:
        v.vmcs.primary |= PRIMARY_CR8_LOAD | PRIMARY_CR8_STORE
    if irq.way == WAY_APICV:
        v.vmcs.secondary |= SECONDARY_APIC_REGISTERS | SECONDARY_VIRTUAL_INTERRUPTS
        v.vmcs.pin_based |= PIN_POSTED
        v.vmcs.vm_exit |= EXIT_ACK_INTERRUPT
        v.vmcs.posted_vector = NOTIFICATION_VECTOR
        irq.descriptor[4] = <uint64_t> NOTIFICATION_VECTOR << 16
        irq.posting = True
    choose_mode(irq)
    kvm_apic_end(irq, ACT_EMULATED)


cdef void choose_mode(Interrupts *irq) noexcept nogil:
    # xAPIC mode: the page is virtualized; x2APIC mode: the MSRs are; disabled: nothing
    cdef Vcpu *v = irq.v
    v.vmcs.secondary &= ~(SECONDARY_APIC_ACCESSES | SECONDARY_X2APIC)
    if apic_x2apic(&irq.apic):
        if irq.tpr_shadow and not irq.svm:
            v.vmcs.secondary |= SECONDARY_X2APIC
    elif not apic_mapped(&irq.apic):
        pass
    elif irq.apic_page:
        v.vmcs.secondary |= SECONDARY_APIC_ACCESSES


# ---- registers --------------------------------------------------------------------------------------------

cdef void priority_changed(Interrupts *irq) noexcept nogil:
    apic_update_ppr(irq.apic.page)
    if apic_deliverable(&irq.apic) >= 0:
        irq.request_event = True
    else:
        # a request that an interrupt in service blocks: the threshold must follow the TPR all the same, or VM entry
        # fails or exits at once for ever
        update_threshold(irq)


cdef void sent(Interrupts *irq, const Ipi *ipi) noexcept nogil:
    if ipi.valid:
        ipi_send(irq, ipi)


cdef void end_of_interrupt(Interrupts *irq) noexcept nogil:
    # the VMM has ended one; a processor that delivers is told what is in service now (vmx_hwapic_isr_update)
    cdef int serviced = apic_highest(irq.apic.page, APIC_ISR)
    irq.request_event = True
    if irq.way == WAY_APICV:
        irq.v.vmcs.guest_interrupt_status = (irq.v.vmcs.guest_interrupt_status & 0xFF) | (max(serviced, 0) << 8)


cdef void store(Interrupts *irq, uint32_t offset, uint32_t value) noexcept nogil:
    # a write of a register, emulated
    cdef Ipi ipi
    irq_elapse(irq)
    ipi = apic_write(&irq.apic, offset, value)
    if offset == APIC_TPR:
        priority_changed(irq)
    elif offset == APIC_EOI:
        end_of_interrupt(irq)
    else:
        sent(irq, &ipi)


cdef void emulate(Interrupts *irq, uint32_t offset) noexcept nogil:
    # The instruction that accessed a register. KVM takes writes of 32 bits at a multiple of 16 alone; reads may be of
    # part of a register, others leave the destination as it is, 0 here. What a fetch decodes is no register access.
    cdef Vcpu *v = irq.v
    cdef uint32_t size = v.access_bytes if v.access_bytes else v.store_bytes if v.store_bytes else 4
    cdef uint64_t value = v.store_value if v.store_bytes else 0
    if not apic_mapped(&irq.apic):              # KVM_X86_QUIRK_LAPIC_MMIO_HOLE
        irq.c.emulated += 1 + (v.access == ACC_RW)
        irq.value = v.load_value = ONES if size >= 8 else (1ULL << 8 * size) - 1
        v.loaded = 8
        return
    if v.access == ACC_R or v.access == ACC_RW:
        irq.c.emulated += 1
        irq.value = 0
        irq_elapse(irq)
        if (offset & 15) + size <= 4:
            irq.value = apic_read(&irq.apic, offset & 0xFF0) >> 8 * (offset & 3) & (1ULL << 8 * size) - 1
        value = v.load_value = irq.value
        v.loaded = 8
    if v.access == ACC_W or v.access == ACC_RW:     # which puts back what it read
        irq.c.emulated += 1
        if size == 4 and not offset & 15:
            store(irq, offset, value)


cdef int structure_read(Interrupts *irq, uint32_t offset) noexcept nogil:
    # The walk of an access met a paging structure on the page. KVM emulates the instruction, and walks the guest's
    # tables itself: through the memory of the page, which nothing writes while APIC accesses are virtualized.
    cdef Vcpu *v = irq.v
    cdef Walk w
    if v.access == ACC_PDPTES:
        return ACT_EMULATED
    if mem_read64(v.mem, v.vmcs.apic_access_address + (offset & 0xFF8)) >> 8 * (offset & 7) & P:
        vcpu_abort(v, ABORT_APIC_TABLE, v.access_la)
        return ACT_ABORT
    page_fault(&v.hw, &w, v.access, 0)
    v.cr2 = v.access_la
    v.error_code = w.error_code
    return ACT_INJECT_PF


cdef int access_exit(Interrupts *irq) noexcept nogil:
    # exit 44: an end of interrupt is done at once, whatever its size and value; else the instruction is emulated
    cdef Vcpu *v = irq.v
    cdef uint32_t offset = v.vmcs.exit_qualification & 0xFFF, kind = v.vmcs.exit_qualification >> 12 & 15
    if kind == PHYSICAL_OTHER:
        return structure_read(irq, offset)
    if kind == LINEAR_WRITE and offset == APIC_EOI:
        irq.c.emulated += 1
        store(irq, APIC_EOI, 0)
    else:
        to_kvm_vcpu(v).kvm.stats.insn_emulation += 1
        emulate(irq, offset)
    v.emulated = APIC_BASE | offset
    return ACT_EMULATED


cdef void emulate_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil:
    # one that is taken
    cdef Ipi ipi
    irq.c.emulated += 1
    if msr == MSR_TSC_DEADLINE:
        irq_deadline_msr(irq, write, value)
    elif msr == MSR_APIC_BASE:
        if write:
            set_base(irq, value)
        irq.value = irq.apic.base
    elif not write:
        irq_elapse(irq)
        irq.value = x2apic_read(&irq.apic, msr)
    else:
        irq_elapse(irq)
        ipi = x2apic_write(&irq.apic, msr, value)
        if msr == X2_TPR:
            priority_changed(irq)
        elif msr == X2_EOI:
            end_of_interrupt(irq)
        else:
            sent(irq, &ipi)


cdef void set_base(Interrupts *irq, uint64_t value) noexcept nogil:
    # Where the page goes a patched guest's record is out of use: kvmvapic knows of xAPIC mode alone, and would go on to
    # take its byte for the TPR.
    apic_set_base(&irq.apic, value)
    if irq.patch.in_use and not apic_mapped(&irq.apic):
        irq.patch.in_use = False
        mem_write64(irq.v.mem, irq.patch.record_hpa, 0)
    choose_mode(irq)
    irq.request_event = True


# ---- the exits ----------------------------------------------------------------------------------------------
# One handler for each reason; a reason that others have a handler for, too, tells them apart by the fields of the VMCS.

cdef int below_threshold(Interrupts *irq) noexcept nogil:
    irq.below = True
    priority_changed(irq)
    return ACT_EMULATED


cdef int interrupt_window(Interrupts *irq) noexcept nogil:
    irq.v.vmcs.primary &= ~PRIMARY_INTERRUPT_WINDOW
    irq.request_event = True
    return ACT_EMULATED


cdef int request_event(Interrupts *irq) noexcept nogil:
    # an end of interrupt that the processor virtualized; the hypercall of a patched guest
    irq.request_event = True
    return ACT_EMULATED


cdef int apic_written(Interrupts *irq) noexcept nogil:
    cdef uint32_t offset = irq.v.vmcs.exit_qualification & 0xFF0
    store(irq, offset, apic_word(irq.apic.page, offset))
    return ACT_EMULATED


cdef int cr8_access(Interrupts *irq) noexcept nogil:
    cdef uint64_t qualification = irq.v.vmcs.exit_qualification, value = irq.v.vmcs.operand
    if qualification & 15 != 8:
        return NOT_OF_APIC
    if qualification >> 4 & 3:
        irq.value = irq.apic.page[<int> APIC_TPR] >> 4
    elif value >> 4:
        return ACT_INJECT_GP
    else:
        store(irq, APIC_TPR, value << 4)
    return ACT_EMULATED


cdef int msr_access(Interrupts *irq) noexcept nogil:
    cdef uint64_t msr = irq.v.vmcs.operand
    cdef bint write = irq.v.vmcs.exit_reason == EXIT_WRMSR
    if not x2apic_msr(msr):
        return NOT_OF_APIC
    if not irq_msr_taken(irq, msr, write, irq.v.store_value):
        return ACT_INJECT_GP
    emulate_msr(irq, msr, write, irq.v.store_value)
    return ACT_EMULATED


cdef int io_instruction(Interrupts *irq) noexcept nogil:
    if not irq.patch.enabling:
        return NOT_OF_APIC
    if apic_mapped(&irq.apic):
        use_record(irq)
    return ACT_EMULATED


cdef ApicExit apic_exit[N_REASONS]              # [exit reason]; NULL: does not concern the APIC


cdef void handles(int reason, ApicExit handler) noexcept nogil:
    apic_exit[reason] = handler

for _reason in range(N_REASONS):
    handles(_reason, NULL)
handles(EXIT_INTERRUPT_WINDOW, interrupt_window)
handles(EXIT_VMCALL, request_event)
handles(EXIT_CR_ACCESS, cr8_access)
handles(EXIT_IO_INSTRUCTION, io_instruction)
handles(EXIT_RDMSR, msr_access)
handles(EXIT_WRMSR, msr_access)
handles(EXIT_TPR_BELOW_THRESHOLD, below_threshold)
handles(EXIT_APIC_ACCESS, access_exit)
handles(EXIT_VIRTUALIZED_EOI, request_event)
handles(EXIT_APIC_WRITE, apic_written)


cdef int kvm_apic_exit(Interrupts *irq) noexcept nogil:
    cdef ApicExit handler = apic_exit[irq.v.vmcs.exit_reason]
    return handler(irq) if handler != NULL else <int> NOT_OF_APIC


# ---- before each VM entry ---------------------------------------------------------------------------------

cdef void update_threshold(Interrupts *irq) noexcept nogil:
    # apic.md §5
    cdef int requested = apic_highest(irq.apic.page, APIC_IRR)
    cdef int tpr = irq.apic.page[<int> APIC_TPR] & 0xF0
    if irq.way == WAY_APICV or not irq.tpr_shadow:
        return
    if requested < 0 or irq.patch.in_use or not apic_on(&irq.apic):
        requested = 0
    if irq.svm:                                 # svm_update_cr8_intercept
        irq.v.vmcs.primary &= ~PRIMARY_CR8_LOAD
        if requested > 0 and tpr >> 4 >= requested >> 4:
            irq.v.vmcs.primary |= PRIMARY_CR8_LOAD
    elif irq.rule == RULE_SLIDES:
        irq.v.vmcs.tpr_threshold = min(tpr, requested) >> 4
    else:
        irq.v.vmcs.tpr_threshold = 0 if tpr >> 4 < requested >> 4 else requested >> 4


cdef void inject(Interrupts *irq) noexcept nogil:
    cdef Vcpu *v = irq.v
    cdef int vector = apic_deliverable(&irq.apic)
    irq.request_event = False
    if vector >= 0 and irq.interrupts_on and irq.inject < 0:
        irq.inject = apic_acknowledge(&irq.apic)
    elif vector >= 0:
        v.vmcs.primary |= PRIMARY_INTERRUPT_WINDOW
    update_threshold(irq)


cdef void virtual_state(Interrupts *irq) noexcept nogil:
    # the processor delivers: it gets what waits, and which ends of interrupt the VMM wants to see
    cdef Vcpu *v = irq.v
    cdef int word, requested = apic_highest(irq.apic.page, APIC_IRR)
    irq.request_event = False
    if irq.descriptor[4] & 1:                   # posted while it did not run: sync_pir_to_irr
        vapic_posted(&irq.virt, irq.descriptor)
        requested = apic_highest(irq.apic.page, APIC_IRR)
    v.vmcs.guest_interrupt_status &= 0xFF00
    if requested > 0 and apic_on(&irq.apic):
        v.vmcs.guest_interrupt_status |= requested
    for word in range(4):
        v.vmcs.eoi_exit_bitmap[word] = (apic_word(irq.apic.page, APIC_TMR + 32 * word)
                                        | <uint64_t> apic_word(irq.apic.page, APIC_TMR + 32 * word + 16) << 32)
    v.vmcs.eoi_exit_bitmap[irq.rtc_vector >> 6 & 3] |= 1ULL << (irq.rtc_vector & 63)


cdef void kvm_apic_begin(Interrupts *irq) noexcept nogil:
    # after a VM exit: what the guest left in its record
    if irq.patch.in_use:
        irq.apic.page[<int> APIC_TPR] = mem_read32(irq.v.mem, irq.patch.record_hpa)
    irq.below = False
    irq.value = 0


cdef void kvm_apic_end(Interrupts *irq, int action) noexcept nogil:
    # after the handler: an access to the page that it emulated, then what the VM entry needs
    cdef Vcpu *v = irq.v
    cdef bint had = irq.inject >= 0
    if action == ACT_EMULATED and v.emulated >> 12 == APIC_BASE >> 12 and v.vmcs.exit_reason != EXIT_APIC_ACCESS:
        emulate(irq, v.emulated & 0xFFF)
        if irq.patch.at_site:
            patch(irq)
    kvm_apic_entry(irq)
    if irq.below and (irq.inject < 0 or had):
        irq.c.spurious += 1
        if not irq.interrupts_on:
            irq.c.spurious_if += 1
        elif apic_highest(irq.apic.page, APIC_ISR) >> 4 >= apic_highest(irq.apic.page, APIC_IRR) >> 4:
            irq.c.spurious_in_service += 1


cdef void kvm_apic_entry(Interrupts *irq) noexcept nogil:
    # before VM entry: what arrived, what is injected, the threshold, the record
    if irq.arriving >= 0:
        irq_accept(irq, irq.arriving, irq.arriving_level)
        if irq.arrived:
            irq.arrival[irq.arriving] = irq.arrived
            irq.arrived = 0
        irq.arriving = APIC_NONE
    if irq.way == WAY_APICV:
        virtual_state(irq)
    elif irq.request_event:
        inject(irq)
    elif irq.rule == RULE_SLIDES:
        update_threshold(irq)                   # at every entry
    if irq.patch.in_use:
        mem_write64(irq.v.mem, irq.patch.record_hpa, patch_dword(
            irq.apic.page[<int> APIC_TPR], apic_highest(irq.apic.page, APIC_ISR),
            apic_highest(irq.apic.page, APIC_IRR)))


cdef void patch(Interrupts *irq) noexcept nogil:
    # the instruction that accessed the TPR becomes a call. The first version has one record for all vCPUs, so it leaves
    # guests with more than one alone: they share their code.
    cdef uint64_t hpa = irq.patch.ip_hpa
    if irq.patch.one_vcpu and (irq.patch.cpu or to_kvm_vcpu(irq.v).kvm.n_vcpus > 1):
        return
    if irq.way != WAY_PATCH or not apic_mapped(&irq.apic) or not mem_holds(irq.v.mem, hpa, SITE_BYTES):
        return
    if not patch_windows(irq.patch.ip):
        return
    if patch_replace(irq.v.mem.base + hpa, irq.patch.ip, irq.patch.rom_la):
        irq.c.patched += 1
        use_record(irq)


cdef void use_record(Interrupts *irq) noexcept nogil:
    # from now on the TPR is in the record, and no threshold applies
    irq.patch.in_use = True
    update_threshold(irq)

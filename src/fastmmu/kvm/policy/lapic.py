"""KVM's local APIC: emulation of register accesses, injection, what the processor is told before VM entry.

Every exit passes `apic_begin` before its handler and `apic_end` after it. Interrupts are looked at only where something
asked for it (`Lapic.request_event`, KVM_REQ_EVENT), as in KVM. The kernels' form of these rules: kvm/lapic.pyx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.exits import Action, Exit, ExitReason
from fastmmu.kvm.policy.ipi import Ipis
from fastmmu.kvm.policy.tpr import Tpr
from fastmmu.vmx.controls import PinBased, Primary, Secondary, VmExit
from fastmmu.vmx.fields import Field

if TYPE_CHECKING:
    from fastmmu.cpu.apic_py import InterprocessorInterrupt
    from fastmmu.kvm.port import VirtualCpu

__all__ = ["LocalApics"]

EMULATED, INJECT_GP, ABORT = int(Action.EMULATED), int(Action.INJECT_GENERAL_PROTECTION), 3
APIC_PAGE = 0xFEE00  # number of the page, guest-physical
# Offsets of registers
ID, VERSION, TPR, EOI, LDR, DFR, SVR, ISR, ESR = 0x20, 0x30, 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x100, 0x280
ICR_LOW, ICR_HIGH, LVT_TIMER, INITIAL_COUNT, DIVIDE = 0x300, 0x310, 0x320, 0x380, 0x3E0
LVTS = (0x2F0, *range(LVT_TIMER, INITIAL_COUNT, 0x10))  # CMCI; timer, thermal, performance, LINT0, LINT1, error
LVT_MASKED, BASE_BSP, BASE_ENABLE = 1 << 16, 1 << 8, 1 << 11
NOTIFICATION_VECTOR = 0xF2  # POSTED_INTR_VECTOR
CR8_SHADOWED, CR8_EXITING = int(Primary.TPR_SHADOW), int(Primary.CR8_LOAD_EXITING | Primary.CR8_STORE_EXITING)
APICV = int(Secondary.APIC_REGISTER_VIRTUALIZATION | Secondary.VIRTUAL_INTERRUPT_DELIVERY)
POSTED, ACKNOWLEDGE = int(PinBased.POSTED_INTERRUPTS), int(VmExit.ACKNOWLEDGE_INTERRUPT)
MSR_APIC_BASE, MSR_TSC_DEADLINE = 0x1B, 0x6E0
# Bits 15:12 of the qualification of exit 44 (vmx.md §5.1)
LINEAR_WRITE, PHYSICAL = 1, 15
ONES = (1 << 64) - 1


class LocalApics(Tpr, Ipis):
    """A guest's local APIC, in each of the ways to handle it (``Config.tpr``)."""

    # ---- a vCPU is made -------------------------------------------------------------------------------------------

    def create_lapic(self, vcpu: VirtualCpu) -> None:
        """The APIC of a new vCPU: its registers, the controls of the VMCS, what the first VM entry loads
        (kvm_create_lapic, kvm_vcpu_reset)."""
        self.lapic_reset(vcpu)
        self.apic_controls(vcpu)
        self.set_virtual_apic_mode(vcpu)
        self.apic_entry(vcpu)

    def lapic_reset(self, vcpu: VirtualCpu) -> None:
        """Registers after reset: in xAPIC mode, disabled by software, every local interrupt masked; vCPU 0 is the
        bootstrap processor (kvm_lapic_reset; SDM vol. 3, "Local APIC State After Power-Up or Reset")."""
        apic = vcpu.apic
        apic.base = APIC_PAGE << 12 | BASE_ENABLE | (0 if apic.number else BASE_BSP)
        apic.put(ID, apic.number << 24)
        apic.put(VERSION, 0x6_0015)  # integrated; the last LVT is number 6
        for offset in (TPR, LDR, ESR, ICR_LOW, ICR_HIGH, INITIAL_COUNT, DIVIDE):
            apic.put(offset, 0)
        for of_256 in range(ISR, ESR, 0x10):  # ISR, TMR, IRR
            apic.put(of_256, 0)
        apic.put(DFR, 0xFFFF_FFFF)
        apic.put(SVR, 0xFF)
        for lvt in LVTS:
            apic.put(lvt, LVT_MASKED)
        apic.reset_timer()

    def apic_controls(self, vcpu: VirtualCpu) -> None:
        """Controls of the VMCS: with a TPR shadow CR8 takes no exits; APICv virtualizes registers and delivery, and
        interrupts are posted (vmx_exec_control, vmx_refresh_apicv_exec_ctrl; apic.md §3, §6)."""
        apic = vcpu.apic
        self.set_controls(vcpu, Field.PRIMARY_CONTROLS, CR8_SHADOWED if apic.tpr_shadow else CR8_EXITING)
        if apic.way == "apicv":
            self.set_controls(vcpu, Field.SECONDARY_CONTROLS, APICV)
            self.set_controls(vcpu, Field.PIN_BASED_CONTROLS, POSTED)
            self.set_controls(vcpu, Field.VM_EXIT_CONTROLS, ACKNOWLEDGE)
            apic.enable_posting(NOTIFICATION_VECTOR)

    def set_controls(self, vcpu: VirtualCpu, field: Field, bits: int) -> None:
        """Set bits of a field of the VMCS (exec_controls_setbit)."""
        vcpu.vmwrite(field, vcpu.vmread(field) | bits)

    # ---- registers, emulated --------------------------------------------------------------------------------------

    def reg_write(self, vcpu: VirtualCpu, offset: int, value: int) -> None:
        """A write of a register (kvm_lapic_reg_write; apic.md §1)."""
        apic = vcpu.apic
        apic.elapse()
        self.written(vcpu, offset, apic.write(offset, value))

    def written(self, vcpu: VirtualCpu, offset: int, ipi: InterprocessorInterrupt | None) -> None:
        """What follows a write of a register, which sent `ipi`."""
        if offset == TPR:
            self.update_ppr(vcpu)
        elif offset == EOI:
            self.end_of_interrupt(vcpu)
        else:
            self.send_ipi(vcpu, ipi)

    def end_of_interrupt(self, vcpu: VirtualCpu) -> None:
        """The VMM has ended one; a processor that delivers itself is told what is in service now
        (vmx_hwapic_isr_update)."""
        apic = vcpu.apic
        apic.request_event = True
        if apic.way == "apicv":
            apic.svi = max(apic.isr, 0)

    def emulate_apic_access(self, vcpu: VirtualCpu, offset: int) -> None:
        """The instruction that accessed the page (apic_mmio_read, apic_mmio_write). Writes of 32 bits at a multiple of
        16 alone are taken; reads may be of part of a register, others read 0. A read-modify-write puts back what it
        read. Outside xAPIC mode there is a hole: all ones (apic.md §1.1)."""
        apic = vcpu.apic
        reads, writes, size, value = apic.access
        if not apic.mapped:
            apic.count("emulated", 1 + (reads and writes))
            apic.complete_load(ONES if size >= 8 else (1 << 8 * size) - 1)
            return
        if reads:
            apic.count("emulated")
            apic.elapse()
            inside = (offset & 15) + size <= 4
            value = apic.read(offset & 0xFF0) >> 8 * (offset & 3) & (1 << 8 * size) - 1 if inside else 0
            apic.complete_load(value)
        if writes:
            apic.count("emulated")
            if size == 4 and not offset & 15:
                self.reg_write(vcpu, offset, value & 0xFFFF_FFFF)

    def set_apic_base(self, vcpu: VirtualCpu, value: int) -> None:
        """IA32_APIC_BASE (kvm_set_apic_base; apic.md §1.1). Where the page goes, a patched guest's record is out of
        use: kvmvapic knows of xAPIC mode alone, and would go on to take its byte for the TPR."""
        apic = vcpu.apic
        apic.base = value
        if apic.patched and not apic.mapped:
            apic.patched = False
            apic.clear_record()
        self.set_virtual_apic_mode(vcpu)
        apic.request_event = True

    def set_virtual_apic_mode(self, vcpu: VirtualCpu) -> None:
        """In xAPIC mode the page is virtualized, in x2APIC mode the MSRs, of a disabled APIC nothing
        (vmx_set_virtual_apic_mode; apic.md §4, §7)."""
        apic = vcpu.apic
        apic.virtualize_x2apic = apic.x2apic and apic.tpr_shadow and not self.vm.modes.amd
        apic.virtualize_accesses = not apic.x2apic and apic.mapped and apic.access_page

    # ---- exits ----------------------------------------------------------------------------------------------------

    def apic_exit(self, vcpu: VirtualCpu, exit: Exit) -> int | None:
        """Of the exits that have another handler, too, those of the APIC; None: this is none."""
        if exit.reason == ExitReason.CR_ACCESS:
            return self.cr8_access(vcpu, exit)
        if exit.reason in (ExitReason.RDMSR, ExitReason.WRMSR):
            return self.apic_msr_access(vcpu, exit)
        return None

    def on_apic_access(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 44 (handle_apic_access; apic.md §4): an end of interrupt is done at once, whatever its size and value;
        else the instruction is emulated."""
        offset, kind = exit.qualification & 0xFFF, exit.qualification >> 12 & 15
        if kind == PHYSICAL:
            return self.structure_on_apic_page(vcpu, offset)
        if kind == LINEAR_WRITE and offset == EOI:
            vcpu.apic.count("emulated")
            self.reg_write(vcpu, EOI, 0)
        else:
            self.vm.count_stat("insn_emulation")
            self.emulate_apic_access(vcpu, offset)
        vcpu.apic.emulated = APIC_PAGE << 12 | offset
        return EMULATED

    def structure_on_apic_page(self, vcpu: VirtualCpu, offset: int) -> int:
        """The walk of an access met a paging structure on the page. KVM emulates the instruction, and walks the guest's
        tables itself: through the memory of the page, which nothing writes while APIC accesses are virtualized."""
        apic = vcpu.apic
        if apic.walked:
            return EMULATED
        if apic.structure(offset) & 1:
            apic.abort_structure()
            return ABORT
        return apic.inject_not_present()

    def on_apic_write(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 56: the processor has stored the register, the rest is KVM's (handle_apic_write; apic.md §4)."""
        offset = exit.qualification & 0xFF0
        self.reg_write(vcpu, offset, vcpu.apic.word(offset))
        return EMULATED

    def on_virtualized_eoi(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 45: an end of interrupt that the processor virtualized, and the VMM wanted to see
        (handle_apic_eoi_induced; apic.md §6)."""
        vcpu.apic.request_event = True
        return EMULATED

    def on_interrupt_window(self, vcpu: VirtualCpu, exit: Exit) -> int:
        """Exit 7: the guest takes interrupts now (handle_interrupt_window)."""
        if vcpu.apic is not None:
            vcpu.apic.interrupt_window = False
            vcpu.apic.request_event = True
        return EMULATED

    def cr8_access(self, vcpu: VirtualCpu, exit: Exit) -> int | None:
        """MOV to or from CR8, without a TPR shadow (handle_cr, kvm_set_cr8; apic.md §1)."""
        apic = vcpu.apic
        if exit.qualification & 15 != 8:
            return None
        if exit.qualification >> 4 & 3:
            apic.give(apic.tpr >> 4)
        elif exit.operand >> 4:
            return INJECT_GP
        else:
            self.reg_write(vcpu, TPR, exit.operand << 4)
        return EMULATED

    def apic_msr_access(self, vcpu: VirtualCpu, exit: Exit) -> int | None:
        """RDMSR, WRMSR of the APIC (kvm_x2apic_msr_read, kvm_x2apic_msr_write; apic.md §1.1)."""
        write = exit.reason == ExitReason.WRMSR
        value = vcpu.apic.msr_value if write else None
        taken = vcpu.apic.msr_taken(exit.operand, value)
        if taken is None:
            return None
        if not taken:
            return INJECT_GP
        vcpu.apic.count("emulated")
        if exit.operand == MSR_TSC_DEADLINE:
            self.tsc_deadline(vcpu, value)
        elif exit.operand == MSR_APIC_BASE:
            if value is not None:
                self.set_apic_base(vcpu, value)
            vcpu.apic.give(vcpu.apic.base)
        else:
            self.x2apic_access(vcpu, exit.operand, value)
        return EMULATED

    def tsc_deadline(self, vcpu: VirtualCpu, value: int | None) -> None:
        """IA32_TSC_DEADLINE (kvm_set_lapic_tscdeadline_msr): a time that has come asks for the timer's vector."""
        apic = vcpu.apic
        if value is not None and apic.set_deadline(value):
            apic.accept(apic.word(LVT_TIMER) & 0xFF)
        apic.give(apic.deadline)

    def x2apic_access(self, vcpu: VirtualCpu, msr: int, value: int | None) -> None:
        """A register in x2APIC mode that is taken."""
        apic = vcpu.apic
        apic.elapse()
        if value is None:
            apic.give(apic.read_msr(msr))
            return
        self.written(vcpu, (msr & 0xFF) << 4, apic.write_msr(msr, value))

    # ---- around each exit -----------------------------------------------------------------------------------------

    def apic_begin(self, vcpu: VirtualCpu) -> None:
        """After a VM exit: what the guest left in its record."""
        self.sync_from_vapic(vcpu)
        vcpu.apic.below_threshold = False
        vcpu.apic.give(0)

    def apic_end(self, vcpu: VirtualCpu, action: int, exit: Exit) -> None:
        """After the handler: an access to the page that it left to be emulated (a page without memory behind it), then
        what the VM entry needs."""
        apic = vcpu.apic
        before = apic.injected >= 0
        if action == EMULATED and apic.emulated >> 12 == APIC_PAGE and exit.reason != ExitReason.APIC_ACCESS:
            self.emulate_apic_access(vcpu, apic.emulated & 0xFFF)
            if apic.at_site:
                self.report_tpr_access(vcpu)
        self.apic_entry(vcpu)
        self.count_spurious(apic, before)

    def apic_entry(self, vcpu: VirtualCpu) -> None:
        """Before VM entry (vcpu_enter_guest): what arrived, what is injected, the threshold, the record. The
        slides' KVM sets the threshold at every entry, today's where an event asks for it."""
        apic = vcpu.apic
        apic.accept_arrived()
        if apic.way == "apicv":
            self.load_virtual_interrupts(vcpu)
        elif apic.request_event:
            self.inject_pending_event(vcpu)
        elif apic.threshold_rule == "slides":
            self.update_cr8_intercept(vcpu)
        self.sync_to_vapic(vcpu)

    def inject_pending_event(self, vcpu: VirtualCpu) -> None:
        """What priorities let through is injected, where the guest takes interrupts and no other is on its way; else
        the guest exits as soon as it does (inject_pending_event, vmx_enable_irq_window)."""
        apic = vcpu.apic
        apic.request_event = False
        if apic.deliverable() >= 0:
            if apic.interrupts_on and apic.injected < 0:
                apic.inject(apic.acknowledge())
            else:
                apic.interrupt_window = True
        self.update_cr8_intercept(vcpu)

    def load_virtual_interrupts(self, vcpu: VirtualCpu) -> None:
        """The processor delivers: it gets what waits, RVI, and which ends of interrupt the VMM wants to see, those of
        level-triggered vectors and of the real-time clock (vmx_hwapic_irr_update, vmx_load_eoi_exitmap; apic.md §6).
        What was posted while the vCPU did not run comes first (vmx_sync_pir_to_irr)."""
        apic = vcpu.apic
        apic.request_event = False
        if apic.posted:
            apic.sync_pir_to_irr()
        apic.rvi = max(apic.irr, 0) if apic.on else 0
        bitmap = list(apic.tmr)
        bitmap[apic.rtc_vector >> 6] |= 1 << (apic.rtc_vector & 63)
        apic.eoi_exit_bitmap = bitmap

"""Bits of the VM-execution, VM-exit and VM-entry controls (SDM volume 3, chapter "Virtual machine control structures";
vmx.md §2).

A processor here carries out all of them but those that :data:`UNMODELLED` names.
"""

from __future__ import annotations

from fastmmu.errors import Flags

__all__ = ["UNMODELLED", "Entry", "PinBased", "Primary", "Secondary", "VmExit"]


class PinBased(Flags):
    """Pin-based VM-execution controls."""

    EXTERNAL_INTERRUPT_EXITING = 1 << 0
    NMI_EXITING = 1 << 3
    VIRTUAL_NMIS = 1 << 5
    PREEMPTION_TIMER = 1 << 6
    POSTED_INTERRUPTS = 1 << 7


class Primary(Flags):
    """Primary processor-based VM-execution controls."""

    INTERRUPT_WINDOW_EXITING = 1 << 2
    TSC_OFFSETTING = 1 << 3
    HLT_EXITING = 1 << 7
    INVLPG_EXITING = 1 << 9
    MWAIT_EXITING = 1 << 10
    RDPMC_EXITING = 1 << 11
    RDTSC_EXITING = 1 << 12
    CR3_LOAD_EXITING = 1 << 15
    CR3_STORE_EXITING = 1 << 16
    TERTIARY_CONTROLS = 1 << 17
    CR8_LOAD_EXITING = 1 << 19
    CR8_STORE_EXITING = 1 << 20
    TPR_SHADOW = 1 << 21
    NMI_WINDOW_EXITING = 1 << 22
    MOV_DR_EXITING = 1 << 23
    UNCONDITIONAL_IO_EXITING = 1 << 24
    IO_BITMAPS = 1 << 25
    MONITOR_TRAP_FLAG = 1 << 27
    MSR_BITMAPS = 1 << 28
    MONITOR_EXITING = 1 << 29
    PAUSE_EXITING = 1 << 30
    SECONDARY_CONTROLS = 1 << 31


class Secondary(Flags):
    """Secondary processor-based VM-execution controls."""

    VIRTUALIZE_APIC_ACCESSES = 1 << 0
    EPT = 1 << 1
    DESCRIPTOR_TABLE_EXITING = 1 << 2
    RDTSCP = 1 << 3
    VIRTUALIZE_X2APIC_MODE = 1 << 4
    VPID = 1 << 5
    WBINVD_EXITING = 1 << 6
    UNRESTRICTED_GUEST = 1 << 7
    APIC_REGISTER_VIRTUALIZATION = 1 << 8
    VIRTUAL_INTERRUPT_DELIVERY = 1 << 9
    PAUSE_LOOP_EXITING = 1 << 10
    RDRAND_EXITING = 1 << 11
    INVPCID = 1 << 12
    VM_FUNCTIONS = 1 << 13
    VMCS_SHADOWING = 1 << 14
    ENCLS_EXITING = 1 << 15
    RDSEED_EXITING = 1 << 16
    PML = 1 << 17
    EPT_VIOLATION_VE = 1 << 18
    XSAVES = 1 << 20
    MODE_BASED_EXECUTE = 1 << 22
    SUB_PAGE_WRITE = 1 << 23
    TSC_SCALING = 1 << 25


class VmExit(Flags):
    """VM-exit controls."""

    SAVE_DEBUG_CONTROLS = 1 << 2
    HOST_ADDRESS_SPACE_SIZE = 1 << 9
    ACKNOWLEDGE_INTERRUPT = 1 << 15
    SAVE_PAT = 1 << 18
    LOAD_PAT = 1 << 19
    SAVE_EFER = 1 << 20
    LOAD_EFER = 1 << 21


class Entry(Flags):
    """VM-entry controls."""

    LOAD_DEBUG_CONTROLS = 1 << 2
    IA32E_MODE_GUEST = 1 << 9
    LOAD_PAT = 1 << 14
    LOAD_EFER = 1 << 15


UNMODELLED = {
    "pin-based": PinBased.PREEMPTION_TIMER,
    "primary": Primary.TERTIARY_CONTROLS | Primary.IO_BITMAPS,
    "secondary": (
        Secondary.PAUSE_LOOP_EXITING
        | Secondary.VM_FUNCTIONS
        | Secondary.VMCS_SHADOWING
        | Secondary.ENCLS_EXITING
        | Secondary.EPT_VIOLATION_VE
        | Secondary.SUB_PAGE_WRITE
    ),
}
"""Controls that VM entry checks, and that no guest runs with here: :meth:`Cpu.vmlaunch` refuses them by StateError."""

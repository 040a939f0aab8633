"""The checks of VM entry in a sentence each, and the fields that not every processor has."""

from __future__ import annotations

from .fields import Field

__all__ = ["CHECKS", "EXISTS"]

CHECKS = {
    "C1": "a control has a value that the capability MSRs do not allow",
    "C2": "CR3_TARGET_COUNT is above 4",
    "C3": "use TPR shadow: VIRTUAL_APIC_ADDRESS must be a page address below 2**M",
    "C4": "use TPR shadow without virtual-interrupt delivery: bits 31:4 of TPR_THRESHOLD must be 0",
    "C5": "TPR_THRESHOLD is above the class of the TPR in the virtual-APIC page",
    "C6": "x2APIC mode, APIC-register virtualization and virtual-interrupt delivery need use TPR shadow",
    "C7": "virtualize APIC accesses: APIC_ACCESS_ADDRESS must be a page address below 2**M",
    "C8": "virtualize x2APIC mode excludes virtualize APIC accesses",
    "C9": "virtual-interrupt delivery needs external-interrupt exiting",
    "C10": "posted interrupts need virtual-interrupt delivery, acknowledge interrupt on exit, a vector below 256 and a "
    "descriptor aligned to 64 bytes below 2**M",
    "C11": "enable VPID: VPID must not be 0",
    "C12": "enable EPT: EPTP must have memory type 0 or 6 (bits 2:0), a walk length that is supported (5:3), no "
    "reserved bits; a 4-level write-back table is root | 0x1e",
    "C13": "unrestricted guest, mode-based execute, PML, SPP, HLAT, paging-write and verification need enable EPT",
    "C14": "enable PML: PML_ADDRESS must be a page address below 2**M",
    "C15": "sub-page write permissions: SPPT_POINTER must be a page address below 2**M",
    "C16": "VM functions: reserved bits must be 0; EPTP switching needs EPT and a list at a page address below 2**M",
    "C17": "EPT-violation #VE: VE_INFORMATION_ADDRESS must be a page address below 2**M",
    "C18": "virtual NMIs need NMI exiting, and NMI-window exiting virtual NMIs",
    "event injection": "VM_ENTRY_INTERRUPTION_INFO has a type, vector, error code or reserved bits that do not fit, or "
    "VM_ENTRY_INSTRUCTION_LENGTH is not 1..15 for a software event",
    "host CR0": "HOST_CR0 lacks a bit that must be 1 (0x80000021), or has one that may not",
    "host CR4": "HOST_CR4 lacks a bit that must be 1 (0x2020), or has one that may not",
    "host CR3": "HOST_CR3 has bits at or above 2**M",
    "host PAT": "HOST_IA32_PAT has an entry that is no memory type",
    "host EFER": "HOST_IA32_EFER has reserved bits, or LMA and LME are not 1",
    "host address-space size": "the host is in 64-bit mode: VM_EXIT_CONTROLS bit 9 must be 1, HOST_RIP canonical",
}
"""Name of a check → what does not hold where it fails (vmx.md §3.1; SDM volume 3, "Checks on VMX controls")."""

EXISTS = {
    Field.VPID: ("secondary", 5),
    Field.POSTED_INTERRUPT_NOTIFICATION_VECTOR: ("pin_based", 7),
    Field.EPTP_INDEX: ("secondary", 18),
    Field.GUEST_INTERRUPT_STATUS: ("secondary", 9),
    Field.PML_INDEX: ("secondary", 17),
    Field.MSR_BITMAP: ("primary", 28),
    Field.PML_ADDRESS: ("secondary", 17),
    Field.VIRTUAL_APIC_ADDRESS: ("primary", 21),
    Field.APIC_ACCESS_ADDRESS: ("secondary", 0),
    Field.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS: ("pin_based", 7),
    Field.VM_FUNCTION_CONTROLS: ("secondary", 13),
    Field.EPTP: ("secondary", 1),
    Field.EOI_EXIT_BITMAP_0: ("secondary", 9),
    Field.EOI_EXIT_BITMAP_1: ("secondary", 9),
    Field.EOI_EXIT_BITMAP_2: ("secondary", 9),
    Field.EOI_EXIT_BITMAP_3: ("secondary", 9),
    Field.EPTP_LIST_ADDRESS: ("secondary", 13),
    Field.VE_INFORMATION_ADDRESS: ("secondary", 18),
    Field.SPPT_POINTER: ("secondary", 23),
    Field.TERTIARY_CONTROLS: ("primary", 17),
    Field.GUEST_PHYSICAL_ADDRESS: ("secondary", 1),
    Field.GUEST_PDPTE0: ("secondary", 1),
    Field.GUEST_PDPTE1: ("secondary", 1),
    Field.GUEST_PDPTE2: ("secondary", 1),
    Field.GUEST_PDPTE3: ("secondary", 1),
    Field.TPR_THRESHOLD: ("primary", 21),
    Field.SECONDARY_CONTROLS: ("primary", 31),
}
"""Fields that exist only where a control can be 1 (SDM volume 3, appendix B): its word in Capabilities, and its bit."""

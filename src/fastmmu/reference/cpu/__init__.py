"""The processor: local APICs, their virtualization, VMX instructions, operands of invalidations.

apic           the local APIC
apic_msr       CR8, IA32_APIC_BASE and the registers of x2APIC mode, with what they refuse
processors     several of them, without a VMM
vapic          virtualization of the APIC
vmentry        what VM entry checks
inv_operands   INVEPT, INVVPID, INVPCID
vmx            VMX instructions: VMCS fields, regions, VM entry
may_hold       what a CPU may still hold where others change the tables
vmx_guest      what a guest does until its VM exit
"""

from __future__ import annotations

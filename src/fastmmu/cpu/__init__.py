"""The processor: one access of a virtual CPU, the instructions that it runs, its local APIC, VM entry and exit.

    vcpu          TLB, walk, fault, VM exit and entry of one access
    quick         a miss of both levels whose walk is plain; quick_cached: with data caches under it
    access        an access to data of known size: memory, or the APIC-access page
    control       instructions of CPL 0: on CR0, CR3, CR4, EFER; INVLPG, INVPCID
    inv_operands  INVEPT, INVVPID, INVPCID up to the point where they invalidate
    vmentry       what VM entry checks
    apic          the local APIC over its register page
    x2apic        its model-specific registers: which there are in which mode, and what they refuse
    vapic         its virtualization: TPR shadow, APIC-access page, virtual interrupts, posted interrupts
    interrupts    requests that reach its registers, its timer
    apic_access   what the guest does with it, and the interrupts that it gets between two instructions
    apic_msr      of it, CR8 and the MSRs: what exits, and what is done without a VMM
    tpr_patch     instructions that access the TPR, and the calls that replace them
    exit_log      the log of VM exits: a ring of records
    stale         the detector of missing flushes; `missing_flushes` is that for Python
    may_hold      what a CPU may still hold, by which uses are judged where several CPUs change tables
    apic_py, vapic_py, vmentry_py, inv_operands_py, tpr_patch_py, may_hold_py   these for Python

Imports `arch`, `cache`, `tlb`, `paging`, `mmu`. An exit happens here; what it means is KVM's (`kvm`), called through
one pointer.

To add an exit: its number in `fastmmu/exits.py` and `arch/vmx.pxd`, the condition here, the handler in `kvm/exits`,
its cost in `machine/costs.toml`. To add an instruction: its rules here, its exits there, `reference`, and a door in
`machine`.
"""

from __future__ import annotations

"""Policy: what KVM does at each VM exit, with the tables, the registers, the APIC and the vCPUs of a guest.

    kvm         the VMM of a machine and its vCPUs as structs, of which each module takes what it needs
    vcpu        a vCPU made, loaded, in and out of guest mode
    exits       what is done at each exit; the page-modification log
    faults      #PF, EPT violation, EPT misconfiguration
    roots       the root that a vCPU runs on
    registers   control registers and EFER in KVM's hands
    agile       agile paging: ends of intervals; agile_roots: the guest's own root in the place of a shadow's
    modes       a guest in each paging mode: from its registers to those of the hardware
    requests    what is asked of a vCPU before its next VM entry, and the flushes that serve it
    lapic       the exits of the APIC, injection, TPR threshold
    ipi         interprocessor interrupts, and what a vCPU finds when it runs again
    exit_log    what the VMM made of an exit, in the log of exits
    vpid        the VPIDs of a host; vpid_py: that for Python
    asid        the ASIDs of a physical CPU of AMD; asid_py: that for Python
    svm         of a vCPU of AMD: the ASID that it runs under, its flushes
    vmm         `Vmm`: what user space does to slots and dirty logs, for Python
    host_calls  what the host and user space ask of the VMM, kernels or Python
    policy      the same rules in Python, to be read and overridden
    port        what they work on, of vm_port and vcpu_port; vmcs, vmcb: fields of its VMCS or VMCB;
                registers_port, roots_port: control registers as a value, the roots of a vCPU; faults_port: a fault, and
                the guest's tables under shadow paging; vpid_port, asid_port: the VPIDs of a host, the ASIDs of a CPU;
                lapic_port, of apic_entry_port: its local APIC; log_port: a dirty log

Imports `arch` to `vmx`, of which `policy` and `vmcs` take the fields of the VMCS. Rules are those of
kvm_policy.md; each names its section.

To add an exit reason: its number in `arch/vmx.pxd` and `fastmmu.exits.ExitReason`; what raises it, in `cpu`, by
`vcpu_exit`, with the exit information of the VMCS; a handler that returns an `Action`, and its row in the table
`kvm_exit` of `exits` (of the APIC: `apic_exit` of `lapic`); the same in `reference/kvm/`. A reason without a row is
counted, and the guest goes on behind the instruction. Policies in Python get `on_...` by its name. Then
`make kvm-agreement`, which sets both beside what real KVM did.
"""

from __future__ import annotations

"""KVM's policy in Python: the rules of the kernels of this room, each to be read, and to be overridden.

    kvm         Kvm: what is done at each VM exit, in its order
    base        what the rules have in common
    bits        bits of control registers
    modes       from the guest's registers to those of the hardware
    roots       the root that a vCPU runs on
    registers   writes of control registers and EFER
    direct      faults of direct mappings, EPT's among them: fast faults, building, prefetch
    shadow      the shadow entry that answers a #PF
    faults      EPT violation, EPT misconfiguration, #PF: what each is, and what is done about it
    invalidate  INVLPG and INVPCID of a shadowed guest
    asid        the ASIDs of AMD: given out, flushed
    requests    flushes: asked for, and served before VM entry
    vcpu        a vCPU on its way out of and into the guest; the page-modification log
    vpid        the VPIDs of a host: a vCPU comes, and ends
    lapic       the local APIC: emulation, exits, injection; what the processor is told before VM entry
    tpr         the TPR in each way to handle it
    ipi         interprocessor interrupts
    log         the dirty log, as user space asks for it

The state is the kernels' own, by `fastmmu.kvm.port`: both count the same, and a machine runs the one or the other
(``Config.vmm``). To try a rule, derive from :class:`fastmmu.Kvm`, override the method that carries it out, and give
the class as ``Config(vmm=...)``.
"""

from __future__ import annotations

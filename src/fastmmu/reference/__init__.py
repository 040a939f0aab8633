"""Executable specification of translation, in plain Python: guest paging, EPT, nested walks, memory types, enumeration.

Written from the rules of the architecture, for reading and for checking the kernels against. Nothing here is fast.

    State ─┐                 ┌─ guest    formats and permissions of guest entries
    Ept  ──┼── walk / load_pdptes ┤
    Memory ┘        │        └─ ept ── spp   one guest-physical translation, A/D flags, log
                    └── Outcome: what it ended in, its steps, its changes to memory

`apic` has the local APIC, `processors` several of them, `vapic` its virtualization, `vmentry` what VM entry checks.
`nonroot` has #VE and VMFUNC, `memtype` the effective memory type, `mappings` lists a whole address space. `operands`
has INVEPT, INVVPID and INVPCID, `tlb`, `lru`, `caching` and `invalidations` what is cached and what ends it, `vpid`
the allocator. `modes` changes paging modes. `entries`, `state`, `memory`, `run`, `outcome` are what these are written
in. `kvm`: a guest on KVM's MMU, step by step, with `kvm_vm`, `kvm_tables`, `kvm_map`, `kvm_shadow`, `kvm_sync`,
`kvm_memory`, `kvm_log`, `kvm_stats` behind it.

Imports the vocabulary (ops, exits, errors, dtypes) and no kernel.

To add a rule: write it here first, from the chapter; then the kernel; then a property test over both.
"""

from __future__ import annotations

from . import apic, vapic, vmentry
from .apic import Ipi, LocalApic
from .ept import Ept, EptCap, GpaReference, eptp_valid, translate_gpa
from .mappings import Mapping, mappings
from .memory import ArrayMemory, Memory, SparseMemory
from .memtype import MemType, Mtrrs
from .nonroot import (
    EptpSwitched,
    InvalidOpcode,
    VirtualizationException,
    VmfuncExit,
    convertible,
    deliver_ve,
    vmfunc,
)
from .outcome import (
    ApicAccess,
    Bus,
    Change,
    EptMisconfig,
    EptViolation,
    GeneralProtection,
    GpaMapped,
    Mapped,
    Outcome,
    PageFault,
    PdptesLoaded,
    PmlFull,
    SppEvent,
    Step,
)
from .state import Mode, State
from .vapic import PostedDescriptor, VirtualApic
from .walk import access_of, load_pdptes, walk

__all__ = [
    "ApicAccess",
    "ArrayMemory",
    "Bus",
    "Change",
    "Ept",
    "EptCap",
    "EptMisconfig",
    "EptViolation",
    "EptpSwitched",
    "GeneralProtection",
    "GpaMapped",
    "GpaReference",
    "InvalidOpcode",
    "Ipi",
    "LocalApic",
    "Mapped",
    "Mapping",
    "MemType",
    "Memory",
    "Mode",
    "Mtrrs",
    "Outcome",
    "PageFault",
    "PdptesLoaded",
    "PmlFull",
    "PostedDescriptor",
    "SparseMemory",
    "SppEvent",
    "State",
    "Step",
    "VirtualApic",
    "VirtualizationException",
    "VmfuncExit",
    "access_of",
    "apic",
    "convertible",
    "deliver_ve",
    "eptp_valid",
    "load_pdptes",
    "mappings",
    "translate_gpa",
    "vapic",
    "vmentry",
    "vmfunc",
    "walk",
]

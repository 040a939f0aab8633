"""Executable specification in plain Python, in rooms as the kernels have them.

Written from the rules of the architecture, for reading and for checking the kernels against. Nothing here is fast.

    cache    data caches and memory under a reference
    tlb      what is cached, and what ends it
    paging   one address, whole address spaces
    space    bytes at linear addresses, who maps a page, what changed
    cpu      local APICs, their virtualization, VM entry, INVEPT, INVVPID, INVPCID
    trace    what the files of traces mean
    kvm      a guest on KVM's MMU, step by step; paging modes, VPIDs
    machine  the guest kernel of programs on several vCPUs

What of it is used most stands here: `walk`, `State`, `Ept`, memories, outcomes, APICs.

Imports the vocabulary (ops, exits, errors, dtypes) and no kernel.

To add a rule: write it here first, from the chapter; then the kernel; then a property test over both.
"""

from __future__ import annotations

from .cpu import apic, apic_msr, vapic, vmentry
from .cpu.apic import Ipi, LocalApic
from .cpu.vapic import PostedDescriptor, VirtualApic
from .paging.ept import Ept, EptCap, GpaReference, eptp_valid, translate_gpa
from .paging.mappings import Mapping, mappings
from .paging.memory import ArrayMemory, Memory, SegmentedMemory, SparseMemory
from .paging.memtype import MemType, Mtrrs
from .paging.nonroot import (
    EptpSwitched,
    InvalidOpcode,
    VirtualizationException,
    VmfuncExit,
    convertible,
    deliver_ve,
    vmfunc,
)
from .paging.npt import Npt
from .paging.outcome import (
    ApicAccess,
    Bus,
    Change,
    EptMisconfig,
    EptViolation,
    GeneralProtection,
    GpaMapped,
    Mapped,
    NestedPageFault,
    Outcome,
    PageFault,
    PdptesLoaded,
    PmlFull,
    SppEvent,
    Step,
)
from .paging.place import place_of
from .paging.state import Mode, State
from .paging.walk import access_of, load_pdptes, walk

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
    "NestedPageFault",
    "Npt",
    "Outcome",
    "PageFault",
    "PdptesLoaded",
    "PmlFull",
    "PostedDescriptor",
    "SegmentedMemory",
    "SparseMemory",
    "SppEvent",
    "State",
    "Step",
    "VirtualApic",
    "VirtualizationException",
    "VmfuncExit",
    "access_of",
    "apic",
    "apic_msr",
    "convertible",
    "deliver_ve",
    "eptp_valid",
    "load_pdptes",
    "mappings",
    "place_of",
    "translate_gpa",
    "vapic",
    "vmentry",
    "vmfunc",
    "walk",
]

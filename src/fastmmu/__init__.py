"""Simulator of x86 memory virtualization: guest paging, EPT, shadow page tables, tagged TLBs, VM exits.

Docstrings cite the manuals, and chapters of the repository's docs/spec by section (ept.md §4.1).
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu import image, space, vmx
    from fastmmu._walk import WalkResult, load_pdpte_registers, walk, walk_ept
    from fastmmu.arch.memtype_py import MemoryType, Mtrrs
    from fastmmu.dtypes import Fault, StepKind
    from fastmmu.errors import (
        BusError,
        CheckpointError,
        ConfigError,
        EventError,
        FastmmuError,
        MissingExtraError,
        NotMappedError,
        OutOfMemoryError,
        PolicyError,
        StateError,
        StudyError,
        TraceError,
        VmFail,
        VmFailInvalid,
        VmFailValid,
        WrongTypeError,
    )
    from fastmmu.exits import Action, Exit, ExitReason, Qualification
    from fastmmu.headers import get_include
    from fastmmu.kvm.asid_py import AsidAllocator
    from fastmmu.kvm.policy.kvm import Kvm
    from fastmmu.kvm.vmm import Vmm
    from fastmmu.kvm.vpid_py import VpidAllocator
    from fastmmu.machine.checkpoint.runs import Checkpoint
    from fastmmu.machine.config import Config
    from fastmmu.machine.costs import CostModel
    from fastmmu.machine.devices import Bus, Device
    from fastmmu.machine.exit_log import ExitLog
    from fastmmu.machine.host import Host
    from fastmmu.machine.instructions import Access, Load
    from fastmmu.machine.machine import Machine
    from fastmmu.machine.policy import Mmio, Policy
    from fastmmu.machine.result import Result
    from fastmmu.machine.simulate import simulate
    from fastmmu.machine.simulation import Simulation
    from fastmmu.machine.slots import MemorySlot
    from fastmmu.ops import GuestOp, Op
    from fastmmu.paging.contiguity import Contiguity, contiguity
    from fastmmu.paging.mappings import MappingArray, ept_mappings, iter_ept_mappings, iter_mappings, mappings
    from fastmmu.paging.memory import PhysicalMemory
    from fastmmu.paging.nonroot_py import VmFunction, deliver_ve, vmfunc
    from fastmmu.paging.state import Eptp, GuestState, Npt, Pml
    from fastmmu.paging.translate import Translation, translate
    from fastmmu.space.roots import find_roots
    from fastmmu.space.space import AddressSpace
    from fastmmu.study.compare.run import compare
    from fastmmu.study.kvm_log.run import replay_faults
    from fastmmu.study.sweep.run import Study
    from fastmmu.study.tpr.run import tpr_study
    from fastmmu.tlb.geometry import Geometry, geometry
    from fastmmu.tlb.tlb import TLB
    from fastmmu.trace import Batch, KvmLog, Trace, interleave, read_kvm_log, read_trace, write_trace

__version__ = "0.2.0"

__all__ = [
    "TLB",
    "Access",
    "Action",
    "AddressSpace",
    "AsidAllocator",
    "Batch",
    "Bus",
    "BusError",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "ConfigError",
    "Contiguity",
    "CostModel",
    "Device",
    "Eptp",
    "EventError",
    "Exit",
    "ExitLog",
    "ExitReason",
    "FastmmuError",
    "Fault",
    "Geometry",
    "GuestOp",
    "GuestState",
    "Host",
    "Kvm",
    "KvmLog",
    "Load",
    "Machine",
    "MappingArray",
    "MemorySlot",
    "MemoryType",
    "MissingExtraError",
    "Mmio",
    "Mtrrs",
    "NotMappedError",
    "Npt",
    "Op",
    "OutOfMemoryError",
    "PhysicalMemory",
    "Pml",
    "Policy",
    "PolicyError",
    "Qualification",
    "Result",
    "Simulation",
    "StateError",
    "StepKind",
    "Study",
    "StudyError",
    "Trace",
    "TraceError",
    "Translation",
    "VmFail",
    "VmFailInvalid",
    "VmFailValid",
    "VmFunction",
    "Vmm",
    "VpidAllocator",
    "WalkResult",
    "WrongTypeError",
    "compare",
    "contiguity",
    "deliver_ve",
    "ept_mappings",
    "find_roots",
    "geometry",
    "get_include",
    "image",
    "interleave",
    "iter_ept_mappings",
    "iter_mappings",
    "load_pdpte_registers",
    "mappings",
    "read_kvm_log",
    "read_trace",
    "replay_faults",
    "simulate",
    "space",
    "tpr_study",
    "translate",
    "vmfunc",
    "vmx",
    "walk",
    "walk_ept",
    "write_trace",
]

_HOMES = {
    "fastmmu._walk": ("WalkResult", "load_pdpte_registers", "walk", "walk_ept"),
    "fastmmu.arch.memtype_py": ("MemoryType", "Mtrrs"),
    "fastmmu.dtypes": ("Fault", "StepKind"),
    "fastmmu.errors": (
        "BusError",
        "CheckpointError",
        "ConfigError",
        "EventError",
        "FastmmuError",
        "MissingExtraError",
        "NotMappedError",
        "OutOfMemoryError",
        "PolicyError",
        "StateError",
        "StudyError",
        "TraceError",
        "VmFail",
        "VmFailInvalid",
        "VmFailValid",
        "WrongTypeError",
    ),
    "fastmmu.exits": ("Action", "Exit", "ExitReason", "Qualification"),
    "fastmmu.headers": ("get_include",),
    "fastmmu.kvm.policy.kvm": ("Kvm",),
    "fastmmu.kvm.vmm": ("Vmm",),
    "fastmmu.kvm.asid_py": ("AsidAllocator",),
    "fastmmu.kvm.vpid_py": ("VpidAllocator",),
    "fastmmu.machine.checkpoint.runs": ("Checkpoint",),
    "fastmmu.machine.config": ("Config",),
    "fastmmu.machine.costs": ("CostModel",),
    "fastmmu.machine.devices": ("Bus", "Device"),
    "fastmmu.machine.exit_log": ("ExitLog",),
    "fastmmu.machine.host": ("Host",),
    "fastmmu.machine.instructions": ("Access", "Load"),
    "fastmmu.machine.machine": ("Machine",),
    "fastmmu.machine.policy": ("Mmio", "Policy"),
    "fastmmu.machine.result": ("Result",),
    "fastmmu.machine.simulate": ("simulate",),
    "fastmmu.machine.simulation": ("Simulation",),
    "fastmmu.machine.slots": ("MemorySlot",),
    "fastmmu.ops": ("GuestOp", "Op"),
    "fastmmu.paging.contiguity": ("Contiguity", "contiguity"),
    "fastmmu.paging.mappings": ("MappingArray", "ept_mappings", "iter_ept_mappings", "iter_mappings", "mappings"),
    "fastmmu.paging.memory": ("PhysicalMemory",),
    "fastmmu.paging.nonroot_py": ("VmFunction", "deliver_ve", "vmfunc"),
    "fastmmu.paging.state": ("Eptp", "GuestState", "Npt", "Pml"),
    "fastmmu.paging.translate": ("Translation", "translate"),
    "fastmmu.space.roots": ("find_roots",),
    "fastmmu.space.space": ("AddressSpace",),
    "fastmmu.study.compare.run": ("compare",),
    "fastmmu.study.kvm_log.run": ("replay_faults",),
    "fastmmu.study.sweep.run": ("Study",),
    "fastmmu.study.tpr.run": ("tpr_study",),
    "fastmmu.tlb.geometry": ("Geometry", "geometry"),
    "fastmmu.tlb.tlb": ("TLB",),
    "fastmmu.trace": ("Batch", "KvmLog", "Trace", "interleave", "read_kvm_log", "read_trace", "write_trace"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

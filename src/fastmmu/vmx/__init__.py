"""VMX as instructions: a logical processor in Python's hands, and no VMM but the caller's.

    Cpu.vmptrld, vmwrite ──► vmlaunch ──► run(operations) ──► Exit ──► the caller's VMM ──► vmresume ──► run() ...
                                │ Exit: entry failed     └──► GuestEvent, for the guest's IDT

    cpu            Cpu: the VMX instructions, the guest's operations
    vmcs           Vmcs: a region in memory, its launch state
    fields         Field: every field, by encoding, with width and type
    controls       names of control bits
    capabilities   what the processor supports
    checks         the checks of VM entry in words; fields that need a control
    templates      fields to begin with
    exit           Exit, GuestEvent
    processor      the struct of all that; kernels: region (VMCLEAR, VMPTRLD, VMREAD, VMWRITE), entry (VM entry and
                   exit), operations (which there are), guest (the loop over them)

Imports `arch`, `tlb`, `paging`, `cpu` and the vocabulary. It knows no KVM: `kvm` stands above it, as other VMMs would.

To add a field: `fields`, and its place in `region` where the processor uses it. To add an operation: its number in
`fastmmu/ops.py` and `arch/ops.pxd`, whether it is one in `operations`, what it does in `guest` and in
`reference/cpu/vmx_guest.py`. To add a control: its bit in `controls`, what it does in `entry` or `guest`, the masks of
`capabilities` and UNMODELLED.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.errors import VmFail, VmFailInvalid, VmFailValid
    from fastmmu.exits import ExitReason
    from fastmmu.ops import GuestOp, Op
    from fastmmu.vmx.capabilities import Capabilities
    from fastmmu.vmx.controls import Entry, PinBased, Primary, Secondary, VmExit
    from fastmmu.vmx.cpu import Cpu
    from fastmmu.vmx.exit import Exit, GuestEvent
    from fastmmu.vmx.fields import Field
    from fastmmu.vmx.templates import LONG_MODE_GUEST, UNPAGED_GUEST
    from fastmmu.vmx.vmcs import Vmcs

__all__ = [
    "LONG_MODE_GUEST",
    "UNPAGED_GUEST",
    "Capabilities",
    "Cpu",
    "Entry",
    "Exit",
    "ExitReason",
    "Field",
    "GuestEvent",
    "GuestOp",
    "Op",
    "PinBased",
    "Primary",
    "Secondary",
    "VmExit",
    "VmFail",
    "VmFailInvalid",
    "VmFailValid",
    "Vmcs",
]

_HOMES = {
    "fastmmu.errors": ("VmFail", "VmFailInvalid", "VmFailValid"),
    "fastmmu.exits": ("ExitReason",),
    "fastmmu.ops": ("GuestOp", "Op"),
    "fastmmu.vmx.capabilities": ("Capabilities",),
    "fastmmu.vmx.controls": ("Entry", "PinBased", "Primary", "Secondary", "VmExit"),
    "fastmmu.vmx.cpu": ("Cpu",),
    "fastmmu.vmx.exit": ("Exit", "GuestEvent"),
    "fastmmu.vmx.fields": ("Field",),
    "fastmmu.vmx.templates": ("LONG_MODE_GUEST", "UNPAGED_GUEST"),
    "fastmmu.vmx.vmcs": ("Vmcs",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

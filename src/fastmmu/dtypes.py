"""NumPy dtypes and codes in which results leave the kernels."""

from __future__ import annotations

import numpy as np

from fastmmu.errors import Code

__all__ = [
    "ALL_ONES",
    "EPT_MAPPING_DTYPE",
    "EXIT_DTYPE",
    "HOLE_DTYPE",
    "MAPPING_DTYPE",
    "MAPPING_FAULT_DTYPE",
    "ROOT_DTYPE",
    "SPTE_DTYPE",
    "STEP_DTYPE",
    "Fault",
    "StepKind",
]

ALL_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""`.pa` where an address did not translate."""


class Fault(Code):
    """Why an address did not translate; 0 = it did."""

    NONE = 0
    PAGE_FAULT = 1
    GENERAL_PROTECTION = 2
    EPT_VIOLATION = 3
    EPT_MISCONFIG = 4
    BUS = 5
    PML_FULL = 6
    SPP_EVENT = 7
    APIC_ACCESS = 8
    NESTED_PAGE_FAULT = 9


class StepKind(Code):
    """What one memory reference of a walk was for."""

    GUEST = 0
    EPT = 1
    GUEST_AD = 2
    EPT_AD = 3
    DATA = 4
    SPP = 5


EXIT_DTYPE = np.dtype(
    [
        ("time", "<u8"),
        ("qualification", "<u8"),
        ("gpa", "<u8"),
        ("gla", "<u8"),
        ("rip", "<u8"),
        ("cycles", "<f8"),
        ("vcpu", "<u4"),
        ("intr_info", "<u4"),
        ("error_code", "<u4"),
        ("reason", "<u2"),
        ("class", "u1"),
        ("kind", "u1"),
    ],
    align=True,
)
"""One VM exit of :meth:`fastmmu.Machine.exit_log`; the C struct `ExitRecord` of `cpu/exit_log.pxd`.

time: accesses of the trace begun until then, of all vCPUs of the VM, that which exits among them. qualification, gpa,
gla, intr_info, error_code: exit-information fields of the VMCS (SDM vol. 3, "VM-Exit Information Fields"; vmx.md §5),
those unrelated to the reason are 0; gla is the address of a #PF and of INVLPG, too. rip: linear address of the last
instruction that the trace fetched, 0 without one. cycles: of the cost model, round trip, VMREADs and VMWRITEs, KVM's
path and the handler, so that they sum to the ``exit:`` causes of ``Result.cycles_by``; not what it causes later, nor
flushes and pages from disk, which are causes of their own. vcpu: number within the machine. reason:
:class:`fastmmu.ExitReason`. class: ``fastmmu.exits.FaultClass``. kind: what the cost goes by, a number of
``fastmmu.exits.REASON_NAMES``, or ``N_REASONS`` + one of ``PRICED``.
"""

STEP_DTYPE = np.dtype(
    [
        ("hpa", "<u8"),
        ("gpa", "<u8"),
        ("entry", "<u8"),
        ("kind", "u1"),
        ("level", "u1"),
        ("guest_level", "u1"),
        ("pad", "u1"),
    ],
    align=True,
)
"""One reference of a walk; the C struct `Step` of `arch/types.pxd`."""

SPTE_DTYPE = np.dtype(
    [
        ("entry", "<u8"),  # at which the walk of the VMM's tables ends; 0 without a root
        ("hpa", "<u8"),  # host-physical address of the page; 0 where it is not mapped
        ("level", "u1"),  # of the entry, 1 to 5; 0 without a root
        ("rights", "u1"),  # of a leaf entry, R=1 W=2 X=4 U=8; table entries allow all
        ("mapped", "?"),
        ("mmio", "?"),  # marked as MMIO, and not of an older layout of the slots
        ("accessed", "?"),  # flags of a leaf entry; False where entries have none
        ("dirty", "?"),
    ],
    align=True,
)
"""What tables of a VMM have for a page, :meth:`fastmmu.mmu.Mmu.lookup`; C struct `SpteRow` of `mmu/entries.pxd`."""

MAPPING_DTYPE = np.dtype(
    [
        ("va", "<u8"),  # first linear address, sign-extended in long mode
        ("pa", "<u8"),  # host-physical address of it
        ("gpa", "<u8"),  # guest-physical address of it; = pa without EPT
        ("size", "<u8"),  # bytes: the smaller of guest page and EPT page
        ("leaf", "<u8"),  # the guest's leaf entry; 0 with paging off
        ("user", "u1"),  # U/S = 1 at every level; the next three are what guest and EPT both allow
        ("readable", "u1"),
        ("writable", "u1"),
        ("executable", "u1"),
        ("accessed", "u1"),  # of the guest's leaf, as the next three; 0 with paging off
        ("dirty", "u1"),
        ("global_page", "u1"),  # and CR4.PGE is set
        ("large", "u1"),  # the guest's page is larger than 4 KB
        ("pat", "u1"),  # index into IA32_PAT
        ("key", "u1"),  # protection key
        ("memory_type", "u1"),  # effective, of the first byte; a MemoryType
        ("ept_rights", "u1"),  # R=1 W=2 X=4 XU=8, ANDed over the EPT levels; 0 without EPT
        ("guest_shift", "u1"),  # log2 of the guest's page size; 0 with paging off
        ("ept_shift", "u1"),  # log2 of the EPT page size; 0 without EPT
        ("ept_accessed", "u1"),  # bits 8 and 9 of the EPT leaf, whether or not EPTP bit 6 gives them a meaning
        ("ept_dirty", "u1"),
    ],
    align=True,
)
"""One mapping of a linear address space; the C struct `LeafRow` of `paging/leaves.pxd`."""

_EPT_FIELDS = {
    "gpa": ("<u8", "va"),
    "hpa": ("<u8", "pa"),
    "size": ("<u8", "size"),
    "leaf": ("<u8", "leaf"),
    "user_executable": ("u1", "user"),
    "readable": ("u1", "readable"),
    "writable": ("u1", "writable"),
    "executable": ("u1", "executable"),
    "ipat": ("u1", "pat"),
    "memory_type": ("u1", "memory_type"),
    "accessed": ("u1", "ept_accessed"),
    "dirty": ("u1", "ept_dirty"),
}
_OFFSET = {name: field[1] for name, field in (MAPPING_DTYPE.fields or {}).items()}

EPT_MAPPING_DTYPE = np.dtype(
    {
        "names": list(_EPT_FIELDS),
        "formats": [kind for kind, _ in _EPT_FIELDS.values()],
        "offsets": [_OFFSET[place] for _, place in _EPT_FIELDS.values()],
        "itemsize": MAPPING_DTYPE.itemsize,
    }
)
"""One mapping of a guest-physical address space; the same struct. `leaf`: the EPT leaf, `user_executable`: its XU
under mode-based execute control, rights ANDed over the levels, `memory_type` and `ipat` as in the leaf."""

MAPPING_FAULT_DTYPE = np.dtype(
    [
        ("va", "<u8"),  # first address that has no mapping because of this
        ("size", "<u8"),  # bytes
        ("hpa", "<u8"),  # where the entry is that stopped the walk; all ones where none was read
        ("entry", "<u8"),  # its value; 0 outside memory
        ("fault", "u1"),  # a Fault: PAGE_FAULT for reserved bits, EPT_VIOLATION, EPT_MISCONFIG, BUS, NESTED_PAGE_FAULT
        ("level", "u1"),  # of that entry
        ("ept", "u1"),  # 1: it is an entry of the EPT
    ],
    align=True,
)
"""A place where tables lead nowhere; the C struct `LeafFault` of `paging/leaves.pxd`."""

HOLE_DTYPE = np.dtype([("start", "<u8"), ("length", "<u8"), ("fault", "u1")], align=True)
"""Linear addresses side by side where there is nothing to read, for one cause (a Fault); the C struct `Hole` of
`space/gather.pxd`."""

ROOT_DTYPE = np.dtype(
    [
        ("address", "<u8"),
        ("form", "<u8"),  # 0 long mode, 1 PAE, 2 32-bit paging, 3 EPT
        ("levels", "<u8"),  # 5 and 4, 3, 2, 5 and 4
        ("key", "<u8"),  # 0
        ("tables", "<u8"),  # this and those below; pages and tables count as often as entries lead there
        ("malformed", "<u8"),  # entries that are so, in all tables
        ("pages", "<u8"),
        ("inside", "<u8"),  # pages that lie in memory
        ("user", "<u8"),  # pages that user mode may reach
        ("code", "<u8"),  # that can be executed
        ("kernel_code", "<u8"),  # by the kernel alone
        ("typed", "<u8"),  # pages of EPT of write-back type; else pages with PCD
        ("plausible", "<u8"),  # 1
    ],
    align=True,
)
"""What may be a root table; the C struct `Row` of `space/search.pyx`."""

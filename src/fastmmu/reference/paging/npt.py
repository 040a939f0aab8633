"""Nested paging of AMD: entries, one guest-physical translation with its A/D flags (APM vol. 2, 15.25; npt.md).

    63 NX | 62:52 ignored | 51:12 frame | 8 G | 7 PS/PAT | 6 D | 5 A | 4 PCD | 3 PWT | 2 U/S | 1 R/W | 0 P

The format is that of the host's own long-mode paging, and the host's EFER.NXE and CR4.LA57 as of VMRUN go with it. What
makes it nested paging: each access counts as one by user mode, each to a paging structure of the guest as a write, and
what stops one is #VMEXIT(NPF).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import StepKind
from ...errors import StateError
from .ept import EXECUTE, READ, WRITE, GpaCaches, GpaLeaf, GpaReference, allowed
from .memory import Memory
from .memtype import PAT_RESET, pat_type
from .outcome import GpaMapped, NestedPageFault, Outcome
from .run import Ended, Run, conclude
from .state import bits

__all__ = ["Npt", "NptLeaf", "is_leaf", "misconfigured", "present", "rights_of", "translate", "translate_gpa"]

P, RW, US, PWT, PCD, A, D, PS, G, NX = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 8, 63))
CODE_P, CODE_W, CODE_U, CODE_RSVD, CODE_ID, CODE_FINAL, CODE_TABLE = (1 << bit for bit in (0, 1, 2, 3, 4, 32, 33))


@dataclass(frozen=True, kw_only=True)
class Npt:
    """nCR3, and what the host has in CR4.LA57, EFER.NXE and IA32_PAT; `guest_ad_before_final_ept` as of an EPT."""

    ncr3: int
    levels: int = 4
    maxphyaddr: int = 52
    nxe: int = 1
    gb_pages: int = 1
    pat: int = PAT_RESET
    guest_ad_before_final_ept: bool = True

    ad = True  # A and D are always in use; what an EPT has beside these an NPT does not
    mbec = 0
    guest_ad_checked = True
    pml = None
    apic_access = None

    def __post_init__(self) -> None:
        if self.levels not in (4, 5):
            raise StateError(f"nested paging of a long-mode host has 4 or 5 levels, not {self.levels}")
        if self.ncr3 >> self.maxphyaddr:
            raise StateError(f"nCR3={self.ncr3:#x} has bits at or above MAXPHYADDR={self.maxphyaddr}; clear them")

    @property
    def quiet(self) -> Npt:
        """As of an EPT: there is nothing to leave out."""
        return self

    @property
    def root(self) -> int:
        return self.ncr3 & self.frame

    @property
    def frame(self) -> int:
        """Bits M-1:12."""
        return bits(self.maxphyaddr - 1, 12)


# ---- entries -------------------------------------------------------------------------------------------------


def present(npt: Npt, entry: int) -> bool:
    """Bit 0 alone decides."""
    return bool(entry & P)


def is_leaf(entry: int, level: int) -> bool:
    """Does a well-formed entry map a page?"""
    return level == 1 or (level <= 3 and bool(entry & PS))


def misconfigured(npt: Npt, entry: int, level: int) -> bool:
    """A present entry with a reserved bit (paging.md §3.3, §3.4 with what AMD adds: bit 8 of upper entries)."""
    mask = bits(51, npt.maxphyaddr) | (0 if npt.nxe else NX)
    if level >= 4:
        mask |= PS | G
    elif level == 3:
        mask |= bits(29, 13) if entry & PS else G
        mask |= 0 if npt.gb_pages else PS
    elif level == 2 and entry & PS:
        mask |= bits(20, 13)
    return bool(entry & mask)


def rights_of(npt: Npt, entry: int) -> int:
    """What a user access may do by this entry alone, as rights of an EPT entry; nothing without U/S."""
    if not entry & US:
        return 0
    return READ | (WRITE if entry & RW else 0) | (0 if entry & NX else EXECUTE)


# ---- one translation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NptLeaf(GpaLeaf):
    """Where a guest-physical address led; its memory type is the one of the host's PAT."""

    pat: int = PAT_RESET

    @property
    def mt(self) -> int:
        index = self.entry >> 3 & 3 | (self.entry >> (7 if self.level == 1 else 12) & 1) << 2
        return int(pat_type(self.pat, index))

    @property
    def ipat(self) -> int:
        return 0


def nested_fault(npt: Npt, gpa: int, why: GpaReference, *, was_present: bool, reserved: bool = False) -> Ended:
    """#VMEXIT(NPF): EXITINFO1 is the error code, EXITINFO2 the guest-physical address (APM vol. 2, 15.25.6)."""
    code = CODE_U | (CODE_P if was_present else 0) | (CODE_RSVD if reserved else 0)
    code |= (CODE_W if why.wr else 0) | (CODE_ID if why.fe and npt.nxe else 0)
    return Ended(NestedPageFault(error_code=code | (CODE_FINAL if why.translated else CODE_TABLE), gpa=gpa))


def translate(run: Run, npt: Npt, gpa: int, why: GpaReference, caches: GpaCaches | None = None) -> GpaLeaf:
    """Translate one guest-physical address; every way it can fail ends the run.

    Entries are examined from the root down: the first one that is not present or has a reserved bit decides, rights
    are judged at the leaf, and flags are set only if they suffice.
    """
    if npt.levels == 4 and gpa >> 48:
        raise nested_fault(npt, gpa, why, was_present=False)
    top, table, rights = npt.levels, npt.root, READ | WRITE | EXECUTE
    if caches is not None:
        if cached := caches.find_mapping(npt, gpa, why):
            return cached
        top, table, rights = caches.find_ept_table(npt, gpa) or (top, table, rights)
    used, passed = [], []
    for level in range(top, 0, -1):
        hpa = table + 8 * (gpa >> (12 + 9 * (level - 1)) & 0x1FF)
        entry = run.read(hpa, 8, gpa=gpa, kind=StepKind.EPT, level=level, guest_level=why.guest_level)
        if not present(npt, entry):
            raise nested_fault(npt, gpa, why, was_present=False)
        if misconfigured(npt, entry, level):
            raise nested_fault(npt, gpa, why, was_present=True, reserved=True)
        rights &= rights_of(npt, entry)
        used.append((hpa, level))
        if is_leaf(entry, level):
            break
        table = entry & npt.frame
        passed.append((level, entry, rights))
    if not allowed(npt, why, rights):
        raise nested_fault(npt, gpa, why, was_present=True)
    leaf_hpa, leaf_level = used[-1]
    for hpa, level in used:
        flags = A | (D if why.wr and level == leaf_level else 0)
        run.set_bits(hpa, 8, flags, gpa=gpa, kind=StepKind.EPT_AD, level=level, guest_level=why.guest_level)
    offset = bits(12 + 9 * (leaf_level - 1) - 1, 0)
    dirty = int(not run.lacks(leaf_hpa, 8, D))
    leaf = NptLeaf(entry & npt.frame & ~offset | gpa & offset, leaf_level, rights, entry, dirty, npt.pat)
    if caches is not None:
        for upper in passed:
            caches.keep_ept_table(gpa, *upper)
        caches.keep_mapping(gpa, leaf)
    return leaf


def translate_gpa(mem: Memory, npt: Npt, gpa: int, why: GpaReference, *, write: bool = True) -> Outcome:
    """A bare guest-physical translation: GpaMapped, or whatever stopped it. `write=False` leaves memory alone."""
    run = Run(mem)

    def body() -> Outcome:
        leaf = translate(run, npt, gpa, why)
        return GpaMapped(
            hpa=leaf.hpa, size=leaf.size, rights=leaf.packed_rights, mt=leaf.mt, ipat=0, dirty=leaf.dirty,
            entry=leaf.entry,
        )  # fmt: skip

    return conclude(run, body, write=write)

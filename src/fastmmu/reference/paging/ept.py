"""EPT: validity of the EPTP, entries, one guest-physical translation with its A/D flags and log (ept.md §1-§4, §7).

    63 SVE | 61 SPP | 51:12 frame | 10 XU | 9 D | 8 A | 7 PS | 6 IPAT | 5:3 MT | 2 X | 1 W | 0 R

Not modelled, for want of an access that would use them or of certain wording: supervisor shadow stacks (EPTP bit 7
is checked, nothing more), the paging-write and guest-paging-verification controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...dtypes import StepKind
from ...errors import StateError
from ...exits import Qualification as Q
from ...ops import Op
from .memory import Memory
from .outcome import ApicAccess, EptMisconfig, EptViolation, GpaMapped, Outcome, PmlFull
from .run import Ended, Run, conclude
from .spp import sub_page_writable
from .state import bits

if TYPE_CHECKING:
    from .npt import Npt

__all__ = ["Ept", "EptCap", "GpaLeaf", "GpaReference", "eptp_valid", "translate_gpa"]

READ, WRITE, EXECUTE, EXECUTE_USER = 1 << 0, 1 << 1, 1 << 2, 1 << 10
IPAT, LARGE, ACCESSED, DIRTY = 1 << 6, 1 << 7, 1 << 8, 1 << 9
SUB_PAGE, SUPPRESS_VE = 1 << 61, 1 << 63
MEMORY_TYPES = (0, 1, 4, 5, 6)


class EptCap:
    """Bits of IA32_VMX_EPT_VPID_CAP used here (ept.md §1)."""

    EXECUTE_ONLY = 1 << 0
    WALK4 = 1 << 6
    WALK5 = 1 << 7
    TYPE_UC = 1 << 8
    TYPE_WB = 1 << 14
    PAGE_2M = 1 << 16
    PAGE_1G = 1 << 17
    AD = 1 << 21
    ADVANCED_INFO = 1 << 22
    SHADOW_STACK = 1 << 23
    ALL = EXECUTE_ONLY | WALK4 | WALK5 | TYPE_UC | TYPE_WB | PAGE_2M | PAGE_1G | AD | ADVANCED_INFO


def eptp_valid(eptp: int, *, caps: int = EptCap.ALL, maxphyaddr: int = 52) -> bool:
    """Would VM entry, INVEPT type 1 and VMFUNC 0 accept this EPTP? (ept.md §1)"""
    type_ok = {0: EptCap.TYPE_UC, 6: EptCap.TYPE_WB}.get(eptp & 7, 0) & caps
    walk_ok = {3: EptCap.WALK4, 4: EptCap.WALK5}.get(eptp >> 3 & 7, 0) & caps
    ad_ok = not eptp >> 6 & 1 or caps & EptCap.AD
    shadow_stack_ok = not eptp >> 7 & 1 or caps & EptCap.SHADOW_STACK
    reserved = eptp & (bits(11, 8) | bits(63, maxphyaddr))
    return bool(type_ok and walk_ok and ad_ok and shadow_stack_ok and not reserved)


@dataclass(frozen=True, kw_only=True)
class Ept:
    """EPTP, the controls and capabilities that matter to a translation, and the knobs of ept.md §6 and §4.

    `pml` is (base of the log, index) while PML is on; the index afterwards is in the outcome's `pml_index`.
    `spptp` is the sub-page permission table pointer while SPP is on. `apic_access` is the APIC-access address while
    APIC accesses are virtualized.
    """

    eptp: int
    caps: int = EptCap.ALL
    maxphyaddr: int = 52
    mbec: int = 0
    pml: tuple[int, int] | None = None
    spptp: int | None = None
    apic_access: int | None = None
    guest_ad_before_final_ept: bool = True
    guest_ad_checked: bool = True

    def __post_init__(self) -> None:
        if not eptp_valid(self.eptp, caps=self.caps, maxphyaddr=self.maxphyaddr):
            raise StateError(f"EPTP {self.eptp:#x} is not valid; see ept.md §1 for the rules")

    @property
    def levels(self) -> int:
        return (self.eptp >> 3 & 7) + 1

    @property
    def root(self) -> int:
        return self.eptp & self.frame

    @property
    def frame(self) -> int:
        """Bits M-1:12."""
        return bits(self.maxphyaddr - 1, 12)

    @property
    def ad(self) -> bool:
        """EPT accessed and dirty flags are in use."""
        return bool(self.eptp >> 6 & 1)

    @property
    def quiet(self) -> Ept:
        """The same for a look at the tables that is no access: no log, no sub-page permissions, no APIC page."""
        return Ept(eptp=self.eptp, caps=self.caps, maxphyaddr=self.maxphyaddr, mbec=self.mbec)


@dataclass(frozen=True, kw_only=True)
class GpaReference:
    """Why a guest-physical address is translated: the columns of the table in ept.md §4."""

    rd: bool = False
    wr: bool = False
    fe: bool = False
    gla: int | None = None  # None: qualification bit 7 = 0
    translated: bool = False  # bit 8: the gpa is the translation of gla, not that of a guest paging structure
    us: int = 1  # of the linear address: feeds bits 9..11, and MBEC
    rw: int = 1
    xd: int = 0
    guest_level: int = 0  # for the steps

    @staticmethod
    def of_access(access: Op, la: int, *, us: int = 1, rw: int = 1, xd: int = 0) -> GpaReference:
        """The final access. A read-modify-write reports read and write [C]."""
        return GpaReference(
            rd=access in (Op.READ, Op.MODIFY),
            wr=access in (Op.WRITE, Op.MODIFY),
            fe=access is Op.FETCH,
            gla=la,
            translated=True,
            us=us,
            rw=rw,
            xd=xd,
        )

    @staticmethod
    def of_structure(ept: Ept | Npt, la: int, level: int) -> GpaReference:
        """Reading a guest entry: a write as well where EPT A/D flags are in use, with AMD's nested paging always."""
        return GpaReference(rd=True, wr=ept.ad, gla=la, guest_level=level)


def structure_access(ept: Ept | Npt, gpa: int, hpa: int) -> None:
    """Ends the run where a paging structure of the guest lies on the APIC-access page (apic.md §4).

    That is a guest-physical access, never virtualized. The EPT's own structures have no guest-physical address and are
    not looked at. Flags of the EPT are set before, and its violations come first.
    """
    if ept.apic_access is not None and hpa & ~0xFFF == ept.apic_access:
        raise Ended(ApicAccess(qualification=15 << 12 | hpa & 0xFFF, gpa=gpa))


# ---- entries -------------------------------------------------------------------------------------------------


def present(ept: Ept, entry: int) -> bool:
    """ept.md §2."""
    return bool(entry & (READ | WRITE | EXECUTE)) or bool(ept.mbec and entry & EXECUTE_USER)


def is_leaf(entry: int, level: int) -> bool:
    """Does a well-formed entry map a page?"""
    return level == 1 or (level <= 3 and bool(entry & LARGE))


def reserved_bits(ept: Ept, entry: int, level: int) -> int:
    """Bits that must be 0 in this present entry (ept.md §2)."""
    mask = bits(51, ept.maxphyaddr)
    page_supported = {2: ept.caps & EptCap.PAGE_2M, 3: ept.caps & EptCap.PAGE_1G}.get(level, 0)
    if level > 1 and not page_supported:
        mask |= LARGE
    if not is_leaf(entry, level):
        mask |= bits(6, 3)
    elif level > 1:
        mask |= bits(12 + 9 * (level - 1) - 1, 12)
    return mask


def rights_of(ept: Ept, entry: int) -> int:
    """What an entry allows by itself: R=1 W=2 X=4, and XU=400H under MBEC."""
    return entry & (READ | WRITE | EXECUTE | (EXECUTE_USER if ept.mbec else 0))


def misconfigured(ept: Ept, entry: int, level: int) -> bool:
    """ept.md §3, on the entry's own bits, whatever its parents allow."""
    if not entry & READ:
        executable = entry & EXECUTE or (ept.mbec and entry & EXECUTE_USER)
        if entry & WRITE or (executable and not ept.caps & EptCap.EXECUTE_ONLY):
            return True
    if entry & reserved_bits(ept, entry, level):
        return True
    return is_leaf(entry, level) and entry >> 3 & 7 not in MEMORY_TYPES


# ---- one translation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpaLeaf:
    """Where a guest-physical address led. `entry` is the leaf as read, `dirty` its D flag afterwards."""

    hpa: int
    level: int
    rights: int  # R=1 W=2 X=4, and XU=400H under MBEC, ANDed over the levels
    entry: int
    dirty: int

    @property
    def size(self) -> int:
        return 1 << (12 + 9 * (self.level - 1))

    @property
    def mt(self) -> int:
        return self.entry >> 3 & 7

    @property
    def ipat(self) -> int:
        return self.entry >> 6 & 1

    @property
    def packed_rights(self) -> int:
        """R=1 W=2 X=4 XU=8."""
        return self.rights & 7 | (8 if self.rights & EXECUTE_USER else 0)


def violation(ept: Ept, gpa: int, why: GpaReference, rights: int, entry: int | None) -> EptViolation:
    """Exit 48 with its qualification (ept.md §4.1). `rights`: AND over all entries used."""
    q = Q.READ * why.rd | Q.WRITE * why.wr | Q.FETCH * why.fe | (rights & 7) << 3
    q |= Q.ENTRY_XU if ept.mbec and rights & EXECUTE_USER else 0
    if why.gla is not None:
        q |= Q.GLA_VALID
        if why.translated:
            q |= Q.TRANSLATED
            if ept.caps & EptCap.ADVANCED_INFO:
                q |= Q.USER_PAGE * why.us | Q.WRITABLE_PAGE * why.rw | Q.NX_PAGE * why.xd
    return EptViolation(qualification=int(q), gpa=gpa, gla=why.gla, entry=entry)


def update_violation(ept: Ept, gpa: int, why: GpaReference, leaf: GpaLeaf) -> EptViolation:
    """A or D of a guest entry cannot be set because EPT gives no write permission, EPT A/D off (ept.md §4 [C]).

    The update is a read-modify-write: bits 0 and 1 are reported. Only bit 1 is certain; bit 0 is the
    implementation's own and must not be compared with other implementations.
    """
    update = GpaReference(rd=True, wr=True, gla=why.gla, guest_level=why.guest_level)
    return violation(ept, gpa, update, leaf.rights, leaf.entry)


def allowed(ept: Ept | Npt, why: GpaReference, rights: int) -> bool:
    """May the reference be made with these rights (ept.md §4)?"""
    if why.fe and not rights & (EXECUTE_USER if ept.mbec and why.us else EXECUTE):
        return False
    return not (why.rd and not rights & READ) and not (why.wr and not rights & WRITE)


class GpaCaches(Protocol):
    """Caches of a walk, see :class:`fastmmu.reference.paging.walk_caches.Caching`."""

    def find_mapping(self, ept: Ept | Npt, gpa: int, why: GpaReference) -> GpaLeaf | None: ...
    def find_ept_table(self, ept: Ept | Npt, gpa: int) -> tuple[int, int, int] | None: ...
    def keep_ept_table(self, gpa: int, level: int, entry: int, rights: int) -> None: ...
    def keep_mapping(self, gpa: int, leaf: GpaLeaf) -> None: ...


def translate(run: Run, ept: Ept, gpa: int, why: GpaReference, caches: GpaCaches | None = None) -> GpaLeaf:
    """Translate one guest-physical address; every way it can fail ends the run (ept.md §4)."""
    all_rights = READ | WRITE | EXECUTE | (EXECUTE_USER if ept.mbec else 0)
    if ept.levels == 4 and gpa >> 48:
        raise Ended(violation(ept, gpa, why, 0, None))
    top, table, rights = ept.levels, ept.root, all_rights
    if caches is not None:
        if cached := caches.find_mapping(ept, gpa, why):
            return cached
        top, table, rights = caches.find_ept_table(ept, gpa) or (top, table, rights)
    used, passed = [], []
    for level in range(top, 0, -1):
        hpa = table + 8 * (gpa >> (12 + 9 * (level - 1)) & 0x1FF)
        entry = run.read(hpa, 8, gpa=gpa, kind=StepKind.EPT, level=level, guest_level=why.guest_level)
        rights &= entry
        if not present(ept, entry):
            raise Ended(violation(ept, gpa, why, rights, entry))
        if misconfigured(ept, entry, level):
            raise Ended(EptMisconfig(gpa=gpa))
        used.append((hpa, level))
        if is_leaf(entry, level):
            break
        table = entry & ept.frame
        passed.append((level, entry, rights))
    # `level` and `entry` are now those of the leaf; permission is judged only here.
    if not allowed(ept, why, rights) and not _sub_page_allows(run, ept, gpa, why, rights, entry, level):
        raise Ended(violation(ept, gpa, why, rights, entry))
    dirty = _set_accessed_dirty(run, ept, gpa, why, used) if ept.ad else 1
    offset = bits(12 + 9 * (level - 1) - 1, 0)
    leaf = GpaLeaf(entry & ept.frame & ~offset | gpa & offset, level, rights, entry, dirty)
    if caches is not None:
        for upper in passed:
            caches.keep_ept_table(gpa, *upper)
        caches.keep_mapping(gpa, leaf)
    return leaf


def _sub_page_allows(run: Run, ept: Ept, gpa: int, why: GpaReference, rights: int, leaf: int, level: int) -> bool:
    """Does SPP apply (ept.md §10), and does the sub-page accept the write?"""
    if ept.spptp is None or level != 1 or not leaf & SUB_PAGE:
        return False
    if not (why.wr and why.translated and rights & READ) or rights & WRITE:
        return False
    return sub_page_writable(run, ept.spptp, gpa, why.gla, ept.maxphyaddr)


def _set_accessed_dirty(run: Run, ept: Ept, gpa: int, why: GpaReference, used: list[tuple[int, int]]) -> int:
    """A in every entry used, D in the leaf for writes, and the log (ept.md §7). Returns D of the leaf."""
    updates = [(hpa, level, ACCESSED) for hpa, level in used]
    leaf_hpa, leaf_level, _ = updates[-1]
    if why.wr:
        updates[-1] = (leaf_hpa, leaf_level, ACCESSED | DIRTY)
    if not any(run.lacks(hpa, 8, flags) for hpa, _, flags in updates):
        return int(not run.lacks(leaf_hpa, 8, DIRTY))
    if run.log and run.log.full:
        raise Ended(PmlFull(qualification=0, gpa=gpa))
    becomes_dirty = why.wr and run.lacks(leaf_hpa, 8, DIRTY)
    if run.log and becomes_dirty:
        run.within(run.log.slot)
    for hpa, level, flags in updates:
        run.set_bits(hpa, 8, flags, gpa=gpa, kind=StepKind.EPT_AD, level=level, guest_level=why.guest_level)
    if run.log and becomes_dirty:
        run.append_to_log(run.log, gpa)
    return int(not run.lacks(leaf_hpa, 8, DIRTY))


def translate_gpa(mem: Memory, ept: Ept, gpa: int, why: GpaReference, *, write: bool = True) -> Outcome:
    """A bare guest-physical translation: GpaMapped, or whatever stopped it. `write=False` leaves memory alone."""
    run = Run(mem, ept.pml)

    def body() -> Outcome:
        leaf = translate(run, ept, gpa, why)
        return GpaMapped(
            hpa=leaf.hpa,
            size=leaf.size,
            rights=leaf.packed_rights,
            mt=leaf.mt,
            ipat=leaf.ipat,
            dirty=leaf.dirty,
            entry=leaf.entry,
        )

    return conclude(run, body, write=write)

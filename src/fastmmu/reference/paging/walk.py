"""The walk of a linear address, alone, over EPT or over AMD's nested paging, and the load of the PDPTE registers
(paging.md §4, ept.md §5-§6, npt.md §3).

Order of a two-dimensional walk, and thereby who wins when several things are wrong:

    canonical -> for each level: EPT of the entry's gpa, read, P, reserved, [eager A]
              -> guest permissions -> guest A and D -> EPT of the final gpa -> the access

`Ept.guest_ad_before_final_ept` exchanges the two last but one. For EPT read NPT: its part is `npt.translate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import StepKind
from ...errors import StateError
from ...ops import Op
from ..tlb.invalidations import Tlb
from . import guest
from .ept import READ, WRITE, Ept, GpaLeaf, GpaReference, structure_access, translate, update_violation
from .memory import Memory
from .memtype import ept_access_type, guest_access_type, npt_access_type
from .npt import Npt
from .npt import translate as translate_npt
from .outcome import GeneralProtection, Mapped, Outcome, PageFault, PdptesLoaded
from .run import Ended, Run, conclude
from .state import Mode, State, bits
from .walk_caches import Caching

__all__ = ["access_of", "load_pdptes", "walk"]

_NAMES = {"r": Op.READ, "w": Op.WRITE, "rw": Op.MODIFY, "x": Op.FETCH}


def access_of(access: str | Op) -> Op:
    """``"r"``, ``"w"``, ``"rw"``, ``"x"`` or the operation itself."""
    if isinstance(access, Op) and access in _NAMES.values():
        return access
    if isinstance(access, str) and access in _NAMES:
        return _NAMES[access]
    raise StateError(f"access {access!r}: use 'r', 'w', 'rw' or 'x'")


@dataclass(frozen=True)
class _Entry:
    """A guest entry that was used: where it is, in both address spaces, and how EPT maps its page."""

    gpa: int
    hpa: int
    value: int
    level: int
    ept_leaf: GpaLeaf | None


class _Walk:
    """One walk; the methods are its phases, in order."""

    def __init__(
        self, run: Run, state: State, la: int, access: Op, ept: Ept | Npt | None, caches: Caching | None = None
    ) -> None:
        self.run, self.state, self.access, self.ept, self.caches = run, state, access, ept, caches
        self.la = state.linear(la)
        self.rights = guest.Rights()
        self.used: list[_Entry] = []
        self.uncached: list[tuple[int, int, tuple[int, int, int], bool]] = []  # until A is set

    def fault(self, *, present: bool, reserved: bool = False, key: bool = False) -> Ended:
        code = guest.page_fault_code(self.state, self.access, present=present, reserved=reserved, key=key)
        return Ended(PageFault(error_code=code, cr2=self.la))

    def outcome(self) -> Outcome:
        if not self.state.canonical(self.la):
            raise Ended(GeneralProtection(reason=f"linear address {self.la:#x} is not canonical"))
        if self.state.mode is Mode.NONE:
            return self.mapped(self.la, None, *self.final(self.la))
        self.descend()
        leaf = self.used[-1]
        refused, key = guest.denied(self.state, self.access, self.rights, leaf.value)
        if refused:
            raise self.fault(present=True, key=key)
        offset = bits(guest.page_shift(self.state, leaf.level) - 1, 0)
        gpa = guest.frame_of(self.state, leaf.value, leaf.level) | self.la & offset
        if self.ept is not None and not self.ept.guest_ad_before_final_ept:
            final = self.final(gpa)
            return self.mapped(gpa, self.update_guest_flags(), *final)
        updated = self.update_guest_flags()
        return self.mapped(gpa, updated, *self.final(gpa))

    def second(self, gpa: int, why: GpaReference) -> GpaLeaf:
        """A guest-physical address by the tables of the VMM."""
        assert self.ept is not None
        if isinstance(self.ept, Npt):
            return translate_npt(self.run, self.ept, gpa, why, self.caches)
        return translate(self.run, self.ept, gpa, why, self.caches)

    def pdpte_in_memory(self, npt: Npt) -> int:
        """AMD has no PDPTE registers under nested paging: the walk reads the entry (APM vol. 2, 15.25.10)."""
        gpa = (self.state.cr3 & bits(31, 5)) + 8 * (self.la >> 30)
        hpa = self.second(gpa, GpaReference.of_structure(npt, self.la, 3)).hpa
        value = self.run.read(hpa, 8, gpa=gpa, kind=StepKind.GUEST, level=3, guest_level=3)
        if not value & guest.PRESENT:
            raise self.fault(present=False)
        if value & self.state.pdpte_reserved:
            raise self.fault(present=True, reserved=True)
        return value & self.state.frame

    def top_table(self) -> int:
        """Guest-physical address of the first table read from memory."""
        if self.state.mode is not Mode.PAE:
            return guest.root_table(self.state)
        if isinstance(self.ept, Npt):
            return self.pdpte_in_memory(self.ept)
        register = self.state.pdpte[self.la >> 30]
        if not register & guest.PRESENT:
            raise self.fault(present=False)
        return register & self.state.frame

    def descend(self) -> None:
        """From the root to the leaf: each entry present and well-formed, rights gathered."""
        size = guest.entry_size(self.state)
        top, cached = self.state.levels, None
        registers = self.state.mode is Mode.PAE and not isinstance(self.ept, Npt)
        table = self.top_table() if registers else 0  # looked at first, whatever is cached
        if self.caches is not None and self.state.mode is not Mode.LEGACY32:
            cached = self.caches.find_table(self.la, self.state.levels)
        if cached:
            top, table, self.rights = cached.level, cached.table, cached.rights
        elif not registers:
            table = self.top_table()
        for level in range(top, 0, -1):
            gpa = table + size * guest.index_of(self.state, self.la, level)
            ept_leaf = None
            if cached and level == top:
                ept_leaf = GpaLeaf(gpa, 1, READ | WRITE * cached.writable, 0, 1)
            elif self.ept is not None:
                why = GpaReference.of_structure(self.ept, self.la, level)
                ept_leaf = self.second(gpa, why)
            hpa = gpa if ept_leaf is None else ept_leaf.hpa
            if self.ept is not None:
                structure_access(self.ept, gpa, hpa)
            if level < top:
                self.reached(hpa, level + 1, ept_leaf is not None and bool(ept_leaf.rights & WRITE))
            value = self.run.read(hpa, size, gpa=gpa, kind=StepKind.GUEST, level=level, guest_level=level)
            if not value & guest.PRESENT:
                raise self.fault(present=False)
            if value & guest.reserved_bits(self.state, value, level):
                raise self.fault(present=True, reserved=True)
            self.rights.add(self.state, value)
            self.used.append(_Entry(gpa, hpa, value, level, ept_leaf))
            if guest.is_leaf(self.state, value, level):
                return
            if self.state.upper_a == "eager":
                self.set_flags(self.used[-1], guest.ACCESSED)
            table = guest.table_of(self.state, value)

    def reached(self, hpa: int, level: int, writable: bool) -> None:
        """The table behind the entry of `level` was found: that is cached, but not before A is set in all of them."""
        if self.caches is None or self.state.mode is Mode.LEGACY32:
            return
        found = level, hpa, (self.rights.us, self.rights.rw, self.rights.xd), writable or self.ept is None
        if self.uncached or (self.state.upper_a == "lazy" and not self.used[-1].value & guest.ACCESSED):
            self.uncached.append(found)
        else:
            self.caches.keep_table(self.la, *found)

    def set_flags(self, entry: _Entry, flags: int) -> int:
        """Set A (and D) of a guest entry; without EPT A/D flags that takes EPT write permission of its own."""
        size = guest.entry_size(self.state)
        lacks = self.run.lacks(entry.hpa, size, flags)
        if lacks and isinstance(self.ept, Ept) and entry.ept_leaf and not self.ept.ad:
            why = GpaReference.of_structure(self.ept, self.la, entry.level)
            if self.ept.guest_ad_checked and not entry.ept_leaf.rights & WRITE:
                raise Ended(update_violation(self.ept, entry.gpa, why, entry.ept_leaf))
        return self.run.set_bits(
            entry.hpa,
            size,
            flags,
            gpa=entry.gpa,
            kind=StepKind.GUEST_AD,
            level=entry.level,
            guest_level=entry.level,
        )

    def update_guest_flags(self) -> int:
        """A in the upper entries that still lack it, top-down, then A and D in the leaf. Returns the leaf."""
        for entry in self.used[:-1]:
            self.set_flags(entry, guest.ACCESSED)
            if self.caches is not None and self.uncached and self.uncached[0][0] == entry.level:
                self.caches.keep_table(self.la, *self.uncached.pop(0))
        dirty = guest.DIRTY if guest.is_write(self.access) else 0
        return self.set_flags(self.used[-1], guest.ACCESSED | dirty)

    def final(self, gpa: int) -> tuple[int, GpaLeaf | None]:
        """Host-physical address of the access; EPT leaf that maps it."""
        if self.ept is None:
            return gpa, None
        why = GpaReference.of_access(self.access, self.la, us=self.rights.us, rw=self.rights.rw, xd=self.rights.xd)
        ept_leaf = self.second(gpa, why)
        return ept_leaf.hpa, ept_leaf

    def mapped(self, gpa: int, leaf: int | None, hpa: int, ept_leaf: GpaLeaf | None) -> Mapped:
        """`leaf` is the guest leaf as it stands now; None with paging off."""
        state, level = self.state, self.used[-1].level if self.used else 0
        index = None if leaf is None else guest.pat_index(leaf, level)
        self.run.data(hpa, gpa)
        if ept_leaf is None:
            kind = guest_access_type(state.pat, state.mtrrs, hpa, index=index, cd=state.cd)
        elif isinstance(self.ept, Npt):
            kind = npt_access_type(state.pat, ept_leaf.mt, index=index, cd=state.cd)
        else:
            kind = ept_access_type(state.pat, ept_leaf.mt, ept_leaf.ipat, index=index, cd=state.cd)
        return Mapped(
            pa=hpa,
            gpa=gpa,
            guest_size=0 if leaf is None else 1 << guest.page_shift(state, level),
            us=self.rights.us,
            rw=self.rights.rw,
            xd=self.rights.xd,
            leaf=leaf or 0,
            dirty=1 if leaf is None else leaf >> 6 & 1,
            global_page=0 if leaf is None else leaf >> 8 & int(state.pge),
            pkey=0 if leaf is None else guest.protection_key(state, leaf),
            pat=index or 0,
            ept_size=0 if ept_leaf is None else ept_leaf.size,
            ept_rights=0 if ept_leaf is None else ept_leaf.packed_rights,
            ept_mt=0 if ept_leaf is None else ept_leaf.mt,
            ept_ipat=0 if ept_leaf is None else ept_leaf.ipat,
            ept_dirty=1 if ept_leaf is None else ept_leaf.dirty,
            memory_type=int(kind),
        )


def walk(
    mem: Memory,
    state: State,
    la: int,
    access: str | Op,
    *,
    ept: Ept | Npt | None = None,
    write: bool = True,
    tlb: Tlb | None = None,
) -> Outcome:
    """Translate linear address `la` for an access of kind r, w, rw or x.

    With `write` the walk sets accessed and dirty flags (guest and EPT) and appends to the page-modification log, as
    the access would. Without, it is a query: the same outcome, with the same steps and changes listed, and memory
    untouched. Returns one of the classes of :mod:`fastmmu.reference.paging.outcome`.

    `ept`: the VMM's tables, an :class:`Ept` or an :class:`Npt`.

    Where a guest A or D flag has to be set in a page that EPT maps read-only (EPT A/D off) the violation reports
    bits 0 and 1 of the qualification; bit 0 is a don't-care of the architecture (ept.md §4 [C]).

    `tlb`: its paging-structure caches and guest-physical mappings are used and filled, in its context in force. A walk
    that fails after it used one is made again without; the steps of both are listed.
    """
    run = Run(mem, ept.pml if ept else None)
    caches = None if tlb is None else Caching(tlb)

    def body() -> Outcome:
        try:
            return _Walk(run, state, la, access_of(access), ept, caches).outcome()
        except Ended:
            if caches is None or not caches.used:
                raise
        caches.look = False
        found = _Walk(run, state, la, access_of(access), ept, caches).outcome()
        caches.replace()
        return found

    return conclude(run, body, write=write)


def load_pdptes(mem: Memory, cr3: int, *, maxphyaddr: int = 52, ept: Ept | None = None, write: bool = True) -> Outcome:
    """Load the four PDPTE registers from CR3[31:5] (paging.md §3.2): PdptesLoaded, or #GP, or an EPT exit.

    Under EPT the load is a plain read of one guest-physical address: qualification bits 7 and 8 are 0 and no EPT
    dirty flag is set, EPT A/D or not.
    """
    run = Run(mem, ept.pml if ept else None)
    gpa = cr3 & bits(31, 5)

    def body() -> Outcome:
        hpa = gpa if ept is None else translate(run, ept, gpa, GpaReference(rd=True, guest_level=3)).hpa
        if ept is not None:
            structure_access(ept, gpa, hpa)
        values = [
            run.read(hpa + 8 * i, 8, gpa=gpa + 8 * i, kind=StepKind.GUEST, level=3, guest_level=3) for i in range(4)
        ]
        reserved = 0x1E6 | bits(63, maxphyaddr)
        for i, value in enumerate(values):
            if value & guest.PRESENT and value & reserved:
                raise Ended(GeneralProtection(reason=f"PDPTE{i} {value:#x} is present and has a reserved bit"))
        return PdptesLoaded(pdpte=(values[0], values[1], values[2], values[3]))

    return conclude(run, body, write=write)

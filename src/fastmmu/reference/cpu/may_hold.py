"""What a CPU may still hold where other CPUs change the tables (tlb.md §1, §3; SDM vol. 3A 4.10.4, 4.10.5).

Nothing is thrown away: uses, changes of the tables and invalidations are kept with the clock at which they happened,
and each question looks at all of them.

    a use is held          where no later invalidation of its CPU covers it
    the tables gave it     where each entry on the way had its value, now or until a clock behind the last invalidation
                           that covers the translation: a processor may cache what it never used
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..paging import guest
from ..paging.memory import Memory
from ..paging.outcome import Mapped, PageFault
from ..paging.state import State, bits
from ..paging.walk import access_of, walk

__all__ = ["Cpu", "Tables"]

NOW = 1 << 64
PASTS = 16  # values of an entry that are kept


@dataclass
class Tables:
    """Memory that all CPUs share, with what its entries were: (clock until which, value), the oldest first."""

    memory: Memory
    clock: int = 0
    past: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def tick(self) -> int:
        """One more thing happens."""
        self.clock += 1
        return self.clock

    def store(self, at: int, value: int) -> None:
        """A CPU stores a quadword."""
        old = self.memory.read64(at)
        if old != value:
            self.past.setdefault(at, []).append((self.tick(), old))
            self.memory.write64(at, value)

    def values(self, at: int) -> list[tuple[int, int]]:
        """(until when, value) of the entry at an address; the one that it has now first."""
        return [(NOW, self.memory.read64(at)), *self.past.get(at, [])[-PASTS:]]


@dataclass(frozen=True)
class Translation:
    """Of the page that holds `la`: bytes, PCID, rights."""

    la: int
    size: int
    pcid: int
    is_global: bool
    frame: int
    rights: tuple[int, int, int]
    leaf: int
    dirty: int

    def address(self, la: int) -> int:
        """Where it leads."""
        return self.frame | la & self.size - 1


@dataclass(frozen=True)
class Invalidation:
    """kind: "all", "local" (all but global ones), "pcid" (of one, likewise), "page" (of one PCID, likewise), "page+"
    (and global ones), "fault" (as "page", of 4 KB: of a large page cached in pieces the others stay, tlb.md R3).
    here: of the simulated CPU, too."""

    clock: int
    kind: str
    pcid: int = 0
    la: int = 0
    here: bool = True

    def covers(self, t: Translation) -> bool:
        """Does it invalidate the translation?"""
        if self.kind == "all":
            return True
        if t.is_global:
            return self.kind == "page+" and self.la // t.size == t.la // t.size
        if self.kind == "local":
            return True
        if self.kind == "fault" and t.size > 4096:
            return False
        return self.pcid == t.pcid and (self.kind == "pcid" or self.la // t.size == t.la // t.size)


class Cpu:
    """A CPU with 4-level paging; `state`: its registers."""

    def __init__(self, tables: Tables, state: State) -> None:
        self.tables, self.state = tables, state
        self.used_: list[tuple[int, Translation]] = []
        self.invalidations: list[Invalidation] = []

    @property
    def pcid(self) -> int:
        """In force."""
        return self.state.cr3 & 0xFFF if self.state.pcide else 0

    # ---- what is asked ---------------------------------------------------------------------------------------------

    def used(self, la: int, access: str, pa: int, state: State) -> str:
        """How the address stands that the CPU used, "now", "held" or "neither"; `state`: registers and rights."""
        found = walk(self.tables.memory, state, la, access, write=False)
        if isinstance(found, Mapped) and found.pa == pa:
            self.used_.append((self.tables.tick(), self._of_walk(la, access, found)))
            return "now"
        served = (t for t in self._held(la) if t.address(la) == pa and self._serves(t, access, state))
        return "held" if any(served) else "neither"

    def fault(self, la: int, access: str, code: int, state: State) -> str:
        """The same of a #PF."""
        found = walk(self.tables.memory, state, la, access, write=False)
        if isinstance(found, PageFault) and found.error_code == code:
            return "now"
        return "held" if any(self._refused(t, access, state) for t in self._held(la)) else "neither"

    def could(self, la: int, access: str, pa: int, state: State) -> str:
        """The same of an address to which a simulated CPU came, where this one came to another."""
        found = walk(self.tables.memory, state, la, access, write=False)
        if isinstance(found, Mapped) and found.pa == pa:
            return "now"
        given = (t for t in self._given(la) if t.address(la) == pa and self._serves(t, access, state))
        return "held" if any(given) else "neither"

    def allows(self, la: int, access: str, state: State) -> bool:
        """May the simulated CPU hold a translation that serves the access?"""
        return any(self._serves(t, access, state) for t in self._given(la))

    def flags(self, la: int, access: str, state: State) -> str:
        """Whether A and D are set as a walk of the watched CPU set them: "held" where the simulated one needed none."""
        found = walk(self.tables.memory, state, la, access, write=False)
        if not isinstance(found, Mapped) or not found.changes:
            return "now"
        stands = "held" if self.allows(la, access, state) else "neither"
        walk(self.tables.memory, state, la, access, write=True)
        return stands

    def _of_walk(self, la: int, access: str, found: Mapped) -> Translation:
        dirty = int(found.dirty or guest.is_write(access_of(access)))
        rights = found.us, found.rw, found.xd
        frame = found.pa & ~(found.guest_size - 1)
        return Translation(la, found.guest_size, self.pcid, bool(found.global_page), frame, rights, found.leaf, dirty)

    def _held(self, la: int) -> Iterator[Translation]:
        for clock, t in self.used_:
            if t.la // t.size != la // t.size or not (t.is_global or t.pcid == self.pcid):
                continue
            if not any(i.clock > clock and i.covers(t) for i in self.invalidations):
                yield t

    def _given(self, la: int) -> Iterator[Translation]:
        for until, t in self._paths(la, self.state.levels, guest.root_table(self.state), NOW, (1, 1, 0)):
            if not any(i.here and i.clock > until and i.covers(t) for i in self.invalidations):
                yield t

    def _paths(
        self, la: int, level: int, table: int, until: int, rights: tuple[int, int, int]
    ) -> Iterator[tuple[int, Translation]]:
        at = table + 8 * guest.index_of(self.state, la, level)
        if not 0 <= at <= self.tables.memory.nbytes - 8:
            return
        for ends, entry in self.tables.values(at):
            well_formed = not entry & guest.reserved_bits(self.state, entry, level)
            if not (entry & guest.PRESENT and entry & guest.ACCESSED and well_formed):
                continue
            us, rw, xd = rights
            more = us & entry >> 2 & 1, rw & entry >> 1 & 1, xd | entry >> 63 & int(self.state.xd_enabled)
            since = min(until, ends)
            if guest.is_leaf(self.state, entry, level):
                size = 1 << guest.page_shift(self.state, level)
                frame, is_global = guest.frame_of(self.state, entry, level), bool(self.state.pge and entry & 1 << 8)
                yield since, Translation(la, size, self.pcid, is_global, frame, more, entry, entry >> 6 & 1)
            else:
                yield from self._paths(la, level - 1, guest.table_of(self.state, entry), since, more)

    def _refused(self, t: Translation, access: str, state: State) -> bool:
        rights = guest.Rights()
        rights.us, rights.rw, rights.xd = t.rights
        return guest.denied(state, access_of(access), rights, t.leaf)[0]

    def _serves(self, t: Translation, access: str, state: State) -> bool:
        return not self._refused(t, access, state) and bool(t.dirty or not guest.is_write(access_of(access)))

    # ---- what invalidates ------------------------------------------------------------------------------------------

    def _invalidate(self, kind: str, pcid: int = 0, la: int = 0, *, here: bool = True) -> None:
        self.invalidations.append(Invalidation(self.tables.tick(), kind, pcid, la, here))

    def mov_cr3(self, value: int) -> None:
        """Bit 63 keeps the translations of the new PCID."""
        keeps = self.state.pcide and value >> 63
        self.state = replace(self.state, cr3=value & bits(62, 0) if self.state.pcide else value)
        if not keeps:
            self._invalidate("pcid", self.pcid)

    def mov_cr4(self, value: int) -> None:
        """PGE changes or PCIDE goes: all; PAE changes or SMEP comes: of the PCID."""
        old, pcid = self.state.cr4, self.pcid
        self.state = replace(self.state, cr4=value)
        changed = old ^ value
        if changed & 1 << 7 or changed & old & 1 << 17:
            self._invalidate("all")
        elif changed & 1 << 5 or changed & value & 1 << 20:
            self._invalidate("pcid", pcid)

    def wrpkru(self, value: int) -> None:
        """Rights are judged at each use: nothing is invalidated."""
        self.state = replace(self.state, pkru=value)

    def invlpg(self, la: int) -> None:
        """Of the PCID and global ones."""
        self._invalidate("page+", self.pcid, la)

    def invpcid(self, type_: int, pcid: int, la: int) -> None:
        """tlb.md §4."""
        self._invalidate({0: "page", 1: "pcid", 2: "all", 3: "local"}[type_], pcid, la)

    def page_fault(self, la: int, *, here: bool = True) -> None:
        """`here`: the simulated CPU had it, too."""
        self._invalidate("fault", self.pcid, la, here=here)

"""Executable specification of what is asked between a miss of both levels and the walk (docs/tlb-extensions.md).

extended.py is the TLB with extensions, prefetchers.py those of them that prefetch, mixed.py arrays for all page
sizes. Each holds entries as the TLB's own are, with their tags, so that what an invalidation says of an entry is asked
of these as well: an extension has no rule of its own about them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .entries import CODES, FRAME, LINEAR, Entry

if TYPE_CHECKING:
    from .extended import ExtendedTlb

__all__ = ["COUNTED", "Beyond", "Clustered", "Places", "Pom", "Ranges", "in_pieces", "shift_of"]

G = 1 << 7
COUNTED = ("lookups", "hits", "fills", "evictions", "invalidated", "prefetch_walks", "prefetch_guest_refs",
           "prefetch_ept_refs", "memory_refs", "waited_refs", "queries", "reads", "mirrors", "hits_4k", "hits_2m",
           "hits_1g")  # fmt: skip


def shift_of(value: int) -> int:
    """log2 of the size of an entry."""
    return 12 + 9 * (value >> 8 & 3)


def in_pieces(value: int) -> bool:
    """A piece of a larger page of the guest."""
    return value >> 10 & 3 > value >> 8 & 3


@dataclass
class Range(Entry):
    """Pages of one size that follow each other, from `address` to `last` in bytes."""

    last: int = 0

    @property
    def own(self) -> range:
        return range(self.address, self.last + 1)

    @property
    def page(self) -> range:
        return self.own


class Places:
    """Entries, or groups of them, in rows of places: an empty one is taken first, then the one used least recently."""

    def __init__(self, rows: int, ways: int) -> None:
        self.rows: list[list[Any]] = [[None] * ways for _ in range(rows)]
        self.used: list[list[int]] = [[0] * ways for _ in range(rows)]
        self.clock = 0

    def touch(self, row: int, way: int) -> None:
        self.clock += 1
        self.used[row][way] = self.clock

    def put(self, row: int, what: Any) -> bool:
        """True: something else made room."""
        free = [way for way, held in enumerate(self.rows[row]) if held is None]
        way = free[0] if free else min(range(len(self.rows[row])), key=lambda way: self.used[row][way])
        self.rows[row][way] = what
        self.touch(row, way)
        return not free


class Beyond:
    """One extension of a TLB."""

    name = ""

    def __init__(self, tlb: ExtendedTlb) -> None:
        self.tlb = tlb
        self.count: Counter[str] = Counter()

    def entry(self, address: int, value: int) -> Entry:
        """One of the context in force, at the page of an address."""
        kind = "global" if value & G else "local"
        base = (address & LINEAR) >> shift_of(value) << shift_of(value)
        return Entry(kind, *self.tlb._tags(kind), base, CODES[value >> 8 & 3], value, 0, owner=self.tlb)

    def hits(self, entry: Entry | None, la: int, kind: str) -> bool:
        return entry is not None and self.tlb._matches(entry, (kind,)) and la & LINEAR in entry.own

    def find(self, la: int, access: str) -> int:
        raise NotImplementedError

    def filled(self, la: int, value: int, access: str) -> None:
        raise NotImplementedError

    def evicted(self, entry: Entry) -> None:
        """The second level gave it up."""

    def drop(self, which: Callable[[Entry], bool]) -> int:
        """Number of entries that it forgot."""
        raise NotImplementedError


class Clustered(Beyond):
    """Pages of an aligned group with frames of one aligned group; or, `coalesced`, frames that follow each other."""

    def __init__(self, tlb: ExtendedTlb, pages: int, entries: int, ways: int, *, coalesced: bool = False) -> None:
        super().__init__(tlb)
        self.name = "coalesced" if coalesced else "clustered"
        self.pages, self.sets, self.coalesced = pages, entries // ways, coalesced
        self.places = Places(self.sets, ways)

    def row(self, la: int) -> int:
        return ((la & LINEAR) >> 12) // self.pages % self.sets

    def find(self, la: int, access: str) -> int:
        row = self.row(la)
        self.count["reads"] += 1
        for kind in ("local", "global"):
            for way, group in enumerate(self.places.rows[row]):
                for entry in group or ():
                    if self.hits(entry, la, kind):
                        self.places.touch(row, way)
                        return int(entry.value)
        return 0

    def neighbours(self, la: int, value: int, gpa: int) -> list[Entry]:
        """Pages that share an entry with this one, itself among them."""
        at = (la >> 12) % self.pages
        found = [self.entry(la, value)]
        for step in (-1, 1):
            i = at + step
            while 0 <= i < self.pages:
                page = la + (i - at << 12)
                other, other_gpa = self.tlb.query(page)
                self.count["queries"] += 1
                fits = other != 0 and (other ^ value) & ~FRAME == 0
                if self.tlb.eptrta is not None:  # their EPT entries lie in one line
                    fits = fits and other_gpa >> 15 == gpa >> 15
                if self.coalesced:
                    apart = (i - at) << 12
                    fits = fits and (other & FRAME) - (value & FRAME) == apart
                    fits = fits and (other_gpa >> 12) - (gpa >> 12) == i - at
                else:
                    fits = fits and ((other & FRAME) >> 12) // self.pages == ((value & FRAME) >> 12) // self.pages
                if fits:
                    found.append(self.entry(page, other))
                elif self.coalesced:
                    break
                i += step
        return found

    def filled(self, la: int, value: int, access: str) -> None:
        if value >> 8 & 15:
            return
        own, gpa = self.tlb.query(la)
        self.count["queries"] += 1
        if own != value:
            return
        group = self.neighbours(la, value, gpa)
        if len(group) < 2:
            return
        held = {(entry.kind, entry.address) for entry in group}
        row = self.row(la)
        for way, old in enumerate(self.places.rows[row]):
            left = [e for e in old or () if not ((e.kind, e.address) in held and self.tlb._matches(e, (e.kind,)))]
            self.places.rows[row][way] = left or None
        self.count["evictions"] += self.places.put(row, group)
        self.count["fills"] += 1

    def drop(self, which: Callable[[Entry], bool]) -> int:
        n = 0
        for row in self.places.rows:
            for way, group in enumerate(row):
                left = [entry for entry in group or () if not which(entry)]
                n += len(group or ()) - len(left)
                row[way] = left or None
        return n


class Ranges(Beyond):
    """Base, limit, offset, rights; fully associative."""

    name = "range"
    BOUND = 512

    def __init__(self, tlb: ExtendedTlb, entries: int) -> None:
        super().__init__(tlb)
        self.places = Places(1, entries)

    def find(self, la: int, access: str) -> int:
        self.count["reads"] += 1
        for kind in ("local", "global"):
            for way, entry in enumerate(self.places.rows[0]):
                if self.hits(entry, la, kind):
                    self.places.touch(0, way)
                    shift = shift_of(entry.value)
                    return int(entry.value + ((la & LINEAR) - entry.address >> shift << shift))
        return 0

    def reach(self, la: int, value: int, step: int) -> int:
        size = step << shift_of(value)
        for n in range(self.BOUND):
            la, value = la + size, value + size
            if not 0 <= (la & LINEAR) - size <= LINEAR - max(size, 0) or (size < 0 and (la - size) & LINEAR < -size):
                return n
            other, _ = self.tlb.query(la)
            self.count["queries"] += 1
            if other != value or value & FRAME == 0:
                return n
        return self.BOUND

    def filled(self, la: int, value: int, access: str) -> None:
        if in_pieces(value):
            return
        shift = shift_of(value)
        self.count["memory_refs"] += 2
        la = la >> shift << shift
        own, _ = self.tlb.query(la)
        self.count["queries"] += 1
        if own != value:
            return
        above, below = self.reach(la, value, 1), self.reach(la, value, -1)
        if above + below == 0:
            return
        kind = "global" if value & G else "local"
        first = (la & LINEAR) - (below << shift)
        last = (la & LINEAR) + (above + 1 << shift) - 1
        base = value - (below << shift)  # of the first page
        row = self.places.rows[0]
        met = [way for way, old in enumerate(row) if old is not None and self.tlb._matches(old, (kind,))
               and old.address <= last + 1 and first <= old.last + 1]  # fmt: skip
        for way in met:
            old, row[way] = row[way], None
            if old.value - old.address == base - first:  # the same mapping goes on
                base -= max(first - old.address, 0)
                first, last = min(first, old.address), max(last, old.last)
        new = Range(kind, *self.tlb._tags(kind), first, CODES[value >> 8 & 3], base, 0, owner=self.tlb, last=last)
        self.count["evictions"] += self.places.put(0, new)
        self.count["fills"] += 1

    def drop(self, which: Callable[[Entry], bool]) -> int:
        row = self.places.rows[0]
        gone = [way for way, entry in enumerate(row) if entry is not None and which(entry)]
        for way in gone:
            row[way] = None
        return len(gone)


class Pom(Beyond):
    """A TLB in memory: half for 4K, half for 2M; which is asked first is predicted."""

    name = "pom"

    def __init__(self, tlb: ExtendedTlb, nbytes: int) -> None:
        super().__init__(tlb)
        self.sets = nbytes // 128
        self.halves = [Places(self.sets, 4), Places(self.sets, 4)]
        self.large: dict[int, int] = {}

    def row(self, size: int, la: int) -> int:
        self.count["memory_refs"] += 1
        return ((la & LINEAR) >> 12 + 9 * size ^ self.tlb.vpid * 0x9E3B) % self.sets

    def find(self, la: int, access: str) -> int:
        guess = self.large.get(la >> 21 & 511, 0)
        for size in (guess, 1 - guess):
            places, row = self.halves[size], self.row(size, la)
            self.count["waited_refs"] += 1
            for kind in ("local", "global"):
                for way, entry in enumerate(places.rows[row]):
                    if self.hits(entry, la, kind):
                        places.touch(row, way)
                        self.large[la >> 21 & 511] = size
                        return int(entry.value)
        return 0

    def filled(self, la: int, value: int, access: str) -> None:
        size = value >> 8 & 3
        if size > 1 or in_pieces(value):
            return
        places, row = self.halves[size], self.row(size, la)
        self.large[la >> 21 & 511] = size
        new = self.entry(la, value)
        self.count["fills"] += 1
        for way, old in enumerate(places.rows[row]):
            if self.hits(old, la, new.kind):
                places.rows[row][way] = new
                places.touch(row, way)
                return
        self.count["evictions"] += places.put(row, new)

    def drop(self, which: Callable[[Entry], bool]) -> int:
        n = 0
        for places in self.halves:
            for row in places.rows:
                for way, entry in enumerate(row):
                    if entry is not None and which(entry):
                        row[way] = None
                        n += 1
        return n

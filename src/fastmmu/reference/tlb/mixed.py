"""Executable specification of arrays that hold pages of all sizes (tlb/mixed.pyx says whose they are)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .entries import CODES, LINEAR, Entry
from .extensions import Beyond, Places, in_pieces, shift_of

if TYPE_CHECKING:
    from .extended import ExtendedTlb

__all__ = ["Mixed"]

WORD = (1 << 64) - 1


@dataclass
class Group:
    """Pages whose frames follow each other, by their place in an aligned group of 8; of most a page alone."""

    first: Entry  # where the group begins, whether or not that page is held
    pages: dict[int, Entry] = field(default_factory=dict)

    def is_like(self, other: Group, tlb: ExtendedTlb) -> bool:
        """Of the same place, size and context."""
        mine, its = self.first, other.first
        return tlb._matches(mine, (its.kind,)) and (mine.address, mine.size) == (its.address, its.size)


class Mixed(Beyond):
    """One array for 4K, 2M and 1G: skewed, rehash or mix."""

    def __init__(self, tlb: ExtendedTlb, name: str, kind: str, entries: int, ways: int) -> None:
        super().__init__(tlb)
        self.name, self.predicts = name, kind != "ascending"
        self.sets, self.ways = entries // ways, ways
        self.places = Places(self.sets, ways)
        self.sizes: set[int] = set()
        self.guess: dict[int, int] = {}

    # ---- where a page may be ------------------------------------------------------------------------------------

    def size_of_way(self, way: int, la: int) -> int:
        """Skewed: which size the way has for this address."""
        huge = max(self.ways // 6, 1)
        place = (way + ((la & LINEAR) >> 30)) % self.ways
        return 2 if place < huge else (place - huge + ((la & LINEAR) >> 21)) % 2

    def spots(self, size: int, la: int) -> list[tuple[int, int]]:
        """Rows and ways that may hold the page of this size."""
        page = (la & LINEAR) >> 12 + 9 * size
        if self.name != "skewed":
            return [(page % self.sets, way) for way in range(self.ways)]
        rest = page // self.sets
        hashes = [(rest * (2 * way + 1) * 0x9E3779B97F4A7C15 & WORD) >> 40 for way in range(self.ways)]
        ways = [way for way in range(self.ways) if self.size_of_way(way, la) == size]
        return [((page ^ hashes[way]) % self.sets, way) for way in ways]

    def search(self, spots: list[tuple[int, int]], la: int, size: int | None) -> int:
        """Value of the page of an address, of this size or of any; 0: it is not there."""
        self.count["reads"] += 1
        for kind in ("local", "global"):
            for row, way in spots:
                group = self.places.rows[row][way]
                for entry in group.pages.values() if group else ():
                    if self.hits(entry, la, kind) and size in (None, CODES.index(entry.size)):
                        self.places.touch(row, way)
                        return int(entry.value)
        return 0

    def find(self, la: int, access: str) -> int:
        if self.name == "mix":
            return self.search(self.spots(0, la), la, None)
        if self.name == "skewed":
            spots = [spot for size in range(3) for spot in self.spots(size, la)]
            return self.search(sorted(spots, key=lambda spot: spot[1]), la, None)
        first = self.guess.get(la >> 21 & 511, 0) if self.predicts else 0
        for size in (first, *sorted(self.sizes - {first})):
            if found := self.search(self.spots(size, la), la, size):
                self.guess[la >> 21 & 511] = size
                return found
        return 0

    # ---- fills --------------------------------------------------------------------------------------------------

    def put(self, spots: list[tuple[int, int]], new: Group) -> None:
        """Into an empty place, or that of the one used least recently."""
        free = [at for at in spots if self.places.rows[at[0]][at[1]] is None]
        row, way = free[0] if free else min(spots, key=lambda at: self.places.used[at[0]][at[1]])
        self.count["evictions"] += not free
        self.places.rows[row][way] = new
        self.places.touch(row, way)

    def put_alone(self, spots: list[tuple[int, int]], new: Group) -> None:
        for row, way in spots:
            old = self.places.rows[row][way]
            if old is not None and old.is_like(new, self.tlb):
                self.places.rows[row][way] = new
                self.places.touch(row, way)
                return
        self.put(spots, new)

    def put_group(self, row: int, new: Group) -> None:
        """Into one set: what goes on with it becomes one with it."""
        merged = Group(new.first, dict(new.pages))
        held = self.places.rows[row]
        for way, old in enumerate(held):
            if old is None or not old.is_like(new, self.tlb):
                continue
            if old.first.value == new.first.value:
                merged.pages |= {i: entry for i, entry in old.pages.items() if i not in merged.pages}
                held[way] = None
            else:
                left = {i: entry for i, entry in old.pages.items() if i not in new.pages}
                held[way] = Group(old.first, left) if left else None
        self.put([(row, way) for way in range(self.ways)], merged)

    def neighbours(self, la: int, value: int) -> set[int]:
        """Places in the group of 8 of those that one entry holds."""
        shift = shift_of(value)
        at = (la >> shift) % 8
        own, gpa = self.tlb.query(la)
        self.count["queries"] += 1
        found = {at}
        for step in (-1, 1) if own == value else ():
            i = at + step
            while 0 <= i < 8:
                other, other_gpa = self.tlb.query(la + (i - at << shift))
                self.count["queries"] += 1
                if other == 0 or other != value + (i - at << shift) & WORD:
                    break
                if self.tlb.eptrta is not None and other_gpa >> shift + 3 != gpa >> shift + 3:
                    break
                found.add(i)
                i += step
        return found

    def group(self, la: int, value: int) -> Group:
        """What a walk that found this makes an entry of."""
        alone = self.entry(la, value)
        if self.name != "mix" or value >> 8 & 3 == 0 or in_pieces(value):
            return Group(alone, {0: alone})
        shift = shift_of(value)
        at = (la >> shift) % 8
        pages = {}
        for i in self.neighbours(la, value):
            page = self.entry(la + (i - at << shift), value)
            page.value = value + (i - at << shift) & WORD
            pages[i] = page
        first = self.entry(la - (at << shift), value)
        first.value = value - (at << shift) & WORD
        return Group(first, pages)

    def filled(self, la: int, value: int, access: str) -> None:
        size = value >> 8 & 3
        self.sizes.add(size)
        self.guess[la >> 21 & 511] = size
        self.count["fills"] += 1
        new = self.group(la, value)
        if self.name != "mix" or size == 0:
            self.put_alone(self.spots(size, la), new)
            return
        for row in range(self.sets):
            self.put_group(row, new)
        self.count["mirrors"] += self.sets - 1

    def drop(self, which: Callable[[Entry], bool]) -> int:
        n = 0
        for row in self.places.rows:
            for way, group in enumerate(row):
                left = {i: entry for i, entry in group.pages.items() if not which(entry)} if group else {}
                n += len(group.pages) - len(left) if group else 0
                row[way] = Group(group.first, left) if left else None
        return n

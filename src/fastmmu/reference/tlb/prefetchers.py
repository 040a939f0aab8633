"""Executable specification of the prefetchers and their buffer (tlb/prefetch.pyx says whose they are)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .entries import LINEAR, Entry
from .extensions import Beyond, Places, in_pieces, shift_of

if TYPE_CHECKING:
    from .extended import ExtendedTlb

__all__ = ["Prefetch"]


class Prefetch(Beyond):
    """A buffer, and what fills it: sequential, distance, recency, stride or markov."""

    name = "prefetch"

    def __init__(self, tlb: ExtendedTlb, kind: str, entries: int) -> None:
        super().__init__(tlb)
        self.kind = kind
        self.places = Places(1, entries)
        self.misses: list[int] = []  # pages
        self.rows: dict[int, tuple[int, list[int]]] = {}  # row -> distance, what followed it
        self.codes: dict[int, tuple[int | None, int, int]] = {}  # row -> instruction, its page, its distance
        self.stack: list[tuple[str, int, int, int | None, int]] = []  # the top is first

    def held(self, la: int) -> int:
        """Its place, or -1."""
        for kind in ("local", "global"):
            for way, entry in enumerate(self.places.rows[0]):
                if self.hits(entry, la, kind):
                    return way
        return -1

    def find(self, la: int, access: str) -> int:
        way = self.held(la)
        self.count["reads"] += 1
        if way < 0:
            return 0
        value: int = self.places.rows[0][way].value
        self.places.rows[0][way] = None
        self.missed(la, value, access)
        return value

    def filled(self, la: int, value: int, access: str) -> None:
        way = self.held(la)
        if way >= 0:
            self.places.rows[0][way] = None
        self.missed(la, value, access)

    def prefetch(self, la: int, access: str) -> None:
        la &= (1 << 64) - 1
        if self.held(la) >= 0 or self.tlb.cached(la, access):
            return
        value, _ = self.tlb.query(la)
        self.count["prefetch_walks"] += 1
        if value == 0 or in_pieces(value):
            return
        self.count["evictions"] += self.places.put(0, self.entry(la, value))
        self.count["fills"] += 1

    def missed(self, la: int, value: int, access: str) -> None:
        shift = shift_of(value)
        if self.kind == "sequential":
            self.prefetch((la >> shift) + 1 << shift, access)
        elif self.kind == "distance":
            for distance in self.distances((la & LINEAR) >> 12):
                self.prefetch((la >> 12) + distance << 12, access)
        elif self.kind == "stride":
            self.stride(la, access)
        elif self.kind == "markov":
            for page in self.next_to((la & LINEAR) >> 12):
                self.prefetch(page << 12 | (0x7F << 57 if page >> 44 else 0), access)
        else:
            self.recent(la, value, access)

    def distances(self, page: int) -> list[int]:
        """What followed the distance to this page the last two times."""
        self.misses = [*self.misses[-2:], page]
        if len(self.misses) == 3:
            before, now = self.misses[1] - self.misses[0], self.misses[2] - self.misses[1]
            distance, followed = self.rows.get(before % 256, (before, []))
            followed = followed if distance == before else []
            if not followed or followed[0] != now:
                followed = [now, *followed[:1]]
            self.rows[before % 256] = before, followed
        if len(self.misses) < 2:
            return []
        distance = self.misses[-1] - self.misses[-2]
        known, followed = self.rows.get(distance % 256, (distance, []))
        return list(followed) if known == distance else []

    def stride(self, la: int, access: str) -> None:
        """What the instruction has had as its distance twice in a row."""
        page, code = (la & LINEAR) >> 12, self.tlb.code
        known, last, distance = self.codes.get(code % 256, (None, 0, 0))
        now = page - last if known == code else 0
        self.codes[code % 256] = code, page, now
        if known == code and now and now == distance:
            self.prefetch((la >> 12) + now << 12, access)

    def next_to(self, page: int) -> list[int]:
        """Pages that were missed next after this one, the last two times."""
        if self.misses:
            before = self.misses[-1]
            known, followed = self.rows.get(before % 256, (before, []))
            followed = followed if known == before else []
            if not followed or followed[0] != page:
                followed = [page, *followed[:1]]
            self.rows[before % 256] = before, followed
        self.misses = [page]
        known, followed = self.rows.get(page % 256, (page, []))
        return list(followed) if known == page else []

    def evicted(self, entry: Entry) -> None:
        if self.kind != "recency":
            return
        node = entry.kind, entry.vpid, entry.pcid, entry.eptrta, entry.address
        self.stack = [node, *(other for other in self.stack if other != node)][:65536]
        self.count["memory_refs"] += 2

    def recent(self, la: int, value: int, access: str) -> None:
        mine = self.entry(la, value)
        node = mine.kind, mine.vpid, mine.pcid, mine.eptrta, mine.address
        if node not in self.stack:
            return
        i = self.stack.index(node)
        near = [self.stack[j] for j in (i - 1, i + 1) if 0 <= j < len(self.stack)]
        self.stack.pop(i)
        self.count["memory_refs"] += 2
        for kind, vpid, pcid, root, address in near:
            if kind and (vpid, pcid, root) == self.tlb._tags(kind):
                self.prefetch(address | (0x7F << 57 if address >> 56 & 1 else 0), access)

    def drop(self, which: Callable[[Entry], bool]) -> int:
        row = self.places.rows[0]
        gone = [way for way, entry in enumerate(row) if entry is not None and which(entry)]
        for way in gone:
            row[way] = None
        return len(gone)

    def retire(self, which: Callable[[Entry], bool]) -> None:
        """Of a flushed context nothing on the stack is a neighbour any more, though it keeps its place."""
        self.stack = [("", 0, 0, None, i) if which(Entry(*node[:4], node[4], "4k", 0, 0)) else node
                      for i, node in enumerate(self.stack)]  # fmt: skip

"""Entries and arrays of the specification of the TLB: which way holds what, and which is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .policies import Fetches, Policy

__all__ = ["CODES", "LINEAR", "MAPPINGS", "SHIFT", "TABLES", "UNITS", "ArrayLike", "Cache", "Entry", "piece", "value"]

PAGES = {"4k": 12, "2m": 21, "1g": 30, "4m": 22}
TABLES = {"pde": 21, "pdpte": 30, "pml4e": 39, "pml5e": 48}
SHIFT = PAGES | TABLES
UNITS = ("l1i", "l1d", "l1s", "l2i", "l2", "gpm", "psc", "epsc")
MAPPINGS = ("l1i", "l1d", "l1s", "l2i", "l2")
FLAGS = "usrwexdg"
CODES = ("4k", "2m", "1g", "4m")
FRAME = 0x000F_FFFF_FFFF_F000
LINEAR = (1 << 57) - 1
NO_KEY = 1 << 59


class ArrayLike(Protocol):
    """What is asked of :class:`fastmmu.tlb.geometry.Array`."""

    @property
    def ways(self) -> int: ...
    @property
    def sets(self) -> int: ...
    @property
    def sizes(self) -> tuple[str, ...]: ...
    @property
    def quota(self) -> tuple[int, ...] | None: ...


def value(
    pa: int, size: str = "4k", *, page: str | None = None, flags: str = "urwexd", key: int = 0, memory_type: int = 0
) -> int:
    """The value of an entry; `size` is the entry's, `page` that of the guest's page."""
    bits = sum(1 << FLAGS.index(flag) for flag in flags)
    bits |= 0 if key else NO_KEY
    codes = CODES.index(size) << 8 | CODES.index(page or size) << 10
    return pa & FRAME & -(1 << SHIFT[size]) | bits | codes | key << 52 | memory_type << 56


def piece(whole: int, la: int, size: str) -> int:
    """The part of a larger page's value that maps `la`, as an entry of the given size."""
    offset = la & ((1 << SHIFT[CODES[whole >> 8 & 3]]) - 1)
    pa = (whole & FRAME) + offset
    return pa & FRAME & -(1 << SHIFT[size]) | whole & ~FRAME & ~(3 << 8) | CODES.index(size) << 8


@dataclass
class Entry:
    kind: str  # local, global, psc, gpm, epsc
    vpid: int
    pcid: int
    eptrta: int | None
    address: int
    size: str
    value: int
    used: int
    ghost_of: str | None = None  # the cause that invalidated it
    owner: object = None  # the TLB of the hyperthread that made it

    @property
    def own(self) -> range:
        """Addresses that it maps, or that walks use it for."""
        return range(self.address, self.address + (1 << SHIFT[self.size]))

    @property
    def page(self) -> range:
        """The same, or its whole page where it is a piece of one."""
        shift = SHIFT[self.size]
        if self.kind in ("local", "global", "gpm"):
            shift = max(shift, SHIFT[CODES[self.value >> 10 & 3]])
        base = self.address >> shift << shift
        return range(base, base + (1 << shift))


@dataclass
class Cache:
    unit: str
    sets: int
    ways: int
    sizes: tuple[str, ...]
    quota: dict[str, int]
    plru: bool
    unbounded: bool = False
    policy: Policy | None = None  # neither LRU nor tree-PLRU
    noted: Fetches | None = None  # of the first level for instructions: where each fetch is noted
    rows: list[list[Entry | None]] = field(default_factory=list)
    right: list[dict[int, bool]] = field(default_factory=list)  # per set: does node n of the tree point right?
    last: list[Entry | None] = field(default_factory=list)  # per set: the entry used last; of a policy, hit last

    def __post_init__(self) -> None:
        self.rows = [[None] * self.ways for _ in range(self.sets)]
        self.right = [{} for _ in range(self.sets)]
        self.last = [None] * self.sets

    def set_of(self, address: int, size: str) -> int:
        return (address >> SHIFT[size]) % self.sets

    @property
    def ordered(self) -> bool:
        return not self.plru and self.policy is None

    def touch(self, s: int, way: int, now: int, *, new: bool = False) -> None:
        entry = self.rows[s][way]
        assert entry is not None
        entry.used = now
        if self.policy is not None:
            page, size = entry.address >> SHIFT[entry.size], CODES.index(entry.size)
            if new:
                self.policy.fill(s, way, page, size)
            elif self.last[s] is not entry:
                self.policy.hit(s, way, page, size)
            if self.noted is not None:
                self.noted.note(entry.address >> 12)
            self.last[s] = None if new or self.noted is not None else entry
            return
        self.last[s] = entry
        node, low, high = 1, 0, self._leaves()
        while high - low > 1:  # every node on the way points to the half that was not used
            middle = (low + high) // 2
            in_right = way >= middle
            self.right[s][node] = not in_right
            node = 2 * node + in_right
            low, high = (middle, high) if in_right else (low, middle)

    def _leaves(self) -> int:
        return 1 << (self.ways - 1).bit_length()

    def oldest(self, s: int, ways: Sequence[int]) -> int:
        """The way to replace among these: least recently used, or where the tree points."""
        if self.policy is not None:
            return self.policy.victim(s, ways)
        if not self.plru:
            return min(ways, key=lambda way: entry.used if (entry := self.rows[s][way]) else -1)
        node, low, high = 1, 0, self._leaves()
        while high - low > 1:
            middle = (low + high) // 2
            right = self.right[s].get(node, False)
            half = range(middle, high) if right else range(low, middle)
            if not any(way in half for way in ways):
                right = not right
            node = 2 * node + right
            low, high = (middle, high) if right else (low, middle)
        return low

    def victim(self, s: int, size: str) -> int:
        row = self.rows[s]
        live = [way for way, entry in enumerate(row) if entry is not None and entry.ghost_of is None]
        same = [way for way in live if (entry := row[way]) is not None and entry.size == size]
        if self.quota[size] < self.ways and len(same) >= self.quota[size] and not self.unbounded:
            return self.oldest(s, same)
        free = [way for way in range(len(row)) if way not in live]
        if self.unbounded and not free:
            row.append(None)
            free = [len(row) - 1]
        if free:  # ghosts go last and in the order of their use
            return self.oldest(s, free) if self.ordered else free[0]
        return self.oldest(s, live)

    def all(self) -> Iterator[tuple[int, int, Entry]]:
        """(set, way, entry) of all live entries."""
        for s, row in enumerate(self.rows):
            for way, entry in enumerate(row):
                if entry is not None and entry.ghost_of is None:
                    yield s, way, entry

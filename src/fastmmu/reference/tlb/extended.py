"""Executable specification of the TLB with extensions, which are asked between a miss of both levels and the walk.

`pages` stands for the tables: page address -> (value, guest-physical address) of what may be cached unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .entries import CODES, LINEAR, Entry
from .extensions import COUNTED, Beyond, Clustered, Pom, Ranges
from .invalidations import Tlb
from .mixed import Mixed
from .prefetchers import Prefetch

__all__ = ["ExtendedTlb"]


class ExtendedTlb(Tlb):
    """The TLB, and what its geometry's `extension` names."""

    def __init__(self, geometry: Any) -> None:
        super().__init__(geometry)
        self.pages: dict[int, tuple[int, int]] = {}
        self.code = 0  # address of the instruction under way; 0: not known
        self.asked = self.found = 0
        self.gone: list[Entry] = []
        self.beyond: list[Any] = []
        for one in geometry.extension:
            if one.name in ("clustered", "coalesced"):
                new: Beyond = Clustered(self, one.size, one.entries, one.ways, coalesced=one.name == "coalesced")
            elif one.name == "range":
                new = Ranges(self, one.entries)
            elif one.name in ("skewed", "rehash", "mix"):
                new = Mixed(self, one.name, one.kind, one.entries, one.ways)
            else:
                new = Pom(self, one.size) if one.name == "pom" else Prefetch(self, one.kind, one.entries)
            self.beyond.append(new)

    def query(self, la: int) -> tuple[int, int]:
        """(value, guest-physical address) of what the tables say; (0, 0): nothing that may be cached."""
        return self.pages.get(la >> 12 << 12, (0, 0))

    def cached(self, la: int, access: str) -> bool:
        """Whether a level of an access holds it."""
        units = self._path(access)
        return any(
            self._matches(entry, ("local", "global")) and la & LINEAR in entry.own
            for cache in self.caches
            if cache.unit in units
            for _, _, entry in self._own(cache)
        )

    def _insert(self, unit: str, size: str, address: int, new: int, kind: str) -> None:
        if unit in ("l2", "l2i"):
            cache = self.units[unit][size]
            s = cache.set_of(address, size)
            old = cache.rows[s][cache.victim(s, size)]
            if old is not None and old.ghost_of is None and old.kind in ("local", "global"):
                self.gone.append(old)
        super()._insert(unit, size, address, new, kind)

    def _after(self, evictions: bool = True) -> None:
        for entry in self.gone if evictions else ():
            for one in self.beyond:
                one.evicted(entry)
        self.gone = []

    def lookup(self, la: int, access: str = "r") -> tuple[int, int]:
        self.gone = []
        level, value = super().lookup(la, access)
        if value:
            return level, value
        self.asked += 1
        for one in self.beyond:
            one.count["lookups"] += 1
            if value := one.find(la, access):
                one.count["hits"] += 1
                one.count[f"hits_{CODES[value >> 8 & 3]}"] += 1
                self.found += 1
                first, second = self._path(access)
                if second:
                    self._install(second, la, value, "linear", self.geometry.smash)
                value = self._install(first, la, value, "linear", True)
                self._after()
                return 2, value
        return 0, 0

    def fill(self, la: int, new: int, access: str = "r") -> int:
        self.gone = []
        value = super().fill(la, new, access)
        self._after()
        for one in self.beyond:
            one.filled(la, new, access)
        return value

    def refill(self, la: int, new: int, access: str = "r") -> int:
        first, second = self._path(access)
        self.flushes["rewalk"] += 1
        hits = ("local", "global")
        self._drop("rewalk", lambda e: self._matches(e, hits) and la & LINEAR in e.own, (first, second or first))
        self.gone = []
        value = Tlb.fill(self, la, new, access)
        self._after(evictions=False)
        for one in self.beyond:
            one.filled(la, new, access)
        return value

    def _flush(self, cause: str, which: Callable[[Entry], bool]) -> int:
        for one in self.beyond:
            one.drop(which)
            if isinstance(one, Prefetch):
                one.retire(which)
        return super()._flush(cause, which)

    def _drop(self, cause: str, which: Callable[[Entry], bool], units: Sequence[str] | None = None) -> int:
        for one in self.beyond:
            one.count["invalidated"] += one.drop(which)
        return super()._drop(cause, which) if units is None else super()._drop(cause, which, units)

    def counters(self) -> dict[str, Any]:
        out = super().counters()
        counted = {one.name: {what: one.count[what] for what in COUNTED} for one in self.beyond}
        return out | {"extensions": {"lookups": self.asked, "hits": self.found, **counted}}

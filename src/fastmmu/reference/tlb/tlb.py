"""Executable specification of the tagged TLB: same methods and answers as the kernel's, nothing clever (tlb.md §1).

Every entry carries its own tags and the time of its last use. The invalidations: invalidations.py.

An invalidated entry of a whole context stays behind as a *ghost*: it matches nothing and its way counts as empty, but
where a walk fetches the same translation again before the way is reused, the walk is charged to that invalidation.

Hyperthreads of a core have a TLB each, and share arrays: `sibling_of`. Entries have the tag of their hyperthread, so
that nothing but room is in common (siblings.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .entries import CODES, FLAGS, LINEAR, MAPPINGS, SHIFT, TABLES, UNITS, ArrayLike, Cache, Entry, piece, value
from .policies import Chirp, Recency, policy
from .siblings import Lost, room_of, share

__all__ = ["LINEAR", "MAPPINGS", "Caches", "Entry", "piece", "value"]


class Caches:
    """All caches of translations of one physical CPU, or of one hyperthread of a core.

    :param geometry: a :class:`fastmmu.tlb.geometry.Geometry`.
    :param sibling_of: another hyperthread of its core, whose arrays it shares by ``geometry.shared``.
    """

    def __init__(self, geometry: Any, sibling_of: Caches | None = None) -> None:
        self.geometry = geometry
        self.caches: list[Cache] = []
        self.units: dict[str, dict[str, Cache]] = {unit: {} for unit in UNITS}
        first, second = geometry.replacement
        for unit, word in zip(UNITS, (first, first, first, second, second, "lru", "lru", "lru"), strict=True):
            arrays = getattr(geometry, unit)
            if unit == "gpm":
                arrays = () if isinstance(arrays, str) else (arrays,)
            for array in arrays:
                self._add(unit, array, word)
        if sibling_of is not None:
            share(self.caches, self.units, sibling_of.caches, geometry)
        self._note_fetches()
        if geometry.gpm == "shared":
            self.units["gpm"] = self.units["l2"]
        self.siblings: list[Caches] = [] if sibling_of is None else sibling_of.siblings
        self.siblings.append(self)
        self.clock: list[int] = [0] if sibling_of is None else sibling_of.clock
        self.lost = Lost(room_of(geometry))
        self.vpid, self.pcid = 0, 0
        self.eptrta: int | None = None
        self.reset_counters()

    def _add(self, unit: str, array: ArrayLike, word: str) -> None:
        quota = dict(zip(array.sizes, array.quota or [array.ways] * len(array.sizes), strict=True))
        cache = Cache(unit, array.sets, array.ways, array.sizes, quota, word == "plru", self.geometry.unbounded)
        cache.policy = policy(word, len(self.caches))
        if unit == "l1i" and word == "lru" and "chirp" in self.geometry.replacement:
            cache.policy = Recency()
        self.caches.append(cache)
        self.units[unit] |= dict.fromkeys(array.sizes, cache)

    def _note_fetches(self) -> None:
        """In the last array whose policy looks at them; so those of hyperthreads in what they share."""
        looking = [cache.policy for cache in self.caches if isinstance(cache.policy, Chirp)]
        for each in looking:
            each.fetches = looking[-1].own
        for cache in self.caches if looking else ():
            if cache.unit == "l1i" and cache.policy is not None:
                cache.noted = looking[-1].own

    def _now(self) -> int:
        self.clock[0] += 1
        return self.clock[0]

    def _own(self, cache: Cache) -> list[tuple[int, int, Entry]]:
        return [found for found in cache.all() if found[2].owner is self]

    # ---- the context in force, lookups, fills ---------------------------------------------------------------

    def switch(self, vpid: int = 0, pcid: int = 0, eptrta: int | None = None) -> None:
        """Puts a context in force."""
        self.vpid, self.pcid, self.eptrta = vpid, pcid, eptrta

    def _tags(self, kind: str) -> tuple[int, int, int | None]:
        if kind in ("gpm", "epsc"):
            return 0, 0, self.eptrta
        return self.vpid, 0 if kind == "global" else self.pcid, self.eptrta

    def _matches(self, entry: Entry, kinds: Sequence[str]) -> bool:
        return (
            entry.owner is self
            and entry.kind in kinds
            and (entry.vpid, entry.pcid, entry.eptrta) == self._tags(entry.kind)
        )

    def _path(self, access: str) -> tuple[str, str | None]:
        g = self.geometry
        second = "l2" if g.l2 else None
        if access == "x":
            return "l1i", "l2i" if g.l2i else second if g.l2_fetches else None
        return "l1s" if g.l1s and access in ("w", "rw") else "l1d", second

    def _find(self, unit: str, size: str, address: int, kinds: Sequence[str]) -> int:
        """Value of the entry hit, which becomes the most recent; 0: none."""
        cache = self.units[unit].get(size)
        if cache is None:
            return 0
        s = cache.set_of(address, size)
        hits = [
            way
            for row_s, way, entry in cache.all()
            if row_s == s and entry.size == size and self._matches(entry, kinds)
            if entry.address == (address & LINEAR) >> SHIFT[size] << SHIFT[size]
        ]
        if not hits:
            return 0
        rows = cache.rows[s]
        if not cache.ordered:  # does not tell which of two is the more recent: the one used last in the set, or else
            way = next((way for way in hits if rows[way] is cache.last[s]), hits[0])  # the lower way
        else:
            way = max(hits, key=lambda way: entry.used if (entry := rows[way]) else -1)
        cache.touch(s, way, self._now())
        entry = rows[way]
        assert entry is not None
        return entry.value

    def _search(self, unit: str, sizes: Sequence[str], address: int, kinds: Sequence[str]) -> tuple[str, int]:
        self.lookups[unit] += 1
        for size in sizes:
            if found := self._find(unit, size, address, kinds):
                self.hits[unit, size] += 1
                return size, found
        self.misses[unit] += 1
        return "", 0

    def lookup(self, la: int, access: str = "r") -> tuple[int, int]:
        """(level, value); a second-level hit refills the first."""
        first, second = self._path(access)
        _, found = self._search(first, CODES[:3], la, ("local", "global"))
        if found:
            return 1, found
        if second is None:
            return 0, 0
        _, found = self._search(second, CODES[:3], la, ("local", "global"))
        return (2, self._install(first, la, found, "linear", True)) if found else (0, 0)

    def _install(self, unit: str, address: int, new: int, kind: str, in_pieces: bool) -> int:
        """Caches at the value's size, or at the next smaller one that the unit has; 0: not at all."""
        if kind == "linear":
            kind = "global" if new & 1 << FLAGS.index("g") else "local"
        held = [size for size in CODES[: (new >> 8 & 3) + 1] if size in self.units[unit]]
        if not held or (held[-1] != CODES[new >> 8 & 3] and not in_pieces):
            return 0
        if held[-1] != CODES[new >> 8 & 3]:
            new = piece(new, address, held[-1])
        self._insert(unit, held[-1], address, new, kind)
        return new

    def _insert(self, unit: str, size: str, address: int, new: int, kind: str) -> None:
        cache = self.units[unit][size]
        s = cache.set_of(address, size)
        way = cache.victim(s, size)
        old = cache.rows[s][way]
        if old is not None and old.ghost_of is None:
            self.evictions["gpm" if old.kind == "gpm" else cache.unit] += 1
            if isinstance(old.owner, Caches) and old.owner is not self:
                self.displaced["gpm" if old.kind == "gpm" else cache.unit] += 1
                if old.kind in ("local", "global"):
                    old.owner.lost.add(cache.unit, old)
        page = (address & LINEAR) >> SHIFT[size] << SHIFT[size]
        entry = Entry(kind, *self._tags(kind), page, size, new, self._now(), owner=self)
        self.sibling_misses += self.lost.end(
            lambda unit, e: unit == cache.unit and e.size == size and e.address == page and self._matches(e, (kind,))
        )
        cache.rows[s][way] = entry
        cache.touch(s, way, entry.used, new=True)
        self.fills[unit] += 1

    def fill(self, la: int, new: int, access: str = "r") -> int:
        """Caches what a walk found, in both levels."""
        first, second = self._path(access)
        self._claim_ghost(second or first, la, new)
        if second:
            self._install(second, la, new, "linear", self.geometry.smash)
        return self._install(first, la, new, "linear", True)

    def _claim_ghost(self, unit: str, la: int, new: int) -> None:
        size = CODES[new >> 8 & 3]
        kind = "global" if new & 1 << FLAGS.index("g") else "local"
        cache = self.units[unit].get(size)
        if cache is None:
            return
        row = cache.rows[cache.set_of(la, size)]
        ghosts = [
            (way, entry)
            for way, entry in enumerate(row)
            if entry is not None and entry.ghost_of is not None and entry.size == size
            if self._matches(entry, (kind,)) and entry.address == (la & LINEAR) >> SHIFT[size] << SHIFT[size]
        ]
        if ghosts:
            way, ghost = max(ghosts, key=lambda found: found[1].used) if cache.ordered else ghosts[0]
            assert ghost.ghost_of is not None
            self.refill_misses[ghost.ghost_of] += 1
            row[way] = None

    def refill(self, la: int, new: int, access: str = "r") -> int:
        """As fill, after dropping what `la` hits now."""
        first, second = self._path(access)
        self.flushes["rewalk"] += 1
        hits = ("local", "global")
        self._drop("rewalk", lambda e: self._matches(e, hits) and la & LINEAR in e.own, (first, second or first))
        return self.fill(la, new, access)

    def gpm(self, gpa: int) -> int:
        return self._search("gpm", CODES[:3], gpa, ("gpm",))[1]

    def gpm_fill(self, gpa: int, new: int) -> None:
        self._install("gpm", gpa, new, "gpm", True)

    def _prefix(self, unit: str, address: int, above: int) -> tuple[int, int]:
        size, found = self._search(unit, tuple(TABLES)[: above - 2], address, (unit,))
        return (2 + tuple(TABLES).index(size), found) if found else (0, 0)

    def psc(self, la: int, above: int = 6) -> tuple[int, int]:
        return self._prefix("psc", la, above)

    def epsc(self, gpa: int, above: int = 6) -> tuple[int, int]:
        return self._prefix("epsc", gpa, above)

    def gpm_drop(self, gpa: int) -> None:
        self._drop_hits("gpm", gpa, ("gpm",))

    def psc_drop(self, la: int) -> None:
        self._drop_hits("psc", la, ("psc",))

    def epsc_drop(self, gpa: int) -> None:
        self._drop_hits("epsc", gpa, ("epsc",))

    def _drop_hits(self, unit: str, address: int, kinds: Sequence[str]) -> None:
        """What lookups of the address would find in this unit."""
        caches = tuple({cache.unit for cache in self.units[unit].values()})
        self._drop("rewalk", lambda e: self._matches(e, kinds) and address & LINEAR in e.own, caches)

    def psc_fill(self, la: int, level: int, new: int, unit: str = "psc") -> None:
        size = tuple(TABLES)[level - 2]
        if size in self.units[unit]:
            self._insert(unit, size, la, new, unit)

    def epsc_fill(self, gpa: int, level: int, new: int) -> None:
        self.psc_fill(gpa, level, new, "epsc")

    # ---- what invalidations are made of ---------------------------------------------------------------------

    def _count(self, cause: str, cache: Cache, entry: Entry) -> None:
        self.invalidated[cause, "gpm" if entry.kind == "gpm" else cache.unit] += 1

    def _flush(self, cause: str, which: Callable[[Entry], bool]) -> int:
        """Whole contexts: their entries become ghosts."""
        self.lost.end(lambda unit, entry: which(entry))
        gone = [(cache, entry) for cache in self.caches for _, _, entry in self._own(cache) if which(entry)]
        for cache, entry in gone:
            entry.ghost_of = cause
            self._count(cause, cache, entry)
        return len(gone)

    def _drop(self, cause: str, which: Callable[[Entry], bool], units: Sequence[str] = UNITS) -> int:
        """Single entries."""
        n = 0
        self.lost.end(lambda unit, entry: unit in units and which(entry))
        for cache in self.caches:
            for s, way, entry in self._own(cache) if cache.unit in units else ():
                if which(entry):
                    cache.rows[s][way] = None
                    self._count(cause, cache, entry)
                    n += 1
        return n

    # ---- reading out ------------------------------------------------------------------------------------------

    def reset_counters(self) -> None:
        self.lookups: Counter[str] = Counter()
        self.hits: Counter[tuple[str, str]] = Counter()
        self.misses: Counter[str] = Counter()
        self.fills: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.flushes: Counter[str] = Counter()
        self.invalidated: Counter[tuple[str, str]] = Counter()
        self.refill_misses: Counter[str] = Counter()
        self.survivals = 0
        self.displaced: Counter[str] = Counter()
        self.sibling_misses = 0

    def entries(self) -> list[tuple[str, str, int, int, int | None, int, str, int]]:
        """All live entries, set by set; under LRU the most recent of a set first."""
        found = []
        for cache in self.caches:
            for s in range(cache.sets):
                row = [entry for row_s, _, entry in self._own(cache) if row_s == s]
                if cache.ordered:
                    row.sort(key=lambda entry: -entry.used)
                found += [(cache.unit, e.kind, e.vpid, e.pcid, e.eptrta, e.address, e.size, e.value) for e in row]
        return found

    def counters(self) -> dict[str, Any]:
        """Everything counted, in the form of the kernel's."""
        out: dict[str, Any] = {}
        for unit in UNITS:
            sizes = TABLES if unit in ("psc", "epsc") else CODES[:3]
            out[unit] = {
                "lookups": self.lookups[unit],
                "hits": {size: self.hits[unit, size] for size in sizes},
                "misses": self.misses[unit],
                "fills": self.fills[unit],
                "evictions": self.evictions[unit],
            }
        causes = {*self.flushes, *(cause for cause, _ in self.invalidated)}
        out["flushes"] = {cause: self.flushes[cause] for cause in causes}
        out["invalidated"] = {cause: {u: n for (c, u), n in self.invalidated.items() if c == cause} for cause in causes}
        out["refill_misses"] = dict(self.refill_misses)
        out["survivals"] = self.survivals
        if len(self.siblings) > 1:
            out |= {"displaced": dict(self.displaced), "sibling_misses": self.sibling_misses}
        return out

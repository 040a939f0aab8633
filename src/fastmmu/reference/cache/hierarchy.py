"""Executable specification of the data caches: where a reference is found, what it moves (caches.md §3-§6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from .sets import Cache, Line

__all__ = ["LEVELS", "Hierarchy"]

LEVELS = ("l1", "l2", "l3", "row", "dram")


class Hierarchy:
    """:param description: what :class:`fastmmu.cache.description.CacheDescription` says. :param beside: another CPU,
    whose L3 and memory this one shares."""

    def __init__(self, description: Any, beside: Hierarchy | None = None) -> None:
        d = self.description = description
        self.l1d, self.l1i = Cache(d.l1d), Cache(d.l1i)
        self.l2 = Cache(d.l2, tables="l2" in d.tables) if d.l2 else None
        self.inclusion = d.inclusion if d.l3 else "neither"
        self.l3: Cache | None = beside.l3 if beside else Cache(d.l3, tables="l3" in d.tables) if d.l3 else None
        self.open: dict[int, int] = beside.open if beside else {}
        self.cpus: list[Hierarchy] = beside.cpus if beside else []
        self.cpus.append(self)
        self.invalidated = self.supplied = 0
        self.found: Counter[tuple[str, str]] = Counter()
        self.cycles: Counter[str] = Counter()
        self.walks: list[int] = []
        self.written: Counter[str] = Counter()

    # ---- memory (§6) ----------------------------------------------------------------------------------------------

    def _memory(self, number: int) -> str:
        row = number * 64 // self.description.memory.row_bytes
        bank = row % self.description.memory.banks
        hit = self.open.get(bank) == row
        self.open[bank] = row
        return "row" if hit else "dram"

    def _write(self, number: int) -> None:
        self.written["memory"] += 1
        self._memory(number)

    # ---- lines that make room (§4) -----------------------------------------------------------------------------------

    def _fill_l3(self, line: Line) -> None:
        assert self.l3 is not None
        gone = self.l3.fill(line)
        if gone is None:
            return
        if self.inclusion == "inclusive":
            for cpu in self.cpus:
                above = cpu._lose(gone.number)
                gone.dirty |= above is not None and above.dirty
        if gone.dirty:
            self.written["l3"] += 1
            self._write(gone.number)

    def _below_l2(self, line: Line) -> None:
        if self.l3 is None:
            self._write(line.number)
        elif not self.l3.use(line.number, dirty=line.dirty, mark=line.mark):
            self._fill_l3(line)

    def _fill_l2(self, line: Line) -> None:
        assert self.l2 is not None
        gone = self.l2.fill(line)
        if gone is None:
            return
        if self.description.l2_inclusive:
            for cache in (self.l1d, self.l1i):
                above = cache.take(gone.number)
                gone.dirty |= above is not None and above.dirty
        if gone.dirty:
            self.written["l2"] += 1
        if gone.dirty or self.inclusion == "exclusive":
            self._below_l2(gone)

    def _fill_l1(self, cache: Cache, line: Line) -> None:
        gone = cache.fill(line)
        if gone is None or not gone.dirty:
            return
        self.written["l1"] += 1
        if self.l2 is None:
            self._below_l2(gone)
        elif not self.l2.use(gone.number, dirty=True, mark=gone.mark):
            below = self.l3.take(gone.number) if self.l3 and self.inclusion == "exclusive" else None
            self._fill_l2(Line(gone.number, True, gone.mark or (below is not None and below.mark)))

    # ---- several CPUs (§8) ------------------------------------------------------------------------------------------

    def _lose(self, number: int) -> Line | None:
        """The line leaves all that is this CPU's own; what it was, None: it was nowhere."""
        found = [line for cache in (self.l1d, self.l1i, self.l2) if cache and (line := cache.take(number))]
        if not found:
            return None
        return Line(number, any(line.dirty for line in found), any(line.mark for line in found))

    def _clean(self, number: int) -> Line | None:
        """The line is dirty here no more; what it was, None: it was not dirty."""
        found = [line for cache in (self.l1d, self.l2) if cache and (line := cache.peek(number))]
        if not any(line.dirty for line in found):
            return None
        for line in found:
            line.dirty = False
        return Line(number, True, any(line.mark for line in found))

    def _supply(self, line: Line) -> None:
        self.supplied += 1
        self.written["l2"] += 1
        self._below_l2(line)

    def _claim(self, number: int) -> bool:
        """Before a write: all others lose the line. One of them had it."""
        own = self.l1d.peek(number)
        if own and own.dirty:
            return False
        before = self.invalidated
        for cpu in self.cpus:
            if cpu is not self and (line := cpu._lose(number)):
                self.invalidated += 1
                if line.dirty:
                    self._supply(line)
        return self.invalidated > before

    def _ask(self, number: int) -> None:
        """Before a read that goes to L3: who has the line dirty writes it back."""
        for cpu in self.cpus:
            if cpu is not self and (line := cpu._clean(number)):
                self._supply(line)

    # ---- one reference (§3) ------------------------------------------------------------------------------------

    def use(self, hpa: int, access: str = "r", cause: str = "read") -> str:
        """The level where it is found. `access`: "r", "w", "rw" or "x"."""
        number, writes = hpa // 64, access in ("w", "rw")
        claimed = writes and self._claim(number)
        level = self._use(number, access, cause.startswith(("guest", "ept")))
        if claimed and self.l3 is not None and level in ("l1", "l2"):
            level = "l3"
        self.found[cause, level] += 1
        self.cycles[cause] += self.latency(level)
        return level

    def _use(self, number: int, access: str, walk: bool) -> str:
        d = self.description
        first = self.l1i if access == "x" else self.l1d
        writes = access in ("w", "rw")
        mark = walk and bool(d.tables)
        looks_l1 = not (walk and d.walker == "l2")
        takes = {
            "l1": looks_l1 and not (walk and "l1" in d.bypass),
            "l2": self.l2 is not None and not (walk and "l2" in d.bypass),
            "l3": self.l3 is not None and self.inclusion != "exclusive" and not (walk and "l3" in d.bypass),
        }

        def written(level: str) -> bool:  # the innermost cache that has the line is the one that is written
            inner = ("l1", "l2", "l3")[: ("l1", "l2", "l3").index(level)]
            return writes and not any(takes[i] for i in inner)

        if looks_l1 and first.use(number, dirty=writes, mark=mark):
            return "l1"
        if self.l2 is not None and self.l2.use(number, dirty=written("l2"), mark=mark):
            found = "l2"
        else:
            if not writes:
                self._ask(number)
            line = Line(number, written("l2"), mark)
            found = self._behind_l2(line, takes, Line(number, written("l3"), mark))
            if takes["l2"]:
                self._fill_l2(line)
        if takes["l1"]:
            self._fill_l1(first, Line(number, writes, mark))
        return found

    def _behind_l2(self, line: Line, takes: dict[str, bool], in_l3: Line) -> str:
        """`line`: what L2 gets; it has the flags of what an exclusive L3 gives up."""
        if self.l3 is not None and self.inclusion == "exclusive" and takes["l2"]:
            below = self.l3.take(line.number)
            if below is None:
                return self._memory(line.number)
            line.dirty |= below.dirty
            line.mark |= below.mark
            return "l3"
        if self.l3 is not None and self.l3.use(line.number, dirty=in_l3.dirty, mark=in_l3.mark):
            return "l3"
        found = self._memory(line.number)
        if takes["l3"]:
            self._fill_l3(in_l3)
        return found

    def latency(self, level: str) -> int:
        d = self.description
        if level in ("row", "dram"):
            return int(getattr(d.memory, level))
        return int({"l1": d.l1d, "l2": d.l2, "l3": d.l3}[level].latency)

    # ---- a walk (§5) -------------------------------------------------------------------------------------------

    def walk(self, references: Iterable[tuple[str, int, bool]]) -> int:
        """The cycles of one walk: (cause, address, writes) of each of its references, which wait for each other."""
        total = 0
        for cause, hpa, writes in references:
            total += self.latency(self.use(hpa, "w" if writes else "r", cause))
        self.walks.append(total)
        return total

    def lines(self) -> list[tuple[str, int, int, int, bool, bool]]:
        """(cache, set, way, address, written, has table entries) of every line."""
        caches = {"l1d": self.l1d, "l1i": self.l1i, "l2": self.l2, "l3": self.l3}
        return [
            (name, where, way, line.number * 64, line.dirty, line.mark)
            for name, cache in caches.items()
            if cache
            for where, way, line in cache.lines()
        ]

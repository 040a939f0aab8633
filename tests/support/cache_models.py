"""Data caches under a machine, in plain Python: sets of lines in the order of their last use, one level behind the
other, rows of memory. Of descriptions with LRU, an L3 that keeps nothing in or out, and walks that look into L1D."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from fastmmu.cache.description import Cache, CacheDescription

LEVELS = ("l1", "l2", "l3", "row", "dram")


class Level:
    """A cache of 64-byte lines, true LRU; what was written goes to the level behind when it leaves."""

    def __init__(self, cache: Cache, behind: Level | Rows) -> None:
        self.ways, self.behind = cache.ways, behind
        self.sets: list[OrderedDict[int, bool]] = [OrderedDict() for _ in range(cache.sets)]

    def use(self, line: int, write: bool) -> bool:
        """It is held."""
        lines = self.sets[line % len(self.sets)]
        if line not in lines:
            return False
        lines[line] |= write
        lines.move_to_end(line)
        return True

    def fill(self, line: int, write: bool) -> None:
        """It comes, in the place of the one used longest ago."""
        lines = self.sets[line % len(self.sets)]
        gone = lines.popitem(last=False) if len(lines) == self.ways else (0, False)
        lines[line] = write
        if gone[1]:
            self.behind.written(gone[0])

    def written(self, line: int) -> None:
        """From the level before."""
        if not self.use(line, True):
            self.fill(line, True)


class Rows:
    """Memory: each bank has one row open."""

    def __init__(self, description: CacheDescription) -> None:
        self.memory = description.memory
        self.open: dict[int, int] = {}

    def use(self, line: int) -> bool:
        """Its row was open."""
        row = line * 64 // self.memory.row_bytes
        same = self.open.get(row % self.memory.banks) == row
        self.open[row % self.memory.banks] = row
        return same

    def written(self, line: int) -> None:
        self.use(line)


class Caches:
    """What a stream of references comes to: counts by cause and level."""

    def __init__(self, description: CacheDescription) -> None:
        assert description.l2 is not None
        assert description.l3 is not None
        self.rows = Rows(description)
        self.l3 = Level(description.l3, self.rows)
        self.l2 = Level(description.l2, self.l3)
        self.first = {False: Level(description.l1d, self.l2), True: Level(description.l1i, self.l2)}
        memory = description.memory
        self.latency = (description.l1d.latency, description.l2.latency, description.l3.latency,
                        memory.row, memory.dram)  # fmt: skip
        self.found: dict[str, list[int]] = {}
        self.walks: list[int] = []

    def _found(self, line: int, write: bool, fetch: bool) -> int:
        first, level = self.first[fetch], 1
        if first.use(line, write):
            return 0
        if not self.l2.use(line, False):
            level = 2
            if not self.l3.use(line, False):
                level = 3 if self.rows.use(line) else 4
                self.l3.fill(line, False)
            self.l2.fill(line, False)
        first.fill(line, write)
        return level

    def reference(self, line: int, cause: str, write: bool = False) -> int:
        """One; its latency."""
        level = self._found(line, write, cause == "fetch")
        self.found.setdefault(cause, [0] * len(LEVELS))[level] += 1
        return self.latency[level]

    def access(self, hpa: int, nbytes: int, cause: str) -> None:
        """Every line that it touches."""
        for line in range(hpa >> 6, (hpa + nbytes - 1 >> 6) + 1):
            self.reference(line, cause, cause == "write")

    def walk(self, references: Iterable[tuple[int, str]]) -> None:
        """Entries that a walk reads, one after the other."""
        self.walks.append(sum(self.reference(hpa >> 6, cause) for hpa, cause in references))

"""Executable specification of the miss-ratio curves: one TLB of one size at a time, under true LRU.

A stream is a list of ("access", key), ("invalidate", key) and ("flush", 0); a key's low bits choose its set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Lru", "misses", "missing"]

Event = tuple[str, int]


class Lru:
    """A set-associative array; `sets` is a power of two. A way that was emptied is filled before any is replaced."""

    def __init__(self, sets: int, ways: int) -> None:
        self.sets: list[list[int]] = [[] for _ in range(sets)]
        self.ways = ways

    def access(self, key: int) -> bool:
        """True: a hit. The key is the most recent of its set afterwards."""
        row = self.sets[key % len(self.sets)]
        hit = key in row
        if hit:
            row.remove(key)
        elif len(row) == self.ways:
            row.pop()
        row.insert(0, key)
        return hit

    def invalidate(self, key: int) -> None:
        row = self.sets[key % len(self.sets)]
        if key in row:
            row.remove(key)

    def flush(self) -> None:
        for row in self.sets:
            row.clear()


def missing(stream: Iterable[Event], sets: int, ways: int) -> Iterator[Event]:
    """What the next level sees: the accesses that miss, and every invalidation."""
    array = Lru(sets, ways)
    for kind, key in stream:
        if kind == "access":
            if array.access(key):
                continue
        elif kind == "invalidate":
            array.invalidate(key)
        else:
            array.flush()
        yield kind, key


def misses(stream: Iterable[Event], sets: int, ways: int) -> int:
    """Number of accesses that miss."""
    return sum(kind == "access" for kind, _ in missing(stream, sets, ways))

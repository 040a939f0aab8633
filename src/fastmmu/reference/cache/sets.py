"""One cache of the specification: sets of lines, and which line makes room (caches.md §2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Cache", "CacheLike", "Line"]

FIRST, DISTANT = 2, 3  # re-reference prediction values of SRRIP: of a line that comes, of one that may go


class CacheLike(Protocol):
    """What is asked of :class:`fastmmu.cache.description.Cache`."""

    @property
    def ways(self) -> int: ...
    @property
    def sets(self) -> int: ...
    @property
    def policy(self) -> str: ...


@dataclass
class Line:
    """A line that a cache holds: its number (address / 64); it was written; it has table entries."""

    number: int
    dirty: bool = False
    mark: bool = False


class _Lru:
    """The ways in the order of their last use."""

    def __init__(self, ways: int) -> None:
        self.order: list[int] = []  # the least recent first

    def use(self, way: int) -> None:
        self.order = [w for w in self.order if w != way] + [way]

    fill = use

    def victim(self, allowed: set[int]) -> int:
        return next(way for way in self.order if way in allowed)


class _Plru:
    """A binary tree over the ways, rounded up to a power of two: a node points to the half that was not used last."""

    def __init__(self, ways: int) -> None:
        self.leaves = 1 << (ways - 1).bit_length()
        self.right: dict[range, bool] = {}

    def use(self, way: int) -> None:
        part = range(self.leaves)
        while len(part) > 1:
            left, right = part[: len(part) // 2], part[len(part) // 2 :]
            self.right[part] = way in left
            part = left if way in left else right

    fill = use

    def victim(self, allowed: set[int]) -> int:
        part = range(self.leaves)
        while len(part) > 1:
            left, right = part[: len(part) // 2], part[len(part) // 2 :]
            pointed, other = (right, left) if self.right.get(part) else (left, right)
            part = pointed if allowed.intersection(pointed) else other
        return part[0]


class _Srrip:
    """SRRIP, 2 bits, hit priority: Jaleel, Theobald, Steely, Emer, ISCA 2010."""

    def __init__(self, ways: int) -> None:
        self.value = [DISTANT] * ways

    def use(self, way: int) -> None:
        self.value[way] = 0

    def fill(self, way: int) -> None:
        self.value[way] = FIRST

    def victim(self, allowed: set[int]) -> int:
        while not any(self.value[way] == DISTANT for way in allowed):
            self.value = [min(value + 1, DISTANT) for value in self.value]
        return min(way for way in allowed if self.value[way] == DISTANT)


_POLICY: dict[str, Callable[[int], _Lru | _Plru | _Srrip]] = {"lru": _Lru, "plru": _Plru, "srrip": _Srrip}


class Cache:
    """:param tables: lines without a mark make room before those that have one."""

    def __init__(self, shape: CacheLike, *, tables: bool = False) -> None:
        self.sets: list[list[Line | None]] = [[None] * shape.ways for _ in range(shape.sets)]
        self.policy = [_POLICY[shape.policy](shape.ways) for _ in range(shape.sets)]
        self.tables = tables

    def _at(self, number: int) -> tuple[int, int | None]:
        where = number % len(self.sets)
        for way, line in enumerate(self.sets[where]):
            if line is not None and line.number == number:
                return where, way
        return where, None

    def use(self, number: int, *, dirty: bool = False, mark: bool = False) -> bool:
        """A reference, or a line that is written back: whether the line is there; it is used then, and keeps flags."""
        where, way = self._at(number)
        line = None if way is None else self.sets[where][way]
        if way is None or line is None:
            return False
        line.dirty |= dirty
        line.mark |= mark
        self.policy[where].use(way)
        return True

    def fill(self, new: Line) -> Line | None:
        """A line that is not there comes; the one that makes room, if one has to."""
        where, way = self._at(new.number)
        ways = self.sets[where]
        assert way is None
        gone = None
        if None in ways:
            way = ways.index(None)
        else:
            allowed = set(range(len(ways)))
            if self.tables:
                allowed = {w for w, line in enumerate(ways) if line and not line.mark} or allowed
            way = self.policy[where].victim(allowed)
            gone = ways[way]
        ways[way] = new
        self.policy[where].fill(way)
        return gone

    def peek(self, number: int) -> Line | None:
        """The line, if it is held; no use of it."""
        return next((line for _, _, line in self.lines() if line.number == number), None)

    def take(self, number: int) -> Line | None:
        """The line leaves."""
        where, way = self._at(number)
        if way is None:
            return None
        gone, self.sets[where][way] = self.sets[where][way], None
        return gone

    def lines(self) -> Iterator[tuple[int, int, Line]]:
        for where, ways in enumerate(self.sets):
            for way, line in enumerate(ways):
                if line is not None:
                    yield where, way, line

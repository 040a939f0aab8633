"""Distances in the order of last use, of a trace in one piece and in parts; for what: study/curve/stack_distance.pxd.

The order of one set of any size, the most recent key first. An invalidated key leaves a hole; an access that comes from
below the topmost hole, or from nowhere, takes the hole's place, and leaves one where it was.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Event", "Order", "Part", "distances", "follow"]

Event = tuple[str, int]
"""("access", key), ("invalidate", key) or ("flush", 0)."""

HOLE, ANYBODY = object(), object()


class Order:
    """The order, and what has to be done with it."""

    def __init__(self) -> None:
        self.order: list[object] = []

    def access(self, key: object) -> tuple[int | None, bool]:
        """Distance of the key, from 1, None: it is not there; whether it took the place of a hole."""
        order = self.order
        at = order.index(key) if key in order else None
        hole = order.index(HOLE) if HOLE in order else None
        filled = hole is not None and (at is None or hole < at)
        if at is not None:
            order[at] = HOLE
        if filled:
            assert hole is not None
            del order[hole]
        elif at is not None:
            del order[at]
        order.insert(0, key)
        return None if at is None else at + 1, filled

    def invalidate(self, key: object) -> None:
        """A hole where it was."""
        if key in self.order:
            self.order[self.order.index(key)] = HOLE


def distances(events: Iterable[Event]) -> list[int | None]:
    """Of each access, None: never before, or not since it was invalidated or all was flushed."""
    order, found = Order(), []
    for what, key in events:
        if what == "access":
            found.append(order.access(key)[0])
        elif what == "invalidate":
            order.invalidate(key)
        else:
            order.order.clear()
    return found


class Part:
    """A part of the events by itself: ``order``, what it leaves on top; ``known``: distances of accesses that it can
    tell; ``records``: (invalidation, key, dead, filled) of what it has to ask the order before it; ``flushed``: it
    needs nothing of that any more."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.order = Order()
        self.known: list[int | None] = []
        self.records: list[tuple[bool, int, bool, bool]] = []
        self.flushed = False
        had: set[int] = set()
        for what, key in events:
            if what == "flush":
                self.order.order.clear()
                self.flushed = True
            elif what == "invalidate":
                if key not in had and not self.flushed:
                    self.records.append((True, key, False, False))
                had.add(key)
                self.order.invalidate(key)
            else:
                distance, filled = self.order.access(key)
                if distance is None and not self.flushed:
                    self.records.append((False, key, key in had, filled))
                else:
                    self.known.append(distance)
                had.add(key)


def follow(order: Order, part: Part) -> list[int | None]:
    """What the part asked of the order before it; which is behind the part afterwards."""
    found = []
    for invalidation, key, dead, filled in part.records:
        if invalidation:
            order.invalidate(key)
            continue
        at = order.order.index(key) if key in order.order and not dead else None
        found.append(None if at is None else at + 1)
        if filled:
            if at is not None:
                order.order[at] = HOLE
            continue
        order.access(key if at is not None else object())
        order.order[0] = ANYBODY
    below = [] if part.flushed else order.order[len(part.order.order) :]
    order.order = part.order.order + below
    return found

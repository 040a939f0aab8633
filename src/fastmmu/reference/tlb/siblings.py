"""Executable specification of what the hyperthreads of a core share, and of what one loses to another.

The rule: an entry has the tag of the logical processor that made it. Only that one finds it, and only its operations
invalidate it, those of another never (SDM vol. 3A, "Processor Translation Lookaside Buffers" of the chapter on multiple
processors: what has its own tag is sure to go; that more goes is allowed, vol. 3A 4.10.4.1, and does not happen here).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .entries import Cache, Entry

__all__ = ["Lost", "room_of", "share"]

UNITS_OF = {"l1": ("l1i", "l1d", "l1s"), "l2": ("l2i", "l2"), "psc": ("psc", "epsc"), "gpm": ("gpm",)}


def _shared(geometry: Any) -> set[str]:
    """Units that hyperthreads share. Arrays that grow are not shared: nothing makes room there."""
    return set() if geometry.unbounded else {unit for word in geometry.shared for unit in UNITS_OF[word]}


def share(own: list[Cache], units: dict[str, dict[str, Cache]], theirs: list[Cache], geometry: Any) -> None:
    """The arrays of another hyperthread in place of one's own, in those units."""
    for i, cache in enumerate(theirs):
        if cache.unit in _shared(geometry):
            own[i] = cache
            units[cache.unit] |= dict.fromkeys(cache.sizes, cache)


def room_of(geometry: Any) -> int:
    """How many lost translations are remembered: as many as the shared second level holds."""
    return sum(a.sets * a.ways for unit in ("l2", "l2i") if unit in _shared(geometry) for a in getattr(geometry, unit))


class Lost:
    """Translations of the second level that fills of other hyperthreads displaced, in places taken in turn."""

    def __init__(self, room: int) -> None:
        self.places: list[tuple[str, Entry] | None] = [None] * room
        self.at = 0

    def add(self, unit: str, entry: Entry) -> None:
        if self.places and unit in ("l2", "l2i"):
            self.places[self.at] = unit, entry
            self.at = (self.at + 1) % len(self.places)

    def end(self, which: Callable[[str, Entry], bool]) -> int:
        """Those that `which` picks are lost no more; their number."""
        n = 0
        for i, found in enumerate(self.places):
            if found is not None and which(*found):
                self.places[i] = None
                n += 1
        return n

"""Specification of the replacement policies that are neither LRU nor tree-PLRU: random, SRRIP, CHiRP-like.

A policy has the sets of one array. It is told which way was hit and which was filled, and names a way that goes; a hit
of the entry that was hit last in its set is not told where nothing else happened to the set (see entries.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["Chirp", "Fetches", "Policy", "Random", "Recency", "Srrip", "policy"]

WORD = (1 << 64) - 1
GOLDEN = 0x9E37_79B9_7F4A_7C15  # 2**64 over the golden ratio, odd


class Policy:
    """Of nobody: the first way goes."""

    def hit(self, s: int, way: int, page: int, size: int) -> None:
        """page: number of the page of the entry's size; size: 0 4K, 1 2M, 2 1G."""

    def fill(self, s: int, way: int, page: int, size: int) -> None: ...

    def victim(self, s: int, ways: Sequence[int]) -> int:
        return ways[0]


class Random(Policy):
    """SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), a generator for each array."""

    def __init__(self, seed: int, array: int) -> None:
        self.state = seed * 256 + array

    def victim(self, s: int, ways: Sequence[int]) -> int:
        self.state = self.state + GOLDEN & WORD
        z = self.state
        z = (z ^ z >> 30) * 0xBF58_476D_1CE4_E5B9 & WORD
        z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB & WORD
        upper = (z ^ z >> 31) >> 32
        return sorted(ways)[len(ways) * upper // (1 << 32)]


class Srrip(Policy):
    """SRRIP-HP of two bits (Jaleel, Theobald, Steely, Emer, ISCA 2010)."""

    def __init__(self) -> None:
        self.interval: dict[tuple[int, int], int] = {}

    def hit(self, s: int, way: int, page: int, size: int) -> None:
        self.interval[s, way] = 0

    def fill(self, s: int, way: int, page: int, size: int) -> None:
        self.interval[s, way] = 2

    def victim(self, s: int, ways: Sequence[int]) -> int:
        while True:
            for way in sorted(ways):
                if self.interval[s, way] == 3:
                    return way
            for way in ways:
                self.interval[s, way] += 1


class Recency(Policy):
    """True LRU, of a first level for instructions whose fetches are noted."""

    def __init__(self) -> None:
        self.used: dict[tuple[int, int], int] = {}
        self.now = 0

    def hit(self, s: int, way: int, page: int, size: int) -> None:
        self.now += 1
        self.used[s, way] = self.now

    def fill(self, s: int, way: int, page: int, size: int) -> None:
        self.hit(s, way, page, size)

    def victim(self, s: int, ways: Sequence[int]) -> int:
        return min(ways, key=lambda way: self.used[s, way])


class Fetches:
    """The page of the last fetch, and the four that fetches left before it, the last one first."""

    def __init__(self) -> None:
        self.page: int | None = None
        self.path: deque[int] = deque([0] * 4, maxlen=4)

    def note(self, first: int) -> None:
        """first: number of the first 4 KB of the page that an entry of the first level maps."""
        if first == self.page:
            return
        if self.page is not None:
            self.path.appendleft((self.page * GOLDEN & WORD) >> 60)
        self.page = first


class Chirp(Recency):
    """A predictor of dead entries by the code that runs, as CHiRP (Mirbagher-Ajorpaz, Garza, Pokam, Jiménez, MICRO
    2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches = Fetches()  # its own, or those of another array of the TLB
        self.own = self.fetches
        self.counter = [0] * 4096
        self.signature: dict[tuple[int, int], int] = {}
        self.dead: dict[tuple[int, int], bool] = {}

    def _use(self, s: int, way: int, page: int, size: int) -> None:
        if self.fetches.page is None:
            hashed = page >> 4
        else:
            path = sum(left << 4 * i for i, left in enumerate(self.fetches.path))
            hashed = self.fetches.page << 16 ^ path
        found = (hashed * GOLDEN & WORD) >> 52
        self.signature[s, way] = found
        self.dead[s, way] = self.counter[found] >= 2
        super().hit(s, way, page, size)

    def hit(self, s: int, way: int, page: int, size: int) -> None:
        was = self.signature[s, way]
        self.counter[was] = max(self.counter[was] - 1, 0)
        self._use(s, way, page, size)

    def fill(self, s: int, way: int, page: int, size: int) -> None:
        self._use(s, way, page, size)

    def victim(self, s: int, ways: Sequence[int]) -> int:
        dead = [way for way in ways if self.dead[s, way]]
        if dead:
            return super().victim(s, dead)
        way = super().victim(s, ways)
        was = self.signature[s, way]
        self.counter[was] = min(self.counter[was] + 1, 3)
        return way


def policy(word: str, array: int) -> Policy | None:
    """The policy of a word of ``fastmmu.tlb.geometry.REPLACEMENTS``, for the n-th array of a TLB; None: LRU, PLRU."""
    name, _, number = word.partition(":")
    if name == "random":
        return Random(int(number or 0), array)
    return Srrip() if name == "srrip" else Chirp() if name == "chirp" else None

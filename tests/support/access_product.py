"""Products of the conditions that an access depends on, each a named bit, in the manner of kvm-unit-tests' access.c.

Two entries of a walk vary, one above the other: the leaf and one table entry; all others allow everything. Every
variant of either stands in memory at an index of its own, so that an address names a combination of the two:

    index at level `upper` = bits of the table entry      index at the leaf's level = bits of the leaf

Of entries that stop the walk only one variant is put to the (slow) specification: what it reads no further has no
say. `decisive` maps each combination to that one.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu import reference as ref

__all__ = ["Entry", "Tables", "covering", "memory_of", "words"]

TABLES = 8  # pages of memory; table of level n at page n


class Entry(enum.IntFlag):
    """Of a guest entry."""

    PRESENT = 1
    WRITABLE = 2
    USER = 4
    XD = 8
    RESERVED = 16
    ACCESSED = 32
    DIRTY = 64


def words(**flags: enum.IntFlag | str) -> str:
    """The names of the bits that are set."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else value.name or 'nothing'}" for name, value in flags.items()
    )


# ---- choice of combinations ----------------------------------------------------------------------------------------


def covering(factors: int, strength: int, seed: int = 0) -> list[int]:
    """Words of `factors` bits such that every `strength` of the bits take every combination of values together.

    Found greedily: of some random words the one that adds most. No chance in it: the seed is fixed.
    """
    rng = random.Random(seed)
    groups = list(itertools.combinations(range(factors), strength))
    missing = {(group, values) for group in groups for values in itertools.product((0, 1), repeat=strength)}
    chosen: list[int] = []

    def of(word: int) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        return {(group, tuple(word >> bit & 1 for bit in group)) for group in groups}

    while missing:
        group, values = min(missing)
        forced = sum(value << bit for bit, value in zip(group, values, strict=True))
        mask = sum(1 << bit for bit in group)
        candidates = [rng.getrandbits(factors) & ~mask | forced for _ in range(8)]
        best = max(candidates, key=lambda word: len(of(word) & missing))
        missing -= of(best)
        chosen.append(best)
    return chosen


# ---- memory --------------------------------------------------------------------------------------------------------


@dataclass
class Tables:
    """Tables in which entries at two levels vary: `upper` (0: none) and `leaf`.

    `make(level, bits, target)` is the entry with these bits; `target` is a table's address or None for a page.
    """

    levels: int
    leaf: int
    upper: int
    index_bits: int
    entry_size: int
    upper_bits: int  # how many of the flags an upper entry has
    leaf_bits: int
    plain: int  # flags of an entry that allows everything
    make: Callable[[int, int, int | None], int]
    memory: fastmmu.PhysicalMemory = field(init=False)
    kept: npt.NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.memory = fastmmu.PhysicalMemory(TABLES << 12)
        dtype = "<u8" if self.entry_size == 8 else "<u4"
        for level in range(self.levels, self.leaf - 1, -1):
            table = self.memory.u8[level << 12 : (level + 1) << 12].view(dtype)
            target = None if level == self.leaf else (level - 1) << 12
            if level in (self.leaf, self.upper):
                count = 1 << (self.leaf_bits if level == self.leaf else self.upper_bits)
                table[:count] = [self.make(level, bits, target) for bits in range(count)]
            else:
                table[0] = self.make(level, self.plain, target)
        self.kept = self.memory.u64.copy()

    @property
    def root(self) -> int:
        return self.levels << 12

    def shift(self, level: int) -> int:
        return 12 + self.index_bits * (level - 1)

    def address(self, upper: int, leaf: int) -> int:
        return (upper << self.shift(self.upper) if self.upper else 0) | leaf << self.shift(self.leaf) | 0x123

    def combinations(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(1 << self.upper_bits if self.upper else 1), range(1 << self.leaf_bits))

    def restore(self, steps: Sequence[tuple[int, ...]]) -> dict[int, int]:
        """What an access changed in the entries that it used; they are put back."""
        changed = {}
        for step in steps:
            at = step[3] & ~7
            if step[1] and (value := int(self.memory.u64[at >> 3])) != self.kept[at >> 3]:
                changed[at] = value
                self.memory.u64[at >> 3] = self.kept[at >> 3]
        return changed

    def untouched(self) -> bool:
        return bool(np.array_equal(self.memory.u64, self.kept))


def memory_of(tables: Tables) -> ref.ArrayMemory:
    """The same memory for the specification, which is only asked."""
    return ref.ArrayMemory(tables.memory.u64)

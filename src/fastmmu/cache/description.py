"""What a hierarchy of data caches is made of (caches.md §1). Presets: `presets`; as text: `text`."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from fastmmu.errors import ConfigError

__all__ = ["POLICIES", "Cache", "CacheDescription", "CachePolicy", "Memory", "choose", "near_sizes"]

LINE = 64
MAX_WAYS = 64
MAX_BYTES = 1 << 32
MAX_BANKS = 1 << 20
MAX_LATENCY = 1 << 16

CachePolicy = Literal["lru", "plru", "srrip"]
POLICIES: dict[str, str] = {"lru": "true LRU", "plru": "tree-PLRU", "srrip": "SRRIP"}
"""Replacement policies, and what to call them."""

_INCLUSIONS = ("inclusive", "exclusive", "neither")
_LEVELS = ("l1", "l2", "l3")
_set = msgspec.structs.force_setattr


def _whole(value: Any, what: str, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ConfigError(f"{what}={value!r} is no whole number; give {low}..{high}")
    if not low <= number <= high:
        raise ConfigError(f"{what}={number}: give {low}..{high}; nearest: {min(max(number, low), high)}")
    return number


def choose(value: Any, what: str, words: Iterable[str]) -> str:
    words = tuple(words)
    if isinstance(value, str) and value in words:
        return value
    near = difflib.get_close_matches(value.lower(), words, n=1, cutoff=0.4) if isinstance(value, str) else []
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{what}={value!r}: {hint}choose from {', '.join(words)}")


def _levels(value: Any, what: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Levels, each once, in their order; "none" and "": none."""
    listed = [] if value in ("", "none") else value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, (tuple, list)):
        raise ConfigError(f"{what}={value!r}: choose from {', '.join(words)}, as in {words[0]},{words[1]}; or none")
    for level in listed:
        choose(level, what, words)
    return tuple(level for level in words if level in listed)


class Cache(msgspec.Struct, frozen=True):
    """One cache, of lines of 64 bytes.

    :param size: bytes, a multiple of 64 `ways`. :param ways: 1..64. :param latency: cycles of a reference found here.
    :param policy: of :data:`POLICIES`.

    Threads: immutable; share it.
    """

    size: int
    ways: int
    latency: int
    policy: str = "lru"

    def __post_init__(self) -> None:
        _set(self, "ways", _whole(self.ways, "ways", 1, MAX_WAYS))
        _set(self, "size", _whole(self.size, "size", LINE, MAX_BYTES))
        _set(self, "latency", _whole(self.latency, "latency", 0, MAX_LATENCY))
        choose(self.policy, "policy", POLICIES)
        least = LINE * self.ways
        if self.size % least:
            near = [_bytes(n * least) for n in (self.size // least, self.size // least + 1) if n]
            raise ConfigError(
                f"a cache of {_bytes(self.size)}/{self.ways}: {self.size // LINE} lines are no multiple of its ways; "
                f"nearest: {' or '.join(f'{n}/{self.ways}' for n in near)}"
            )

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.size // LINE // self.ways

    def __str__(self) -> str:
        return f"{_bytes(self.size)}/{self.ways}"


class Memory(msgspec.Struct, frozen=True):
    """DRAM: banks, each with one open row. Row `n` of the address space, `hpa // row_bytes`, is in bank `n % banks`.

    :param row, dram: cycles of a reference in the open row of its bank, and in another. :param banks: 1..2**20.
    :param row_bytes: a power of two, 64..1M.

    Threads: immutable; share it.
    """

    row: int = 150
    dram: int = 200
    banks: int = 32
    row_bytes: int = 8192

    def __post_init__(self) -> None:
        _set(self, "row", _whole(self.row, "latency of a row", 0, MAX_LATENCY))
        _set(self, "dram", _whole(self.dram, "latency of dram", 0, MAX_LATENCY))
        _set(self, "banks", _whole(self.banks, "banks", 1, MAX_BANKS))
        size = _whole(self.row_bytes, "row", LINE, 1 << 20)
        _set(self, "row_bytes", size)
        if size & (size - 1):
            low = 1 << (size.bit_length() - 1)
            raise ConfigError(f"row={size} is no power of two; nearest: {_bytes(low)} or {_bytes(2 * low)}")


def _bytes(size: int) -> str:
    for unit, shift in (("m", 20), ("k", 10)):
        if size >> shift and not size & ((1 << shift) - 1):
            return f"{size >> shift}{unit}"
    return str(size)


def near_sizes(size: int, ways: int) -> str:
    """The nearest caches whose number of sets is a power of two."""
    low = 1 << max((size // LINE // ways).bit_length() - 1, 0)
    return " or ".join(f"{_bytes(n * LINE * ways)}/{ways}" for n in (low, 2 * low))


class CacheDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The data caches of one CPU, and memory (caches.md §1).

    :param l1d, l1i, l2: a CPU's own; their number of sets is a power of two. `l2`, `l3` None: there is none.
    :param inclusion: of L3: "inclusive" of all above it, "exclusive" (it takes what leaves L2), or "neither".
    :param l2_inclusive: what leaves L2 leaves L1.
    :param walker: where a walk looks first, "l1" (L1D) or "l2".
    :param tables: of "l2", "l3": a line without table entries makes room before one with them.
    :param bypass: of "l1", "l2", "l3": what the references of walks do not fill.

    Threads: immutable; share it.
    """

    name: str
    l1d: Cache
    l1i: Cache
    l2: Cache | None = None
    l3: Cache | None = None
    memory: Memory = Memory()
    inclusion: str = "neither"
    l2_inclusive: bool = False
    walker: str = "l1"
    tables: tuple[str, ...] = ()
    bypass: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for level in ("l1d", "l1i", "l2", "l3"):
            part = getattr(self, level)
            if not isinstance(part, Cache) and (level in ("l1d", "l1i") or part is not None):
                raise ConfigError(f"{level}={part!r}: give a Cache(size, ways, latency)")
            if level != "l3" and part is not None and part.sets & (part.sets - 1):
                near = near_sizes(part.size, part.ways)
                raise ConfigError(f"{level}={part}: {part.sets} sets, which is no power of two; nearest: {near}")
        if not isinstance(self.memory, Memory):
            raise ConfigError(f"memory={self.memory!r}: give a Memory(row, dram, banks, row_bytes)")
        if not isinstance(self.l2_inclusive, bool):
            raise ConfigError(f"l2_inclusive={self.l2_inclusive!r}: give True or False")
        choose(self.inclusion, "inclusion", _INCLUSIONS)
        choose(self.walker, "walker", _LEVELS[:2])
        _set(self, "tables", _levels(self.tables, "tables", _LEVELS[1:]))
        _set(self, "bypass", _levels(self.bypass, "bypass", _LEVELS))
        self._check_inclusion()

    def _check_inclusion(self) -> None:
        first = not (self.walker == "l2" or "l1" in self.bypass)
        if self.walker == "l2" and self.l2 is None:
            raise ConfigError("walker='l2': there is no L2; give walker='l1', or an l2")
        if self.l2_inclusive and self.l2 is not None and "l2" in self.bypass and first:
            raise ConfigError("bypass='l2': an inclusive L2 holds what L1 holds; give bypass='l1,l2'")
        filled = first or (self.l2 is not None and "l2" not in self.bypass)
        if self.inclusion == "inclusive" and self.l3 is not None and "l3" in self.bypass and filled:
            raise ConfigError("bypass='l3': an inclusive L3 holds what L1 and L2 hold; give bypass='l1,l2,l3'")
        if self.inclusion == "exclusive" and self.l3 is not None and self.l2 is None:
            raise ConfigError("inclusion='exclusive': it takes what leaves L2, and there is none; give an l2")

    def __str__(self) -> str:
        """All of it in a line, the name aside; what :func:`fastmmu.cache.text.caches` makes the same of."""
        parts = {level: getattr(self, level) for level in ("l1d", "l1i", "l2", "l3")}
        words = [f"{level}={f'{c}/{c.latency}' if c else 'none'}" for level, c in parts.items()]
        policies = [c.policy if c else "lru" for level, c in parts.items() if level != "l1i"]
        words.append(f"policy={','.join(policies)}")
        words += [f"inclusion={self.inclusion}", f"l2_inclusion={'inclusive' if self.l2_inclusive else 'neither'}"]
        m = self.memory
        words += [f"dram={m.row}/{m.dram}", f"banks={m.banks}", f"row={_bytes(m.row_bytes)}"]
        words += [f"walker={self.walker}", f"tables={','.join(self.tables) or 'none'}"]
        return " ".join([*words, f"bypass={','.join(self.bypass) or 'none'}"])

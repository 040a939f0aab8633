"""What the data caches under a run came to: where references were found, what walks took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmmu._checked import checked
from fastmmu.cache.names import CAUSE_NAMES, LEVELS, walk_bin_edges

__all__ = ["CAUSES", "CacheResult", "caches_between", "caches_sum"]

CAUSES = {"data": "data beyond the first cache", "vmm_memory": "the VMM's memory beyond the first cache"}
"""Causes of cost that there are with data caches alone: no counter has their price, but latencies (costs.py)."""

_LATENCY = "latency_"
_SHARING = ("invalidated", "supplied")
_BINS = 124  # the last begins below 2**32


@dataclass(frozen=True)
class CacheResult:
    """Data caches under a run: ``Result.caches``, with ``Config(caches=)`` (docs/caches-in-runs.md).

    ``references``: cause -> how many were found at each of ``levels``, ``("l1", "l2", "l3", "row", "dram")``; only
    causes that there were. Causes: ``read``, ``write``, ``fetch`` of the trace; ``kernel``, the guest kernel;
    ``vmm``, the VMM at exits; ``extension``, what the TLB keeps in memory, where accesses wait for it, and
    ``background``, where none waits, walks of prefetchers among that (docs/tlb-extensions.md); ``guest1`` to
    ``guest5``, entries of the guest's tables, or of shadow tables, by level;
    ``ept1.2``, of the EPT: the entry of level 2 on the way to the guest's table of level 1, of ``ept0.2`` to the data.
    A and D flags that a walk sets are references of the entry's cause. A reference is a cache line.
    ``cycles``: cause -> latency in all. ``walk_latency``: (low, high, walks) of a histogram, low <= cycles <= high.
    ``walks``: walks; ``walk_cycles``: what they took in all. ``latency``: cycles of each level. Of several CPUs all are
    counted together; ``invalidated``: times that a CPU lost a line to a write of another one, ``supplied``: lines that
    a CPU wrote back for another one.

    Threads: a result, which nothing changes; share it.
    """

    references: dict[str, tuple[int, ...]]
    cycles: dict[str, int]
    walk_latency: tuple[tuple[int, int, int], ...]
    walk_cycles: int
    latency: tuple[int, ...]
    invalidated: int = 0
    supplied: int = 0

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in the order of ``references``."""
        return LEVELS

    @property
    def walks(self) -> int:
        """Walks of which the latency is known."""
        return sum(n for _, _, n in self.walk_latency)

    @checked
    def at(self, *causes: str) -> tuple[int, ...]:
        """References of all causes whose name begins so, by level: ``at("guest")``, ``at("ept0")``; none: of all."""
        rows = [row for name, row in self.references.items() if not causes or name.startswith(causes)]
        return tuple(sum(column) for column in zip(*rows, strict=True)) if rows else (0,) * len(LEVELS)

    @checked
    def cycles_of(self, *causes: str) -> int:
        """Latency of all causes whose name begins so."""
        return sum(n for name, n in self.cycles.items() if not causes or name.startswith(causes))

    @checked
    def beyond_l1(self, *causes: str) -> int:
        """Of that what is more than if all had been found in the first level."""
        return self.cycles_of(*causes) - self.latency[0] * sum(self.at(*causes))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists and numbers."""
        return {
            "levels": list(LEVELS),
            "references": {cause: list(row) for cause, row in self.references.items()},
            "cycles": self.cycles,
            "walks": self.walks,
            "walk_cycles": self.walk_cycles,
            "walk_latency": [list(row) for row in self.walk_latency],
            "latency": list(self.latency),
            "invalidated": self.invalidated,
            "supplied": self.supplied,
        }

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> CacheResult:
        """What :meth:`to_dict` gave. :raises KeyError, TypeError, ValueError: it is none."""
        return cls(
            references={str(cause): tuple(int(n) for n in row) for cause, row in found["references"].items()},
            cycles={str(cause): int(n) for cause, n in found["cycles"].items()},
            walk_latency=tuple((int(low), int(high), int(n)) for low, high, n in found["walk_latency"]),
            walk_cycles=int(found["walk_cycles"]),
            latency=tuple(int(n) for n in found["latency"]),
            invalidated=int(found.get("invalidated", 0)),
            supplied=int(found.get("supplied", 0)),
        )

    def counts(self) -> dict[str, int]:
        """All of it as numbers by name: CAUSE_LEVEL, CAUSE_cycles, walks_LOW, walk_cycles, latency_LEVEL."""
        found = {
            f"{cause}_{level}": n
            for cause, row in self.references.items()
            for level, n in zip(LEVELS, row, strict=True)
            if n
        }
        found |= {f"{cause}_cycles": n for cause, n in self.cycles.items()}
        found |= {f"walks_{low}": n for low, _, n in self.walk_latency}
        found["walk_cycles"] = self.walk_cycles
        found |= {name: n for name in _SHARING if (n := getattr(self, name))}
        return found | {f"{_LATENCY}{level}": n for level, n in zip(LEVELS, self.latency, strict=True)}

    @classmethod
    def of_counts(cls, found: Mapping[str, int]) -> CacheResult:
        """Of what :meth:`counts` gives, or the kernels count; what is missing is 0."""
        references: dict[str, tuple[int, ...]] = {}
        cycles: dict[str, int] = {}
        walks: list[tuple[int, int, int]] = []
        for cause in CAUSE_NAMES.values():
            row = tuple(found.get(f"{cause}_{level}", 0) for level in LEVELS)
            if any(row):
                references[cause] = row
                cycles[cause] = found.get(f"{cause}_cycles", 0)
        for number in range(_BINS):
            low, high = walk_bin_edges(number)
            if n := found.get(f"walks_{low}", 0):
                walks.append((low, high, n))
        latency = tuple(found.get(f"{_LATENCY}{level}", 0) for level in LEVELS)
        sharing = {name: found.get(name, 0) for name in _SHARING}
        return cls(references, cycles, tuple(walks), found.get("walk_cycles", 0), latency, **sharing)


def caches_sum(parts: Sequence[CacheResult | None]) -> CacheResult | None:
    """Of parts of a run what they came to together; None: one of them has no caches, or there is none."""
    total: dict[str, int] = {}
    for part in parts:
        if part is None:
            return None
        for name, n in part.counts().items():
            total[name] = n if name.startswith(_LATENCY) else total.get(name, 0) + n
    return CacheResult.of_counts(total) if total else None


def caches_between(now: Mapping[str, int] | None, before: Mapping[str, int] | None) -> CacheResult | None:
    """Of a part of a run, from the counts at its end and at its begin; None: there are no caches."""
    if now is None:
        return None
    before = before or {}
    return CacheResult.of_counts(
        {name: n if name.startswith(_LATENCY) else n - before.get(name, 0) for name, n in now.items()}
    )

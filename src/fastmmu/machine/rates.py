"""Rates of a run: misses per thousand instructions of each structure, walks and exits, what of its time is walks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmmu.machine.config import Config
from fastmmu.tlb.geometry import TABLES

__all__ = ["PKI", "latency_at", "mpki_by", "pki", "structures", "walk_share"]

PKI = ("walks", "walk_refs", "walk_cycles", "vm_exits")
"""What :func:`pki` counts."""

_PREFIX = {"psc": "", "epsc": "ept_"}
"""What stands before the level of a paging-structure cache, by its unit of the TLB."""


def structures() -> tuple[str, ...]:
    """Names of all structures that :func:`mpki_by` can have, in its order."""
    caches = [f"{prefix}{level}" for prefix in _PREFIX.values() for level in TABLES]
    return ("l1i", "l1d", "stlb", *caches, "gpm")


def mpki_by(counters: Mapping[str, Any], tlb: Mapping[str, Any], config: Config, n: int) -> dict[str, float]:
    """Misses per thousand instructions of each structure that the processor has.

    ``l1i``, ``l1d`` (with an array for stores), ``stlb``: misses of the last level, each a walk. Where `tlb` is there:
    the paging-structure caches by level, ``pde``, ``pdpte``, ``pml4e``, ``pml5e``, under EPT those of its tables,
    ``ept_pde``, ..., too, and ``gpm``, guest-physical mappings. The walker takes the lowest level that is cached: a
    level misses where it was looked up, no lower one having the address, and has it not (tlb.md §1.1).

    :param tlb: of :meth:`fastmmu.tlb.tlb.TLB.counters`, or empty. :param n: instructions, 1 or more.
    """
    misses = {
        "l1i": counters["l1i_misses"],
        "l1d": counters["l1d_misses"],
        "stlb": counters["tlb_misses"],
    }
    geometry = config.geometry
    nested = config.mmu in ("ept", "agile")
    for unit, arrays in (("psc", geometry.psc), ("epsc", geometry.epsc if nested else ())):
        held = {size for array in arrays for size in array.sizes}
        if unit in tlb:
            left = tlb[unit]["lookups"]
            for level in TABLES:
                left -= tlb[unit]["hits"][level]
                if level in held:
                    misses[f"{_PREFIX[unit]}{level}"] = left
    if nested and geometry.gpm != "off" and "gpm" in tlb:
        misses["gpm"] = tlb["gpm"]["misses"]
    return {name: 1000 * many / n for name, many in misses.items()}


def pki(counters: Mapping[str, Any], walk_cycles: float, n: int) -> dict[str, float]:
    """Per thousand instructions: ``walks``, ``walk_refs`` (entries that they read, of both dimensions),
    ``walk_cycles``, ``vm_exits``.

    :param n: instructions, 1 or more.
    """
    refs = counters["guest_walk_refs"] + counters["ept_walk_refs"]
    of = {"walks": counters["walks"], "walk_refs": refs, "walk_cycles": walk_cycles, "vm_exits": counters["vm_exits"]}
    return {name: 1000 * many / n for name, many in of.items()}


def walk_share(
    counters: Mapping[str, Any], cycles: float, walk_cycles: float, n: int, *, overlap: float, fetch: float
) -> float | None:
    """Estimated share of the run time that waits for walks, 0 to 1; None where nothing takes time.

    Of each cycle of a walk the part `overlap` is hidden, the processor doing other work meanwhile:

        share = (1 - overlap) walk_cycles / (cycles + fetch unfetched - overlap walk_cycles)

    unfetched: instructions whose fetch is no access of the trace, each of which takes time as well.

    :param cycles: modelled cycles of the run, walks in full. :param n: instructions. :param fetch: cycles of a fetch.
    """
    unfetched = max(0, n - counters["fetches"])
    time = cycles + fetch * unfetched - overlap * walk_cycles
    return (1 - overlap) * walk_cycles / time if time > 0 else None


def latency_at(bins: Sequence[tuple[int, int, int]], share: float) -> int:
    """Cycles that the given share of walks does not exceed, of a histogram: the upper edge of the bin where it is
    reached.

    :param bins: (low, high, walks), rising, with 1 walk or more. :param share: above 0, up to 1.
    """
    left = share * sum(n for _, _, n in bins)
    for _, high, n in bins:
        left -= n
        if left <= 1e-9:
            return high
    return bins[-1][1]

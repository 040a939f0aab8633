"""Each extension does on made-up tables what its paper says it does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Config, Op, Trace, simulate
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

PAGES = 2048
Array = npt.NDArray[np.uint64]


def walks(extension: str, frames: npt.NDArray[np.int64], pages: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Walks that accesses to these pages wait for, and prefetches; page i lies in frame frames[i]. 64 entries below."""
    tlb = TLB(geometry("skylake", l1d="16/4", stlb="64/4", extension=extension))
    values = [value(int(frame) << 12) for frame in frames]
    if extension != "none":
        at = np.arange(len(frames), dtype=np.uint64) << np.uint64(12)
        tlb.query_pages(at, np.array(values, np.uint64), frames.astype(np.uint64) << np.uint64(12))
    missed = 0
    for page in pages.tolist():
        if not tlb.lookup(page << 12)[0]:
            missed += 1
            tlb.fill(page << 12, values[page])
    return missed, tlb.counters().get("extensions", {}).get("prefetch", {}).get("prefetch_walks", 0)


RNG = np.random.default_rng(1)
IN_ORDER = np.arange(PAGES) + 4096
SHUFFLED = RNG.permutation(PAGES) + 4096
IN_GROUPS = (np.arange(PAGES) & ~7) + RNG.permuted(np.tile(np.arange(8), (PAGES // 8, 1)), axis=1).ravel() + 4096
UNIFORM = RNG.integers(0, PAGES, 12_000)
SCAN = np.tile(np.arange(PAGES), 3)
STEPS = np.cumsum(np.tile([5, 17, 3], 2000)) % PAGES  # a pattern of distances
IRREGULAR = np.tile(RNG.permutation(PAGES)[:512], 8)  # the same order, again and again


@pytest.mark.parametrize("extension", ["clustered:8", "coalesced:8", "range:32"])
def test_contiguous_frames_are_worth_it_and_shuffled_ones_are_not(extension: str) -> None:
    alone, _ = walks("none", IN_ORDER, UNIFORM)
    assert walks(extension, IN_ORDER, UNIFORM)[0] < alone / 4
    assert walks(extension, SHUFFLED, UNIFORM)[0] > alone * 0.95


def test_clusters_need_no_order_of_frames_and_runs_do() -> None:
    """What clustering adds to coalescing (Pham et al. 2014)."""
    alone, _ = walks("none", IN_GROUPS, UNIFORM)
    assert walks("clustered:8", IN_GROUPS, UNIFORM)[0] < alone / 4
    assert walks("coalesced:8", IN_GROUPS, UNIFORM)[0] > alone / 2


def test_a_range_reaches_further_than_a_cluster() -> None:
    assert walks("range:4", IN_ORDER, UNIFORM)[0] < walks("clustered:8:32/4", IN_ORDER, UNIFORM)[0] / 4


def test_the_next_page_helps_a_scan_and_nothing_else() -> None:
    scanned, _ = walks("none", SHUFFLED, SCAN)
    assert walks("prefetch:sequential", SHUFFLED, SCAN)[0] < scanned / 100
    alone, _ = walks("none", SHUFFLED, UNIFORM)
    missed, prefetched = walks("prefetch:sequential", SHUFFLED, UNIFORM)
    assert missed > alone * 0.98
    assert prefetched > alone * 0.8  # for nothing


def test_distances_help_where_they_repeat() -> None:
    """Strides of a pattern, which the next page does not help (Kandiraju and Sivasubramaniam 2002)."""
    alone, _ = walks("none", SHUFFLED, STEPS)
    assert walks("prefetch:distance", SHUFFLED, STEPS)[0] < alone / 10
    assert walks("prefetch:sequential", SHUFFLED, STEPS)[0] > alone * 0.9


def test_recency_helps_what_is_irregular_and_comes_again() -> None:
    """Where there is no distance that repeats (Saulsbury et al. 2000)."""
    alone, _ = walks("none", SHUFFLED, IRREGULAR)
    assert walks("prefetch:recency", SHUFFLED, IRREGULAR)[0] < alone * 0.7
    assert walks("prefetch:distance", SHUFFLED, IRREGULAR)[0] > alone * 0.8


@pytest.mark.parametrize(("mmu", "fewer"), [("native", 0), ("ept", 1)])
def test_a_tlb_in_memory_replaces_references_of_walks(mmu: str, fewer: int) -> None:
    """Of a walk over EPT more than it costs; natively it replaces walks (Ryoo et al. 2017)."""
    page = RNG.integers(0, 4096, 60_000).astype(np.uint64)
    trace = Trace.from_arrays(page * 4096 + 0x10_0000_0000, np.full(len(page), Op.READ, np.uint8))
    config = Config(mmu=mmu, vpid=mmu == "ept", stlb="64/4", walk_caches=False)
    alone, with_it = simulate(trace, config), simulate(trace, config.replace(tlb_extension="pom:16m"))
    refs = [run.counters["guest_walk_refs"] + run.counters["ept_walk_refs"] for run in (alone, with_it)]
    memory = with_it.tlb["extensions"]["pom"]["memory_refs"]
    assert with_it.counters["walks"] < alone.counters["walks"] / 2
    assert refs[1] < refs[0] / 2
    assert not fewer or refs[1] + memory < refs[0] * 0.6

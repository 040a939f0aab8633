"""Hits and misses equal those of an independent two-level true-LRU TLB in C (`yardstick tlb`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import Array, Geometry, geometry, parse_array
from fastmmu.tlb.tlb import TLB

U64 = npt.NDArray[np.uint64]
SOURCE = Path(os.environ.get("FASTMMU_YARDSTICK", Path(__file__).parents[2] / "../shared/yardstick"))
N = 300_000


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[U64, str, str], tuple[int, ...]]:
    source = SOURCE / "yardstick.c" if SOURCE.is_dir() else SOURCE
    if not source.exists():
        pytest.skip(f"skipped: no yardstick at {source}; set FASTMMU_YARDSTICK to yardstick.c")
    where = tmp_path_factory.mktemp("yardstick")
    subprocess.run(["cc", "-O2", "-o", str(where / "yardstick"), str(source)], check=True)

    def count(va: U64, l1: str, l2: str) -> tuple[int, ...]:
        va.tofile(where / "va.u64")
        first, second = parse_array(l1), parse_array(l2)
        shape = f"{first.sets},{first.ways},{second.sets},{second.ways}"
        output = subprocess.run(
            [str(where / "yardstick"), "tlb", shape, str(where / "va.u64"), "1"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return tuple(int(word) for word in output.split()[2:5])

    return count


def stream(kind: str, n: int = N) -> U64:
    """Linear addresses in the lower half: one sweep over, at random over, or mostly in a few of 5,000 pages."""
    rng = np.random.default_rng(len(kind))
    if kind == "sequential":
        return np.arange(n, dtype=np.uint64) * np.uint64(72) + np.uint64(0x7F00_0000_0123)
    if kind == "uniform":
        return rng.integers(0, 5000 << 12, n).astype(np.uint64)
    weight = 1 / np.arange(1, 5001)
    page = rng.permutation(1 << 18)[rng.choice(5000, n, p=weight / weight.sum())].astype(np.uint64)
    return np.repeat(page << np.uint64(12), rng.integers(1, 6, n))[:n] + rng.integers(0, 4096, n).astype(np.uint64)


@pytest.mark.parametrize("kind", ["sequential", "uniform", "zipf"])
@pytest.mark.parametrize(
    ("l1", "l2"), [("64/4", "1536/12"), ("16/fa", "512/4"), ("72/fa", "3072/24"), ("32/1", "64/2")]
)
def test_hits_and_misses_equal_the_yardsticks(
    yardstick: Callable[[U64, str, str], tuple[int, ...]], kind: str, l1: str, l2: str
) -> None:
    va = stream(kind)
    counted = TLB(geometry("skylake", l1d=l1, stlb=l2)).simulate(va)
    assert (counted["l1_hits"], counted["l2_hits"], counted["misses"]) == yardstick(va, l1, l2)
    assert counted["accesses"] == N
    if kind != "sequential":
        assert min(counted.values()) > 0


@pytest.mark.parametrize("kind", ["sequential", "uniform", "zipf"])
def test_the_specification_counts_the_same(yardstick: Callable[[U64, str, str], tuple[int, ...]], kind: str) -> None:
    va = stream(kind, 3000)
    spec = Tlb(geometry("skylake", l1d="8/4", stlb="24/6"))
    counts = [0, 0, 0]
    for la in va.tolist():
        level, _ = spec.lookup(la)
        counts[level - 1] += 1
        if not level:
            spec.fill(la, value(la))
    assert tuple(counts) == yardstick(va, "8/4", "24/6")


GEOMETRIES = {
    "nehalem": geometry("nehalem"),
    "four ways": geometry("skylake", l1d="64/4", stlb="1536/12"),
    "odd ways": geometry("skylake", l1d="24/6", stlb="80/10"),
    "long order": geometry("skylake", l1d="16/4", stlb="96/48"),
    "tree": Geometry(
        name="t", l1d=(Array(16, 4),), l1i=(Array(8, 4),), l2=(Array(64, 8),), replacement=("plru", "lru")
    ),
    "tree behind": Geometry(
        name="b", l1d=(Array(16, 4),), l1i=(Array(8, 4),), l2=(Array(64, 8),), replacement=("lru", "plru")
    ),
    "one level": Geometry(name="o", l1d=(Array(16, 4),), l1i=(Array(8, 4),)),
    "strict": geometry("strict"),
}
FILLED = {
    "nothing": (),
    "large pages": (("2m", "urwexd"),),
    "large pages, gone again": (("2m", "urwexd"), None),
    "fetched pages": (("4k", "urwexd"),),
    "global pages": (("4k", "urwexdg"), ("4k", "urwexd")),
    "fractured pages": (("2m", "urwexdg"), ("4k", "urwexd")),
}


@pytest.mark.parametrize("before", FILLED)
@pytest.mark.parametrize("of", GEOMETRIES)
def test_simulate_counts_as_single_lookups_do(of: str, before: str) -> None:
    """Where it takes the quick way (`tlb/held.pxd`) and where it does not: the same counters, entries, order of use."""
    va = stream("zipf", 4000)
    one, many = TLB(GEOMETRIES[of]), TLB(GEOMETRIES[of])
    for tlb in (one, many):
        for i, what in enumerate(FILLED[before]):
            for la in va[i:400:7].tolist():
                if what is None:
                    tlb.invlpg(la)
                else:
                    size = "2m" if what[0] == "2m" else "4k"
                    page = "2m" if before == "fractured pages" else size
                    access = (
                        "x" if before == "fetched pages" else "r"
                    )  # the second level holds them, the first of data not
                    tlb.fill(la, TLB.value(la & (1 << 46) - 1, size, page=page, flags=what[1]), access)
    counted = many.simulate(va)
    levels = []
    for la in va.tolist():
        levels.append(one.lookup(la)[0])
        if not levels[-1]:
            one.fill(la, value(la & ~0xFFF))
    assert [counted[name] for name in ("l1_hits", "l2_hits", "misses")] == [levels.count(i) for i in (1, 2, 0)]
    assert min(counted["l1_hits"], counted["misses"]) > 0
    assert one.counters() == many.counters()
    assert one.entries() == many.entries()


def test_fetches_go_through_the_instruction_side() -> None:
    va = stream("uniform", 20_000)
    tlb = TLB("skylake")
    counted = tlb.simulate(va, "x")
    assert counted == TLB(geometry("skylake", l1d="128/8")).simulate(va)
    assert tlb.counters()["l1i"]["lookups"] == 20_000
    assert tlb.counters()["l1d"]["lookups"] == 0


def test_read_only_and_empty_arrays() -> None:
    va = stream("zipf", 1000)
    va.flags.writeable = False
    assert TLB("skylake").simulate(va) == TLB("skylake").simulate(va.copy())
    assert TLB("skylake").simulate(va[:0]) == {"accesses": 0, "l1_hits": 0, "l2_hits": 0, "misses": 0}

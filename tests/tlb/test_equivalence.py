"""The kernel's TLB and the executable specification give the same answers and hold the same entries."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.reference.tlb.entries import UNITS
from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.reference.tlb.tlb import piece, value
from fastmmu.tlb.geometry import PAGES, TABLES, Array, Geometry, geometry
from fastmmu.tlb.tlb import TLB
from tests.support.tlb_programs import SMALL, Program, canonical, run, sorted_entries

POLICIES = [
    ("lru", "lru"), ("plru", "plru"), ("lru", "plru"), ("random:5", "random"), ("srrip", "srrip"), ("lru", "chirp"),
    ("chirp", "srrip"), ("random", "chirp"), ("plru", "chirp"),
]  # fmt: skip


def check(shape: Geometry, seed: int, n: int, **contexts: int) -> TLB:
    kernel, spec = TLB(shape, **contexts), Tlb(shape)
    listed = sorted_entries if shape.unbounded else list  # arrays that grow have other sets
    for i, operation in enumerate(Program(seed).operations(n)):
        assert run(kernel, *operation) == run(spec, *operation), f"operation {i} of seed {seed}: {operation}"
        if i % 50 == 0 or i == n - 1:
            assert listed(kernel.entries()) == listed(spec.entries()), (
                f"after operation {i} of seed {seed}: {operation}"
            )
    counted, expected = kernel.counters(), spec.counters()
    # a sweep that frees context numbers forgets what flushes took, and arrays that grow remember it for longer
    if contexts or shape.unbounded:
        counted.pop("refill_misses")
        expected.pop("refill_misses")
    assert counted == expected
    for unit, live in kernel.live().items():
        assert live == sum(("gpm" if entry[1] == "gpm" else entry[0]) == unit for entry in spec.entries())
    return kernel


@pytest.mark.parametrize("policies", POLICIES, ids="-".join)
@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_kernel_equals_specification(name: str, policies: tuple[str, str], seed: int) -> None:
    check(geometry(SMALL[name], replacement=policies), seed, 800)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
@pytest.mark.parametrize("name", SMALL)
def test_arrays_that_grow(name: str, seed: int) -> None:
    """Over more sets and more ways, from few of either; nothing makes room for another."""
    counted = check(msgspec.structs.replace(SMALL[name], unbounded=True), seed, 1200).counters()
    assert sum(counted[unit]["evictions"] for unit in UNITS) == 0


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
@pytest.mark.parametrize("ways", [64, 128, 132, 200])
def test_sets_of_many_ways(ways: int, seed: int) -> None:
    """Of up to 128 each has a tag, of more they are chained (tlb/replacement.pxd)."""
    all_sizes, tables = (Array(ways, ways, PAGES),), (Array(ways, ways, TABLES),)
    check(Geometry(name="many", l1i=all_sizes, l1d=all_sizes, l2=all_sizes, psc=tables, epsc=tables), seed, 1500)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_context_numbers_are_recycled(seed: int) -> None:
    """Fewer numbers than flushes make necessary, but as many as there can be contexts with entries."""
    tiny = Geometry(name="tiny", l1i=(Array(1, 1),), l1d=(Array(2, 2),), l2=(Array(4, 4),))
    check(tiny, seed, 1500, max_contexts=8)


@pytest.mark.parametrize("name", SMALL)
def test_programs_get_everywhere(name: str) -> None:
    """What the equality above is worth: every kind of hit, eviction and invalidation comes up."""
    counted = check(SMALL[name], 3, 9000).counters()
    shape = SMALL[name]
    for unit in ("l1i", "l1d", "l1s", "l2i", "l2", "psc", "epsc"):
        for array in getattr(shape, unit):
            for size in array.sizes:
                if size != "pml5e":  # reached only where all other levels miss
                    assert counted[unit]["hits"][size] > 0, (unit, size)
            assert counted[unit]["evictions"] > 0, unit
    assert shape.gpm == "off" or counted["gpm"]["hits"]["4k"] > 0
    assert counted["survivals"] > 0
    for cause, operations in counted["flushes"].items():
        assert operations > 0
        assert sum(counted["invalidated"][cause].values()) > 0, cause
    assert len(counted["flushes"]) == 24
    assert len(counted["refill_misses"]) > 6


def test_tables_and_pages_are_the_specifications() -> None:
    assert PAGES + TABLES == ("4k", "2m", "1g", "pde", "pdpte", "pml4e", "pml5e")


@given(
    st.integers(0, (1 << 52) - 1),
    st.sampled_from(PAGES),
    st.sampled_from([None, "4m"]),
    st.sets(st.sampled_from("usrwexdg")),
    st.integers(0, 15),
    st.integers(0, 7),
)
def test_values(pa: int, size: str, page: str | None, flags: set[str], key: int, memory_type: int) -> None:
    made = value(pa, size, page=page, flags="".join(flags), key=key, memory_type=memory_type)
    assert TLB.value(pa, size, page=page, flags="".join(flags), key=key, memory_type=memory_type) == made


@given(st.integers(0, (1 << 57) - 1).map(canonical), st.integers(0, (1 << 52) - 1))
def test_a_piece_maps_what_the_page_maps(la: int, pa: int) -> None:
    whole = value(pa, "1g")
    tlb = TLB(SMALL["small_pages_only"])
    assert tlb.fill(la, whole) == piece(whole, la, "4k")
    assert piece(whole, la, "4k") >> 12 & (1 << 40) - 1 == (pa >> 30 << 30 | la & 0x3FFF_F000) >> 12

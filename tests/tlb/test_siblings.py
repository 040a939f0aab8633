"""Hyperthreads of a core: what they share, whose entries go, and what they take from each other."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.reference.tlb.entries import UNITS
from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.tlb.geometry import Array, Geometry, geometry
from fastmmu.tlb.tlb import TLB
from tests.support.tlb_programs import SMALL, Program, run
from tests.support.tlb_programs import sorted_entries as in_order

Core = tuple[TLB | Tlb, ...]
KINDS = ("kernel", "specification")


def core(kind: str, shape: Geometry, threads: int = 2, **contexts: int) -> Core:
    if kind == "kernel":
        return TLB.hyperthreads(threads, shape, **contexts)
    found = [Tlb(shape)]
    return (*found, *(Tlb(shape, found[0]) for _ in range(threads - 1)))


def check(shape: Geometry, threads: int, seed: int, n: int, **contexts: int) -> list[dict[str, Any]]:
    """The same operations on both, in turns of a few; counters of each hyperthread."""
    rng = random.Random(seed)
    kernel, spec = core("kernel", shape, threads, **contexts), core("specification", shape, threads)
    programs = [Program(seed + i) for i in range(threads)]
    listed = in_order if shape.unbounded else list
    for turn in range(n):
        at = rng.randrange(threads)
        for operation in programs[at].operations(rng.randint(1, 12)):
            assert run(kernel[at], *operation) == run(spec[at], *operation), f"turn {turn} of seed {seed}: {operation}"
        if turn % 10 == 0 or turn == n - 1:
            for mine, expected in zip(kernel, spec, strict=True):
                assert listed(mine.entries()) == listed(expected.entries()), f"after turn {turn} of seed {seed}"
    counted = [tlb.counters() for tlb in kernel]
    expected_counts = [tlb.counters() for tlb in spec]
    if shape.unbounded or contexts:  # see test_equivalence.check
        for found in (*counted, *expected_counts):
            found.pop("refill_misses")
            if shape.unbounded:
                found.pop("displaced", None)
                found.pop("sibling_misses", None)
    assert counted == expected_counts
    for mine, expected in zip(kernel, spec, strict=True):
        assert isinstance(mine, TLB)
        for unit, live in mine.live().items():
            assert live == sum(("gpm" if entry[1] == "gpm" else entry[0]) == unit for entry in expected.entries())
    return counted


@pytest.mark.parametrize("shared", ["l1", "l2", "psc", "l2,psc,gpm", "l1,l2,psc,gpm"])
@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1), threads=st.integers(2, 4))
def test_kernel_equals_specification(name: str, shared: str, seed: int, threads: int) -> None:
    check(geometry(SMALL[name], shared=shared), threads, seed, 90)


OTHERS = [("plru", "plru"), ("lru", "plru"), ("random", "srrip"), ("lru", "chirp"), ("chirp", "chirp")]


@pytest.mark.parametrize("policies", OTHERS, ids="-".join)
@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_other_replacement(name: str, policies: tuple[str, str], seed: int) -> None:
    check(geometry(SMALL[name], replacement=policies, shared="l1,l2,psc,gpm"), 2, seed, 90)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_arrays_that_grow_are_not_shared(seed: int) -> None:
    counted = check(msgspec.structs.replace(SMALL["split"], unbounded=True), 2, seed, 60)
    assert all(found[unit]["evictions"] == 0 for found in counted for unit in UNITS)


@pytest.mark.parametrize("name", ["split", "amd", "quota"])
def test_programs_get_everywhere(name: str) -> None:
    """What the equality above is worth: both displace entries of the other, and both miss what was displaced."""
    counted = check(geometry(SMALL[name], shared="l1,l2,psc,gpm"), 2, 5, 900)
    for found in counted:
        assert found["sibling_misses"] > 0
        assert found["displaced"]["l1d"] > 0
        assert found["displaced"]["l2"] > 0
        assert not SMALL[name].psc or found["displaced"]["psc"] > 0


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_context_numbers_are_recycled(seed: int) -> None:
    """Fewer numbers than flushes make necessary: a sweep empties ways of dead contexts of either."""
    tiny = Geometry(name="tiny", l1i=(Array(1, 1),), l1d=(Array(2, 2),), l2=(Array(4, 4),), shared=("l1", "l2"))
    check(tiny, 2, seed, 200, max_contexts=8)


# ---- worked examples: two hyperthreads, a second level of one set of four ways --------------------------------------

FOUR = Geometry(name="four", l1i=(Array(1, 1),), l1d=(Array(1, 1),), l2=(Array(4, 4),), psc=(Array(2, 2, ("pde",)),))
PAGE = 0x1000


def touch(tlb: TLB | Tlb, page: int, flags: str = "urwexd") -> int:
    """The level that held it; 0: it was walked and filled."""
    level, _ = tlb.lookup(page * PAGE)
    if not level:
        tlb.fill(page * PAGE, TLB.value(page * PAGE, flags=flags))
    return level


@pytest.mark.parametrize("kind", KINDS)
def test_equal_tags_of_another_hyperthread_are_no_hit(kind: str) -> None:
    a, b = core(kind, FOUR)
    for tlb in (a, b):
        tlb.switch(vpid=1, pcid=2, eptrta=0x5000)
    assert touch(a, 1) == 0
    assert touch(b, 1) == 0  # its own walk, though all tags of the architecture are equal
    assert [entry[5] for tlb in (a, b) for entry in tlb.entries() if entry[0] == "l2"] == [PAGE, PAGE]
    assert [touch(a, 1), touch(b, 1)] == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "args"),
    [("mov_cr3", ()), ("cr4_all", ()), ("invlpg", (PAGE,)), ("invpcid", (2,)), ("page_fault", (PAGE,)), ("reset", ())],
)
def test_an_invalidation_is_the_own_hyperthreads(kind: str, name: str, args: tuple[int, ...]) -> None:
    a, b = core(kind, FOUR)
    for tlb in (a, b):
        touch(tlb, 1)
        tlb.psc_fill(PAGE, 2, 0x77)
    kept = b.entries()
    assert getattr(a, name)(*args) == 3  # both levels and the paging-structure entry
    assert a.entries() == []
    assert b.entries() == kept
    assert touch(b, 1) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_invept_is_not_one(kind: str) -> None:
    """INVEPT and INVVPID of all contexts are of one logical processor, too."""
    a, b = core(kind, FOUR)
    for tlb in (a, b):
        tlb.switch(vpid=3, eptrta=0x9000)
        touch(tlb, 4)
    assert a.invept(2) == 2
    assert a.invvpid(2) == 0
    assert len(b.entries()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_contention_is_counted(kind: str) -> None:
    a, b = core(kind, FOUR)
    for page in (1, 2):
        touch(a, page)
    for page in (11, 12, 13):  # two ways are empty, then a's oldest goes
        touch(b, page)
    assert b.counters()["displaced"] == {"l2": 1}
    assert a.counters()["displaced"] == {}
    assert touch(a, 1) == 0  # a walk that sharing has caused; its own 2 is the oldest, and goes
    assert a.counters()["sibling_misses"] == 1
    assert a.counters()["displaced"] == {}
    assert touch(a, 3) == 0  # never cached before: nobody's doing
    assert a.counters()["sibling_misses"] == 1
    assert a.counters()["displaced"] == {"l2": 1}
    assert touch(a, 2) == 0  # which it displaced itself
    assert a.counters()["sibling_misses"] == 1
    assert touch(b, 11) == 0
    assert b.counters()["sibling_misses"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["mov_cr3", "invlpg", "other_pcid"])
def test_what_was_invalidated_meanwhile_is_not_the_siblings_doing(kind: str, how: str) -> None:
    a, b = core(kind, FOUR)
    touch(a, 1)
    touch(a, 2)
    for page in range(11, 15):
        touch(b, page)
    if how == "mov_cr3":
        a.mov_cr3()
    elif how == "invlpg":
        a.invlpg(PAGE)
    else:
        a.mov_cr3(pcid=7)
    assert touch(a, 1) == 0
    assert a.counters()["sibling_misses"] == (how == "other_pcid")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hyperthread_that_lost_all_its_entries(kind: str) -> None:
    """The number of its context goes with the last entry; what is in force knows it."""
    shape = geometry(FOUR, shared="l1,l2,psc")
    a, b = core(kind, shape)
    touch(a, 1)
    for page in range(11, 16):
        touch(b, page)
    assert a.entries() == []
    assert touch(a, 1) == 0
    assert a.counters()["sibling_misses"] == 1
    assert touch(a, 1) == 1


def test_a_core_outlives_its_hyperthreads_and_takes_turns() -> None:
    a, b = TLB.hyperthreads(2, "skylake")
    assert (a.siblings, b.siblings) == (2, 2)
    pages = np.arange(4096, dtype=np.uint64) * PAGE
    for tlb in (a, b):
        tlb.simulate(pages)
    assert b.counters()["displaced"]["l2"] > 0
    held = b.entries()
    del a
    assert b.entries() == held
    b.simulate(pages)


def test_capacity_is_shared() -> None:
    """Two hyperthreads on pages that fit one of them each miss; alone they hit, and so without sharing."""
    pages = np.arange(1024, dtype=np.uint64) * PAGE
    together = TLB.hyperthreads(2, geometry("skylake", shared="l2"))
    apart = TLB.hyperthreads(2, geometry("skylake", shared="none"))
    for tlbs in (together, apart):
        for _ in range(3):
            for tlb in tlbs:
                tlb.simulate(pages)
    assert all(tlb.siblings == 1 for tlb in apart)
    misses = [tlb.counters()["l2"]["misses"] for tlb in together]
    assert all(tlb.counters()["l2"]["misses"] == 1024 for tlb in apart)
    assert all(n > 1024 for n in misses)
    for tlb, n in zip(together, misses, strict=True):  # others are of what its own fills displaced for want of room
        assert 0 < tlb.counters()["sibling_misses"] <= n - 1024


def test_one_thread_is_a_cpu_of_its_own() -> None:
    (only,) = TLB.hyperthreads(1)
    assert only.siblings == 1
    assert "displaced" not in only.counters()


@pytest.mark.parametrize("shared", ["l3", "l2;psc", ("l2", 3), 5])
def test_what_cannot_be_shared_is_refused(shared: Any) -> None:
    with pytest.raises((ConfigError, WrongTypeError), match="shared"):
        geometry("skylake", shared=shared)


@pytest.mark.parametrize("threads", [0, 9, "2"])
def test_threads_of_a_core(threads: Any) -> None:
    with pytest.raises(Exception, match="threads"):
        TLB.hyperthreads(threads)


def test_the_name_of_a_geometry_says_what_is_shared_where_it_is_not_the_default() -> None:
    assert "hyperthreads" not in str(geometry("skylake"))
    assert str(geometry("skylake", shared="none")).endswith("hyperthreads share nothing")
    assert str(geometry("skylake", shared="psc, l2")) == str(geometry("skylake"))

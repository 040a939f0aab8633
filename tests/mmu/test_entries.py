"""Entries by page, of an EPT of one's own and of machines: beside the executable specification, entry for entry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import ConfigError, Fault, MemoryType, OutOfMemoryError, PhysicalMemory, PolicyError, WrongTypeError
from fastmmu.dtypes import SPTE_DTYPE
from fastmmu.mmu import Mmu
from fastmmu.reference.kvm.entries import EntryMap, Found

MEMORY, POOL = 1 << 25, range(0x10000, 0x80000)
SLOTS = ((0, 1 << 22, 1 << 22), (1 << 30, 1 << 21, (1 << 23) + 0x1000), ((1 << 39) + (1 << 21), 1 << 21, 3 << 22))
NEAR = [0, 1, 7, 511, 512, 513, 1023, 1024, 1 << 18, (1 << 18) + 1, (1 << 27) + 512, (1 << 27) + 700, (1 << 36) - 1]
GFNS = st.one_of(st.sampled_from(NEAR), st.integers(0, 1100))
MANY = st.lists(GFNS, max_size=6)
RIGHTS = st.sampled_from([1, 3, 4, 5, 7])
TYPES = st.sampled_from([None, 0, 1, 4, 5, 6])
STEPS = st.one_of(
    st.tuples(st.just("map"), MANY, RIGHTS, TYPES, st.booleans()),
    st.tuples(st.just("large"), st.lists(GFNS.map(lambda gfn: gfn & ~511), max_size=3), RIGHTS, TYPES, st.booleans()),
    st.tuples(st.just("at"), MANY, st.integers(0x100, 0x1FFF), RIGHTS),
    st.tuples(st.just("large_at"), GFNS.map(lambda gfn: gfn & ~511), st.integers(1, 15)),
    st.tuples(st.just("mark"), MANY),
    st.tuples(st.just("zap"), MANY),
    st.tuples(st.just("protect"), MANY, st.booleans()),
    st.tuples(st.just("clear"), MANY),
    st.tuples(st.just("access"), GFNS, st.sampled_from("rwx")),
    st.tuples(st.just("zap_all")),
)


def mmu_of(ad: bool = True, slots: Any = SLOTS) -> Mmu:
    return Mmu(PhysicalMemory(MEMORY), slots=slots, pool=POOL, ad=ad)


class Pair:
    """The Mmu and its specification."""

    def __init__(self, ad: bool) -> None:
        self.mmu, self.map = mmu_of(ad), EntryMap(SLOTS, ad)

    def do(self, name: str, *given: Any) -> None:
        getattr(self, name)(*given)
        assert self.mmu.flush == self.map.flush, name
        self.mmu.flush = self.map.flush = False

    def map_with(self, gfns: list[int], level: int, rights: int, memory_type: int | None, ignore: bool) -> None:
        options: dict[str, Any] = {} if memory_type is None else {"memory_type": memory_type, "ignore_pat": ignore}
        bits = {} if memory_type is None else {"memory_type": memory_type << 3 | ignore << 6}
        done = self.mmu.map(gfns, level=level, rights=rights, **options)
        assert done.tolist() == [self.map.map(gfn, None, level, rights, **bits) for gfn in gfns]

    def step(self, step: tuple[Any, ...]) -> None:
        mmu, spec = self.mmu, self.map
        match step:
            case ("map", gfns, rights, kind, ignore):
                self.map_with(gfns, 1, rights, kind, ignore)
            case ("large", gfns, rights, kind, ignore):
                self.map_with(gfns, 2, rights, kind, ignore)
            case ("at", gfns, pfn, rights):
                pfns = range(pfn, pfn + len(gfns))
                if pfns.stop <= MEMORY >> 12:
                    assert mmu.map(gfns, pfns, rights=rights).all()
                    assert all(spec.map(gfn, at, 1, rights) for gfn, at in zip(gfns, pfns, strict=True))
            case ("large_at", gfn, pfn):
                assert mmu.map(gfn, pfn << 9, level=2) is True
                assert spec.map(gfn, pfn << 9, 2)
            case ("mark", gfns):
                mmu.mark_mmio(gfns)
                for gfn in gfns:
                    spec.mark_mmio(gfn)
            case ("zap", gfns):
                assert mmu.zap(gfns).tolist() == spec.zap(gfns)
            case ("protect", gfns, restorable):
                found = mmu.write_protect(gfns, restorable=restorable)
                assert found.tolist() == spec.write_protect(gfns, restorable)
            case ("clear", gfns) if mmu.ad:
                assert mmu.clear_dirty(gfns).tolist() == spec.clear_dirty(gfns)
            case ("access", gfn, kind):
                walk = fastmmu.walk_ept(mmu.memory, mmu.eptp, gfn << 12 | 8, access=kind, set_ad=mmu.ad)  # type: ignore[arg-type]
                where = spec.access(gfn, {"r": 1, "w": 2, "x": 4}[kind])
                if where is None:
                    assert walk.fault in (Fault.EPT_VIOLATION, Fault.EPT_MISCONFIG)
                else:
                    assert (walk.fault, walk.pa) == (Fault.NONE, where | 8)
            case ("zap_all",):
                mmu.zap_all()
                spec.zap_all()

    def compare(self) -> None:
        gfns = [*NEAR, *range(0, 1100, 9), *range((1 << 18) - 2, (1 << 18) + 20)]
        found = self.mmu.lookup(gfns)
        assert found.dtype == SPTE_DTYPE
        assert [Found(*row) for row in found.tolist()] == [self.map.lookup(gfn) for gfn in gfns]
        assert self.mmu.tables == (len(self.map.tables), len(POOL) >> 12)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(STEPS, max_size=25))
def test_beside_the_specification(ad: bool, steps: list[tuple[Any, ...]]) -> None:
    pair = Pair(ad)
    pair.compare()
    for step in steps:
        pair.do("step", step)
        pair.compare()
    check_mappings(pair)


def check_mappings(pair: Pair) -> None:
    """What the tables in memory map, found by another way: every mapping of the EPT."""
    mmu = pair.mmu
    rows = fastmmu.ept_mappings(mmu.memory, mmu.eptp)
    found = {(int(row["gpa"]), int(row["hpa"]), int(row["size"])) for row in rows if row["readable"]}
    wanted = {
        (first << 12, entry & 0x000F_FFFF_FFFF_F000, 1 << 9 * level + 3)
        for (level, first), entry in pair.map.entries.items()
        if entry & 1 << 11 and entry & 1
    }
    assert found == wanted


# ---- what goes in and comes out ------------------------------------------------------------------------------------


def test_one_and_many() -> None:
    mmu = mmu_of()
    assert mmu.map(5) is True
    assert mmu.map(600 << 20) is False
    for gfns in ([5, 6], (5, 6), range(5, 7), np.array([5, 6]), np.array([5, 6], np.uint8), np.array([5, 0, 6])[::2]):
        assert mmu.map(gfns).tolist() == [True, True]
        assert mmu.lookup(gfns)["hpa"].tolist() == [(1 << 22) + 0x5000, (1 << 22) + 0x6000]
        assert mmu.write_protect(gfns).tolist() == [True, True]
    assert mmu.map(range(6, 4, -1)).tolist() == [True, True]
    assert mmu.map([]).tolist() == mmu.zap(range(0)).tolist() == []
    assert mmu.lookup(np.empty(0, np.uint64)).shape == (0,)
    row = mmu.lookup(5)
    assert (row["level"], row["rights"], row["mapped"]) == (1, 7, True)
    assert mmu.zap(5) is True
    assert mmu.zap(5) is False
    assert mmu.find(0x5000).entry == 0  # type: ignore[union-attr]


def test_what_a_large_entry_was_is_told_of_all_its_pages() -> None:
    mmu = mmu_of()
    mmu.map([0, 512], level=2)
    assert mmu.write_protect([1, 2, 512]).tolist() == [True, True, True]
    assert mmu.write_protect([1, 2, 512]).tolist() == [False, False, False]
    assert mmu.zap([3, 4, 1024]).tolist() == [True, True, False]


def test_a_walk_finds_what_was_mapped() -> None:
    mmu = mmu_of()
    mmu.map(7, memory_type=MemoryType.UC, rights=5)
    walk = mmu.find(0x7000)
    assert walk is not None
    assert (walk.level, walk.leaf, walk.gfn) == (1, True, 7)
    walk.set(mmu.make_spte((1 << 22) + 0x7000, 1, 7, True, True, True, 6 << 3))
    row = mmu.lookup(7)
    assert (row["rights"], row["accessed"], row["dirty"]) == (7, True, True)
    mmu.mark_mmio(8)
    assert mmu.find(0x8000).mmio_gfn == 8  # type: ignore[union-attr]
    assert mmu.slot(7).base_gfn == 0  # type: ignore[union-attr]
    assert mmu.slot(1 << 20) is None


def test_tables_that_are_used_up() -> None:
    mmu = Mmu(PhysicalMemory(MEMORY), slots=SLOTS, pool=range(0x10000, 0x14000))
    assert mmu.tables == (1, 4)
    assert mmu.map([0, 1]).all()
    with pytest.raises(PolicyError, match=r"map: at gfn 0x200, after 1 others, no table page is left; give a larger"):
        mmu.map([2, 512, 3])
    assert mmu.lookup([2, 3])["mapped"].tolist() == [True, False]
    mmu.zap_all()
    assert mmu.map(512) is True
    assert not mmu.lookup(0)["mapped"]


def test_two_in_one_memory() -> None:
    memory = PhysicalMemory(MEMORY)
    one = Mmu(memory, slots=SLOTS, pool=range(0x10000, 0x20000))
    other = Mmu(memory, pool=range(0x20000, 0x30000))
    one.map(1)
    other.map(1, 0x777, rights=1)
    assert [int(mmu.lookup(1)["hpa"]) for mmu in (one, other)] == [(1 << 22) + 0x1000, 0x777000]
    del one
    assert fastmmu.walk_ept(memory, other.eptp, 0x1008).pa == 0x777008


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "why"),
    [
        ({"pool": None}, WrongTypeError, "pool=None: give a range"),
        ({"pool": range(0, 8192, 2)}, WrongTypeError, "give a range"),
        ({"pool": range(4096, 4096)}, ConfigError, "holds no page"),
        ({"pool": range(1, 8192)}, ConfigError, "pool.start=0x1 is no multiple of 4096"),
        ({"pool": range(1 << 40)}, ConfigError, "pool.stop=0x10000000000 is outside"),
        ({"pool": range(-4096, 4096)}, ConfigError, "pool.start"),
        ({"pool": POOL, "slots": 5}, WrongTypeError, "slots must be a sequence"),
        ({"pool": POOL, "slots": [5]}, WrongTypeError, r"slots\[0\]=5: give \(gpa, bytes, hpa\)"),
        ({"pool": POOL, "slots": [(0, 4096, 0x10000)]}, ConfigError, "the guest could write to the tables"),
        ({"pool": POOL, "slots": [(0, 4096, MEMORY)]}, ConfigError, "memory 0x2000000|outside 0x0..0x2000000"),
        ({"pool": POOL, "slots": [(1 << 48, 4096, 0)]}, ConfigError, "48 bits"),
        ({"pool": POOL, "slots": [(0, 8192, 0), (4096, 4096, 0)]}, ConfigError, r"slots\[1\].* it overlaps another"),
        ({"pool": POOL, "slots": [(i << 12, 4096, 0) for i in range(33)]}, ConfigError, "32 slots"),
        ({"pool": POOL, "ad": 2}, fastmmu.StateError, "ad=2 is neither"),
    ],
)
def test_an_mmu_that_cannot_be(options: dict[str, Any], kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        Mmu(PhysicalMemory(MEMORY), **options)


def test_memory_that_cannot_be() -> None:
    with pytest.raises(WrongTypeError, match="memory must be a PhysicalMemory"):
        Mmu(None, pool=POOL)  # type: ignore[arg-type]
    words = np.zeros(MEMORY, np.uint8)
    words.flags.writeable = False
    with pytest.raises(ConfigError, match="writable memory"):
        Mmu(PhysicalMemory.from_array(words), pool=POOL)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda m: m.map(1 << 36), "gfns=0x1000000000 does not fit 36 bits"),
        (lambda m: m.map([0, 1 << 36]), r"gfns\[1\]=0x1000000000: these tables translate pages below"),
        (lambda m: m.map(range(1 << 40)), "more than 16777216 pages"),
        (lambda m: m.map(range(-2, 2)), "do not fit 64 bits"),
        (lambda m: m.map(np.array([-1])), r"gfns\[0\]=-1 is no page"),
        (lambda m: m.map(np.zeros((2, 2), np.uint64)), "shape"),
        (lambda m: m.map(1, level=3), "level=3 is outside 1..2"),
        (lambda m: m.map([512, 1], level=2), r"gfns\[1\]=0x1 is not aligned to 2 MB"),
        (lambda m: m.map(512, 1, level=2), r"pfns\[0\]=0x1 is not aligned"),
        (lambda m: m.map(512, 1 << 30, level=2), r"pfns\[0\]=0x40000000 is outside of memory"),
        (lambda m: m.map(1, 0x10), r"pfns\[0\]=0x10: the tables of this Mmu stand there"),
        (lambda m: m.map(512, 0, level=2), "the tables of this Mmu stand there"),
        (lambda m: m.map([1, 2], [3]), "2 gfns and 1 pfns"),
        (lambda m: m.map(1, rights=2), "can be written and not read"),
        (lambda m: m.map(1, rights=0), "rights=0 is outside 1..7"),
        (lambda m: m.map(1, memory_type=2), "memory_type=2: choose from 0, 1, 4, 5, 6"),
        (lambda m: m.map(1, ignore_pat=True), "goes with a memory_type"),
        (lambda m: mmu_of(ad=False).clear_dirty(1), "no D flag"),
    ],
)
def test_what_is_refused(call: Any, why: str) -> None:
    mmu = mmu_of()
    with pytest.raises(PolicyError, match=why):
        call(mmu)
    assert mmu.tables[0] == 1
    assert not mmu.flush


def test_the_host_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert issubclass(OutOfMemoryError, fastmmu.FastmmuError)
    with pytest.raises(WrongTypeError, match="dtype float64"):
        mmu_of().map(np.array([1.0]))

"""Walks that use and fill caches: kernel against the executable specification; and what the caches are good for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import _walk
from fastmmu import reference as ref
from fastmmu.errors import StateError
from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.tlb.geometry import Array, Geometry, geometry
from fastmmu.tlb.tlb import TLB
from tests.support.random_tables import EPT, GUEST, RandomTables

STEP = ("hpa", "gpa", "entry", "kind", "level", "guest_level")
PAGES, TABLES = ("4k", "2m", "1g"), ("pde", "pdpte", "pml4e", "pml5e")
FIRST = {"l1i": (Array(2, 2),), "l1d": (Array(2, 2),)}
SHAPES = {
    "small": Geometry(
        name="small", psc=(Array(4, 4, TABLES),), epsc=(Array(4, 2, TABLES),), gpm=Array(8, 4, PAGES), **FIRST
    ),
    "apart": Geometry(
        name="apart",
        psc=tuple(Array(3, 3, (size,)) for size in TABLES),
        epsc=tuple(Array(20, 20, (size,)) for size in TABLES),
        gpm=Array(4, 4),
        **FIRST,
    ),
    "shared": Geometry(name="shared", l2=(Array(32, 4, PAGES),), psc=(Array(2, 2, ("pdpte",)),), gpm="shared", **FIRST),
    "wide": Geometry(
        name="wide", psc=(Array(20, 20, TABLES),), epsc=(Array(34, 34, TABLES),), gpm=Array(36, 18, PAGES), **FIRST
    ),
    "quota": Geometry(
        name="quota",
        psc=(Array(6, 6, TABLES, (3, 2, 1, 1)),),
        epsc=(Array(3, 3, ("pde",)), Array(20, 20, ("pdpte", "pml4e", "pml5e"), (15, 4, 3))),
        gpm=Array(24, 24, PAGES, (18, 4, 2)),
        **FIRST,
    ),
    "plru": Geometry(name="plru", l2=(Array(8, 8, PAGES),), gpm="shared", replacement=("lru", "plru"), **FIRST),
    "none": geometry("skylake", walk_caches=False),
    "strict": geometry("strict"),
}


def specification(tables: RandomTables) -> tuple[ref.State, ref.Ept | ref.Npt | None]:
    given = tables.state
    names = ("cr0", "cr3", "cr4", "efer", "cpl", "ac", "pkru", "pkrs", "implicit", "maxphyaddr", "upper_a")
    state = ref.State(
        **{name: getattr(given, name) for name in names},
        gb_pages=given.page1gb,
        pse36_bits=given.pse36,
        pdpte=given.pdptes or (0, 0, 0, 0),
    )
    if tables.eptp is None:
        return state, None
    options = tables.eptp.options
    if isinstance(tables.eptp, fastmmu.Npt):
        return state, ref.Npt(
            ncr3=tables.eptp.value,
            levels=options["levels"],
            maxphyaddr=options["maxphyaddr"],
            nxe=int(options["nxe"]),
            gb_pages=int(options["page1gb"]),
            pat=options["pat"],
            guest_ad_before_final_ept=options["ad_before_final"],
        )
    caps = ref.EptCap.ALL
    caps &= ~(0 if options["execute_only"] else ref.EptCap.EXECUTE_ONLY)
    caps &= ~(0 if options["page1gb"] else ref.EptCap.PAGE_1G)
    return state, ref.Ept(
        eptp=tables.eptp.value,
        caps=caps,
        maxphyaddr=options["maxphyaddr"],
        mbec=int(options["mbec"]),
        guest_ad_before_final_ept=options["ad_before_final"],
    )


def summary(found: Any) -> tuple[Any, ...]:
    """Of an outcome of either: what it was, where it led or what it reports, and every step."""
    steps = [tuple(int(getattr(step, name)) for name in STEP) for step in found.steps]
    fault = int(found.fault)
    if isinstance(found, fastmmu.WalkResult):
        more: tuple[Any, ...] = {
            0: (found.pa, found.gpa, found.rights, found.page_size or 0, found.ept_page_size or 0, found.memory_type),
            1: (found.error_code,),
            3: (found.exit_qualification, found.gpa),
            4: (found.gpa,),
            9: (found.error_code, found.gpa),
        }.get(fault, ())
    else:
        sizes = (found.guest_size, found.ept_size) if fault == 0 else ()
        more = {
            0: lambda: (found.pa, found.gpa, (found.us, found.rw, found.xd), *sizes, found.memory_type),
            1: lambda: (found.error_code,),
            3: lambda: (found.qualification, found.gpa),
            4: lambda: (found.gpa,),
            9: lambda: (found.error_code, found.gpa),
        }.get(fault, tuple)()
    return fault, *more, steps


class Twins:
    """The same memory, caches and registers, for the kernel, for the kernel without a record of steps, and for the
    specification."""

    def __init__(self, seed: int, mode: str, ept: bool | str, shape: Geometry) -> None:
        self.tables = tables = RandomTables(seed, mode, ept)
        if mode == "pae" and ept != "npt":  # AMD's leaves them in memory
            pdptes = tuple(
                int(entry) & 0x000F_FFFF_FFFF_F001 & (1 << tables.maxphyaddr) - 1 for entry in tables.mem.u64[:4]
            )
            tables.state = tables.state.replace(pdptes=pdptes)
        self.rng = tables.rng
        self.state, self.ept = specification(tables)
        self.words = tables.mem.u64.copy()
        self.memory = ref.ArrayMemory(self.words)
        self.silent = fastmmu.PhysicalMemory(tables.mem.nbytes)
        self.silent.u64[:] = tables.mem.u64
        self.kernel, self.unrecorded, self.spec = TLB(shape), TLB(shape), Tlb(shape)
        self.root = None if tables.eptp is None else tables.eptp.value & 0x000F_FFFF_FFFF_F000
        self.vpid, self.pcid = 0, 0
        self.switch()
        self.seen: set[int] = set()
        self.read: list[int] = []

    def switch(self) -> None:
        self.vpid, self.pcid = (int(self.rng.integers(0, 2)) for _ in range(2))
        for tlb in (self.kernel, self.unrecorded, self.spec):
            tlb.switch(self.vpid, self.pcid, self.root)

    def walk(self, la: int) -> None:
        access = str(self.rng.choice(["r", "w", "rw", "x"]))
        got = fastmmu.walk(
            self.tables.mem, self.tables.state, la, access=access, eptp=self.tables.eptp, set_ad=True, tlb=self.kernel
        )
        want = ref.walk(self.memory, self.state, la, access, ept=self.ept, tlb=self.spec)
        assert summary(got) == summary(want)
        fault, *rest = _walk._walk_unrecorded(
            self.silent, self.tables.state, la, access, self.tables.eptp, self.unrecorded
        )
        assert fault == got.fault
        gpa = got.gpa if fault in (0, 3, 4) else rest[1]
        assert rest == [got.pa, gpa, got.error_code, got.exit_qualification, got.guest_refs, got.ept_refs]
        self.seen.add(int(got.fault))
        self.read += [int(step.hpa) >> 3 for step in got.steps if step.kind < 2 and step.level > 1]

    def store(self) -> None:
        """Changes an entry somewhere, or a right in one that was read, and tells nobody."""
        if self.read and self.rng.random() < 0.7:
            at = other = int(self.rng.choice(self.read))
        else:
            first = int(self.rng.choice([GUEST, EPT])) << 9
            at, other = (first + int(self.rng.integers(0, 15 << 9)) for _ in range(2))
        value = self.tables.mem.u64[other] ^ np.uint64(self.rng.choice([0, 1, 2, 2, 4, 4, 0x20]))
        self.tables.mem.u64[at] = self.silent.u64[at] = self.words[at] = value

    def invalidate(self, la: int) -> None:
        rng, vpid, pcid = self.rng, int(self.rng.integers(0, 2)), int(self.rng.integers(0, 2))
        if self.tables.state.mode < 3:  # addresses of 32 bits
            la &= 0xFFFF_FFFF
        elif la + (1 << 56) & (1 << 64) - 1 >= 1 << 57:  # not canonical
            la &= (1 << 47) - 1
        operation: list[tuple[Any, ...]] = [
            ("invlpg", la, vpid, pcid),
            ("mov_cr3", vpid, pcid),
            ("page_fault", la, vpid, pcid),
            ("invpcid", int(rng.integers(0, 4)), vpid, pcid, la),
            ("transition", bool(rng.integers(0, 2))),
            ("invvpid", int(rng.integers(0, 4)), vpid, la),
            ("invept", int(rng.integers(1, 3)), self.root or 0),
        ]
        name, *arguments = operation[int(rng.integers(0, len(operation)))]
        n = getattr(self.spec, name)(*arguments)
        assert getattr(self.kernel, name)(*arguments) == getattr(self.unrecorded, name)(*arguments) == n

    def run(self, n: int) -> None:
        addresses = [int(la) for la in self.tables.addresses(6)]
        for _ in range(n):
            la = int(self.rng.choice(np.array(addresses, np.uint64))) ^ int(self.rng.choice([0, 0, 0x1000, 0x20_0000]))
            chance = self.rng.random()
            if chance < 0.75:
                self.walk(la)
            elif chance < 0.93:
                self.store()
            elif chance < 0.97:
                self.invalidate(la)
            else:
                self.switch()
        assert np.array_equal(self.tables.mem.u64, self.words)
        assert np.array_equal(self.silent.u64, self.words)
        for tlb in (self.kernel, self.unrecorded):
            assert sorted(tlb.entries(), key=repr) == sorted(self.spec.entries(), key=repr)
            assert tlb.counters() == self.spec.counters()


@pytest.mark.parametrize("ept", [False, True, "npt"], ids=["guest", "nested", "npt"])
@pytest.mark.parametrize("mode", ["none", "32", "pae", "4", "5"])
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_kernel_equals_specification(shape: str, mode: str, ept: bool | str, seed: int) -> None:
    Twins(seed, mode, ept, SHAPES[shape]).run(60)


def test_programs_get_everywhere() -> None:
    hits: dict[str, int] = {}
    seen: set[int] = set()
    for seed in range(60):
        twins = Twins(seed, "5" if seed % 2 else "4", (False, True, "npt", True)[seed % 4], SHAPES["strict"])
        twins.run(60)
        seen |= twins.seen
        counted = twins.kernel.counters()
        for unit in ("psc", "epsc", "gpm"):
            assert counted[unit]["evictions"] == 0
            for size, n in counted[unit]["hits"].items():
                hits[f"{unit} {size}"] = hits.get(f"{unit} {size}", 0) + n
    assert seen >= {0, 1, 3, 4, 9}
    del hits["epsc pml5e"]  # only where all lower levels miss
    assert min(hits.values()) > 0, hits


# ---- what the caches save (tlb.md §2) ------------------------------------------------------------------------------


@pytest.mark.parametrize(("cached", "references"), [((), 4), (("pml4e",), 3), (("pdpte",), 2), (("pde", "pml4e"), 1)])
def test_references_of_a_walk(cached: tuple[str, ...], references: int) -> None:
    arrays = tuple(Array(4, 4, (size,)) for size in cached)
    tlb = TLB(Geometry(name="one", psc=arrays, **FIRST))
    memory = fastmmu.PhysicalMemory(0x10000)
    for level, table in enumerate((0x1000, 0x2000, 0x3000, 0x4000)):
        for index in (0, 1):
            memory.write64(table + 8 * index, (0x2000 + 0x1000 * level) | 0x67)
    state = fastmmu.GuestState(cr3=0x1000)
    walks = [fastmmu.walk(memory, state, la, set_ad=True, tlb=tlb).guest_refs for la in (0x123, 0x1123)]
    assert walks == [4, references]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
@pytest.mark.parametrize("ept", [False, True], ids=["guest", "ept"])
def test_memory_decides_where_what_is_cached_denies(ept: bool, recorded: bool) -> None:
    """If it denies, too, the caches stay as they are; if it allows, what the walk from memory found takes the place of
    what was cached, and both walks' references count (tlb.md §1.1)."""
    memory, entry = fastmmu.PhysicalMemory(0x10000), 0x7 if ept else 0x67
    for level, table in enumerate((0x1000, 0x2000, 0x3000)):
        memory.write64(table, 0x2000 + 0x1000 * level | entry)
    memory.write64(0x3000, 0x4000 | entry & ~2)  # a table of read-only pages
    for page in range(3):
        memory.write64(0x4000 + 8 * page, 0x8000 + 0x1000 * page | (0x37 if ept else 0x67))
    state = fastmmu.GuestState(cr0=0x10) if ept else fastmmu.GuestState(cr3=0x1000)
    eptp, unit = (0x1000 | 0x1E, "epsc") if ept else (None, "psc")
    tlb = TLB()

    def walk(la: int, access: str) -> tuple[fastmmu.Fault, int]:
        if recorded:
            got = fastmmu.walk(memory, state, la, access=access, eptp=eptp, set_ad=True, tlb=tlb)
            return got.fault, got.guest_refs + got.ept_refs
        fault, *_, guest_refs, ept_refs = _walk._walk_unrecorded(memory, state, la, access, eptp, tlb)
        return fastmmu.Fault(fault), guest_refs + ept_refs

    tlb.switch(0, 0, 0x1000 if ept else None)
    denied = fastmmu.Fault.EPT_VIOLATION if ept else fastmmu.Fault.PAGE_FAULT
    assert walk(0, "r") == (fastmmu.Fault.NONE, 4)
    before = tlb.entries()
    assert walk(0x1000, "w") == (denied, 1)
    assert tlb.entries() == before
    assert tlb.counters()[unit]["fills"] == 3
    assert "rewalk" not in tlb.counters()["invalidated"]
    memory.write64(0x3000, 0x4000 | entry)
    assert walk(0x1000, "w") == (fastmmu.Fault.NONE, 5)
    assert tlb.counters()[unit]["fills"] == 6
    assert tlb.counters()["invalidated"]["rewalk"] == {unit: 3}
    assert walk(0x2000, "w") == (fastmmu.Fault.NONE, 1)


def test_a_query_has_no_caches() -> None:
    with pytest.raises(StateError, match="pass set_ad=True"):
        fastmmu.walk(fastmmu.PhysicalMemory(0x2000), fastmmu.GuestState(), 0, tlb=TLB())


def test_arrays_grow_where_nothing_may_be_replaced() -> None:
    """Over more sets, and over more ways where one set alone is full; every entry stays, the most recent first."""
    tlb = TLB("strict")
    for vpid in range(200):
        tlb.switch(vpid, 0)
        tlb.fill(0x5000, TLB.value(vpid << 12))
    tlb.switch(0, 0)
    for page in range(40_000):
        tlb.fill(page << 12, TLB.value((1 << 30) + (page << 12)))
    assert tlb.live()["l2"] == 40_000 + 199 + 1
    counted = tlb.counters()
    assert sum(counted[unit]["evictions"] for unit in ("l1i", "l1d", "l2")) == 0
    assert tlb.lookup(0x5000) == (1, TLB.value((1 << 30) + 0x5000))
    for vpid in range(1, 200):
        tlb.switch(vpid, 0)
        assert tlb.lookup(0x5000) == (1, TLB.value(vpid << 12))
    tlb.switch(0, 0)
    assert all(tlb.lookup(page << 12)[0] == 1 for page in range(40_000))


def test_a_set_that_is_full_again_after_its_array_grew() -> None:
    """All that was in it lies in one half of it: the array grows once more, and no entry makes room."""
    tlb = TLB("strict")  # of 64 sets
    spread, one_set = [page for page in range(600) if page % 64], range(0, 4096 * 40, 4096)
    for page in (*spread, *one_set):
        tlb.fill(page << 12, TLB.value((1 << 30) + (page << 12)))
    counted = tlb.counters()
    assert sum(counted[unit]["evictions"] for unit in ("l1i", "l1d", "l2")) == 0
    assert all(tlb.lookup(page << 12)[0] == 1 for page in (*spread, *one_set))

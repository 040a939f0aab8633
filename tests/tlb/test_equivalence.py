"""The kernel's TLB and the executable specification give the same answers and hold the same entries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.reference.tlb.entries import UNITS
from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.reference.tlb.tlb import piece, value
from fastmmu.tlb.geometry import PAGES, TABLES, Array, Geometry, geometry
from fastmmu.tlb.tlb import TLB

SMALL = {
    "split": Geometry(
        name="split",
        l1i=(Array(4, 2), Array(2, 2, ("2m",))),
        l1d=(Array(8, 4), Array(2, 1, ("2m",)), Array(2, 2, ("1g",))),
        l2=(Array(24, 6, ("4k", "2m")), Array(2, 2, ("1g",))),
        psc=(Array(4, 4, ("pde",)), Array(2, 1, ("pdpte",)), Array(1, 1, ("pml4e",))),
        epsc=(Array(4, 2, ("pde", "pdpte", "pml4e", "pml5e")),),
        gpm="shared",
    ),
    "small_pages_only": Geometry(
        name="small_pages_only",
        l1i=(Array(3, 3),),
        l1d=(Array(8, 2),),
        l2=(Array(12, 3),),
        gpm=Array(4, 4, ("4k", "2m", "1g")),
        psc=(Array(3, 3, ("pde", "pdpte", "pml4e", "pml5e")),),
    ),
    "amd": Geometry(
        name="amd",
        l1i=(Array(5, 5, PAGES),),
        l1d=(Array(7, 7, PAGES),),
        l2=(Array(16, 4, ("4k", "2m")),),
        l2i=(Array(8, 2, ("4k", "2m")),),
        smash=True,
    ),
    "quota": Geometry(
        name="quota",
        l1i=(Array(4, 4),),
        l1d=(Array(4, 2), Array(1, 1, ("2m",))),
        l1s=(Array(4, 4, PAGES),),
        l2=(Array(16, 8, PAGES, (8, 3, 2)),),
    ),
    "data_only": Geometry(
        name="data_only", l1i=(Array(4, 2),), l1d=(Array(2, 2),), l2=(Array(8, 4),), l2_fetches=False
    ),
    "wide": Geometry(  # LRU of more than 16 ways, of more than 32, and of several sizes in a set; caches of tables, too
        name="wide",
        l1i=(Array(20, 20),),
        l1d=(Array(36, 18, PAGES),),
        l2=(Array(35, 35, ("4k", "2m")), Array(17, 17, ("1g",))),
        psc=(Array(17, 17, TABLES),),
        epsc=(Array(18, 18, TABLES),),
        gpm="shared",
    ),
    "wide_quota": Geometry(
        name="wide_quota",
        l1i=(Array(17, 17),),
        l1d=(Array(20, 20, PAGES, (12, 4, 2)),),
        l2=(Array(48, 48, PAGES, (40, 5, 3)),),
        gpm=Array(33, 33, PAGES, (20, 17, 3)),
        psc=(Array(18, 18, ("pde",)), Array(3, 3, ("pdpte", "pml4e", "pml5e"))),
    ),
    "one_level": Geometry(name="one_level", l1i=(Array(4, 2),), l1d=(Array(8, 2, PAGES),)),
}

SIZES = [("4k", "4k")] * 4 + [("4k", "2m"), ("2m", "2m"), ("2m", "4m"), ("4k", "4m"), ("4k", "1g"), ("2m", "1g")]
SIZES += [("1g", "1g")]


def canonical(la: int) -> int:
    """Bits 63:57 of a linear address are those of bit 56."""
    return la | 0x7F << 57 if la >> 56 & 1 else la


class Program:
    """Operations at random: mostly accesses to few pages, so that sets fill up and addresses meet again."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.one = self.rng.choice
        self.context: tuple[int, int, int | None] = (0, 0, None)
        self.accessed = 0

    def vpid(self) -> int:
        return self.one([0, 1, 1, 2])

    def pcid(self) -> int:
        return self.one([0, 0, 7])

    def root(self) -> int | None:
        return self.one([None, 0x1000, 0x1000, 0x12345_6000])

    def address(self) -> int:
        """In the lower half mostly; at both ends of the canonical range; anywhere."""
        r = self.rng.random()
        if r < 0.02:
            return canonical(self.rng.getrandbits(57))
        top = 0 if r < 0.9 else self.one([1, 0x3FFFF, (1 << 34) - 1])
        page = self.one([0, 1, 2, 3, 4, 5, 8, 9, 16, 511])
        return top << 30 | self.one([0, 0, 1, 2]) << 21 | page << 12 | self.one([0, 0xFFF])

    def gpa(self) -> int:
        return self.address() & (1 << 52) - 1

    def value(self) -> int:
        size, page = self.one(SIZES)
        return value(self.rng.getrandbits(52), size, page=page, flags=self.one(["urwexd", "urwexdg", "sr", "urxg"]))

    def arguments(self, name: str) -> tuple[Any, ...]:
        access = self.one("rrwx") if self.rng.random() < 0.9 else "rw"
        match name:
            case "access" | "refill":
                self.accessed = self.address()
                return self.accessed, self.value(), access
            case "switch":
                self.context = self.vpid(), self.pcid(), self.root()
                return self.context
            case "gpm_access":
                return self.gpa(), self.value()
            case "psc_access":
                return self.address(), self.rng.randint(3, 6)
            case "epsc_access":
                return self.gpa(), self.rng.randint(3, 6)
            case "mov_cr3" | "cr4_pcid":
                return self.vpid(), self.pcid()
            case "cr0_pg" | "cr4_all":
                return (self.vpid(),)
            case "invlpg" | "page_fault":
                return self.address(), self.vpid(), self.pcid()
            case "invpcid":
                return self.rng.randint(0, 3), self.vpid(), self.pcid(), self.address()
            case "transition" | "vmfunc":
                return (self.rng.random() < 0.5,)
            case "invvpid":
                return self.rng.randint(0, 3), self.vpid(), self.address()
            case "invlpga":
                return self.address(), self.vpid()
            case "tlb_control":
                return self.one([0, 1, *[3] * 6, *[7] * 6]), self.vpid()
            case "invept":
                return self.rng.randint(1, 2), self.one([0x1000, 0x12345_6000])
            case "ept_violation":
                # as a rule in the context in force, at an address that it has used
                other = self.vpid(), self.pcid(), self.root()
                vpid, pcid, root = self.context if self.rng.random() < 0.8 else other
                la = self.one([None, self.address(), self.accessed, self.accessed])
                return self.gpa(), root, vpid, pcid, la
        return ()

    def operations(self, n: int) -> Iterator[tuple[Any, ...]]:
        for _ in range(n):
            name = self.rng.choices(list(OFTEN), list(OFTEN.values()))[0]
            yield name, *self.arguments(name)


# name -> how often; an access fills where it misses, as a walk would
OFTEN = {"access": 500, "switch": 20, "gpm_access": 60, "psc_access": 40, "epsc_access": 40, "refill": 15, "invlpg": 15}
OFTEN |= dict.fromkeys(("page_fault", "ept_violation", "transition", "invpcid", "invvpid"), 8)
OFTEN |= dict.fromkeys(("mov_cr3", "cr0_pg", "cr4_all", "cr4_pcid", "invept", "vmfunc", "invlpga"), 4)
OFTEN |= {"reset": 1, "tlb_control": 1}


def run(tlb: TLB | Tlb, name: str, *args: Any) -> Any:
    if name == "access":
        la, new, access = args
        level, found = tlb.lookup(la, access)
        return level, found or tlb.fill(la, new, access)
    if name == "gpm_access":
        found = tlb.gpm(args[0])
        return found or tlb.gpm_fill(*args)
    if name in ("psc_access", "epsc_access"):
        lookup, fill = (tlb.psc, tlb.psc_fill) if name == "psc_access" else (tlb.epsc, tlb.epsc_fill)
        level, found = lookup(*args)
        for missing in range((level or args[1]) - 1, 1, -1):  # a walk caches what it reads below the hit
            fill(args[0], missing, args[0] >> 12 | missing)
        return level, found
    if name == "ept_violation":
        gpa, root, vpid, pcid, la = args
        return tlb.ept_violation(gpa, root, vpid=vpid, pcid=pcid, la=la)
    return getattr(tlb, name)(*args)


def sorted_entries(entries: list[Any]) -> list[Any]:
    return sorted(entries, key=repr)


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


@pytest.mark.parametrize("policies", [("lru", "lru"), ("plru", "plru"), ("lru", "plru")], ids="-".join)
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

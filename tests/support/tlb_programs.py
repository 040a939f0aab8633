"""Random programs of operations of a TLB, for kernel and specification; small arrays of every kind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import PAGES, TABLES, Array, Geometry
from fastmmu.tlb.tlb import TLB

__all__ = ["SMALL", "Program", "canonical", "run", "sorted_entries"]

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

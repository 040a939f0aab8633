"""Each row of the tables of tlb.md §3-§5: what dies, and that everything else survives. On kernel and specification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import pytest

from fastmmu import StateError
from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import Geometry, geometry, parse_array
from fastmmu.tlb.tlb import TLB
from tests.support.tlb_modes import KINDS, MODES, make_tlb

A, B = 0x7F00_1234_5000, 0x7F00_1234_6000  # the same 2M region
G = 0xFFFF_8000_0040_0000  # of a global page, and of a local one in PCID 1
FAR = 0x1234_5678_9000
R, S, N = 0x12_3456_7000, 0x8000, 5 << 12  # EPT roots; the one that stands for ASID 5
GEOMETRY = geometry("skylake", l1d="256/fa", stlb="2048/16")


class Entry(NamedTuple):
    kind: str
    vpid: int
    pcid: int
    root: int | None
    at: int


# Linear mappings of the host and of a VPID that lingers, combined ones under two VPIDs and two roots.
CONTEXTS = [(0, 0, None), (0, 1, None), (5, 0, None), (0, 0, R), (5, 0, R), (5, 1, R), (5, 0, S), (6, 0, R), (6, 1, S)]
CONTEXTS += [(5, 0, N), (6, 0, N)]
GLOBALS = sorted({(vpid, root) for vpid, _, root in CONTEXTS}, key=str)


def linear() -> Iterator[Entry]:
    for vpid, pcid, root in CONTEXTS:
        yield from (Entry("local", vpid, pcid, root, at) for at in ((A, B) if pcid == 0 else (A, B, G)))
        yield from (Entry("psc", vpid, pcid, root, at) for at in (A & ~0x1FFFFF, FAR & ~0x1FFFFF))
    yield from (Entry("global", vpid, 0, root, G) for vpid, root in GLOBALS)


EVERYTHING = set(linear()) | {
    Entry(kind, 0, 0, r, at) for r in (R, S, N) for kind in ("gpm", "epsc") for at in (0, 1 << 30)
}


def fill(tlb: TLB | Tlb) -> None:
    for kind, vpid, pcid, root, at in sorted(EVERYTHING, key=str):
        tlb.switch(vpid, pcid, root)
        if kind == "local":
            tlb.fill(at, value(at, flags="urwexd"))
        elif kind == "global":
            tlb.fill(at, value(at, flags="urwexdg"))
        elif kind == "gpm":
            tlb.gpm_fill(at, value(at))
        else:
            (tlb.psc_fill if kind == "psc" else tlb.epsc_fill)(at, 2, 1)


def held(tlb: TLB | Tlb, *units: str) -> set[Entry]:
    linear_bits = (1 << 57) - 1
    found = {Entry(k, v, p, r, at) for unit, k, v, p, r, at, _, _ in tlb.entries() if unit in units}
    return {e._replace(at=next(x.at for x in EVERYTHING if x.at & linear_bits == e.at)) for e in found}


def shape() -> Geometry:
    many = parse_array("64/fa", sizes=("pde",))
    return msgspec.structs.replace(GEOMETRY, psc=(many,), epsc=(many,))


# operation -> which entries it invalidates; e is the entry
ROWS: dict[str, str] = {
    # §3
    "mov_cr3(5, 0)": "e.vpid == 5 and e.pcid == 0 and e.kind in ('local', 'psc')",
    "mov_cr3(5, 1)": "e.vpid == 5 and e.pcid == 1 and e.kind in ('local', 'psc')",
    "mov_cr3(0, 0)": "lm_or_cm and e.vpid == 0 and e.pcid == 0 and e.kind != 'global'",
    "cr0_pg(5)": "e.vpid == 5",
    "cr4_all(0)": "lm_or_cm and e.vpid == 0",
    "cr4_pcid(5, 1)": "e.vpid == 5 and e.pcid == 1",
    "invlpg(A, 5, 0)": "e.vpid == 5 and e.pcid == 0 and (e.at == A or e.kind == 'psc')",
    "invlpg(A + 0xFFF, 5, 1)": "e.vpid == 5 and e.pcid == 1 and (e.at == A or e.kind == 'psc')",
    "invlpg(G, 5, 1)": "e.vpid == 5 and (e.kind == 'global' or e.pcid == 1 and (e.at == G or e.kind == 'psc'))",
    "invlpg(G, 5, 0)": "e.vpid == 5 and (e.kind == 'global' or e.pcid == 0 and e.kind == 'psc')",
    "invlpg(FAR, 0, 0)": "lm_or_cm and e.vpid == 0 and e.pcid == 0 and e.kind == 'psc'",
    "page_fault(A, 5, 0)": "e.vpid == 5 and e.pcid == 0 and used_for(A) and e.kind != 'global'",
    "page_fault(G, 5, 1)": "e.vpid == 5 and e.pcid == 1 and e.at == G",
    # §4
    "invpcid(0, 5, 1, G)": "e.vpid == 5 and e.pcid == 1 and e.at == G",
    "invpcid(0, 5, 0, B)": "e.vpid == 5 and e.pcid == 0 and used_for(B) and e.kind != 'global'",
    "invpcid(1, 5, 0)": "e.vpid == 5 and e.pcid == 0 and e.kind != 'global'",
    "invpcid(2, 5)": "e.vpid == 5",
    "invpcid(3, 5)": "e.vpid == 5 and e.kind != 'global'",
    # §5
    "transition(False)": "lm_or_cm and e.vpid == 0",
    "transition(True)": "False",
    "invvpid(0, 5, A)": "e.vpid == 5 and used_for(A)",
    "invvpid(0, 5, G)": "e.vpid == 5 and e.at == G",
    "invvpid(1, 5)": "e.vpid == 5",
    "invvpid(2)": "e.vpid != 0",
    "invvpid(3, 5)": "e.vpid == 5 and e.kind != 'global'",
    "invvpid(1, 0)": "lm_or_cm and e.vpid == 0",  # the machine refuses it: VMfail 28
    "invept(1, R)": "e.root == R",
    "invept(1, 0x9000)": "False",
    "invept(2)": "e.root is not None",
    "vmfunc(False)": "lm_or_cm and e.vpid == 0 and e.root is not None",
    "vmfunc(True)": "False",
    "ept_violation(0x10, R, vpid=5, pcid=0, la=A)": (
        "e.root == R and (e.at == 0 or e.vpid == 5 and e.pcid == 0 and used_for(A) and e.kind in ('local', 'psc'))"
    ),
    "ept_violation(1 << 30, S, vpid=5, pcid=0)": "e.root == S and e.at == 1 << 30",
    # §11: ASID 5 with what is tagged by it alone under nested paging, N = 5 << 12
    "invlpga(A, 5)": "e.vpid == 5 and used_for(A)",
    "invlpga(G, 5)": "e.vpid == 5 and e.at == G",
    "tlb_control(0, 5)": "False",
    "tlb_control(1, 5)": "True",
    "tlb_control(3, 5)": "e.vpid == 5 or e.root == N and e.kind in ('gpm', 'epsc')",
    "tlb_control(7, 5)": "e.vpid == 5 and e.kind != 'global' or e.root == N and e.kind in ('gpm', 'epsc')",
    "tlb_control(3, 4)": "False",
    "reset()": "True",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("row", ROWS)
def test_what_dies_and_what_survives(row: str, make: type[TLB | Tlb], mode: str) -> None:
    def dies(e: Entry) -> bool:
        def used_for(la: int) -> bool:
            return e.at == (la & ~0x1FFFFF if e.kind == "psc" else la)

        lm_or_cm = e.kind in ("local", "global", "psc")
        return bool(eval(ROWS[row], globals(), {"e": e, "used_for": used_for, "lm_or_cm": lm_or_cm}))

    tlb = make_tlb(make, shape(), mode)
    fill(tlb)
    assert held(tlb, "l2", "gpm", "psc", "epsc") == EVERYTHING
    n = eval(f"tlb.{row}", globals(), {"tlb": tlb})
    left = {e for e in EVERYTHING if not dies(e)}
    assert held(tlb, "l2", "gpm", "psc", "epsc") == left
    assert held(tlb, "l1d") == {e for e in left if e.kind in ("local", "global")}
    mappings = sum(e.kind in ("local", "global") for e in EVERYTHING - left)  # each in two levels
    assert n == len(EVERYTHING) - len(left) + mappings
    counted = tlb.counters()
    assert sum(sum(by_unit.values()) for by_unit in counted["invalidated"].values()) == n
    all_mappings = 2 * sum(e.kind in ("local", "global") for e in EVERYTHING)
    assert counted["survivals"] == (all_mappings if row == "transition(True)" else 0)


@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
def test_lookups_match_only_their_own_context(make: type[TLB | Tlb]) -> None:
    """T1; a global page answers every PCID of its VPID and root, and nobody else."""
    tlb = make(shape())
    tlb.switch(5, 0, R)
    tlb.fill(A, value(0x1000))
    tlb.fill(G, value(0x2000, flags="urwexdg"))
    for vpid in (0, 4, 5, 6):
        for pcid in (0, 1, 4095):
            for root in (None, R, S):
                tlb.switch(vpid, pcid, root)
                mine = vpid == 5 and root == R
                assert tlb.lookup(G)[0] == mine
                assert tlb.lookup(A)[0] == (mine and pcid == 0)


@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("page", "size", "far"),
    [("2m", "4k", 0x1FF000), ("1g", "4k", 0x3FFF_F000), ("1g", "2m", 0x3FE0_0000), ("4m", "2m", 0x20_0000)],
)
def test_every_piece_of_a_large_page_goes(make: type[TLB | Tlb], page: str, size: str, far: int) -> None:
    """A guest's large page over small EPT pages is cached in pieces; INVLPG of any address in it removes all."""
    tlb = make(geometry("skylake"))
    tlb.switch(5, 0, R)
    base = 0x40_0000_0000
    for la in (base, base + far, base + (1 << 31)):
        tlb.fill(la, value(la, size, page=page))
    assert tlb.invlpg(base + 0x1234, 5, 0) == 4
    assert [tlb.lookup(la)[0] for la in (base, base + far, base + (1 << 31))] == [0, 0, 1]
    tlb.fill(base + far, value(base + far, size))  # a page of its own now
    assert tlb.invlpg(base + 0x1234, 5, 0) == 0
    assert tlb.lookup(base + far)[0] == 1


@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way_freed", [False, True])
def test_where_a_local_and_a_global_entry_match_the_more_recent_is_hit(make: type[TLB | Tlb], way_freed: bool) -> None:
    """Two PCIDs of which one maps the page global: both entries match in the other, wherever in the set they are."""
    local, shared, other = value(0x1000), value(0x2000, flags="urwexdg"), value(0x3000)
    first, last, evict = A + 0x10_0000, A + 0x8_0000, A + 0x4000  # the first two: in the same set of the second level
    tlb = make(geometry("skylake", l1d="4/1"))  # direct-mapped: the second level decides
    tlb.switch(0, 7)
    tlb.fill(first, other)
    tlb.fill(A, local)
    if way_freed:
        tlb.invlpg(first, 0, 7)
    tlb.switch(0, 0)
    tlb.fill(A, shared)
    tlb.fill(last, other)
    tlb.switch(0, 7)
    tlb.fill(evict, other)
    assert tlb.lookup(A) == (2, shared)
    held = [entry[7] for entry in tlb.entries() if entry[0] == "l2" and entry[5] not in (first, evict)]
    assert held == [shared, other, local]


@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
def test_refill_replaces_what_denied_the_access(make: type[TLB | Tlb]) -> None:
    """T11: the old entry goes from both levels even where the new one is of another size."""
    tlb = make(geometry("skylake"))
    tlb.fill(A, value(0x5000, flags="ur"))
    tlb.refill(A, value(0x4000_0000, "2m"))
    assert tlb.lookup(A) == (1, value(0x4000_0000, "2m"))
    assert [(unit, size) for unit, *_, size, _ in tlb.entries()] == [("l1d", "2m"), ("l2", "2m")]
    assert tlb.counters()["invalidated"]["rewalk"] == {"l1d": 1, "l2": 1}


@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
def test_the_flush_tax(make: type[TLB | Tlb]) -> None:
    """A walk that fetches what a flush took is charged to it, once; what had been evicted anyway is not."""
    tlb = make(geometry("skylake", l1d="4/1", stlb="4/4"))
    pages = [A + i * 0x1000 for i in range(6)]
    for la in pages:  # the first two are evicted from both levels
        tlb.fill(la, value(la))
    tlb.transition(False)
    for la in [pages[5], pages[4], pages[0], pages[3], pages[2], pages[2]]:
        if not tlb.lookup(la)[0]:
            tlb.fill(la, value(la))
    # pages[0] took the way of pages[2], the least recent of those flushed
    assert tlb.counters()["refill_misses"] == {"transition": 3}


def test_operands_outside_their_range_are_refused() -> None:
    tlb = TLB("skylake")
    for call in (
        lambda: tlb.switch(1 << 16),
        lambda: tlb.switch(0, 4096),
        lambda: tlb.switch(0, 0, 0x1234),
        lambda: tlb.switch(0, 0, 1 << 52),
        lambda: tlb.invvpid(4, 1),
        lambda: tlb.invpcid(-1),
        lambda: tlb.invept(0),
        lambda: tlb.invept(3),
        lambda: tlb.lookup(0, "z"),
    ):
        with pytest.raises(StateError, match=r"\d|'z'"):
            call()


def test_counters_start_anew() -> None:
    tlb = TLB("skylake")
    tlb.lookup(A)
    assert tlb.counters()["l1d"]["misses"] == 1
    tlb.reset_counters()
    assert tlb.counters() == TLB("skylake").counters()

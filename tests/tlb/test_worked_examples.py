"""tlb.md §10, T1 to T12, and part C of worked_examples.md, on kernel and specification; T9 to T11 on whole machines."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fastmmu import Config, GuestState, Machine
from fastmmu.cpu.inv_operands_py import check_invalidation
from fastmmu.exits import Completion
from fastmmu.reference.cpu import inv_operands as operands
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import geometry, parse_array
from tests.support.tlb_modes import KINDS, MODES, AnyTlb, make_tlb
from tests.support.vmm_tables import guest_memory_at

A, B = 0x7F00_1234_5000, 0x7F00_1234_6000
FAR = 0xFFFF_8123_4567_8000
R, S = 0x12_3456_7000, 0x8000
P, RW, US, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
FULL = P | RW | US | ACCESSED | DIRTY
ROOT, PDPT, PD, PT, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


@pytest.fixture(params=[(kind, mode) for kind in KINDS for mode in MODES], ids=lambda p: f"{p[0].__name__}-{p[1]}")
def tlb(request: pytest.FixtureRequest) -> AnyTlb:
    kind, mode = request.param
    many = parse_array("16/fa", sizes=("pde",))
    return make_tlb(kind, msgspec.structs.replace(geometry("skylake"), psc=(many,), epsc=(many,)), mode)


def cache(tlb: AnyTlb, vpid: int, pcid: int, root: int | None, la: int, *, g: bool = False) -> None:
    tlb.switch(vpid, pcid, root)
    tlb.fill(la, value(la & ~0xFFF, flags="urwexd" + ("g" if g else "")))


def hits(tlb: AnyTlb, vpid: int, pcid: int, root: int | None, la: int) -> bool:
    tlb.switch(vpid, pcid, root)
    return tlb.lookup(la)[0] > 0


# ---- T1 to T8 --------------------------------------------------------------------------------------------------


def test_t1_lookups_never_match_another_vpid_or_root(tlb: AnyTlb) -> None:
    for vpid in (0, 1, 5, 65535):
        for root in (None, R, S):
            cache(tlb, vpid, 0, root, A + 0x1000 * vpid, g=vpid == 5)
            others = [(v, r) for v in (0, 1, 5, 65535) for r in (None, R, S) if (v, r) != (vpid, root)]
            assert hits(tlb, vpid, 0, root, A + 0x1000 * vpid)
            assert not any(hits(tlb, v, 0, r, A + 0x1000 * vpid) for v, r in others)
            tlb.reset()


@pytest.mark.parametrize(
    ("operation", "survives"),
    [
        ("mov_cr3(5, 1)", True), ("cr4_all(5)", False), ("invvpid(0, 5, A)", False), ("invvpid(1, 5)", False),
        ("invvpid(2)", False), ("invpcid(2, 5)", False), ("invlpg(A, 5, 1)", False), ("invpcid(0, 5, 1, A)", True),
        ("invpcid(1, 5, 1)", True), ("invpcid(3, 5)", True), ("invvpid(3, 5)", True),
    ],
)  # fmt: skip
def test_t2_global_entries(tlb: AnyTlb, operation: str, survives: bool) -> None:
    cache(tlb, 5, 1, R, A, g=True)
    eval(f"tlb.{operation}", {"tlb": tlb, "A": A})
    assert hits(tlb, 5, 2, R, A) is survives


def test_t3_invlpg_leaves_other_pcids(tlb: AnyTlb) -> None:
    cache(tlb, 0, 1, None, A)
    cache(tlb, 0, 2, None, A)
    tlb.invlpg(A, 0, 1)
    assert not hits(tlb, 0, 1, None, A)
    assert hits(tlb, 0, 2, None, A)


def test_t4_invlpg_empties_the_paging_structure_caches_of_the_pcid(tlb: AnyTlb) -> None:
    for pcid in (1, 2):
        tlb.switch(0, pcid, None)
        tlb.psc_fill(FAR, 2, 0x77)
    tlb.invlpg(A, 0, 1)  # any address
    assert [(tlb.switch(0, pcid, None), tlb.psc(FAR))[1] for pcid in (1, 2)] == [(0, 0), (2, 0x77)]


def test_t5_invvpid_2_leaves_vpid_0(tlb: AnyTlb) -> None:
    for vpid in (0, 5, 6):
        cache(tlb, vpid, 0, None, A)
    tlb.invvpid(2)
    assert [hits(tlb, vpid, 0, None, A) for vpid in (0, 5, 6)] == [True, False, False]


def test_t6_invept_1_leaves_other_roots_and_all_linear_mappings(tlb: AnyTlb) -> None:
    for root in (None, R, S):
        cache(tlb, 5, 0, root, A)
        if root is not None:
            tlb.gpm_fill(0x9000, value(0x9000))
    tlb.invept(1, R)
    assert [hits(tlb, 5, 0, root, A) for root in (None, R, S)] == [True, False, True]
    assert [(tlb.switch(5, 0, root), bool(tlb.gpm(0x9000)))[1] for root in (R, S)] == [False, True]


def test_t7_roots_with_other_low_bits_share_their_entries() -> None:
    """The tag of a machine's entries is EPTP bits 51:12: with A/D off and on it is the same one."""
    machine = bare(Config(mmu="ept", vpid=True, memory="64M"))
    machine.access(0)
    roots = {root for _, kind, _, _, root, *_ in machine.tlb.entries() if kind == "local"}
    assert machine.vmcs["eptp"] & 0xFFF == 0x5E
    assert roots == {machine.vmcs["eptp"] & ~0xFFF}


def test_t8_without_vpid_a_transition_leaves_only_guest_physical_mappings(tlb: AnyTlb) -> None:
    cache(tlb, 0, 0, None, A)
    cache(tlb, 0, 3, R, A, g=True)
    tlb.gpm_fill(0x9000, value(0x9000))
    tlb.transition(False)
    assert {kind for _, kind, *_ in tlb.entries()} == {"gpm"}


# ---- T9 to T11: the whole machine ------------------------------------------------------------------------------


def bare(config: Config, pte: int = DATA | FULL) -> Machine:
    machine = Machine(config, guest_kernel=False, state=GuestState(cr3=ROOT))
    for table, entry in ((ROOT, PDPT | FULL), (PDPT, PD | FULL), (PD, PT | FULL), (PT, pte)):
        machine.guest_memory.write64(table, entry)
    return machine


@pytest.mark.parametrize("vpid", [False, True])
def test_t9_an_ept_violation_needs_no_invept(vpid: bool) -> None:
    machine = bare(Config(mmu="ept", vpid=vpid, memory="64M"))
    assert machine.access(0, "w").gpa == DATA
    counted = machine.counters()
    assert counted["ept_build"] == 5  # four tables and the page
    assert counted["invept"] == counted["invvpid"] == 0


@pytest.mark.parametrize("config", [Config(memory="64M"), Config(mmu="ept", vpid=True, memory="64M")], ids=str)
def test_t10_a_write_that_hits_d_0_sets_d_in_memory(config: Config) -> None:
    machine = bare(config, DATA | FULL & ~DIRTY)
    machine.access(0)
    assert machine.guest_memory.read64(PT) == DATA | FULL & ~DIRTY
    machine.access(0, "w")
    assert machine.guest_memory.read64(PT) == DATA | FULL
    walks = machine.counters()["walks"]
    machine.access(0, "w")
    assert machine.counters()["walks"] == walks


@pytest.mark.parametrize("config", [Config(memory="64M"), Config(mmu="ept", vpid=True, memory="64M")], ids=str)
def test_t11_a_permission_upgrade_without_flush_costs_one_walk(config: Config) -> None:
    machine = bare(config, DATA | FULL & ~RW)
    machine.access(0, user=True)
    machine.guest_memory.write64(PT, DATA | FULL)
    walks = machine.counters()["walks"]
    assert machine.access(0, "w", user=True).gpa == DATA
    assert machine.counters()["walks"] == walks + 1
    assert machine.counters()["guest_faults"] == 0


# ---- T12: a vCPU that comes back to a physical CPU --------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("flushed", [False, True])
def test_t12_migration_without_flush_finds_the_old_translation(kind: type[AnyTlb], flushed: bool, mode: str) -> None:
    """The vCPU moves away, changes a page and invalidates it where it runs; back, only INVVPID makes it fresh."""
    here, there = (make_tlb(kind, geometry("skylake"), mode) for _ in range(2))
    cache(here, 7, 0, None, A)
    cache(there, 7, 0, None, A)
    there.invlpg(A, 7, 0)
    if flushed:
        here.invvpid(1, 7)
    assert hits(here, 7, 0, None, A) is not flushed


# ---- worked examples, part C ------------------------------------------------------------------------------------


def test_c2_pcid_and_global(tlb: AnyTlb) -> None:
    def three() -> None:
        tlb.reset()
        cache(tlb, 0, 1, None, A)
        cache(tlb, 0, 1, None, B, g=True)
        cache(tlb, 0, 2, None, A)

    def left() -> list[bool]:
        return [hits(tlb, 0, 1, None, A), hits(tlb, 0, 2, None, B), hits(tlb, 0, 2, None, A)]

    three()
    assert left() == [True, True, True]
    tlb.mov_cr3(0, 1)
    assert left() == [False, True, True]
    tlb.invlpg(B, 0, 2)
    assert left() == [False, False, True]
    for operation, expected in (
        (lambda: tlb.invpcid(0, 0, 1, B), [True, True, True]),
        (lambda: tlb.invpcid(3), [False, True, False]),
        (lambda: tlb.invpcid(2), [False, False, False]),
        (lambda: tlb.cr4_all(0), [False, False, False]),
    ):
        three()
        operation()
        assert left() == expected


def test_c3_invvpid(tlb: AnyTlb) -> None:
    def all_of(vpid: int) -> list[bool]:
        return [hits(tlb, vpid, 0, None, A), hits(tlb, vpid, 1, R, A), hits(tlb, vpid, 0, S, B)]

    def three() -> None:
        tlb.reset()
        for vpid in (0, 5, 6):
            cache(tlb, vpid, 0, None, A)
            cache(tlb, vpid, 1, R, A)
            cache(tlb, vpid, 0, S, B, g=True)

    three()
    tlb.invvpid(1, 5)
    assert [all_of(vpid) for vpid in (0, 5, 6)] == [[True] * 3, [False] * 3, [True] * 3]
    three()
    tlb.invvpid(2)
    assert [all_of(vpid) for vpid in (0, 5, 6)] == [[True] * 3, [False] * 3, [False] * 3]


def test_c3_and_c4_operands() -> None:
    for instruction, type, low, high in (
        ("invvpid", 1, 0, 0),
        ("invvpid", 0, 5, 0x0000_8000_0000_0000),
        ("invvpid", 1, 5 | 1 << 16, 0),
        ("invept", 1, 0x1_2345_6000, 0),  # UC, walk length 1
    ):
        assert check_invalidation(instruction, type, (low, high)) is Completion.VMFAIL_VALID
        assert operands.check(instruction, operands.Executing(), type, (low, high)) is Completion.VMFAIL_VALID


def test_c5_after_a_transition_without_vpid_the_guest_physical_mappings_serve_the_walk(tlb: AnyTlb) -> None:
    gpas = [ROOT, PDPT, PD, PT, DATA]
    cache(tlb, 0, 0, R, A)
    for gpa in gpas:
        tlb.gpm_fill(gpa, value(gpa))
    for _ in ("exit", "entry"):
        tlb.transition(False)
    assert not hits(tlb, 0, 0, R, A)
    assert [tlb.gpm(gpa) & 0x000F_FFFF_FFFF_F000 for gpa in gpas] == gpas


def test_c6_an_ept_right_that_comes_later_needs_no_invept() -> None:
    """The VMM write-protects a page in the EPT, the guest caches it by a read; the write exits once and succeeds."""
    machine = bare(Config(mmu="ept", vpid=True, memory="64M", pages="4k"))
    machine.access(0)
    leaf = next(int(i) * 8 for i in np.flatnonzero(is_leaf_of(machine, DATA)))
    entry = machine.memory.read64(leaf)
    machine.memory.write64(leaf, entry & ~(2 | 1 << 9))
    machine.tlb.reset()
    machine.access(0)
    machine.memory.write64(leaf, entry)
    exits, walks = machine.counters()["vm_exits"], machine.counters()["walks"]
    assert machine.access(0, "w").gpa == DATA
    assert machine.counters()["vm_exits"] - exits <= 1
    assert machine.counters()["walks"] == walks + 1


def is_leaf_of(machine: Machine, gpa: int) -> np.ndarray:
    """Which qwords below guest memory are an EPT leaf of this guest-physical page."""
    base = guest_memory_at(machine)
    words = machine.memory.u64[: base // 8]
    frames = words & np.uint64(0x000F_FFFF_FFFF_F000)
    return (frames == base + gpa) & (words & np.uint64(7) == 7)

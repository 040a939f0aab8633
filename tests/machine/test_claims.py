"""What memory virtualization costs under each scheme, and why: the classical claims, in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import Config, Machine, Op, Trace, interleave, simulate
from tests.support.event_lists import ALL_SCHEMES, distinct_pages, events, program, real_trace, run, with_events
from tests.support.vmm_tables import leaves

EPT = Config(mmu="ept", vpid=True, memory="256M")
SHADOW = Config(mmu="shadow", vpid=True, memory="256M")
NATIVE = Config(memory="256M")
SWITCH_BACK = (Op.SWITCH, 1), (Op.SWITCH, 0)


def table_frames(machine: Machine) -> set[int]:
    """Frames of the guest's paging structures below CR3, of the kernel's half, too."""
    words = machine.guest_memory.u64
    found: set[int] = set()

    def visit(table: int, level: int) -> None:
        found.add(table >> 12)
        if level > 1:
            for entry in words[table >> 3 : (table >> 3) + 512].tolist():
                if entry & 1 and not entry & 1 << 7:
                    visit(entry & 0x000F_FFFF_FFFF_F000, level - 1)

    visit(machine.hw_cr3 & ~0xFFF, 4)
    return found


def two_programs(switch_every: int) -> Trace:
    return interleave([program(20_000, seed=1), program(20_000, seed=2)], switch_every)


# ---- EPT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [program(20_000), real_trace()], ids=["made", "real"])
def test_ept_exits_once_for_each_page_first_touched(trace: Trace) -> None:
    """Pages of data and of the guest's tables: with 4 KB backing exactly one exit each, which maps it."""
    machine = Machine(EPT)
    gpas = run(machine, trace)
    crossings = distinct_pages(trace) - len(np.unique(gpas >> np.uint64(12)))
    touched = set((gpas >> np.uint64(12)).tolist()) | table_frames(machine)
    counters = machine.counters()
    assert counters["exits_by_reason"] == {"ept_violation": len(touched) + crossings}
    assert counters["ept_build"] == counters["vm_exits"] == len(list(leaves(machine)))


def test_ept_exits_are_fewer_with_large_backing() -> None:
    """With 2 MB backing one exit for each region of 2 MB."""
    machine = Machine(EPT.replace(host_pages="2m"))
    gpas = run(machine, program(20_000))
    touched = set((gpas >> np.uint64(21)).tolist()) | {gfn >> 9 for gfn in table_frames(machine)}
    assert machine.counters()["vm_exits"] == len(touched)


def test_ept_exits_do_not_grow_with_context_switches() -> None:
    few, many = (simulate(two_programs(switch_every), EPT).counters for switch_every in (5000, 500))
    assert many["cr3_switches"] == 10 * few["cr3_switches"]
    assert many["exits_by_reason"] == few["exits_by_reason"]


def test_cr3_invlpg_and_page_faults_are_the_guests_own_under_ept() -> None:
    """Once all pages have been touched nothing exits: page faults, unmapping, INVLPG, switches."""
    machine = Machine(EPT)
    pages = [0x1000_0000 + 4096 * i for i in range(50)]
    work = events(
        *SWITCH_BACK, (Op.WRITE, pages), (Op.INVLPG, pages), (Op.UNMAP, pages), (Op.READ, pages), (Op.UNMAP, pages)
    )
    run(machine, work)
    first = machine.counters()
    run(machine, work)
    second = machine.counters()
    for name in ("guest_faults", "invlpgs", "unmaps", "cr3_switches"):
        assert second[name] == 2 * first[name] > 0
    assert second["vm_exits"] == first["vm_exits"]
    assert set(second["exits_by_reason"]) == {"ept_violation"}


# ---- shadow paging ----------------------------------------------------------------------------------------------


def test_shadow_exits_grow_with_context_switches() -> None:
    """Each load of CR3 is one exit of its own; without VPID refills come on top, which exits do not show."""
    few, many = (simulate(two_programs(switch_every), SHADOW).counters for switch_every in (5000, 500))
    for counters in (few, many):
        assert counters["exits_by_reason"]["cr_access"] == counters["cr3_switches"]
    assert many["cr3_switches"] == 10 * few["cr3_switches"]
    assert many["vm_exits"] - few["vm_exits"] == many["cr3_switches"] - few["cr3_switches"]


def test_shadow_emulates_each_write_to_a_shadowed_table() -> None:
    """Unmapping and mapping n pages again: an exit for each store, INVLPG, guest's #PF and missing shadow entry."""
    machine = Machine(SHADOW)
    pages = [0x1000_0000 + 4096 * i for i in range(100)]
    run(machine, events((Op.WRITE, pages)))
    before = machine.counters()
    run(machine, events((Op.UNMAP, pages)))
    unmapped = machine.counters()
    assert unmapped["pf_emulate"] - before["pf_emulate"] == 100
    assert unmapped["vm_exits"] - before["vm_exits"] == 200
    assert unmapped["exits_by_reason"]["invlpg"] == 100
    run(machine, events((Op.WRITE, pages)))
    again = machine.counters()
    assert [again[name] - unmapped[name] for name in ("pf_guest", "pf_emulate", "pf_fixed")] == [100, 100, 100]
    assert again["vm_exits"] - unmapped["vm_exits"] == 300


def test_shadow_exits_more_than_ept() -> None:
    trace = with_events(real_trace(), 1000, *SWITCH_BACK)
    assert simulate(trace, SHADOW).counters["vm_exits"] > 2 * simulate(trace, EPT).counters["vm_exits"]


# ---- native -----------------------------------------------------------------------------------------------------


def test_native_never_exits() -> None:
    trace = with_events(
        program(5000), 100, *SWITCH_BACK, (Op.EXIT, 10), (Op.INTERRUPT, 32), (Op.UNMAP, 0x40_0000), (Op.INVLPG, 0)
    )
    counters = simulate(trace, NATIVE).counters
    assert counters["vm_exits"] == counters["ept_walk_refs"] == counters["vmm_tables"] == 0
    assert counters["exits_by_reason"] == {}
    assert counters["exit_instructions"] == counters["interrupts"] == 49


# ---- VPID -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["shadow", "ept"])
def test_without_vpid_each_exit_costs_a_refill(mmu: str) -> None:
    """A loop over a working set that fits: misses(off) = misses(on) + exits x working set (tlb.md §8 E1), exactly."""
    working_set, passes = 48, 20
    loop = events((Op.READ, [0x1000_0000 + 4096 * i for i in range(working_set)] * passes))
    exits = with_events(loop, working_set, (Op.EXIT, 10))
    config = Config(mmu=mmu, premapped=True, memory="256M")
    on, off = (simulate(exits, config.replace(vpid=vpid)).counters for vpid in (True, False))
    assert on["vm_exits"] == off["vm_exits"] == passes - 1
    assert on["tlb_misses"] == working_set
    assert off["tlb_misses"] == working_set + (passes - 1) * working_set
    assert simulate(loop, config.replace(vpid=False)).counters["tlb_misses"] == working_set


@pytest.mark.parametrize("mmu", ["shadow", "ept"])
def test_with_vpid_exits_cost_no_miss(mmu: str) -> None:
    config = Config(mmu=mmu, vpid=True, memory="256M")
    none, many = (simulate(real_trace(), config.replace(exit_every=every)).counters for every in (0, 20))
    assert many["exits_by_reason"]["cpuid"] == many["accesses"] // 20
    for name in ("tlb_misses", "stlb_hits", "l1d_hits", "l1i_hits", "guest_walk_refs", "ept_walk_refs"):
        assert many[name] == none[name]


def test_the_refill_is_bounded_by_what_was_resident() -> None:
    """A program: never fewer misses without VPID, never more than all entries of the TLB for each flush."""
    trace = real_trace()
    on, off = (simulate(trace, EPT.replace(vpid=vpid, exit_every=50, stlb="128/4")).counters for vpid in (True, False))
    resident = 128 + 64 + 128  # second level, first level of data and of instructions
    assert on["tlb_misses"] < off["tlb_misses"] <= on["tlb_misses"] + off["vm_exits"] * resident


# ---- counters ---------------------------------------------------------------------------------------------------


EVERYTHING = with_events(
    program(8000),
    200,
    (Op.SWITCH, 1),
    (Op.WRITE, 0x5555_5555_5FFC),
    (Op.SWITCH, 0),
    (Op.INVLPG, 0x40_0000),
    (Op.UNMAP, 0x5555_5555_6000),
    (Op.EXIT, 10),
    (Op.EXIT, 3),
    (Op.INTERRUPT, 0x20),
)


@pytest.mark.parametrize("pages", ["4k", "2m", "thp"])
@pytest.mark.parametrize("config", ALL_SCHEMES, ids=lambda config: config.name)
def test_counters_add_up(config: Config, pages: str) -> None:
    machine = Machine(config.replace(pages=pages, memory="1G", thp_threshold=16))
    run(machine, EVERYTHING)
    c = machine.counters()
    exits = c["exits_by_reason"]
    lookups = c["accesses"] + c["kernel_accesses"] + c["page_crossings"] + c["retries"]
    assert c["l1d_hits"] + c["l1i_hits"] + c["stlb_hits"] + c["tlb_misses"] == lookups
    assert c["reads"] + c["writes"] + c["modifies"] + c["fetches"] == c["accesses"] == 8000 + 39
    assert sum(exits.values()) == c["vm_exits"]
    assert c["walks"] >= c["tlb_misses"]
    assert c["guest_faults"] == c["pages_touched"]
    assert (c["interrupts"], c["exit_instructions"], c["unmaps"]) == (39, 78, 39)
    if pages == "thp":
        assert c["collapses"] > 0
    assert c["cr3_switches"] == 78
    assert c["cr3_flushes"] == c["collapses"]
    if config.mmu == "native":
        assert exits == {}
        return
    assert (exits["cpuid"], exits["reason_3"], exits["external_interrupt"]) == (39, 39, 39)
    if config.mmu == "ept":
        assert c["ept_build"] + c["ept_spurious"] + c["mmio"] == exits["ept_violation"]
        assert "exception_nmi" not in exits
        assert "cr_access" not in exits
        assert "invlpg" not in exits
    else:
        assert c["pf_fixed"] + c["pf_guest"] + c["pf_emulate"] + c["pf_spurious"] + c["mmio"] == exits["exception_nmi"]
        assert c["pf_guest"] == c["guest_faults"]
        assert exits["cr_access"] == c["cr3_switches"] + c["cr3_flushes"]
        assert exits["invlpg"] == c["invlpgs"]
        assert "ept_violation" not in exits
    assert c["ept_spurious"] == c["pf_spurious"] == c["mmio"] == 0
    assert (c["invvpid"] > 0) == (config.mmu == "shadow" and config.vpid)


@pytest.mark.parametrize("config", ALL_SCHEMES, ids=lambda config: config.name)
def test_guest_faults_are_pages_first_touched(config: Config) -> None:
    trace = two_programs(1000)
    assert simulate(trace, config).counters["guest_faults"] == distinct_pages(trace)
    assert simulate(trace, config.replace(pages="2m", memory="1G")).counters["guest_faults"] == distinct_pages(
        trace, 21
    )


@pytest.mark.parametrize(("pages", "guest", "ept"), [("4k", 4, 20), ("2m", 3, 12)])
def test_references_of_a_walk(pages: str, guest: int, ept: int) -> None:
    """Nothing cached of upper levels: 4 or 24 references, 3 or 15 with large pages (ept.md §5)."""
    for config in ALL_SCHEMES:
        config = config.replace(pages=pages, premapped=True, memory="1G", walk_caches=False)
        counters = simulate(program(5000), config).counters
        assert counters["walks"] == counters["tlb_misses"] > 0
        assert counters["guest_walk_refs"] == guest * counters["walks"]
        assert counters["ept_walk_refs"] == (ept * counters["walks"] if config.mmu == "ept" else 0)
        assert counters["ad_writes"] == 0

"""Each use of a translation that memory no longer backs is reported: who cached it, what changed, what was owed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastmmu import Config, ConfigError, GuestState, Machine, Op, simulate
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.trace import read_trace
from fastmmu.trace.system import SystemTrace
from tests.conformance import systems
from tests.support.event_lists import ALL_SCHEMES, program, real_trace, with_events

STRICT: dict[str, Any] = {"tlb": "strict", "find_missing_flushes": True, "memory": "64M"}
NATIVE = Config(**STRICT)
EPT = Config(mmu="ept", vpid=True, **STRICT)
SHADOW = Config(mmu="shadow", vpid=True, **STRICT)
P, RW, US, A, D, G = 1, 2, 4, 0x20, 0x40, 0x100
ALL = P | RW | US | A | D
ROOT, PDPT, PD, PT, PAGE, NEW, OTHER, PT_OTHER = (n << 12 for n in range(1, 9))
TABLE_AT = 0x20_0000  # linear address of the page table at 0
PCIDE = 1 << 17


def bare(config: Config, **registers: Any) -> Machine:
    """Address 0 is PAGE; TABLE_AT and up the first 2 MB of memory, tables and all."""
    machine = Machine(config, guest_kernel=False, state=GuestState(**{"cr3": ROOT, **registers}))
    memory = machine.guest_memory
    for table, entry in ((ROOT, PDPT | ALL), (PDPT, PD | ALL), (PD, PT | ALL), (PT, PAGE | ALL), (OTHER, PDPT | ALL)):
        memory.write64(table, entry)
    memory.write64(PD + 8, ALL | 0x80)
    return machine


def stale(machine: Machine) -> list[Any]:
    assert machine.missing_flushes is not None
    return machine.missing_flushes.examples()


# ---- the guest's flushes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [NATIVE, EPT], ids=lambda config: config.name)
def test_a_page_moved_without_invlpg(config: Config) -> None:
    machine = bare(config)
    machine.access(TABLE_AT + NEW)  # event 1: the VMM maps it
    machine.access(0x123)  # 2
    machine.store(TABLE_AT + PT, NEW | ALL)  # 3
    assert machine.access(0x456).gpa == PAGE + 0x456  # 4: still the old page
    (use,) = stale(machine)
    base = use.cached - (PAGE + 0x456)  # of guest memory
    assert (use.event, use.address, use.access, use.kind) == (4, 0x456, 0, "address")
    assert (use.cached - use.backed, use.cached_by, use.changed_by) == (PAGE - NEW, 2, 3)
    assert (use.table, use.level, use.entry, use.was, use.now) == ("guest", 1, base + PT, PAGE | ALL, NEW | ALL)
    assert use.owed == "INVLPG"
    assert "cached by event 2; guest entry of level 1" in str(use)
    assert "since event 3; INVLPG owed" in str(use)
    machine.invlpg(0)
    assert machine.access(0).gpa == NEW
    assert machine.missing_flushes is not None
    assert machine.missing_flushes.found == 1
    assert machine.counters()["stale_uses"] == 1


@pytest.mark.parametrize(
    ("entry", "access", "kind"),
    [
        (0, "r", "gone"),
        (PAGE | ALL & ~RW, "w", "rights"),
        (PAGE | ALL & ~US, "r", "rights"),
        (PAGE | ALL | 1 << 63, "x", "rights"),
        (PAGE | ALL & ~D, "w", "dirty"),
    ],
)
def test_every_kind_of_change_that_needs_a_flush(entry: int, access: str, kind: str) -> None:
    machine = bare(NATIVE)
    for kept in ("r", "w", "x"):
        assert machine.access(0, kept, user=True).error_code is None
    machine.store(TABLE_AT + PT, entry)
    machine.access(0, access, user=True)
    assert [use.kind for use in stale(machine)] == [kind]


@pytest.mark.parametrize("entry", [PAGE | ALL, PAGE | ALL & ~A, PAGE | ALL | 0x200])
def test_changes_that_need_none(entry: int) -> None:
    """More rights, a cleared accessed flag, ignored bits (paging.md §9)."""
    machine = bare(NATIVE)
    machine.guest_memory.write64(PT, PAGE | (ALL & ~RW))
    machine.access(0, "r", user=True)
    machine.store(TABLE_AT + PT, entry)
    machine.access(0, "w", user=True)
    machine.access(0, "r", user=True)
    assert stale(machine) == []
    assert machine.counters()["uses_compared"] >= 4


def test_a_table_replaced_without_a_flush() -> None:
    """The entry of an upper level changes: leaves cached, and the paging-structure cache, lead to the old table."""
    machine = bare(NATIVE)
    machine.guest_memory.write64(PT + 8, PAGE | ALL)
    machine.guest_memory.write64(PT_OTHER, NEW | ALL)
    machine.guest_memory.write64(PT_OTHER + 8, NEW | ALL)
    machine.access(0)
    machine.store(TABLE_AT + PD, PT_OTHER | ALL)
    assert machine.access(0).gpa == PAGE
    assert machine.access(0x1000).gpa == PAGE  # by a walk from the cached PDE
    uses = stale(machine)
    assert [(use.level, use.entry, use.changed_by, use.cached_by) for use in uses] == [(2, PD, 2, 1)] * 2
    machine.invlpg(0x1F_F000)  # of any address: the paging-structure caches go, the leaf of 0 stays
    assert machine.access(0x2000).error_code is not None
    assert len(stale(machine)) == 2
    machine.access(0)
    assert len(stale(machine)) == 3


def test_a_pcid_used_again_without_a_flush() -> None:
    machine = bare(NATIVE, cr4=0xA0 | PCIDE, cr3=ROOT | 1)
    machine.guest_memory.write64(OTHER, 0)
    machine.access(0)
    machine.mov_cr3(OTHER | 1 | 1 << 63)
    machine.access(0)
    (use,) = stale(machine)
    assert (use.kind, use.owed, use.entry, use.pcid) == ("gone", "MOV CR3", None, 1)
    assert "another root is in force" in str(use)
    machine.mov_cr3(OTHER | 1)
    assert machine.access(0).error_code == 0
    assert len(stale(machine)) == 1


# ---- the VMM's flushes (tlb.md §7) ----------------------------------------------------------------------------------


def dirty_log_twice(machine: Machine) -> None:
    machine.vmm.start_dirty_log(0)
    machine.access(0, "w")
    machine.vmm.dirty_log(0)
    machine.access(0, "w")


@pytest.mark.parametrize("config", [EPT, EPT.replace(ept_ad=False), SHADOW], ids=["ept", "ept without A/D", "shadow"])
def test_changes_of_the_vmms_tables(config: Config) -> None:
    """A page that the dirty log protects again: a write through the old translation would go unlogged."""
    for omitted in (set(), {"tables"}):
        machine = bare(config)
        machine.vmm.omit = omitted
        machine.access(0, "w")
        dirty_log_twice(machine)
        owed = {use.owed for use in stale(machine)}
        assert owed == ({"INVEPT" if config.mmu == "ept" else "INVVPID"} if omitted else set())


def test_a_root_loaded_under_shadow_paging() -> None:
    for omitted in (set(), {"registers"}):
        machine = bare(SHADOW)
        machine.guest_memory.write64(OTHER, 0)
        machine.vmm.omit = omitted
        machine.access(0)
        machine.mov_cr3(OTHER)
        machine.access(0)
        assert {use.owed for use in stale(machine)} == ({"INVVPID"} if omitted else set())


def test_a_guests_table_changed_under_shadow_paging() -> None:
    for omitted in (set(), {"tables", "invlpg"}):
        machine = bare(SHADOW)
        machine.vmm.omit = omitted
        machine.access(0)
        machine.store(TABLE_AT + PT, NEW | ALL)
        machine.invlpg(0)
        machine.access(0)
        assert {use.owed for use in stale(machine)} == ({"INVVPID"} if omitted else set())


def test_names_of_flushes() -> None:
    machine = bare(EPT)
    machine.vmm.omit = {"tables", "invlpg"}
    assert machine.vmm.omit == {"tables", "invlpg"}
    with pytest.raises(ConfigError, match="'cr3': choose from tables, registers, invlpg"):
        machine.vmm.omit = {"cr3"}


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ALL_SCHEMES, ids=lambda config: config.name)
@pytest.mark.parametrize("pages", ["4k", "thp"])
def test_no_flush_is_missing_in_a_run(config: Config, pages: str) -> None:
    config = config.replace(tlb="strict", find_missing_flushes=True, pages=pages, pcid=config.mmu == "native")
    made = with_events(program(20_000), 500, (Op.SWITCH, 1), (Op.UNMAP, 0x5555_5555_5000), (Op.SWITCH, 0))
    for trace in (made, real_trace(50_000)):
        counters = simulate(trace, config).counters
        assert counters["uses_compared"] >= 20_000
        assert counters["stale_uses"] == 0


def replayed(path: Path, omit: str) -> Replayed:
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    replay = Replay(trace, Config(tlb="strict", find_missing_flushes=True), omit=[omit])
    for _ in replay.steps():
        pass
    return replay.result()


SAMPLES = {path.name.partition(".")[0]: path for path in systems.traces(systems.sample_directory())}


@pytest.mark.parametrize(("name", "omit"), [("mm", "invpcid"), ("mm", "cr3_flush"), ("shell", "cr3_flush")])
def test_each_invalidation_of_linux_is_missed(name: str, omit: str) -> None:
    """Left out, mismatches with the recorded machine appear, and the detector sees each of them."""
    found = replayed(SAMPLES[name], omit)
    assert found.mismatches > 20
    assert found.stale_uses == found.mismatches
    for use in found.stale:
        assert use.owed == "INVLPG"
        assert use.cached_by is not None
        assert use.changed_by is not None
        assert use.cached_by < use.changed_by < use.event
        assert (use.was ^ use.now) & ~(A | D)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_invlpg_of_linux_is_missed(name: str) -> None:
    """What they would take is gone before: a fault or a refused write has the translation fetched anew; with separate
    tables for user mode the pages are cached under the other PCID, which INVPCID flushes."""
    trace = read_trace(SAMPLES[name])
    assert isinstance(trace, SystemTrace)
    replay = Replay(trace, Config(tlb="strict"))
    for _ in replay.steps():
        pass
    counted = replay.machine.tlb.counters()
    assert counted["flushes"]["invlpg"] > 50
    leaves = sum(n for unit, n in counted["invalidated"]["invlpg"].items() if unit != "psc")
    assert leaves < counted["flushes"]["invlpg"]
    found = replayed(SAMPLES[name], "invlpg")
    assert (found.wrong, found.stale_uses) == (0, 0)


def test_a_tlb_that_forgets_hides_what_is_missing() -> None:
    with pytest.raises(ConfigError, match='tlb="strict"'):
        Config(find_missing_flushes=True)

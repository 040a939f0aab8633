"""Agile paging: the kernels against the executable specification of the policy (agile.md §4), and what it must come to.

After every step of random programs of a guest: what came of it, VM exits one by one, which tables are walked nested,
how many levels of walks were, counters of the VMM, shadow tables, what the EPT maps. The TLB is emptied before each
access, so that every access walks, from the root, as those of the specification do. FASTMMU_EXAMPLES=N runs N programs,
at random.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fastmmu import Config, GuestState, Host, Machine, StateError
from fastmmu.errors import BusError, CheckpointError, ConfigError
from fastmmu.exits import ExitReason, FaultClass
from fastmmu.machine.agile_policy import AgilePolicy, agile_policy
from fastmmu.reference import SparseMemory, State
from fastmmu.reference.kvm import AgileKvm, Rules, Slot
from tests.agreement.specified import policy_of
from tests.support.guest_layouts import Mode, Regime, start
from tests.support.host_programs import SLOTS, Runner, Step, regimes, steps

AGILE = Config(memory="64M", mmu="agile", kvm="6.1", vpid=True, exit_log=10_000, walk_caches=False)
CONFIGS = {
    "default": AGILE,
    "soon": AGILE.replace(agile="writes=1 interval=7"),
    "2m": AGILE.replace(agile="interval=9", host_pages="2m"),
    "2m-soon": AGILE.replace(agile="writes=1 interval=4", host_pages="2m"),
    "all": AGILE.replace(agile="writes=1 interval=5 back=all"),
    "never": AGILE.replace(agile="writes=2 interval=6 back=never"),
    "nested": AGILE.replace(agile="begin=nested interval=8", vpid=False),
    "nested-2m": AGILE.replace(agile="begin=nested interval=3", host_pages="2m"),
    "slides": AGILE.replace(agile="writes=1 interval=6", kvm="slides"),
}
CLASSES = (
    *("pf_fixed", "pf_guest", "pf_emulate", "pf_spurious", "ept_build", "ept_spurious", "mmio"),
    *("violations_build", "violations_mmio", "violations_protected", "violations_spurious"),
)
VMM_CLASSES = ("mmio_marked", "prefetched", "pte_writes", "splits", "to_nested", "to_shadow")
LEFT_OUT = {"start", "get", "clear", "stop", "swap", "young", "delete"}  # what the host does to slots

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "8")),
    derandomize="FASTMMU_EXAMPLES" not in os.environ,
    phases=[Phase.generate],
)


class Walking:
    """A machine whose accesses all walk."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    def access(self, *args: Any, **named: Any) -> Any:
        self.machine.tlb.reset()
        return self.machine.access(*args, **named)

    def store(self, *args: Any, **named: Any) -> Any:
        self.machine.tlb.reset()
        return self.machine.store(*args, **named)


class Specified:
    """The specification behind the methods of a machine."""

    def __init__(self, config: Config, state: dict[str, Any]) -> None:
        policy = config.agile_policy
        rules = Rules(policy.writes, policy.interval, policy.back, policy.begin == "nested")
        placed = [Slot(0, config.memory_bytes >> 12, host=config.host_pages or "4k")]
        placed += [Slot(s.gpa >> 12, s.size >> 12, s.readonly, emulated=s.emulated, host=s.host) for s in SLOTS]
        as_shadow = policy_of(config.replace(mmu="shadow", agile=None, unsync=False))._replace(flooding=False)
        self.memory = SparseMemory(nbytes=1 << 46)
        self.kvm = AgileKvm(as_shadow, rules, State(**state), self.memory, placed)
        self.u64 = self
        self.guest_memory = self

    def __getitem__(self, word: int) -> int:
        return self.memory.read64(word << 3)

    def __setitem__(self, word: int, value: int) -> None:
        self.memory.write64(word << 3, value)

    def access(self, la: int, access: str = "r", *, user: bool = False) -> Any:
        return self.kvm.access(la, access, user)

    def store(self, la: int, value: int, size: int = 8) -> Any:
        assert size == 8
        return self.kvm.access(la, "w", False, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kvm, name)

    def exit_instruction(self, reason: int) -> None:
        self.kvm.exit_instruction(ExitReason(reason))

    def mov_from_cr4(self) -> int:
        return self.kvm.vm.state.cr4


def state_of(machine: Machine) -> dict[str, Any]:
    counters, vmm = machine.counters(), machine.vmm.counters()
    found = {name: counters[name] for name in CLASSES} | {name: vmm[name] for name in VMM_CLASSES}
    records = machine.exit_log().records
    fields = [records[name].tolist() for name in ("reason", "qualification", "error_code", "class")]
    log = [(reason, q, code, FaultClass(of).name.lower()) for reason, q, code, of in zip(*fields, strict=True)]
    return {
        **{name: n for name, n in found.items() if n},
        "walks": counters["walks"],
        "by nested levels": [counters[f"walks_nested_{levels}"] for levels in range(6)],
        "log": log,
        "nested": machine.vmm.nested_tables(),
    }


def specified_state(specified: Specified) -> dict[str, Any]:
    kvm = specified.kvm
    found = {name: kvm.vm.count[name] for name in (*CLASSES, *VMM_CLASSES)}
    return {
        **{name: n for name, n in found.items() if n},
        "walks": kvm.walks,
        "by nested levels": kvm.by_nested,
        "log": [(int(e.reason), e.qualification, e.error_code, e.fault_class) for e in kvm.vm.log],
        "nested": kvm.nested_tables(),
    }


def ept_leaves(machine: Machine) -> set[tuple[int, int]]:
    """(gfn, level) of what the EPT maps."""
    words, found = machine.memory.u64, set()
    waiting = [(machine.vmcs["eptp"] & ~0xFFF, 4, 0)]
    while waiting:
        table, level, at = waiting.pop()
        for index in words[table >> 3 : (table >> 3) + 512].nonzero()[0].tolist():
            entry = int(words[(table >> 3) + index])
            gfn = at | index << 9 * (level - 1)
            if not entry & 1 << 11:
                continue
            if level == 1 or entry & 1 << 7:
                found.add((gfn, level))
            else:
                waiting.append((entry & 0x000F_FFFF_FFFF_F000, level - 1, gfn))
    return found


def compare(config: Config, regime: Regime, seed: int, program: list[Step]) -> None:
    cr3, memory = start(seed)
    state = regime.registers(cr3)
    machine = Machine(config, guest_kernel=False, state=GuestState(**state), slots=SLOTS)
    specified = Specified(config, state)
    for each in (machine, specified):
        for gpa, value in memory.items():
            each.guest_memory.u64[gpa >> 3] = value
    ours, theirs = Runner(Walking(machine), cr3), Runner(specified, cr3)
    for number, step in enumerate(step for step in program if step[0] not in LEFT_OUT):
        try:
            have = ours.step(step)
        except BusError:
            return
        want = theirs.step(step)
        where = f"step {number}, {step}"
        assert have == want, f"{where}: {have} is specified as {want}"
        now, then = state_of(machine), specified_state(specified)
        differ = {name: (now.get(name), then.get(name)) for name in now | then if now.get(name) != then.get(name)}
        assert not differ, f"{where}: {differ}"
        assert set(machine.vmm.table_pages()) == set(specified.kvm.table_pages()), where
        assert ept_leaves(machine) == specified.kvm.ept_leaves(), where


@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_do_what_is_specified(name: str) -> None:
    @examples
    @given(regimes, st.integers(0, 1 << 20), steps)
    def check(regime: Regime, seed: int, program: list[Step]) -> None:
        compare(CONFIGS[name], regime, seed, program)

    check()


# ---- what it must come to ---------------------------------------------------------------------------------------

ALL = 0x67
ROOT, PDPT, PD, PT, OTHER, DATA = (frame << 12 for frame in range(6))


def machine_of(agile: str | None = None, **fields: Any) -> Machine:
    """Linear 0 is DATA; OTHER is a second page table of PD; at 0x3000 all of them are seen from 1 GB on."""
    machine = Machine(
        AGILE.replace(**{"agile": agile, "tlb": "strict", "walk_caches": True, **fields}),
        guest_kernel=False,
        state=GuestState(**Regime().registers(0)),
    )
    words = machine.guest_memory.u64
    for at, value in {ROOT: PDPT, PDPT: PD, PD: PT, PT: DATA, PD + 8: OTHER, OTHER: DATA}.items():
        words[at >> 3] = value | ALL
    for number in range(6):  # 0x40000 ...: the tables as data
        words[(PT >> 3) + 64 + number] = number << 12 | ALL
    return machine


def window(gpa: int) -> int:
    return (64 << 12) + gpa


def test_the_second_write_in_an_interval_moves_a_table() -> None:
    machine = machine_of()
    machine.access(0x20_0000)
    assert machine.vmm.nested_tables() == []
    machine.store(window(OTHER + 8), DATA | ALL)
    assert machine.vmm.nested_tables() == []
    machine.store(window(OTHER + 16), DATA | ALL)
    assert machine.vmm.nested_tables() == [(OTHER >> 12, 1)]
    machine.store(window(OTHER + 24), DATA | ALL)  # its page becomes writable
    exits = machine.counters()["vm_exits"]
    for index in range(3, 64):
        machine.store(window(OTHER + 8 * index), DATA | ALL)
    assert machine.counters()["vm_exits"] == exits
    machine.store(window(OTHER + 8 * 70), 0)
    assert machine.access(0x20_0000 + (70 << 12)) == (None, 0, 0x20_0000 + (70 << 12))  # the guest's own #PF
    assert machine.counters()["vm_exits"] == exits


@pytest.mark.parametrize("levels", range(5))
def test_references_of_a_walk_are_4_to_20_by_level(levels: int) -> None:
    """agile.md §2, of walks of a machine without caches of any kind."""
    machine = machine_of("writes=1 interval=0", tlb="skylake", walk_caches=False)
    machine.access(0)
    if levels:
        machine.store(window({1: PT, 2: PD, 3: PDPT, 4: ROOT}[levels] + 8 * 300), 0)
    machine.access(0)
    machine.tlb.reset()
    before = machine.counters()
    machine.access(0)
    after = machine.counters()
    refs = {name: after[name] - before[name] for name in ("walks", "guest_walk_refs", "ept_walk_refs")}
    assert refs == {"walks": 1, "guest_walk_refs": 4, "ept_walk_refs": 4 * levels}
    assert after[f"walks_nested_{levels}"] - before[f"walks_nested_{levels}"] == 1


def test_a_table_that_is_written_no_more_goes_back() -> None:
    machine = machine_of("writes=1 interval=10")
    machine.access(0x20_0000)
    machine.store(window(OTHER + 8), DATA | ALL)
    assert machine.vmm.nested_tables() == [(OTHER >> 12, 1)]
    for _ in range(25):
        machine.tlb.reset()
        machine.access(0x20_0000)
    assert machine.vmm.nested_tables() == []
    counters = machine.counters()
    assert (counters["agile_to_nested"], counters["agile_to_shadow"]) == (1, 1)
    assert counters["exits_by_reason"]["external_interrupt"] >= 1
    exits = counters["vm_exits"]
    assert machine.access(0x20_0000).gpa == DATA  # its shadow is filled
    assert machine.counters()["vm_exits"] == exits


def test_a_table_that_is_written_stays() -> None:
    machine = machine_of("writes=1 interval=10")
    machine.access(0x20_0000)
    for index in range(60):
        machine.tlb.reset()
        machine.access(0x20_0000)
        machine.store(window(OTHER + 8 * (index % 50 + 1)), DATA | ALL)
    assert machine.vmm.nested_tables() == [(OTHER >> 12, 1)]
    assert machine.counters()["agile_to_shadow"] == 0


def test_tables_that_lead_to_one_another_512_times_are_looked_at_once() -> None:
    """Of five levels, 512 entries each: there are 69 billion ways down, and five tables."""
    machine = Machine(
        AGILE.replace(agile="writes=1 interval=10", tlb="strict", walk_caches=True),
        guest_kernel=False,
        state=GuestState(**Regime(mode=Mode.LEVEL5).registers(0)),
    )
    words = machine.guest_memory.u64
    for level in range(5):  # 0 to 4: each table leads to the next, the last to its own page
        words[512 * level : 512 * (level + 1)] = min(level + 1, 4) << 12 | ALL
    for level, frame in enumerate((8, 9, 10, 11)):  # and a way that is walked: linear 1 << 48, page n is frame n
        words[1 if not level else 512 * (7 + level)] = frame << 12 | ALL
    words[512 * 11 : 512 * 12] = np.arange(512, dtype=np.uint64) << np.uint64(12) | np.uint64(ALL)
    machine.access(1 << 48)
    machine.store((1 << 48) + 8 * 511, 1 << 12 | ALL)
    assert machine.vmm.nested_tables() == [(0, 5)]
    for _ in range(60):
        machine.tlb.reset()
        machine.access(1 << 48)
    assert (0, 5) not in machine.vmm.nested_tables()
    assert machine.counters()["agile_to_shadow"] >= 1


@pytest.mark.parametrize("omitted", [[], ["tables"]], ids=["all", "none"])
def test_no_translation_outlives_a_switch(omitted: list[str]) -> None:
    """Every use of the TLB, compared with memory; where the VMM leaves its flushes out, some are stale."""
    machine = machine_of("writes=2 interval=40", find_missing_flushes=True)
    machine.vmm.omit = omitted
    for index in range(200):
        for la in (0, 0x20_0000, window(OTHER), window(PT)):
            machine.access(la, "rw" if index % 3 else "r")
        machine.store(window(OTHER + 8 * (index % 40 + 1)), DATA | ALL)
        if index % 7 == 0:
            machine.mov_cr3(ROOT)
    counters = machine.counters()
    assert (counters["stale_uses"] > 0) == bool(omitted)
    assert counters["uses_compared"] > 0
    assert counters["agile_to_nested"] > 0


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_policy() -> None:
    assert agile_policy(None) == AgilePolicy() == agile_policy(str(AgilePolicy()))
    assert agile_policy("interval=3,back=all") == AgilePolicy(interval=3, back="all")
    for bad in ("writes", "writes=0", "writes=256", "interval=-1", "back=no", "begin=", "x=1", "writes=1 writes=2"):
        with pytest.raises(ConfigError, match="agile="):
            Config(mmu="agile", agile=bad)


@pytest.mark.parametrize(
    "fields",
    [
        {"vendor": "amd"}, {"vmm": "python"}, {"unsync": True}, {"ept_ad": False}, {"nx_huge_pages": True},
        {"host_memory": "1G"}, {"host_thp": "always"}, {"host_pages": "untouched"}, {"noncoherent_dma": True},
        {"table_pages": 100}, {"tlb_extension": "pom:16m"}, {"tpr": "trap", "memory": "1G"},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_with_it_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f'mmu="agile" does not go with {next(iter(fields))}='):
        Config(mmu="agile", **fields)


def test_what_a_machine_does_not_do(tmp_path: Any) -> None:
    machine = machine_of()
    with pytest.raises(StateError, match='mmu="agile"'):
        machine.vmm.start_dirty_log(0)
    with pytest.raises(StateError, match='mmu="agile"'):
        machine.vmm.delete_slot(0)
    with pytest.raises(CheckpointError, match='mmu="agile"'):
        machine.save(tmp_path / "m")
    with pytest.raises(ConfigError, match='mmu="agile"'):
        Host([Config(mmu="agile", memory="64M")])

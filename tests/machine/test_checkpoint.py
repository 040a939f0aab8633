"""A run that stops and goes on equals one that does not, bit for bit: every scheme, at random points."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from fastmmu import Config, Machine, MemorySlot, Mtrrs, read_trace
from fastmmu.trace.bundle import bundled
from tests.support.checkpoints import CONFIGS, differences, events, gone_on
from tests.support.guest_programs import Program, programs
from tests.support.guest_runs import execute, machine_for

SEEDS = range(int(os.environ.get("FASTMMU_EXAMPLES", "2")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs_stopped_at_random_points(name: str, seed: int, tmp_path: Path) -> None:
    rng, config = np.random.default_rng(seed), CONFIGS[name]
    columns = events(rng, 6000, config)
    cuts = [0, *sorted(rng.integers(0, 6000, 3).tolist()), 6000]
    whole, stopped = Machine(config), Machine(config)
    for first, end in pairwise(cuts):
        outs = []
        for machine in (whole, stopped):
            out = np.zeros(end - first, np.uint64)
            machine.run(*(column[first:end] for column in columns), out, first)
            outs.append(out)
        assert np.array_equal(*outs)
        stopped = gone_on(stopped, tmp_path / "c")
        assert differences(whole, stopped) == []
    assert whole.counters() == stopped.counters()
    assert whole.tlb.counters() == stopped.tlb.counters()
    assert (whole.memory.u64[: 1 << 18] == stopped.memory.u64[: 1 << 18]).all()
    if config.exit_log:
        assert (whole.exit_log().records == stopped.exit_log().records).all()
    if config.find_missing_flushes:
        assert whole.missing_flushes.examples() == stopped.missing_flushes.examples()


@pytest.mark.parametrize("trace", bundled())
@pytest.mark.parametrize("name", ["native", "shadow-6.1", "ept-thp", "ept-6.1", "npt"])
def test_bundled_traces_stopped_at_a_random_point(name: str, trace: str, tmp_path: Path) -> None:
    rng, config = np.random.default_rng(5), CONFIGS[name]
    batches = list(read_trace(bundled()[trace]).head(120_000).batches(20_000))
    whole, stopped = Machine(config), Machine(config)
    at = int(rng.integers(len(batches)))
    for i, batch in enumerate(batches):
        for machine in (whole, stopped):
            machine.run(batch.op, batch.size, batch.addr, None, machine.events)
        if i == at:
            stopped = gone_on(stopped, tmp_path / "c")
    assert differences(whole, stopped) == []
    assert whole.counters() == stopped.counters()


BARE = [
    Config(memory="64M"),
    Config(memory="64M", mmu="shadow", vpid=True, kvm="6.1", unsync=True),
    Config(memory="64M", mmu="ept", vpid=True, kvm="6.1"),
    Config(memory="64M", mmu="ept", vendor="amd", kvm="6.1"),
    Config(memory="64M", mmu="ept"),  # no unrestricted guest: an identity table, a virtual-8086 task
    Config(memory="64M", mmu="shadow"),
    Config(memory="64M", mmu="ept", vpid=True, kvm="6.1", vmm="python"),
]


@settings(max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "30")), derandomize="FASTMMU_EXAMPLES" not in os.environ)
@given(programs)
def test_bare_guests_in_every_paging_mode(tmp_path_factory: pytest.TempPathFactory, program: Program) -> None:
    path = tmp_path_factory.getbasetemp() / "bare"
    for config in BARE:
        whole = machine_for(config, program.regime, program.cr3, program.before)
        stopped = machine_for(config, program.regime, program.cr3, program.before)
        at = len(program.instructions) * 2 // 3
        for i, instruction in enumerate(program.instructions):
            if i == at:
                stopped = gone_on(stopped, path)
            assert execute(whole, instruction) == execute(stopped, instruction), f"{config.name}: {program!r}"
        assert differences(whole, stopped) == [], f"{config.name}: {program!r}"


SLOTS = (MemorySlot(1 << 32, 1 << 22, host="untouched"), MemorySlot(1 << 33, 1 << 21), MemorySlot(1 << 34, 1 << 21))


def logged(machine: Machine, ring: bool) -> None:
    """What user space has of a VMM: logs, pages taken away, merged, a slot that is gone, memory types."""
    vmm = machine.vmm
    assert vmm is not None
    if ring:
        vmm.use_dirty_ring(1024)
        vmm.start_dirty_log(0)
    else:
        vmm.start_dirty_log(0, manual=True, initially_set=True)
        vmm.clear_dirty_log(0, 0, 6400)
    vmm.start_dirty_log(2)
    vmm.delete_slot(3)
    vmm.guest_caching(Mtrrs(0x806, variable=[(0x6, 0xFFFF_C000_0800)]))
    vmm.omit = {"invlpg"}
    if machine.config.host_pages == "untouched":
        held = [page for page in range(1024, 2048, 3) if vmm.swap_out(0, page)]
        assert held
        vmm.merge(0, range(2048, 2148))
    vmm.invalidate_range_start(1, 3, 5)


@pytest.mark.parametrize("ring", [False, True], ids=["bitmap", "ring"])
@pytest.mark.parametrize(
    "config",
    [
        Config(mmu="ept", memory="64M", kvm="6.1", pml=True),
        Config(mmu="ept", memory="64M", kvm="6.1", host_pages="untouched"),
        Config(mmu="shadow", memory="64M", kvm="6.1", host_pages="untouched"),
        Config(mmu="ept", memory="64M", kvm="5.10", vmm="python"),
        Config(mmu="ept", memory="64M", vendor="amd", kvm="6.12", pages="2m"),
    ],
    ids=lambda config: f"{config.name}-{config.vendor}-{config.vmm}-{config.backing}",
)
def test_what_user_space_has_of_a_vmm(config: Config, ring: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    addr = rng.integers(0, 1 << 24, 4000, dtype=np.uint64)
    op, size = rng.integers(0, 3, 4000).astype(np.uint8), np.full(4000, 8, np.uint8)
    machines = [Machine(config, slots=SLOTS) for _ in range(2)]
    for machine in machines:
        machine.run(op[:1500], size[:1500], addr[:1500])
        logged(machine, ring)
        machine.run(op[1500:2500], size[1500:2500], addr[1500:2500], None, 1500)
    machines[1] = gone_on(machines[1], tmp_path / "c")
    assert differences(*machines) == []
    logs = []
    for machine in machines:
        assert machine.vmm is not None
        machine.vmm.invalidate_range_end(1)
        machine.run(op[2500:], size[2500:], addr[2500:], None, 2500)
        logs.append(machine.vmm.dirty_log(0))
        machine.vmm.stop_dirty_log(0)
        assert machine.vmm.omit == {"invlpg"}
    assert np.array_equal(*logs)
    assert logs[0].any()
    assert differences(*machines) == []
    assert machines[0].vmm.counters() == machines[1].vmm.counters()  # type: ignore[union-attr]
    assert machines[0].vmm.stats() == machines[1].vmm.stats()  # type: ignore[union-attr]

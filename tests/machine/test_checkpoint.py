"""A run that stops and goes on equals one that does not, bit for bit: every scheme, at random points."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from fastmmu import Config, Machine, read_trace
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

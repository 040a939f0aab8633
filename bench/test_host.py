"""Several VMs on one host: turns of vCPUs, memory that is short, and the dirty log."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

import fastmmu
from bench import streams
from bench.race import Race, Rival, Scale, timed

EPT = fastmmu.Config(mmu="ept", vpid=True, memory="1G")
QUANTUM = 10_000


@pytest.mark.benchmark(group="host")
def test_turns(race: Race, scale: Scale) -> None:
    """Two VMs take turns of 10,000 accesses on one processor, beside the same on machines of their own."""
    n = scale.of(20_000, 500_000, 2_000_000)
    columns = [(np.zeros(n, np.uint8), np.ones(n, np.uint8), streams.held(n, 1_000, seed)) for seed in (1, 2)]
    host = fastmmu.Host([(EPT, 1), (EPT, 1)])
    alone = [fastmmu.Machine(EPT) for _ in columns]

    def turns() -> None:
        for begin in range(0, n, QUANTUM):
            part = slice(begin, begin + QUANTUM)
            for vcpu, (op, size, va) in enumerate(columns):
                host.run(vcpu, 0, op[part], size[part], va[part])

    def apart() -> None:
        for begin in range(0, n, QUANTUM):
            part = slice(begin, begin + QUANTUM)
            for machine, (op, size, va) in zip(alone, columns, strict=True):
                machine.run(op[part], size[part], va[part])

    race(turns, 2 * n, [Rival("machines of their own", timed(apart), 2 * n)], target=1.5)
    for vcpu, machine in enumerate(alone):
        here, there = host.counters(vcpu), machine.counters()
        assert here["accesses"] == there["accesses"] > 0
        assert here["pages_touched"] == there["pages_touched"]
        assert here["tlb_misses"] >= there["tlb_misses"]  # they share the TLB


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("reclaim", ["clock", "lru"])
def test_short_memory(race: Race, scale: Scale, reclaim: Literal["clock", "lru"]) -> None:
    """The host holds half of the pages: exits that bring pages in, and age and take others; beside memory for all."""
    n = scale.of(5_000, 100_000, 400_000)
    pages = scale.of(500, 4_000, 10_000)
    rng = np.random.default_rng(3)
    va = streams.of_pages(np.minimum(rng.zipf(1.1, n), pages) + rng.integers(0, 2, n), rng, streams.FIRST)
    events = np.zeros(n, np.uint8), np.ones(n, np.uint8), va
    touched = len(np.unique(va >> np.uint64(12)))
    made: list[fastmmu.Machine] = []
    enough = EPT.replace(host_pages="untouched")
    short = EPT.replace(host_memory=4096 * (touched // 2), host_reclaim=reclaim)

    def run(config: fastmmu.Config) -> dict[str, int]:
        made[:] = [fastmmu.Machine(config)]
        made[0].run(*events)
        return made[0].counters()

    plenty = run(enough)
    counters = race(lambda: run(short), n, [Rival("memory for all", timed(lambda: run(enough)), n)])
    assert plenty["pages_touched"] == counters["pages_touched"] == touched
    assert counters["violations_swapped_in"] > 0 == plenty["violations_swapped_in"]


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("method", ["write-protect", "PML"])
def test_dirty_log(race: Race, scale: Scale, method: str) -> None:
    """A round of the log: every page is written once, then the log is read; beside a guest that is not logged."""
    n = scale.of(500, 20_000, 100_000)
    events = streams.first_pass(n)
    logged = fastmmu.Machine(EPT.replace(pml=method == "PML"))
    plain = fastmmu.Machine(EPT)
    for machine in (logged, plain):
        machine.run(*events)
    logged.vmm.start_dirty_log(0)
    logged.vmm.dirty_log(0)

    def round() -> int:
        logged.run(*events)
        return int(np.count_nonzero(logged.vmm.dirty_log(0)))

    before = logged.counters()["violations_dirty"]
    assert race(round, n, [Rival("no log", timed(lambda: plain.run(*events)), n)]) >= n
    found = logged.counters()["violations_dirty"] - before
    assert found == 0 if method == "PML" else found >= n

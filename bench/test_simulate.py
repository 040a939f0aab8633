"""One simulated access: a machine's event loop, beside a TLB alone and a TLB with a walk for each miss."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

import fastmmu
from bench import streams
from bench.race import Race, Rival, Scale, timed
from bench.yardstick import U64, Counts, Yardstick

CONFIG = fastmmu.Config(premapped=True, l1d="64/4", stlb="1536/12")
SCHEMES = {
    "native": CONFIG,
    "shadow+VPID": CONFIG.replace(mmu="shadow", vpid=True),
    "EPT+VPID": CONFIG.replace(mmu="ept", vpid=True),
}
HELD, MANY = 1_000, 100_000
"""Pages that 6 % of the accesses go to: the second level holds them, or 4.4 % of all accesses miss."""

TARGETS = {
    (HELD, "native"): 1.1,
    (HELD, "shadow+VPID"): 1.1,
    (HELD, "EPT+VPID"): 1.1,
    (MANY, "native"): 1.3,
    (MANY, "shadow+VPID"): 1.3,
    (MANY, "EPT+VPID"): 1.8,
}
COUNTED = ("accesses", "l1d_hits", "stlb_hits", "walks")


@pytest.fixture(scope="session")
def stream(scale: Scale) -> Callable[[int], U64]:
    return cache(lambda cold: streams.held(scale.of(20_000, 1_000_000, 4_000_000), cold))


@pytest.mark.benchmark(group="simulate")
@pytest.mark.parametrize("cold", [HELD, MANY], ids=["held", "4% walks"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_simulate(race: Race, yardstick: Yardstick, stream: Callable[[int], U64], cold: int, scheme: str) -> None:
    va = stream(cold)
    op, size = np.zeros(len(va), np.uint8), np.ones(len(va), np.uint8)
    machine = fastmmu.Machine(SCHEMES[scheme])
    out = np.zeros(len(va), np.uint64)
    machine.run(op, size, va, out)  # builds the tables, warms the TLB
    eptp = machine.vmcs.get("eptp") or None
    walked = np.zeros(4, np.uint64)
    alone = np.zeros(3, np.uint64)
    rivals = [
        *yardstick.tlb(va, alone, warm=True),
        *yardstick.tlb_walk(machine.memory.u64, machine.hw_cr3, eptp, va, walked),
    ]
    before: dict[str, int] = {}

    def run() -> dict[str, int]:
        before.update(machine.counters())
        machine.run(op, size, va)
        return machine.counters()

    after = race(run, len(va), rivals, target=TARGETS[cold, scheme])
    accesses, *found = (after[name] - before[name] for name in COUNTED)
    assert accesses == len(va) == sum(found)
    assert found[0] > 0.9 * len(va)
    assert np.array_equal(out & np.uint64(4095), va & np.uint64(4095))
    if rivals:  # both were warm, and the yardstick walked the machine's own tables
        assert Counts(*found) == Counts(*alone.tolist()) == Counts(*walked[:3].tolist())
        assert walked[2] == 0 or walked[3] != 0


@pytest.mark.benchmark(group="compare")
def test_compare(race: Race, scale: Scale) -> None:
    """`compare` of five schemes, random accesses over 65,000 pages, beside a `simulate` a scheme."""
    n = scale.of(20_000, 400_000, 2_000_000)
    va = streams.of_pages(np.random.default_rng(5).integers(0, 65_000, n), np.random.default_rng(6), streams.FIRST)
    configs = [result.config for result in fastmmu.compare(va[:1000])]
    kept: list[list[fastmmu.Result]] = []

    def one_by_one() -> None:
        kept[:] = [[fastmmu.simulate(va, config) for config in configs]]

    found = race(
        lambda: fastmmu.compare(va), n * len(configs), [Rival("simulate", timed(one_by_one), n * len(configs))]
    )
    assert len(found) == len(configs) > 3
    assert [result.counters for result in found] == [result.counters for result in kept[0]]

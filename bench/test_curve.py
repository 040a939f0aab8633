"""`tlb_curve`: one pass for all sizes of a TLB, beside a simulation for each of them."""

from __future__ import annotations

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from fastmmu.study import tlb_curve
from fastmmu.trace import Trace, bundled

STLB = (
    "64/4", "128/4", "256/4", "512/4", "1024/8", "1536/12", "2048/16", "3072/24", "64/fa", "256/fa", "1024/fa",
    "1536/fa",
)  # fmt: skip


@pytest.fixture(scope="session", params=sorted(bundled()))
def trace(request: pytest.FixtureRequest, scale: Scale) -> Trace:
    """In memory: both sides are timed without parsing."""
    read = fastmmu.read_trace(bundled()[request.param])
    batches = list(read.batches())
    most = scale.of(50_000, 1_000_000, 1 << 60)
    op, size, addr = (np.concatenate([getattr(b, column) for b in batches])[:most] for column in ("op", "size", "addr"))
    return Trace.from_arrays(addr, op, size, name=read.name)


def simulated(trace: Trace) -> list[int]:
    """Misses of the second level, a run a size."""
    configs = [fastmmu.Config(premapped=True, stlb=stlb) for stlb in STLB]
    return [int(fastmmu.simulate(trace, config).counters["tlb_misses"]) for config in configs]


@pytest.mark.benchmark(group="TLB curves")
def test_all_sizes(race: Race, trace: Trace) -> None:
    kept: list[list[int]] = []
    twelve = Rival(f"{len(STLB)} runs", timed(lambda: kept.append(simulated(trace))), trace.total or 0)
    curves = race(
        lambda: tlb_curve(trace, l2_sets=(16, 32, 64, 128), l1_sets=()), trace.total or 0, [twelve], target=0.5
    )
    assert [curves.misses("l2", stlb)[0] for stlb in STLB] == kept[-1]


@pytest.mark.benchmark(group="TLB curves")
def test_sampled(race: Race, trace: Trace) -> None:
    """Fully associative curves of a tenth of the pages, beside those of all."""
    exact = tlb_curve(trace, l1_sets=(), l2_sets=())
    whole = Rival("all pages", timed(lambda: tlb_curve(trace, l1_sets=(), l2_sets=())), trace.total or 0)
    found = race(lambda: tlb_curve(trace, sample=0.1, l1_sets=(), l2_sets=()), trace.total or 0, [whole])
    for entries in (64, 256, 1024):
        (misses, error), (true, none) = found.curve("l2").at(entries), exact.curve("l2").at(entries)
        assert none == 0
        assert abs(misses - true) <= max(6 * error, 0.2 * true)

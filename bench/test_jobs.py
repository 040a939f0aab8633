"""Several runs from one pass over a trace, in two threads beside one: at best half the time, on an idle machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from fastmmu.machine.replay import Replay
from fastmmu.study.replay.run import replays
from fastmmu.trace import bundled, read_trace
from fastmmu.trace.system import SystemTrace

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "systems" / "mm.rec.xz"
TRACES = os.environ.get("FASTMMU_TRACES")


def counted(results: list[fastmmu.Result]) -> list[dict[str, object]]:
    return [result.counters for result in results]


def two_beside_one(race: Race, run: Callable[[int], list[fastmmu.Result]], items: int) -> None:
    one: list[list[fastmmu.Result]] = []
    rival = Rival("one thread", timed(lambda: one.append(run(1))), items)
    found = race(lambda: run(2), items, [rival], target=0.55)
    assert counted(found) == counted(one[-1])


@pytest.mark.benchmark(group="compare, two threads")
@pytest.mark.parametrize("pages", [1_000, 65_000])
def test_compare(race: Race, scale: Scale, pages: int) -> None:
    """Five schemes; random accesses to pages that the TLB holds, or does not."""
    n = scale.of(20_000, 1_000_000, 20_000_000)
    page = np.random.default_rng(1).integers(0, pages, n, dtype=np.uint64)
    addresses = (page << np.uint64(12)) + np.uint64(1 << 28)
    two_beside_one(race, lambda jobs: fastmmu.compare(addresses, jobs=jobs), 5 * n)


@pytest.mark.benchmark(group="compare, two threads")
def test_compare_of_the_bundled_traces(race: Race, scale: Scale) -> None:
    """Each is decoded in every round; five schemes."""
    paths = list(bundled().values())[: scale.of(1, 2, 2)]
    limit = scale.of(20_000, 1 << 40, 1 << 40)

    def run(jobs: int) -> list[fastmmu.Result]:
        return [result for path in paths for result in fastmmu.compare(read_trace(path).head(limit), jobs=jobs)]

    two_beside_one(race, run, sum(int(str(result.counters["accesses"])) for result in run(1)))


@pytest.mark.benchmark(group="replay of a system trace")
@pytest.mark.parametrize("kind", ["hardware", "strict, watched, over EPT"])
def test_replay(race: Race, scale: Scale, kind: str) -> None:
    """Records of a whole Linux, read in a thread of their own; beside the replay alone, of records in memory."""
    path = Path(TRACES, "mm.rec.zst") if TRACES and Path(TRACES, "mm.rec.zst").exists() else SAMPLE
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    trace = trace.head(scale.of(20_000, 3_000_000, 12_000_000))
    config = fastmmu.Config(memory="1G")
    if kind != "hardware":
        config = config.replace(mmu="ept", vpid=True, tlb="strict", find_missing_flushes=True)
    chunks = list(trace.records())
    records = sum(map(len, chunks))

    def alone() -> None:
        replay = Replay(trace, config)
        for chunk in chunks:
            replay.feed(chunk)

    ((_, found, complete),) = race(
        lambda: list(replays(trace, config, jobs=2)), records, [Rival("in memory", timed(alone), records)]
    )
    assert complete
    assert found.records == records
    assert found.wrong == found.stale_uses == 0

"""The TLB alone: `TLB.simulate` looks up, fills and replaces, and counts what the yardstick counts."""

from __future__ import annotations

import numpy as np
import pytest

from bench import streams
from bench.peers import pycachesim
from bench.race import Race, Rival, Scale, timed
from bench.yardstick import SKYLAKE, Counts, Yardstick
from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

STREAMS = {"hot": streams.hot, "zipf": streams.zipf, "uniform": streams.uniform}


def tlb() -> TLB:
    return TLB(geometry("skylake", l1d="64/4", stlb="1536/12"))


@pytest.mark.benchmark(group="tlb")
@pytest.mark.parametrize("name", STREAMS)
def test_simulate(race: Race, yardstick: Yardstick, scale: Scale, name: str) -> None:
    """64/4 and 1536/12 with true LRU. Ours also carries frames and rights, compares the tags of context and global
    pages, and keeps accounts."""
    va = STREAMS[name](scale.of(20_000, 1_000_000, 4_000_000))
    counts = np.zeros(3, np.uint64)
    new: list[TLB] = []

    def fresh() -> None:
        new[:] = [tlb()]

    rivals = yardstick.tlb(va, counts)
    found = race(lambda: new[0].simulate(va), len(va), rivals, target=1.1, fresh=fresh)
    mine = Counts(found["l1_hits"], found["l2_hits"], found["misses"])
    assert sum(mine) == len(va)
    assert mine.misses >= len(np.unique(va >> np.uint64(12))) > 0
    assert not rivals or mine == Counts(*counts.tolist())


@pytest.mark.benchmark(group="tlb, beside other packages")
@pytest.mark.parametrize("name", STREAMS)
def test_beside_pycachesim(race: Race, scale: Scale, name: str) -> None:
    """Equal counts, and a quarter of the time."""
    va = STREAMS[name](scale.of(20_000, 300_000, 2_000_000))
    try:
        theirs = pycachesim(va.tolist(), SKYLAKE)
    except ImportError as error:
        pytest.skip(f"skipped: pycachesim is not there ({error}); pip install --group bench")
    new: list[TLB] = []
    counted: list[Counts] = []

    def fresh() -> None:
        new[:] = [tlb()]

    peer = Rival("pycachesim", timed(lambda: counted.append(theirs())), len(va))
    found = race(lambda: new[0].simulate(va), len(va), [peer], target=0.25, fresh=fresh)
    assert set(counted) == {Counts(found["l1_hits"], found["l2_hits"], found["misses"])}

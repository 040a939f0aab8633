"""Sampled runs: what they count is what a whole run counts there, and their intervals hold its means."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Trace, read_trace, simulate
from fastmmu.machine.sampled import Sample
from fastmmu.machine.series import AT_END
from fastmmu.machine.side_by_side import each
from fastmmu.trace import bundled
from tests.support.mixed_trace import MIXED, SHELL, Chunked
from tests.support.phases import Phases
from tests.support.sampled import SEEDS, coverage, drawn

EPT = Config(mmu="ept", vpid=True, memory="256M")


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("config", [EPT, Config(mmu="shadow", memory="256M")], ids=lambda config: config.name)
def test_where_nothing_is_left_out_it_counts_what_the_whole_run_does(config: Config, every: int, seed: int) -> None:
    whole = simulate(MIXED, config, interval=37)
    found = simulate(MIXED, config, interval=37, sample_every=every, seed=seed)
    assert whole.series is not None
    assert found.sample is not None
    of_all = {name: n for name, n in whole.series.counters().items() if name not in AT_END}
    at = drawn(Sample(37, every, seed), whole.counters["accesses"] // 37)
    assert len(found.sample) == len(at) >= 4000 // 37 // every
    for name, n in of_all.items():
        assert (found.sample.counters.get(name, np.zeros(len(at))) == n[at]).all(), name
    assert found.counters["accesses"] == 37 * len(at)
    assert found.counters["vm_exits"] == of_all["vm_exits"][at].sum()
    assert found.sample.cycles.sum() == pytest.approx(found.cycles)
    assert found.sample.fed == sum(map(len, MIXED.batches()))
    assert found.content == whole.content


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("warm_up", [None, 0, 50, 10_000])
@pytest.mark.parametrize("jobs", [1, 2])
def test_neither_batches_nor_threads_change_it(chunk: int, warm_up: int | None, jobs: int) -> None:
    how = {"interval": 40, "sample_every": 5, "seed": 3, "warm_up": warm_up}
    configs = [EPT, Config(memory="256M")]
    expected = [simulate(MIXED, config, **how) for config in configs]  # type: ignore[arg-type]
    for one, other in zip(each(Chunked(MIXED, chunk), configs, jobs=jobs, **how), expected, strict=True):  # type: ignore[arg-type]
        assert one.sample is not None
        assert other.sample is not None
        assert one.counters == other.counters
        assert one.tlb == other.tlb
        assert one.sample.fed == other.sample.fed
        assert (one.sample.cycles == other.sample.cycles).all()
        assert one.content == other.content


def test_what_is_left_out_changes_no_page_table() -> None:
    """Faults, fills and dirty flags are made where the whole run makes them: at the first touches."""
    trace = Phases(400_000, length=60_000)
    for config in (EPT, Config(mmu="shadow", vpid=True, memory="1G")):
        how = {"interval": 500, "sample_every": 20}
        full = simulate(trace, config, **how)  # type: ignore[arg-type]
        some = simulate(trace, config, warm_up=1000, **how)  # type: ignore[arg-type]
        assert full.sample is not None
        assert some.sample is not None
        assert some.sample.fed < full.sample.fed / 2
        for name in ("guest_faults", "pages_touched", "ept_build", "vmm_entries_filled", "pf_fixed"):
            assert (some.sample.counters[name] == full.sample.counters[name]).all(), name
        assert some.counters["tlb_misses"] >= full.counters["tlb_misses"]


@pytest.mark.parametrize("trace", [*bundled(), "phases"])
def test_intervals_hold_the_means_of_the_whole_run(trace: str) -> None:
    """95 % confidence: the mean of all intervals in 94 of 100 samples or more; of all counters on the average, for each
    has an error of its own, which is 2."""
    source: Trace = Phases(1_500_000, length=50_000) if trace == "phases" else read_trace(bundled()[trace])
    series = simulate(source, Config(mmu="ept", vpid=True), interval=200).series
    assert series is not None
    every = coverage(series, 10)
    for name in ("cycles", "tlb_misses", "vm_exits", "ept_walk_refs"):
        assert every[name][0] >= 94, name
    found = {name: hits for name, (hits, stated) in every.items() if stated == SEEDS}
    assert np.mean(list(found.values())) >= 94
    assert min(found.values()) >= 90


def test_runs_that_leave_out_are_as_near() -> None:
    """Seeds of real runs; what the TLB lost is made good by five intervals of warm-up."""
    source = read_trace(bundled()["zstd"])
    whole = simulate(source, EPT)
    hits = 0
    for seed in range(20):
        sample = simulate(source, EPT, interval=500, sample_every=10, warm_up=2500, seed=seed).sample
        assert sample is not None
        _, low, high = sample.estimate()
        hits += low is not None and high is not None and low <= whole.cycles_per_access <= high
    assert hits >= 18


def test_what_is_refused() -> None:
    config = Config(memory="256M")
    for how, said in (
        ({"interval": 0, "sample_every": 2}, "1 or more"),
        ({"interval": 5, "sample_every": 0}, "1 or more"),
        ({"sample_every": 2}, "give interval="),
        ({"interval": 5, "seed": 2}, "give sample_every="),
        ({"interval": 5, "sample_every": 2, "seed": -1}, "0 or more"),
        ({"interval": 5, "sample_every": 2, "warm_up": -1}, "0 or more"),
        ({"interval": 5000, "sample_every": 1}, "give shorter ones"),
        ({"interval": 5, "sample_every": 2, "exits": print}, "leave it out"),
    ):
        with pytest.raises(ConfigError, match=said):
            simulate(MIXED.head(3000), config, **how)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="system trace"):
        simulate(read_trace(SHELL), Config(memory="2G"), interval=5, sample_every=2)
    with pytest.raises(ConfigError, match="APIC"):
        simulate(MIXED, Config(tpr="trap", memory="256M"), interval=5, sample_every=2, warm_up=3)
    sample = simulate(MIXED, config, interval=50, sample_every=2).sample
    assert sample is not None
    with pytest.raises(ConfigError, match="no counter 'misses'"):
        sample.estimate("misses")
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        sample.estimate(confidence=1)
    assert repr(sample).startswith("<Sampled ")

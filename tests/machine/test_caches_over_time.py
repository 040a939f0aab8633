"""Data caches of parts of a run: rows of a series, intervals of a sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, read_trace, simulate
from fastmmu.machine.cache_result import caches_between, caches_sum
from fastmmu.machine.checkpoint.runs import Checkpoint
from fastmmu.machine.result import Result
from fastmmu.machine.sampled import Sample
from fastmmu.report.rows import gathered, over_time
from fastmmu.trace import bundled
from tests.support.mixed_trace import MIXED, Chunked
from tests.support.sampled import drawn

EPT = Config(mmu="ept", vpid=True, caches="skylake", memory="256M")
SCHEMES = {"native": EPT.replace(mmu="native", vpid=False), "ept": EPT, "shadow": EPT.replace(mmu="shadow")}


def sums_up(result: Result) -> None:
    assert result.series is not None
    rows = result.series.caches()
    assert caches_sum(rows) == result.caches
    by_cause = result.series.cycles()
    for cause in result.cycles_by:
        assert sum(row.get(cause, 0.0) for row in by_cause) == pytest.approx(result.cycles_by[cause]), cause


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("warm_up", [None, 1000])
def test_rows_sum_up_to_the_whole(config: Config, warm_up: int | None) -> None:
    whole = simulate(MIXED, config, warm_up=warm_up)
    found = simulate(Chunked(MIXED, 7), config, interval=100, warm_up=warm_up)
    assert found.caches == whole.caches
    assert found.cycles_by == whole.cycles_by
    sums_up(found)
    assert found.series is not None
    data = [sum(row.at("read", "write", "fetch")) for row in found.series.caches() if row is not None]
    assert len(data) == len(found.series)
    assert all(n >= 100 for n in data[:-1])


def test_rows_in_tables_and_back() -> None:
    found = simulate(MIXED, SCHEMES["ept"], interval=500)
    rows = over_time([found])
    assert [row.caches for row in rows] == found.series.caches()  # type: ignore[union-attr]
    [(whole, _)] = gathered(rows)
    assert whole.caches == found.caches
    assert whole.cycles == pytest.approx(found.cycles)


def test_without_caches_there_are_none() -> None:
    found = simulate(MIXED, SCHEMES["ept"].replace(caches=None), interval=500)
    assert found.series is not None
    assert found.series.caches() == [None] * len(found.series)
    assert caches_sum(found.series.caches()) is None
    assert caches_sum([]) is None
    assert caches_between(None, None) is None


def test_checkpoint_within_a_series(tmp_path: Path) -> None:
    trace, config = read_trace(bundled()["sqlite"]).head(60_000), SCHEMES["ept"]
    kept = Checkpoint(tmp_path / "run.npz", every=20_000)
    whole = simulate(trace, config, interval=7_000)
    once = simulate(trace, config, interval=7_000, checkpoint=kept)
    again = simulate(trace, config, interval=7_000, checkpoint=kept)
    for found in (once, again):
        assert found.series is not None
        assert whole.series is not None
        assert found.series.caches() == whole.series.caches()
        assert found.caches == whole.caches


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_a_sample_counts_what_the_whole_run_does_there(config: Config) -> None:
    whole = simulate(MIXED, config, interval=37)
    found = simulate(MIXED, config, interval=37, sample_every=5, seed=3)
    assert whole.series is not None
    assert found.sample is not None
    at = drawn(Sample(37, 5, 3), whole.counters["accesses"] // 37)
    rows = whole.series.caches()
    assert found.caches == caches_sum([rows[i] for i in at])
    each = np.array([sum(by_cause.values()) for by_cause in whole.series.cycles()])
    assert found.sample.cycles == pytest.approx(each[at])


def test_between_samples_caches_see_what_is_run_alone() -> None:
    """Of accesses that are left out nothing comes to the caches, which are colder then: more is found in memory."""
    trace, config = read_trace(bundled()["sqlite"]).head(1_000_000), SCHEMES["native"]
    far = []
    for warm_up in (0, 20_000, None):
        found = simulate(trace, config, interval=5_000, sample_every=20, warm_up=warm_up).caches
        assert found is not None
        rows = found.at("read", "write", "fetch")
        far.append(sum(rows[2:]) / sum(rows))
    assert far[0] > far[1] >= far[2] > 0

"""Latency of walks: shares by a histogram, references by level of memory, in text, pictures and pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmmu import Config, simulate
from fastmmu.cache.names import LEVELS
from fastmmu.machine.cache_result import CacheResult
from fastmmu.machine.rates import latency_at
from fastmmu.machine.result import Result
from fastmmu.report import comparison, explain, page, plot_runs
from fastmmu.report.latency import cdf, latency_chart, levels_table, with_latency
from fastmmu.study.sweep.columns import columns, row_of

BINS = ((4, 4, 60), (14, 15, 20), (80, 95, 15), (224, 255, 5))


def caches_found(**parts: Any) -> CacheResult:
    """What the data caches under a run came to."""
    return CacheResult(latency=(4, 14, 44, 150, 200), **parts)


def having(result: Result, caches: Any) -> Result:
    """The same run with other caches."""
    made = replace(result)
    object.__setattr__(made, "caches", caches)
    return made


MADE = caches_found(
    references={
        "read": (900, 50, 30, 10, 10),
        "guest1": (10, 20, 40, 20, 10),
        "guest2": (30, 10, 0, 0, 0),
        "ept0.1": (0, 10, 20, 5, 65),
        "ept2.3": (7, 0, 0, 0, 0),
    },
    cycles={"read": 9000, "guest1": 5000, "guest2": 300, "ept0.1": 15000, "ept2.3": 28},
    walk_latency=BINS,
    walk_cycles=3150,
)


@pytest.fixture(scope="module")
def runs() -> list[Result]:
    """Two schemes, the second with walks that take four times as long."""
    native = simulate(np.arange(3000, dtype=np.uint64) << np.uint64(12), Config(memory="64M"))
    ept = simulate(np.arange(3000, dtype=np.uint64) << np.uint64(12), Config(mmu="ept", memory="64M"))
    slow = tuple((4 * low, 4 * high + 3, n) for low, high, n in BINS)
    return [
        having(native, MADE),
        having(ept, replace(MADE, walk_latency=slow, walk_cycles=4 * 3150)),
    ]


# ---- shares ----------------------------------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    at, share = cdf(BINS)
    known = dict(zip(at, share, strict=True))
    assert (known[4], known[15], known[95], known[255]) == (0.6, 0.8, 0.95, 1.0)
    assert known[14] == 0.6  # nothing between two bins
    assert [latency_at(BINS, part) for part in (0.01, 0.6, 0.61, 0.8, 0.9, 0.95, 0.99, 1.0)] == [
        4, 4, 15, 15, 95, 95, 255, 255,
    ]  # fmt: skip


drawn = st.dictionaries(st.integers(0, 60), st.integers(1, 10**9), min_size=1)


@given(drawn, st.floats(0.001, 1))
def test_shares_rise_to_the_whole(found: dict[int, int], share: float) -> None:
    bins = [(3 * i, 3 * i + 2, n) for i, n in sorted(found.items())]
    at, shares = cdf(bins)
    assert at == sorted(at)
    assert shares == sorted(shares)
    assert at[0] >= 1
    assert shares[-1] == pytest.approx(1)
    value, whole = latency_at(bins, share), sum(found.values())
    upto = sum(n for _, high, n in bins if high <= value)
    below = sum(n for _, high, n in bins if high < value)
    assert below < share * whole + 1e-6
    assert upto >= share * whole * (1 - 1e-12) - 1e-6


# ---- text ------------------------------------------------------------------------------------------------------------


def test_references_by_level_of_memory(runs: list[Result]) -> None:
    text = explain(runs)
    first = text[: text.index("TLB of EPT")]
    lines = [line.split() for line in first.splitlines()]
    assert ["guest", "tables,", "level", "1", "100", "10", "20", "40", "20", "10", "50.0"] in lines
    assert ["reads", "1000", "900", "50", "30", "10", "10", "9.0"] in lines
    assert ["EPT", "level", "1,", "data", "100", "0", "10", "20", "5", "65", "150.0"] in lines
    assert ["EPT", "level", "3,", "guest", "level", "2", "7", "7", "0", "0", "0", "0", "4.0"] in lines
    assert "100 walks take 31.5 cycles on average; 50% at most 4, 90% at most 95, 99% at most 255" in first
    assert max(map(len, levels_table(runs[0], width=80, colour=False))) <= 80
    assert "where references" not in explain([having(run, None) for run in runs])


def test_cycles_of_a_walk_in_the_table(runs: list[Result]) -> None:
    table = comparison(runs)
    head = next(line for line in table.splitlines() if line.startswith("scheme"))
    end = head.index("each") + 4
    cells = [line[:end].split()[-1] for line in table.splitlines() if line.startswith(("native  ", "EPT  "))][:2]
    assert cells == ["31.50", "126"]
    assert "each" not in comparison([having(run, None) for run in runs])
    mixed = comparison([runs[0], having(runs[1], None)])
    line = next(line for line in mixed.splitlines() if line.startswith("EPT  "))
    assert line[end - 4 : end].strip() == ""
    for width in (80, 120):
        assert max(map(len, comparison(runs, width=width).splitlines())) <= width


def test_columns_of_a_sweep(runs: list[Result]) -> None:
    made: dict[str, Any] = dict.fromkeys(("key", "study", "cost_model", "seed", "fastmmu", "host"))
    row = row_of(runs[0], made)
    assert [row[name] for name in ("walk_cycles", "walk_p50", "walk_p90", "walk_p99")] == [3150, 4, 95, 255]
    assert [row[f"found_guest_{level}"] for level in LEVELS] == [40, 30, 40, 20, 10]
    assert [row[f"found_ept_{level}"] for level in LEVELS] == [7, 10, 20, 5, 65]
    assert [row[f"found_vmm_{level}"] for level in LEVELS] == [0] * 5
    bare = row_of(having(runs[0], None), made)
    names = [name for name in columns() if name.startswith("found_") or name in ("walk_cycles", "walk_p50")]
    assert [bare[name] for name in names] == [None] * 17
    assert len([name for name in names if name.startswith("found_")]) == 15


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_line_a_scheme(runs: list[Result]) -> None:
    chart = latency_chart("t0-latency", runs, ["native", "EPT"])
    assert chart is not None
    assert chart.marks == chart.svg.count('id="mark-t0-latency-') == 2
    assert [row[0] for row in chart.rows] == ["native"] * 4 + ["EPT"] * 4
    assert chart.rows[0] == ("native", 4, 4, 60)
    assert chart.said == "Latency of walks: longest in EPT, 126.0 cycles on average."
    bare = [having(run, None) for run in runs]
    assert latency_chart("t0-latency", bare, ["native", "EPT"]) is None
    assert [name for _, name in with_latency([runs[0], bare[1]], ["native", "EPT"])] == ["native"]


def test_it_is_in_files_and_pages(runs: list[Result], tmp_path: Path) -> None:
    bare = [having(run, None) for run in runs]
    for name, results in (("with.svg", runs), ("without.svg", bare)):
        plot_runs(results, tmp_path / name)
    assert ("cycles of a walk" in (tmp_path / "with.svg").read_text()) is True
    assert ("cycles of a walk" in (tmp_path / "without.svg").read_text()) is False
    assert "Latency of walks" in page(runs)
    assert "Latency of walks" not in page(bare)


def test_many_runs_have_names_and_colours_as_far_as_there_are(runs: list[Result]) -> None:
    names = [f"run {i}" for i in range(11)]
    chart = latency_chart("k", [runs[i % 2] for i in range(11)], names)
    assert chart is not None
    assert chart.marks == 8
    assert chart.title == "Latency of walks, of the first 8 of 11 runs"


def test_a_walk_of_no_cycles_can_be_drawn() -> None:
    assert cdf(((0, 0, 3), (1, 1, 1)))[0][0] == 1

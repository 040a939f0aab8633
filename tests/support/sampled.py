"""How often the true mean of a run lies in the interval that a sample of it states."""

from __future__ import annotations

import numpy as np

from fastmmu.machine.estimates import estimate
from fastmmu.machine.sampled import Sample
from fastmmu.machine.series import AT_END, Series

__all__ = ["SEEDS", "columns", "coverage", "drawn"]

SEEDS = 100


def drawn(sample: Sample, n: int) -> np.ndarray:
    """Numbers of the intervals that a sample counts, of n."""
    found: list[int] = []
    at = 0
    for gap in sample.gaps():
        at += gap // sample.interval
        if at >= n:
            return np.array(found)
        found.append(at)
        at += 1
    raise AssertionError


def columns(series: Series) -> dict[str, np.ndarray]:
    """Counters of whole intervals that are not 0 in all, and the cycles."""
    whole = series.counters()
    full = whole["accesses"] == series.interval
    found = {name: n[full].astype(float) for name, n in whole.items() if name not in (*AT_END, "accesses") and n.any()}
    return {"cycles": np.array([sum(by.values()) for by in series.cycles()])[full], **found}


def coverage(series: Series, every: int, seeds: int = SEEDS) -> dict[str, tuple[int, int]]:
    """Counter → (seeds whose interval holds the mean of all intervals, seeds with an interval), nothing left out."""
    found = {}
    every_draw = [drawn(Sample(series.interval, every, seed), len(series)) for seed in range(seeds)]
    for name, values in columns(series).items():
        hits = stated = 0
        for at in every_draw:
            low, high = estimate(values[at[at < len(values)]])[1:]
            stated += low is not None
            hits += (
                low is not None
                and high is not None
                and low <= values.mean() * (1 + 1e-12)
                and values.mean() * (1 - 1e-12) <= high
            )
        found[name] = hits, stated
    return found

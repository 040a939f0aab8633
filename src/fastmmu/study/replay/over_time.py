"""What a replay came to over time, as a result that a page can draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastmmu.machine.cache_counts import cache_counts
from fastmmu.machine.costs import CostModel
from fastmmu.machine.identity import Origin
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.machine.result import Result
from fastmmu.machine.series import Series
from fastmmu.machine.simulation import result_of

__all__ = ["OverTime"]

INTERVAL = 1 << 15
"""Accesses of a row at least: it ends with a block of the trace."""


class OverTime:
    """Counters of a replay, noted block by block, for whoever is `told`; None: nobody, and nothing is noted."""

    def __init__(self, replay: Replay, told: Callable[[str, Result], None] | None) -> None:
        self.replay, self.told = replay, told
        self.last = 0  # accesses that have a row
        if told is not None:
            self.costs = CostModel.load()
            self.series = Series(INTERVAL, {"accesses": 0}, replay.machine.config, self.costs)

    def note(self) -> None:
        """A block was carried out."""
        if self.told is None:
            return
        counters = self.replay.counters()
        if counters["accesses"] - self.last >= INTERVAL:
            self.series.add(counters, cache_counts(self.replay.machine))
            self.last = counters["accesses"]

    def tell(self, name: str, found: Replayed, complete: bool) -> None:
        """The run has ended."""
        if self.told is None:
            return
        counters = self.replay.counters()
        self.series.end(counters, cache_counts(self.replay.machine))
        source, machine, notes = self.replay.source, self.replay.machine, (found.line(),)
        origin = Origin(source.name, str(getattr(source, "path", None) or ""), "")
        result = result_of(machine, self.costs, found.seconds, origin, complete, notes, counters=counters)
        # of several CPUs what the TLB did is known of the first alone
        self.told(name, replace(result, series=self.series, tlb={} if found.cpus > 1 else result.tlb))

"""A part of a run: what it counts from some access on, and in every so many accesses.

    accesses of the trace   |--- warm-up ---|-- interval --|-- interval --|- rest -|
                             run, not counted  counted: differences of the counters at their ends

A cut lies right before an access: what else happens between two accesses belongs to the one before. A machine is the
same whatever is cut, so that differences are exact, however the trace is dealt out in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import ConfigError
from fastmmu.machine.cache_result import caches_between
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.cuts import accesses_in, difference, last_exits
from fastmmu.machine.policy import Policy
from fastmmu.machine.result import Result
from fastmmu.machine.roi import BetweenMarks, marks_of
from fastmmu.machine.running import Counted, Kept, Resumable, Running, running
from fastmmu.machine.sampled import Sample
from fastmmu.machine.sampling import Sampling
from fastmmu.machine.series import Series
from fastmmu.machine.simulation import Exits

__all__ = ["Region", "running_in"]


@dataclass(frozen=True)
class Region:
    """What is counted of a run. warm_up: accesses before that, None: as many as usual; interval: accesses of a row of
    the time series, or of what a sample counts: one interval of each `sample_every`, drawn by `seed`;
    roi: between two marks."""

    warm_up: int | None = None
    interval: int | None = None
    sample_every: int | None = None
    seed: int = 0
    roi: str | None = None

    def __post_init__(self) -> None:
        if (self.warm_up or 0) < 0:
            raise ConfigError(f"warm_up={self.warm_up}: give the number of accesses before what is counted, 0 or more")
        if self.interval is not None and self.interval < 1:
            raise ConfigError(f"interval={self.interval}: give the accesses of an interval, 1 or more; None for none")
        if self.sample_every is not None and self.interval is None:
            raise ConfigError(f"sample_every={self.sample_every}: give interval=, the accesses of what is counted, too")
        if self.sample is None and self.seed:
            raise ConfigError(f"seed={self.seed} draws a sample; give sample_every=, too")
        if self.roi is not None and (self.warm_up or self.interval is not None):
            raise ConfigError(f"roi={self.roi!r} says what is counted; leave out warm_up= and interval=")

    @property
    def whole(self) -> bool:
        """It is the run as it is."""
        return not self.warm_up and self.interval is None and self.roi is None

    @property
    def sample(self) -> Sample | None:
        """How the run is sampled, if it is."""
        if self.interval is None or self.sample_every is None:
            return None
        return Sample(self.interval, self.sample_every, self.seed, self.warm_up)


def running_in(
    trace: Any,
    config: Config | None,
    region: Region,
    *,
    policy: Policy | None = None,
    costs: CostModel | None = None,
    exits: Exits | None = None,
) -> Running:
    """A run that begins, of which a region is counted; `exits` is given those of the region."""
    if region.whole:
        return running(trace, config, policy=policy, costs=costs, exits=exits)
    costs = costs or CostModel.load()
    if region.sample is not None:
        return _sampling(trace, config, region.sample, policy, costs, exits)
    gate = None if exits is None else _Gate(exits)
    marks = None if region.roi is None else marks_of(region.roi)
    if marks is not None and getattr(trace, "kind", "program") != "system":
        raise ConfigError(
            f"roi={region.roi!r}: a trace of a program has no marks, a system trace has (MARK); count by accesses, "
            "from one on with warm_up= (--warm-up N), up to one with trace.head(N) (--limit N)"
        )
    run = running(trace, config, policy=policy, costs=costs, exits=gate)
    if marks is not None:
        return BetweenMarks(run, marks, costs, gate)
    return _InParts(run, region, config or Config(), costs, gate)


def _sampling(
    trace: Any, config: Config | None, sample: Sample, policy: Policy | None, costs: CostModel, exits: Exits | None
) -> Running:
    if exits is not None:
        raise ConfigError("sample_every= counts a part of the exits; leave it out for a log of all")
    if getattr(trace, "kind", "program") == "system":
        raise ConfigError(f"{trace.name} is a system trace, which is replayed whole; leave sample_every= out")
    if config is not None and config.tpr is not None and sample.warm_up is not None:
        raise ConfigError(
            f"tpr={config.tpr!r}: the clock of an APIC is accesses, of which a sampled run leaves out some; leave "
            "warm_up= out, then all are run"
        )
    hashed = not hasattr(trace, "content")
    return Sampling(running(trace, config, policy=policy, costs=costs, hashed=False), sample, costs, hashed)


class _Gate:
    """Passes exits on once it is open."""

    def __init__(self, exits: Exits) -> None:
        self.exits, self.open = exits, False

    def __call__(self, records: npt.NDArray[np.void]) -> None:
        if self.open:
            self.exits(records)


class _InParts:
    """A run of which a region is counted. gate: of its exits, if anybody wants them."""

    def __init__(self, run: Resumable, region: Region, config: Config, costs: CostModel, gate: _Gate | None) -> None:
        self.run, self.region, self.config, self.costs, self.gate = run, region, config, costs, gate
        self.left = region.warm_up or 0  # accesses until the next cut
        self.before: Counted | None = None  # what is counted begins there; None: that is still to come
        self.series: Series | None = None
        if not self.left:
            self._begin(Counted({"accesses": 0}, {}, 0.0))  # a machine has made a table before its first access

    @property
    def events(self) -> int:
        return self.run.events

    def parts(self, block: Any) -> Iterator[Any]:
        return self.run.parts(block)

    def cut(self, block: Any, part: slice) -> Any:
        return self.run.cut(block, part)

    def take(self, block: Any) -> None:
        if self.before is not None and self.series is None:
            self.run.take(block)
            return
        at = accesses_in(block)
        done = passed = 0  # events and accesses of the block
        while len(at) - passed > self.left:
            passed += self.left
            upto = int(at[passed])
            if upto > done:
                self.run.take(self.run.cut(block, slice(done, upto)))
            done = upto
            self._cut()
            if self.series is None:
                self.run.take(self.run.cut(block, slice(done, None)) if done else block)
                return
        self.run.take(self.run.cut(block, slice(done, None)) if done else block)
        self.left -= len(at) - passed

    def give(self) -> None:
        self.run.give()

    def _cut(self) -> None:
        if self.before is None:
            self.run.give()
            self._begin(self.run.counted())
            return
        assert self.series is not None
        if self.config.caches is None:
            self.series.add(self.run.counters())
        else:
            now = self.run.counted()
            self.series.add(now.counters, now.caches)
        self.left = self.series.interval

    def _begin(self, before: Counted) -> None:
        if self.gate is not None:
            self.gate.open = True
        self.before = before
        if self.region.interval is not None:
            self.left = self.region.interval
            self.series = Series(
                self.region.interval, self.before.counters, self.config, self.costs, self.before.caches
            )

    def counters(self) -> dict[str, Any]:
        return self.run.counters()

    def counted(self) -> Counted:
        return self.run.counted()

    def kept(self) -> Kept:
        machine, more, arrays = self.run.kept()
        series = None if self.series is None else self.series.kept()
        more = {"run": more, "left": self.left, "before": self.before, "series": None if series is None else series[0]}
        return Kept(machine, more, {**arrays, **({} if series is None else {"series": series[1]})})

    def resume(self, kept: Kept) -> None:
        self.run.resume(Kept(kept.machine, kept.more["run"], kept.arrays))
        before = kept.more["before"]
        if before is None:
            self.before = self.series = None
        else:
            self._begin(Counted(*before))
        if self.series is not None:
            self.series.resume(kept.more["series"], kept.arrays["series"])
        self.left = int(kept.more["left"])

    def result(self, *, complete: bool) -> Result:
        """What the region came to until now.

        :raises ConfigError: the trace ended within the warm-up.
        """
        whole = self.run.result(complete=complete)
        if self.before is None and complete:
            n = whole.counters["accesses"]
            raise ConfigError(
                f"warm_up={self.region.warm_up}: {whole.trace} has {n} accesses, so that none is left to count; give "
                "fewer"
            )
        if self.before is None:
            self._begin(self.run.counted())
        assert self.before is not None
        counters = difference(whole.counters, self.before.counters)
        sums = self.run.counted().caches
        if self.series is not None:
            self.series.end(whole.counters, sums)
        caches = caches_between(sums, self.before.caches)
        by_cause = cycles(counters, whole.config, self.costs, caches)
        return replace(
            whole,
            counters=counters,
            tlb=difference(whole.tlb, self.before.tlb),
            cycles=float(sum(by_cause.values())),
            cycles_by=by_cause,
            seconds=whole.seconds - self.before.seconds,
            first=self.before.counters["accesses"],
            exit_log=last_exits(whole.exit_log, counters["vm_exits"]),
            series=self.series,
            caches=caches,
        )

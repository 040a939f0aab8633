"""Live migration: pre-copy rounds over a trace, by method of dirty logging (kvm_policy.md §4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastmmu._checked import check_fields, checked
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.identity import UNKNOWN, Origin
from fastmmu.machine.simulation import Simulation
from fastmmu.study.schemes import MIGRATE as METHODS
from fastmmu.study.schemes import fields_of
from fastmmu.threads.lanes import Lane, in_lanes
from fastmmu.trace import Batch, Trace
from fastmmu.trace.events import concatenate, empty_batch
from fastmmu.trace.identity import AnyTrace, Identified, identified

__all__ = ["METHODS", "Migration", "Plan", "Round", "migrate", "migrations"]

SLICE = 2000  # events between two looks at the clock, near the end of a round
KEPT = 1 << 24  # events of a trace that are kept for its next run; a longer one is read again
SHORT = 1 << 16  # events of a trace that is kept several times in a row
RING = 4096
PAGE = 4096
STEADY = 0.9  # a round sends so much of what the last sent: there will be as many as are allowed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a migration goes.

    bandwidth: bytes a second. downtime: seconds that the guest may stand still at the end. rounds: at most so many
    before it stands still all the same. ghz: clock that turns modelled cycles into seconds. warm: share of the trace
    that runs before the migration begins. The trace begins anew where it ends meanwhile. most_cycles: modelled cycles
    of the guest that may be simulated meanwhile; 10^10 are a minute or so. A migration that will take more is refused.
    """

    bandwidth: float = 1.25e9
    downtime: float = 0.001
    rounds: int = 30
    ghz: float = 3.0
    warm: float = 0.5
    most_cycles: float = 1e10

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("bandwidth", "downtime", "ghz", "most_cycles"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Plan: {name}={getattr(self, name)!r} must be above 0")
        if self.rounds < 1 or not 0 <= self.warm <= 1:
            raise ConfigError(f"Plan: rounds={self.rounds!r} must be at least 1, warm={self.warm!r} a share")


@dataclass(frozen=True)
class Round:
    """Pages sent, seconds that it took, events and VM exits of the guest meanwhile, pages that it wrote."""

    pages: int
    seconds: float
    events: int
    exits: int
    dirtied: int


@dataclass(frozen=True)
class Migration:
    """What a migration came to.

    rounds: while the guest runs. last: pages sent while it stands still, for ``downtime`` seconds. converged: these
    were few enough. exits, cycles: of the guest while it migrated; base_exits, base_cycles: of the same events without
    a log. origin: trace, costs, TLB.
    """

    trace: str
    method: str
    plan: Plan
    rounds: tuple[Round, ...]
    last: int
    converged: bool
    exits: int
    cycles: float
    base_exits: int
    base_cycles: float
    origin: Origin = UNKNOWN

    @property
    def downtime(self) -> float:
        """Seconds for which the guest stands still."""
        return self.last * PAGE / self.plan.bandwidth

    @property
    def seconds(self) -> float:
        """From begin to end."""
        return sum(r.seconds for r in self.rounds) + self.downtime

    @property
    def pages(self) -> int:
        """Pages sent in all."""
        return sum(r.pages for r in self.rounds) + self.last

    @property
    def slowdown(self) -> float:
        """Modelled cycles of the guest while it migrated, over those without a log."""
        return self.cycles / self.base_cycles if self.base_cycles else 1.0


class _Guest:
    """A simulation, its modelled time and its exits."""

    def __init__(self, config: Config, costs: CostModel) -> None:
        self.run = Simulation(config, costs=costs)
        self.run.content = None  # of the trace, which is run more than once

    def feed(self, events: Batch) -> None:
        self.run.feed(events)

    def cycles(self) -> float:
        return float(sum(cycles(self.run.machine.counters(), self.run.config, self.run.costs).values()))

    def exits(self) -> int:
        return int(self.run.machine.counters()["vm_exits"])


@checked
def migrate(
    trace: AnyTrace,
    method: str = "write-protect",
    plan: Plan | None = None,
    *,
    memory: int | str = "1G",
    vmm: Any = "kernel",
    kvm: str = "6.1",
    costs: CostModel | None = None,
    progress: Callable[[int], None] | None = None,
) -> Migration:
    """Migrate the guest that runs a trace.

    The first round sends every page that the program has touched; each further one those written while the last was
    sent. When the pages written are few enough to be sent within ``plan.downtime``, or after ``plan.rounds``, the guest
    stops and the rest is sent.

    :param method: of ``study.schemes.MIGRATE``. :param vmm, kvm: as of :class:`Config`.
    :param progress: called with the number of events done.
    :raises ConfigError: an unknown method; more than ``plan.most_cycles`` to simulate. :raises TraceError: an empty
        trace.
    """
    told = None if progress is None else lambda _, events: progress(events)
    (found,) = migrations(trace, [method], plan, memory=memory, vmm=vmm, kvm=kvm, costs=costs, progress=told, jobs=1)
    return found


@checked
def migrations(
    trace: AnyTrace,
    methods: Sequence[str] = tuple(METHODS),
    plan: Plan | None = None,
    *,
    memory: int | str = "1G",
    vmm: Any = "kernel",
    kvm: str = "6.1",
    costs: CostModel | None = None,
    progress: Callable[[str, int], None] | None = None,
    jobs: int | None = None,
) -> Iterator[Migration]:
    """Those of :func:`migrate` by each method, in their order, in several threads.

    :param progress: called with the method and the number of its events done.
    :param jobs: threads, None: one a processor. No result depends on it.
    """
    base = Config(memory=memory, vmm=vmm)
    configs = [base.replace(**fields_of(method, METHODS, "method", kvm)) for method in methods]
    plan, costs = plan or Plan(), costs or CostModel.load()
    trace = identified(trace)
    kept = _Kept(trace)
    done = [0] * len(methods)

    def lane(number: int) -> Lane[Migration]:
        migrating = _migration(trace, kept, methods[number], configs[number], plan, costs)
        while True:
            try:
                done[number] = next(migrating)
            except StopIteration as end:
                found: Migration = end.value
                return found
            yield True

    told = None if progress is None else lambda number, _: progress(methods[number], done[number])
    yield from in_lanes([partial(lane, number) for number in range(len(methods))], jobs=jobs, progress=told)


def _migration(
    trace: Identified, kept: _Kept, method: str, config: Config, plan: Plan, costs: CostModel
) -> Generator[int, None, Migration]:
    """Gives the number of events done, now and then."""
    events = _Endless(kept)
    logged, plain = _Guest(config, costs), _Guest(config.replace(pml=False), costs)
    done = 0

    def run(n: int) -> Iterator[int]:
        nonlocal done
        while n > 0:
            some = events.take(n)
            logged.feed(some)
            plain.feed(some)
            done += len(some)
            n -= len(some)
            yield done

    yield from run(math.ceil(plan.warm * kept.total))
    vmm = logged.run.machine.vmm
    if method == "ring":
        vmm.use_dirty_ring(RING)
    begin, begin_plain = (logged.cycles(), logged.exits()), (plain.cycles(), plain.exits())
    vmm.start_dirty_log(0)
    vmm.dirty_log(0)
    pages = int(logged.run.machine.counters()["pages_touched"])
    rounds: list[Round] = []
    while True:
        seconds = pages * PAGE / plan.bandwidth
        _check_cycles(plan, rounds, pages)
        start, exits, events_before = logged.cycles(), logged.exits(), done
        left = seconds * plan.ghz * 1e9
        while left > 0:
            rate = max(1.0, logged.cycles() / done) if done else 1.0
            some = int(left / rate / 2)  # half of what is left at the rate until now: the end is not missed
            yield from run(max(SLICE, some))
            left = start + seconds * plan.ghz * 1e9 - logged.cycles()
        dirtied = int(np.count_nonzero(logged.run.machine.vmm.dirty_log(0)))
        rounds.append(Round(pages, seconds, done - events_before, logged.exits() - exits, dirtied))
        pages = dirtied
        few = pages * PAGE <= plan.downtime * plan.bandwidth
        if few or len(rounds) == plan.rounds:
            break
    return Migration(
        trace=trace.name,
        method=method,
        plan=plan,
        rounds=tuple(rounds),
        last=pages,
        converged=few,
        exits=logged.exits() - begin[1],
        cycles=logged.cycles() - begin[0],
        base_exits=plain.exits() - begin_plain[1],
        base_cycles=plain.cycles() - begin_plain[0],
        origin=trace.origin(costs.identity, str(config.geometry)),
    )


def _check_cycles(plan: Plan, rounds: list[Round], pages: int) -> None:
    """Refuse a migration of which the next round sends so many pages, if it takes too long to simulate."""
    steady = bool(rounds) and pages >= STEADY * rounds[-1].pages
    left = plan.rounds - len(rounds) if steady else 1
    seconds = sum(r.seconds for r in rounds) + left * pages * PAGE / plan.bandwidth
    if seconds * plan.ghz * 1e9 <= plan.most_cycles:
        return
    every = f"its {plan.rounds} rounds, of {pages:,} pages each, last"
    many = every if left > 1 else f"round {len(rounds) + 1}, of {pages:,} pages, ends at"
    raise ConfigError(
        f"Plan: at {plan.bandwidth:g} bytes a second {many} {seconds:.3g} s of the guest, "
        f"{seconds * plan.ghz * 1e9:.3g} cycles to simulate, more than most_cycles={plan.most_cycles:g}; raise "
        f"bandwidth (1.25e9 is a link of 10 Gbit/s), lower ghz={plan.ghz:g} or rounds, or raise most_cycles"
    )


class _Kept:
    """The batches of a trace, those in memory that are not too many. `total`: events."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.total = trace, 0
        kept: list[Batch] = []
        for batch in trace.batches():
            self.total += len(batch)
            kept = [*kept, batch] if self.total <= KEPT else []
        if not self.total:
            raise TraceError(f"{trace.name} holds no events", path=None)
        if kept and self.total < SHORT:  # a batch for each run of a few events would be most of the time
            kept = [concatenate(kept * (SHORT // self.total + 1))]
        self._kept = kept

    def batches(self) -> Iterable[Batch]:
        return self._kept or self.trace.batches()


class _Endless:
    """The events of a trace again and again."""

    def __init__(self, kept: _Kept) -> None:
        self._batches = itertools.chain.from_iterable(kept.batches() for _ in itertools.count())
        self._rest = empty_batch(0)

    def take(self, n: int) -> Batch:
        """The next ones: at least one, at most `n`."""
        while not len(self._rest):
            self._rest = next(self._batches)
        some, self._rest = self._rest[:n], self._rest[n:]
        return some

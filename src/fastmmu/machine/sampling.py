"""Sampled simulation: of every so many intervals of a trace one is counted (SMARTS, Wunderlich et al. 2003).

    |···· touched ····|== run in full ==|# counted #|···· touched ····|== run ==|# counted #|···
                          warm_up         interval

In each group of `every` intervals one is drawn. What lies between two of them is run in full for the last `warm_up`
accesses; before that, accesses that touch no page in a new way are left out (machine/touches.pyx), so that page tables,
dirty flags and everything that the VMM keeps are those of the whole run, and what TLB and data caches hold is old:
caches see what is run, no more. Without `warm_up` nothing is left out: machine and counters are those of the whole run,
and the error is that of the sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastmmu.errors import ConfigError
from fastmmu.machine.cache_result import CacheResult, caches_between, caches_sum
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.cuts import accesses_in, difference
from fastmmu.machine.identity import Content
from fastmmu.machine.result import Result
from fastmmu.machine.running import Counted, Running
from fastmmu.machine.sampled import Sample, Sampled
from fastmmu.machine.series import AT_END, Table, rows_of
from fastmmu.machine.simulation import Part
from fastmmu.machine.touches import Touches

__all__ = ["Sampling"]


class Sampling:
    """A run that is sampled."""

    def __init__(self, run: Running, sample: Sample, costs: CostModel, hashed: bool) -> None:
        self.run, self.sample, self.costs = run, sample, costs
        self.content = Content() if hashed else None
        self.touches = Touches()
        self.gaps = sample.gaps()
        self.accesses = self.fed = self.done = 0
        self.begun: Counted | None = None  # the interval that is counted
        self.table = Table()
        self.sum: dict[str, Any] = {}
        self.tlb: dict[str, Any] = {}
        self.caches: list[CacheResult | None] = []  # of each interval
        self.counting = self.touching = False
        self.left = 0
        self.ahead: list[tuple[str, int]] = []
        self._next()

    @property
    def events(self) -> int:
        return self.done

    def parts(self, block: Any) -> Iterator[Any]:
        return self.run.parts(block)

    def cut(self, block: Any, part: slice) -> Any:
        return self.run.cut(block, part)

    def take(self, block: Any) -> None:
        if self.content is not None:
            self.content.update(block.op, block.size, block.addr)
        at = accesses_in(block)
        done = passed = 0
        while len(at) - passed > self.left:
            passed += self.left
            upto = int(at[passed])
            self._do(block, done, upto)
            done = upto
            self._next()
        self._do(block, done, len(block.addr))
        self.left -= len(at) - passed
        self.accesses += len(at)
        self.done += len(block.addr)

    def _do(self, block: Any, first: int, upto: int) -> None:
        if first == upto:
            return
        part = self.run.cut(block, slice(first, upto))
        if self.touching:
            places = self.touches.first(part.op, part.size, part.addr)
            if not len(places):
                return
            part = Part.of(part, places)
        self.fed += len(part.addr)
        self.run.take(part)

    def _next(self) -> None:
        """On to the next stretch that has accesses."""
        if self.counting:
            self._counted()
        while True:
            if not self.ahead:
                gap = next(self.gaps)
                warm = gap if self.sample.warm_up is None else min(gap, self.sample.warm_up)
                self.ahead = [("touch", gap - warm), ("run", warm), ("count", self.sample.interval)]
            kind, self.left = self.ahead.pop(0)
            if self.left:
                break
        self.touching, self.counting = kind == "touch", kind == "count"
        if self.touching:
            self.touches.forget()
        if self.counting:
            self.begun = (
                self.run.counted() if self.fed else Counted({"accesses": 0}, {}, 0.0)
            )  # with what it began with

    def _counted(self) -> None:
        assert self.begun is not None
        now = self.run.counted()
        counters = difference(now.counters, self.begun.counters)
        self.table.add({name: n for name, n in counters.items() if name not in AT_END})
        self.sum = _added(self.sum, counters) | {name: counters[name] for name in AT_END if name in counters}
        self.tlb = _added(self.tlb, difference(now.tlb, self.begun.tlb))
        self.caches.append(caches_between(now.caches, self.begun.caches))
        self.begun = None

    def give(self) -> None:
        self.run.give()

    def counters(self) -> dict[str, Any]:
        return self.run.counters()

    def counted(self) -> Counted:
        return self.run.counted()

    def result(self, *, complete: bool) -> Result:
        """Counters of the intervals that were counted, and ``sample``.

        :raises ConfigError: no interval was.
        """
        if self.counting and not self.left:  # the trace ends with it
            self._counted()
            self.counting = False
        whole = self.run.result(complete=complete)
        if not len(self.table) and complete:
            raise ConfigError(
                f"interval={self.sample.interval}, sample_every={self.sample.every}: {whole.trace} has {self.accesses} "
                "accesses, and none of its intervals was counted; give shorter ones"
            )
        counters = self.sum or difference(whole.counters, whole.counters)
        columns = self.table.columns()
        rows, caches = zip(rows_of(columns), self.caches, strict=True), caches_sum(self.caches)
        each = [sum(cycles(row, whole.config, self.costs, found).values()) for row, found in rows]
        by_cause = cycles(counters, whole.config, self.costs, caches)
        return replace(
            whole,
            counters=counters,
            tlb=self.tlb,
            cycles=float(sum(by_cause.values())),
            cycles_by=by_cause,
            content=whole.content if self.content is None else self.content.digest(),
            exit_log=None,
            caches=caches,
            sample=Sampled(self.sample, columns, each, self.accesses, self.fed),
        )


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _added(a.get(name, {}), b.get(name, {}))
        if isinstance(a.get(name, b.get(name)), dict)
        else a.get(name, 0) + b.get(name, 0)
        for name in {**a, **b}
    }

"""Programs on the physical CPUs of one host: each trace a vCPU, scheduled by turns or as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.host import Host
from fastmmu.machine.hosted import check_priced
from fastmmu.machine.result import Result
from fastmmu.ops import Op
from fastmmu.trace import Trace
from fastmmu.trace.identity import AnyTrace, Identified, identified

__all__ = ["Consolidation", "Turn", "consolidate"]

Turn = tuple[int, int, int]
"""CPU, vCPU, events that it may run there."""
Columns = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class Consolidation:
    """``results``: one a vCPU, in the order of the traces; a counter of the VMM's tables is that of its machine.

    ``totals``: migrations, switches, vpids, remote_flushes, flush_requests, ipis, see :meth:`Host.totals`.
    ``vpids``: VPID of each vCPU. ``tlbs``: :meth:`TLB.counters` of each physical CPU. ``unfinished``: events of a
    schedule that came after the end of their program.
    """

    results: tuple[Result, ...]
    totals: dict[str, int]
    vpids: tuple[int, ...]
    tlbs: tuple[dict[str, Any], ...]
    unfinished: int


class _Program:
    """A trace, some events at a time."""

    def __init__(self, trace: Trace, number: int, of: int) -> None:
        self.batches = iter(trace.batches())
        self.number, self.of = number, of
        self.left: Columns | None = None
        self.done = 0
        self.counts = trace.instructions is not None
        self.begun: npt.NDArray[np.uint32] | None = None  # instructions, by event that is left
        self.instructions = 0  # of what was taken
        self._next()

    def _next(self) -> None:
        batch = next(self.batches, None)
        self.left = None if batch is None else (batch.op, batch.size, self._processes(batch.op, batch.addr))
        self.begun = batch.instructions_column() if self.counts and batch is not None else None

    def _processes(self, op: npt.NDArray[np.uint8], addr: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Processes of vCPUs of one machine get numbers of their own: k of vCPU i becomes i + k times the vCPUs."""
        switches = (op == Op.SWITCH) | (op == Op.FORK)
        if self.of == 1 or not switches.any():
            return addr
        return np.where(switches, addr * np.uint64(self.of) + np.uint64(self.number), addr)

    @property
    def ended(self) -> bool:
        return self.left is None

    def take(self, n: int) -> Columns:
        """The next events, at most n: fewer where a batch ends."""
        assert self.left is not None
        op, size, addr = self.left
        part = op[:n], size[:n], addr[:n]
        self.done += len(part[0])
        if self.begun is not None:
            self.instructions += int(self.begun[:n].sum(dtype=np.uint64))
            self.begun = self.begun[n:]
        if len(op) > n:
            self.left = op[n:], size[n:], addr[n:]
        else:
            self._next()
        return part


def _by_turns(programs: Sequence[_Program], cpus: int, quantum: int) -> Iterator[Turn]:
    """Round robin: who waited longest runs next, on the CPU where it ran last if that is free."""
    queue, last = list(range(len(programs))), [-1] * len(programs)
    while queue:
        chosen, queue = queue[:cpus], queue[cpus:]
        free = [cpu for cpu in range(cpus) if cpu not in {last[vcpu] for vcpu in chosen}]
        taken: set[int] = set()
        for vcpu in chosen:
            if last[vcpu] < 0 or last[vcpu] in taken:
                last[vcpu] = free.pop(0)
            taken.add(last[vcpu])
            yield last[vcpu], vcpu, quantum
        queue += [vcpu for vcpu in chosen if not programs[vcpu].ended]


@checked
def consolidate(
    traces: Sequence[AnyTrace],
    config: Config | Sequence[Config],
    *,
    cpus: int | None = None,
    quantum: int = 50_000,
    schedule: Iterable[Turn] | None = None,
    one_machine: bool = False,
    costs: CostModel | None = None,
    progress: Callable[[int], None] | None = None,
    keep_partial: bool = False,
) -> Consolidation:
    """Run traces as vCPUs of one host.

    >>> found = consolidate([a, b, c], Config(mmu="ept", vpid=True), cpus=2, quantum=20_000)
    >>> found.totals["migrations"], found.results[0].counters["tlb_misses"]

    :param config: of every machine, or one for each. :param cpus: physical CPUs; None: those of the first's topology,
        or 1. :param one_machine: the vCPUs of one machine, else each its own.
    :param quantum: events of a turn. :param schedule: turns in their order, in place of round robin; it ends the run.
    :param progress: called after each turn with the number of events done.
    :param keep_partial: Ctrl-C gives the results until then, with ``complete=False`` but for the programs that have
        ended, instead of an exception.
    :raises ConfigError: no trace, another number of configurations, a turn of a CPU or vCPU that there is not.
    :raises TraceError: a trace is malformed.
    """
    configs = [config] * len(traces) if isinstance(config, Config) else list(config)
    if not traces or len(configs) != len(traces) or quantum < 1:
        raise ConfigError(f"{len(traces)} traces, {len(configs)} configurations, turns of {quantum} events; give a "
                          "configuration for each trace and at least one event a turn")  # fmt: skip
    for each in configs:
        check_priced(each, "consolidation")
    identities = [identified(trace) for trace in traces]
    host = Host([(configs[0], len(traces))] if one_machine else configs, cpus=cpus)
    cpus = len(host.cpus)
    programs = [_Program(trace, i, len(traces) if one_machine else 1) for i, trace in enumerate(identities)]
    seconds, done, unfinished, interrupted = [0.0] * len(traces), 0, 0, False
    try:
        for cpu, vcpu, n in _by_turns(programs, cpus, quantum) if schedule is None else schedule:
            if not 0 <= vcpu < len(programs) or not 0 <= cpu < cpus:
                raise ConfigError(f"turn of vCPU {vcpu} on CPU {cpu}: there are {len(programs)} vCPUs and {cpus} CPUs")
            program, left, begin = programs[vcpu], n, time.perf_counter()
            while left and not program.ended:
                first = program.done
                part = program.take(left)
                host.run(vcpu, cpu, *part, None, first)
                left -= len(part[0])
            seconds[vcpu] += time.perf_counter() - begin
            done += n - left
            unfinished += left if schedule is not None else 0
            if progress is not None:
                progress(done)
    except KeyboardInterrupt:
        if not keep_partial:
            raise
        interrupted = True
    model = costs or CostModel.load()
    return Consolidation(
        results=tuple(
            _result(host, i, programs[i], identities[i], configs[i], model, seconds[i], not interrupted)
            for i in range(len(traces))
        ),
        totals=host.totals(),
        vpids=tuple(host.vpid(i) for i in range(host.vcpus)),
        tlbs=tuple(tlb.counters() for tlb in host.cpus),
        unfinished=unfinished,
    )


def _result(
    host: Host,
    vcpu: int,
    program: _Program,
    trace: Identified,
    config: Config,
    costs: CostModel,
    seconds: float,
    finished: bool,
) -> Result:
    counters = host.counters(vcpu)
    if program.counts:
        counters["instructions"] = program.instructions
    by_cause = cycles(counters, config, costs)
    of = trace.origin(costs.identity, str(config.geometry))
    return Result(
        config=config,
        counters=counters,
        cycles=float(sum(by_cause.values())),
        cycles_by=by_cause,
        seconds=seconds,
        trace=of.trace,
        complete=finished or program.ended,
        path=of.path,
        content=of.content,
        costs=of.costs,
        geometry=of.geometry,
        overlap=costs.walk.overlap,
        fetch_cycles=costs.access.trace,
    )

"""Threads of processes on the vCPUs of one machine: a trace each, scheduled by a quantum, moved, pinned."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.host import Host
from fastmmu.machine.hosted import check_priced, count_of
from fastmmu.machine.result import Result
from fastmmu.ops import Op
from fastmmu.study.consolidate.run import Consolidation, _Program
from fastmmu.trace.drmemtrace import DrmemtraceTrace
from fastmmu.trace.identity import AnyTrace, Identified, identified

_PROCESSES = 1 << 16

__all__ = ["Thread", "Threaded", "run_threads", "threads_of"]


@dataclass(frozen=True)
class Thread:
    """A trace that ran as a thread: its process, events, turns, how often it moved to another vCPU, the vCPUs that it
    ran on, by the number of its turns there."""

    trace: str
    process: int
    events: int
    turns: int
    moves: int
    vcpus: dict[int, int]


@dataclass(frozen=True)
class Threaded(Consolidation):
    """``results``: of each vCPU; ``threads``: of each trace."""

    threads: tuple[Thread, ...] = ()


@dataclass
class _Thread:
    program: _Program
    trace: Identified
    allowed: tuple[int, ...]  # vCPUs
    process: int
    running: int  # the process that it is in: its own, or that of its last SWITCH
    turns: int = 0
    moves: int = 0
    vcpus: dict[int, int] = field(default_factory=dict)


@checked
def threads_of(traces: Sequence[AnyTrace]) -> tuple[list[AnyTrace], list[int]]:
    """Traces as threads, and the number of the process of each: a folder of drmemtrace is its threads, by their
    processes; all other traces are of one process, the first."""
    found: list[tuple[object, AnyTrace]] = []
    for each in traces:
        trace = identified(each)
        parts = trace.inner.by_thread() if isinstance(trace.inner, DrmemtraceTrace) else []
        if len(parts) < 2:
            found.append((None, trace))
        else:
            found += (((trace.path, pid), part) for pid, part in parts)
    number = {process: i for i, process in enumerate(dict.fromkeys(process for process, _ in found))}
    return [thread for _, thread in found], [number[process] for process, _ in found]


class _Schedule:
    """Which thread runs next, on which vCPU, on which CPU."""

    def __init__(
        self, threads: list[_Thread], vcpus: int, cpus: int, quantum: int, random: Random | None, migrate: float,
        pinned: bool,
    ) -> None:  # fmt: skip
        self.quantum, self.random, self.migrate, self.pinned = quantum, random, migrate, pinned
        self.queue: list[deque[_Thread]] = [deque() for _ in range(vcpus)]
        for thread in threads:
            home = min(thread.allowed, key=lambda vcpu: len(self.queue[vcpu]))
            self.queue[home].append(thread)
        self.waiting, self.last, self.cpus = list(range(vcpus)), [-1] * vcpus, cpus

    def move(self, thread: _Thread, source: int, to: int) -> None:
        self.queue[source].remove(thread)
        self.queue[to].append(thread)
        thread.moves += 1

    def balance(self) -> None:
        """A vCPU that has nothing to run pulls a thread that waits, from where most do; and some move by chance."""
        for vcpu, queue in enumerate(self.queue):
            if not queue:
                source = max(range(len(self.queue)), key=lambda other: len(self.queue[other]))
                free = [thread for thread in list(self.queue[source])[1:] if vcpu in thread.allowed]
                if free:
                    self.move(free[-1], source, vcpu)
        if self.random is not None and self.random.random() < self.migrate:
            source = self.random.choice([vcpu for vcpu, queue in enumerate(self.queue) if queue])
            thread = self.random.choice(list(self.queue[source]))
            others = [vcpu for vcpu in thread.allowed if vcpu != source]
            if others:
                self.move(thread, source, self.random.choice(others))

    def turns(self) -> Iterator[tuple[int, int, _Thread, int]]:
        """CPU, vCPU, thread, events, until all threads have ended. In rounds of as many turns as there are CPUs."""
        while any(self.queue):
            self.balance()
            ready = [vcpu for vcpu in self.waiting if self.queue[vcpu]]
            chosen = ready[: self.cpus]
            self.waiting = [vcpu for vcpu in self.waiting if vcpu not in chosen] + chosen
            if self.random is not None:
                self.random.shuffle(chosen)
            free = [cpu for cpu in range(self.cpus) if cpu not in {self.last[vcpu] for vcpu in chosen}]
            taken: set[int] = set()
            for vcpu in chosen:
                if self.pinned:
                    self.last[vcpu] = vcpu
                elif self.last[vcpu] < 0 or self.last[vcpu] in taken:
                    self.last[vcpu] = free.pop(0)
                taken.add(self.last[vcpu])
                events = self.quantum
                if self.random is not None:
                    events = self.random.randint(max(1, events // 2), events + events // 2)
                queue = self.queue[vcpu]
                yield self.last[vcpu], vcpu, queue[0], events
                thread = queue.popleft()
                if not thread.program.ended:
                    queue.append(thread)


@checked
def run_threads(
    traces: Sequence[AnyTrace],
    config: Config,
    *,
    processes: Sequence[int] | None = None,
    vcpus: int | None = None,
    cpus: int | None = None,
    quantum: int = 50_000,
    seed: int | None = None,
    migrate: float = 0.0,
    affinity: Sequence[Sequence[int]] | None = None,
    costs: CostModel | None = None,
    omit: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    keep_partial: bool = False,
) -> Threaded:
    """Run traces as threads on the vCPUs of one machine: those of one process share its address space.

    >>> found = run_threads([a, b, c], Config(mmu="ept", vpid=True), vcpus=2, seed=1)
    >>> found.results[0].counters["shootdown_ipis"], found.threads[2].moves

    A vCPU runs the threads of its queue by turns; one whose queue is empty pulls a thread that waits elsewhere, or
    idles (:meth:`Host.idle`). Processes that a trace switches to, or forks, are those of its process alone.

    :param processes: of each trace the number of its process, from 0; None: one for all. :param vcpus: of the machine;
        None: one for each trace. :param cpus: physical; None: those of the
        topology, or one for each vCPU, natively always.
    :param quantum: events of a turn. :param seed: turns come in a random order, of half to one and a half quanta; None:
        in turn. :param migrate: chance of each round that some thread moves to another vCPU; needs a seed.
    :param affinity: of each trace the vCPUs that it may run on; None: all. :param omit: as of :class:`Host`.
    :param progress, keep_partial: as of :func:`consolidate`.
    :raises ConfigError: no trace, another number of processes or affinities, a vCPU that there is not, no such chance.
    :raises TraceError: a trace is malformed.
    """
    threads, n_vcpus = _threads(traces, processes, vcpus, affinity)
    native = config.mmu == "native"
    own_cpus = native or (cpus is None and config.topology is None)
    if quantum < 1 or not 0 <= migrate <= 1 or (migrate and seed is None):
        raise ConfigError(
            f"quantum={quantum}, migrate={migrate}, seed={seed}: give at least one event a turn, a chance of 0..1, and "
            "a seed where threads move by chance"
        )
    check_priced(config, "a run of threads")
    host = Host([(config, n_vcpus)], cpus=n_vcpus if own_cpus else cpus, omit=list(omit))
    random = None if seed is None else Random(seed)
    schedule = _Schedule(threads, n_vcpus, len(host.cpus), quantum, random, migrate, native)
    there: dict[int, int] = {}  # process that runs on a vCPU
    ran: list[dict[str, None]] = [{} for _ in range(n_vcpus)]
    seconds, begun, done, interrupted = [0.0] * n_vcpus, [0] * n_vcpus, 0, False
    counts = all(thread.program.counts for thread in threads)  # instructions, of all that runs on a vCPU
    try:
        for cpu, vcpu, thread, events in schedule.turns():
            begin = time.perf_counter()
            before = thread.program.instructions
            done += _turn(host, cpu, vcpu, thread, events, there)
            begun[vcpu] += thread.program.instructions - before
            ran[vcpu][thread.trace.name] = None
            if thread.program.ended and len(schedule.queue[vcpu]) == 1:
                host.idle(vcpu)
            seconds[vcpu] += time.perf_counter() - begin
            if progress is not None:
                progress(done)
    except KeyboardInterrupt:
        if not keep_partial:
            raise
        interrupted = True
    model = costs or CostModel.load()
    return Threaded(
        results=tuple(
            _result(
                host,
                vcpu,
                " + ".join(ran[vcpu]),
                config,
                model,
                seconds[vcpu],
                not interrupted,
                begun[vcpu] if counts else None,
            )
            for vcpu in range(n_vcpus)
        ),
        totals=host.totals(),
        vpids=tuple(host.vpid(vcpu) for vcpu in range(n_vcpus)),
        tlbs=tuple(tlb.counters() for tlb in host.cpus),
        unfinished=0,
        threads=tuple(
            Thread(each.trace.name, each.process, each.program.done, each.turns, each.moves, each.vcpus)
            for each in threads
        ),
    )


def _threads(
    traces: Sequence[AnyTrace],
    processes: Sequence[int] | None,
    vcpus: int | None,
    affinity: Sequence[Sequence[int]] | None,
) -> tuple[list[_Thread], int]:
    """The threads, and the number of vCPUs."""
    n = len(traces)
    n_vcpus = count_of(max(n, 1) if vcpus is None else vcpus)
    numbers = [0] * n if processes is None else list(processes)
    allowed = [range(n_vcpus)] * n if affinity is None else [list(each) for each in affinity]
    if not n or len(numbers) != n or len(allowed) != n or not all(0 <= number < _PROCESSES for number in numbers):
        raise ConfigError(
            f"{n} threads, {len(numbers)} processes, {len(allowed)} affinities, {n_vcpus} vCPUs; give at least one "
            f"trace, and for each a process of 0..{_PROCESSES - 1} and an affinity"
        )
    of, threads = max(numbers) + 1, []
    for i, trace in enumerate(traces):
        if not allowed[i] or not all(0 <= vcpu < n_vcpus for vcpu in allowed[i]):
            raise ConfigError(f"thread {i} may run on vCPUs {list(allowed[i])}; there are 0..{n_vcpus - 1}, give some")
        opened = identified(trace)
        program = _Program(opened, numbers[i], of)
        if program.ended:
            raise ConfigError(f"thread {i}, {opened.name}, has no events; leave it out")
        threads.append(_Thread(program, opened, tuple(allowed[i]), numbers[i], numbers[i]))
    return threads, n_vcpus


def _turn(host: Host, cpu: int, vcpu: int, thread: _Thread, events: int, there: dict[int, int]) -> int:
    """Run a thread on a vCPU for so many events, fewer where it ends; its process is loaded before if it is another."""
    if there.get(vcpu) != thread.running:
        column = np.array([thread.running], np.uint64)
        host.run(vcpu, cpu, np.array([Op.SWITCH], np.uint8), np.zeros(1, np.uint8), column, None, thread.program.done)
    left = events
    while left and not thread.program.ended:
        first = thread.program.done
        op, size, addr = thread.program.take(left)
        host.run(vcpu, cpu, op, size, addr, None, first)
        left -= len(op)
        switches = np.flatnonzero(op == Op.SWITCH)
        if len(switches):
            thread.running = int(addr[switches[-1]])
    there[vcpu] = thread.running
    thread.turns += 1
    thread.vcpus[vcpu] = thread.vcpus.get(vcpu, 0) + 1
    return events - left


def _result(
    host: Host,
    vcpu: int,
    name: str,
    config: Config,
    costs: CostModel,
    seconds: float,
    complete: bool,
    instructions: int | None,
) -> Result:
    counters = host.counters(vcpu)
    if instructions is not None:
        counters["instructions"] = instructions
    by_cause = cycles(counters, config, costs)
    return Result(
        config=config,
        counters=counters,
        cycles=float(sum(by_cause.values())),
        cycles_by=by_cause,
        seconds=seconds,
        trace=name,
        complete=complete,
        costs=costs.identity,
        geometry=str(config.geometry),
        overlap=costs.walk.overlap,
        fetch_cycles=costs.access.trace,
    )

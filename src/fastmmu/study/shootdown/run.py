"""What TLB shootdowns cost: a trace as the threads of one process, on more and more vCPUs, by each method.

The trace is dealt out in turns: each goes to the next vCPU that does not idle. After so many accesses the page used
last is unmapped, so that every vCPU that runs the process must flush (docs/shootdowns.md); those that have a physical
CPU take the interrupt there and then, as if they ran. The work is the same whatever the number of vCPUs; what grows is
who must be told.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.host import Host
from fastmmu.machine.hosted import check_priced
from fastmmu.machine.identity import UNKNOWN, Origin
from fastmmu.machine.side_by_side import block_bytes
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.study.schemes import SHOOTDOWN as METHODS
from fastmmu.study.schemes import fields_of
from fastmmu.threads.lanes import Lane, in_lanes
from fastmmu.trace import Batch
from fastmmu.trace.events import inserted
from fastmmu.trace.identity import AnyTrace, Identified, identified

__all__ = ["METHODS", "VCPUS", "ShootdownPoint", "shootdown_points", "shootdown_study"]

VCPUS = (1, 2, 4, 8, 16, 32, 64)
MOST_VCPUS = 255
_SHOOT = (Op.UNMAP, Op.MUNMAP, Op.PROTECT, Op.FORK, Op.COLLAPSE)
_APIC_EXITS = ("mmio", "ept_misconfig", "violations_mmio", "apic_access", "apic_write", "virtualized_eoi")
"""Kinds of exits of such a guest that come from its APIC alone: for the ICR and the EOI."""


@dataclass(frozen=True)
class ShootdownPoint:
    """A run: a method, a number of vCPUs, lazy mode on or off; counts of all vCPUs together.

    ``shootdowns``: flushes that other vCPUs had to make, too; ``ipis``: interrupts sent for them, of these
    ``preempted`` to vCPUs without a CPU; ``marked``: vCPUs left to the VMM's flush at their VM entry; ``lazy_skipped``:
    left alone in lazy mode; ``late_flushes``: made when they woke; ``invlpgbs``; ``interrupts`` taken.
    ``apic_exits``: VM exits for the ICR and the EOI; ``kicks``: for the interrupt itself. ``cycles``: modelled, of all;
    ``spent``: of these what shootdowns are: the guest's part, those exits, the VMM's flushes of those that were marked.
    Refills of TLBs are in ``cycles`` alone.
    """

    trace: str
    method: str
    vcpus: int
    cpus: int
    lazy: bool
    accesses: int
    shootdowns: int
    ipis: int
    preempted: int
    marked: int
    lazy_skipped: int
    late_flushes: int
    invlpgbs: int
    interrupts: int
    apic_exits: int
    kicks: int
    vm_exits: int
    tlb_misses: int
    cycles: float
    spent: float
    origin: Origin = UNKNOWN

    @property
    def each(self) -> float:
        """Cycles of a shootdown; 0 where there is none."""
        return self.spent / self.shootdowns if self.shootdowns else 0.0

    @property
    def share(self) -> float:
        """Part of all cycles."""
        return self.spent / self.cycles if self.cycles else 0.0


@checked
def shootdown_study(
    trace: AnyTrace,
    vcpus: Sequence[int] = VCPUS,
    methods: Sequence[str] = tuple(METHODS),
    lazy: Sequence[bool] = (True, False),
    *,
    every: int = 1000,
    quantum: int = 1000,
    idle: float = 0.25,
    overcommit: int = 1,
    seed: int = 0,
    costs: CostModel | None = None,
    progress: Callable[[str, int], None] | None = None,
    jobs: int | None = None,
    **config: Any,
) -> list[ShootdownPoint]:
    """A point for each number of vCPUs, method, and lazy mode on or off, from one pass over the trace.

    :param vcpus: numbers of vCPUs, each 1..255. :param methods: names out of ``study.schemes.SHOOTDOWN``.
    :param lazy: values of ``Config.lazy_tlb``. :param every: accesses from one unmapped page to the next; 0: only what
        the trace unmaps. :param quantum: events of a turn. :param idle: part of the turns at which a vCPU idles
        instead, 0 up to less than 1. :param overcommit: vCPUs a physical CPU; natively always 1. :param seed: of who
        idles when.
    :param costs: None: the default ones. :param progress: called with the run waited for, and events done.
    :param jobs: threads, None: one a processor. No result depends on it.
    :param config: other fields of :class:`Config`; default ``memory="2G"``.
    :raises ConfigError: an unknown method, a number out of its range. :raises TraceError: the trace is malformed.
    """
    return list(
        shootdown_points(
            trace, vcpus, methods, lazy, every=every, quantum=quantum, idle=idle, overcommit=overcommit, seed=seed,
            costs=costs, progress=progress, jobs=jobs, **config,
        )
    )  # fmt: skip


@checked
def shootdown_points(
    trace: AnyTrace,
    vcpus: Sequence[int] = VCPUS,
    methods: Sequence[str] = tuple(METHODS),
    lazy: Sequence[bool] = (True, False),
    *,
    every: int = 1000,
    quantum: int = 1000,
    idle: float = 0.25,
    overcommit: int = 1,
    seed: int = 0,
    costs: CostModel | None = None,
    progress: Callable[[str, int], None] | None = None,
    jobs: int | None = None,
    **config: Any,
) -> Iterator[ShootdownPoint]:
    """The points of :func:`shootdown_study`, one after the other, as they are finished."""
    for n in vcpus:
        if not 1 <= n <= MOST_VCPUS:
            raise ConfigError(f"{n} vCPUs: give 1..{MOST_VCPUS}, which is what APIC ids of 8 bits reach")
    if every < 0 or quantum < 1 or overcommit < 1 or not 0 <= idle < 1:
        raise ConfigError(
            f"every={every}, quantum={quantum}, overcommit={overcommit}, idle={idle}: give 0 or more accesses, at "
            "least one event and one vCPU, a part from 0 to less than 1"
        )
    runs = []
    for method in methods:
        fields = {"memory": "2G", **config, **fields_of(method, METHODS, "method", config.get("kvm"))}
        try:
            chosen = Config(**fields)
        except TypeError as error:
            raise ConfigError(f"Config: {error}; see help(fastmmu.Config)") from error
        runs += [(method, chosen.replace(lazy_tlb=on), n) for on in lazy for n in vcpus]
    source, model = identified(trace), costs or CostModel.load()
    deal = _Deal(every, quantum, idle, overcommit, seed)
    names = [f"{method}, {n} vCPUs" for method, _, n in runs]
    yield from in_lanes(
        [partial(_point, source, method, chosen, n, deal, model) for method, chosen, n in runs],
        source.batches(),
        jobs=jobs,
        size=block_bytes(source),
        progress=None if progress is None else lambda number, events: progress(names[number], events),
    )


@dataclass(frozen=True)
class _Deal:
    """How a trace is dealt out."""

    every: int
    quantum: int
    idle: float
    overcommit: int
    seed: int


class _Threads:
    """The vCPUs, and whose turn it is."""

    def __init__(self, host: Host, n: int, deal: _Deal) -> None:
        self.host, self.n, self.deal = host, n, deal
        self.cpus = len(host.cpus)
        self.chance = random.Random(deal.seed)
        self.next = self.done = self.accesses = 0
        self.process = 0  # of the trace now
        self.loaded = [-1] * n  # on each vCPU
        self.occupant = [-1] * self.cpus  # vCPU of each physical CPU

    def run(self, turn: Batch) -> None:
        """A turn of the trace, on the next vCPU that does not idle."""
        while self.n > 1 and self.chance.random() < self.deal.idle:
            self.host.idle(self.next)
            if self.occupant[self.next % self.cpus] == self.next:
                self.occupant[self.next % self.cpus] = -1
            self.next = (self.next + 1) % self.n
        vcpu, self.next = self.next, (self.next + 1) % self.n
        events = self._unmapping(turn)
        if self.loaded[vcpu] != self.process:
            events = inserted(events, np.zeros(1, np.intp), Op.SWITCH, self.process)
        switches = turn.addr[turn.op == Op.SWITCH]
        if len(switches):
            self.process = int(switches[-1])
        self.loaded[vcpu] = self.process
        self.occupant[vcpu % self.cpus] = vcpu
        ends = (np.flatnonzero(np.isin(events.op, _SHOOT)) + 1).tolist()
        for start, end in zip([0, *ends], [*ends, len(events)], strict=True):
            part = events[start:end]
            self.host.run(vcpu, vcpu % self.cpus, part.op, part.size, part.addr, None, self.done)
            for cpu, other in enumerate(self.occupant) if end in ends else ():
                if other not in (-1, vcpu):  # it takes its interrupt
                    self.host.place(other, cpu)
        self.done += len(turn)

    def _unmapping(self, turn: Batch) -> Batch:
        """With the page used last unmapped after every so many accesses."""
        every, count = self.deal.every, np.cumsum(turn.op <= LAST_ACCESS, dtype=np.int64)
        first, self.accesses = self.accesses, self.accesses + int(count[-1])
        if not every:
            return turn
        after = np.searchsorted(count, np.arange((first // every + 1) * every, self.accesses + 1, every) - first)
        return inserted(turn, after + 1, Op.UNMAP, turn.addr[after]) if len(after) else turn


def _point(
    trace: Identified, method: str, config: Config, n: int, deal: _Deal, costs: CostModel
) -> Lane[ShootdownPoint]:
    cpus = n if config.mmu == "native" else -(-n // deal.overcommit)
    check_priced(config, "a study of shootdowns")
    host = Host([(config, n)], cpus=cpus)
    threads = _Threads(host, n, deal)
    while (block := (yield False)) is not None:
        for start in range(0, len(block), deal.quantum):
            threads.run(block[start : start + deal.quantum])
            yield True
    total: Counter[str] = Counter()
    spent = whole = 0.0
    for vcpu in range(n):
        counters = host.counters(vcpu)
        total.update({name: value for name, value in counters.items() if isinstance(value, int)})
        by_cause = cycles(counters, config, costs)
        whole += sum(by_cause.values())
        spent += by_cause.get("shootdowns", 0.0) + sum(by_cause.get(f"exit:{kind}", 0.0) for kind in _APIC_EXITS)
        total["apic_exits"] += round(
            sum(by_cause.get(f"exit:{kind}", 0.0) / costs.exit_cost(kind) for kind in _APIC_EXITS)
        )
    spent += total["shootdown_marked"] * costs.flush.invvpid
    if config.mmu != "native":
        spent += total["apic_kicks"] * costs.exit_cost("external_interrupt")
    return ShootdownPoint(
        trace=trace.name,
        method=method,
        vcpus=n,
        cpus=cpus,
        lazy=config.lazy_tlb,
        accesses=total["accesses"],
        shootdowns=total["shootdowns"],
        ipis=total["shootdown_ipis"],
        preempted=total["shootdown_preempted"],
        marked=total["shootdown_marked"],
        lazy_skipped=total["shootdown_lazy"],
        late_flushes=total["late_flushes"],
        invlpgbs=total["invlpgbs"],
        interrupts=total["shootdown_interrupts"],
        apic_exits=total["apic_exits"],
        kicks=total["apic_kicks"],
        vm_exits=total["vm_exits"],
        tlb_misses=total["tlb_misses"],
        cycles=whole,
        spent=spent,
        origin=trace.origin(costs.identity, str(config.geometry)),
    )

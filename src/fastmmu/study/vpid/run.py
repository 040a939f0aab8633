"""What VPID is worth: TLB misses of a trace with and without it, by how often the guest exits (tlb.md §8, E1).

Without VPID each VM exit empties the TLB of the guest's entries. What that costs is predicted from the run with VPID
alone: misses(off) = misses(on) + exits x resident working set, where the resident working set of an exit is the pages
that the TLB holds then and the guest uses before the next exit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.identity import UNKNOWN, Origin
from fastmmu.machine.machine import Machine
from fastmmu.machine.side_by_side import block_bytes
from fastmmu.ops import LAST_ACCESS
from fastmmu.threads.lanes import Lane, in_lanes
from fastmmu.trace import Batch
from fastmmu.trace.identity import AnyTrace, Identified, identified

__all__ = ["RATES", "VpidPoint", "vpid_experiment", "vpid_points"]

RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""VM exits per thousand accesses."""
LOOKS = 400  # exits of a run at which the resident working set is looked at
SHIFT = {"4k": 12, "2m": 21}


@dataclass(frozen=True)
class VpidPoint:
    """One rate of exits.

    ``rate``: asked for, exits per thousand accesses; ``exits``: VM exits of the run. ``on``, ``off``: misses of both
    levels with and without VPID. ``resident``: mean resident working set of an exit, in pages, and ``looks``: of how
    many exits. ``refills``: walks of the run without VPID for what an exit took, by the TLB's own account. ``origin``:
    trace and TLB. ``mmu``: the scheme.
    """

    trace: str
    rate: float
    accesses: int
    exits: int
    on: int
    off: int
    resident: float
    looks: int
    refills: int
    origin: Origin = UNKNOWN
    mmu: str = ""

    @property
    def predicted(self) -> float:
        """Misses without VPID by E1."""
        return self.on + self.exits * self.resident


@checked
def vpid_experiment(
    trace: AnyTrace,
    config: Config | None = None,
    rates: Sequence[float] = RATES,
    *,
    progress: Callable[[float, int], None] | None = None,
    jobs: int | None = None,
) -> list[VpidPoint]:
    """A point for each rate, from one pass over the trace.

    :param config: a scheme with a VMM; its `vpid`, `exit_every` and `premapped` are the experiment's own. Default: EPT.
    :param progress: called with the rate and the number of events done.
    :param jobs: threads, None: one a processor. No result depends on it.
    :raises ConfigError: no VMM, pages of mixed sizes, a rate that is none. :raises TraceError: the trace is malformed.
    """
    return list(vpid_points(trace, config, rates, progress=progress, jobs=jobs))


def vpid_points(
    trace: AnyTrace,
    config: Config | None = None,
    rates: Sequence[float] = RATES,
    *,
    progress: Callable[[float, int], None] | None = None,
    jobs: int | None = None,
) -> Iterator[VpidPoint]:
    """The points of :func:`vpid_experiment`, one after the other, as they are finished."""
    base = config or Config(mmu="ept")
    if base.mmu == "native" or base.pages not in SHIFT:
        raise ConfigError(
            f"{base.name} with pages={base.pages!r}: exits need mmu='ept' or 'shadow', and 4k or 2m pages"
        )
    for rate in rates:
        if not 0 < rate <= 1000:
            raise ConfigError(f"{rate} exits per thousand accesses; give a rate above 0, at most 1000")
    trace = identified(trace)
    yield from in_lanes(
        [partial(_point, trace, base, rate) for rate in rates],
        trace.batches(),
        jobs=jobs,
        size=block_bytes(trace),
        progress=None if progress is None else lambda number, events: progress(rates[number], events),
    )


def _point(trace: Identified, base: Config, rate: float) -> Lane[VpidPoint]:
    every = max(1, round(1000 / rate))
    base = base.replace(premapped=True, exit_every=every)
    with_vpid, without = Machine(base.replace(vpid=True)), Machine(base.replace(vpid=False))
    looks = _Looks(with_vpid, SHIFT[base.pages])
    exits, done = _Exits(every), 0
    while (block := (yield False)) is not None:
        for batch, first in exits.between(block):
            if first:
                looks.at_exit()
            looks.used(batch.addr[batch.op <= LAST_ACCESS])
            for machine in (with_vpid, without):
                machine.run(batch.op, batch.size, batch.addr, None, done)
            done += len(batch)
            yield True
    looks.at_exit()
    if with_vpid.counters()["accesses"] % every == 0:  # the last access exited, and nothing was used after it
        looks.at_exit()
    on, off = with_vpid.counters(), without.counters()
    return VpidPoint(
        trace=trace.name,
        rate=rate,
        accesses=on["accesses"],
        exits=on["vm_exits"],
        on=on["tlb_misses"],
        off=off["tlb_misses"],
        resident=looks.mean,
        looks=looks.n,
        refills=int(without.tlb.counters()["refill_misses"].get("transition", 0)),
        origin=trace.origin(geometry=str(base.geometry)),
        mmu=base.mmu,
    )


class _Exits:
    """Which accesses of a trace exit: every `every`-th."""

    def __init__(self, every: int) -> None:
        self.every, self.seen, self.follows = every, 0, False

    def between(self, batch: Batch) -> Iterator[tuple[Batch, bool]]:
        """Parts of the next batch that end with one of them; True: the part follows an exit."""
        count = self.seen + np.cumsum(batch.op <= LAST_ACCESS)
        start = 0
        for exit in range((self.seen // self.every + 1) * self.every, int(count[-1]) + 1, self.every):
            stop = int(np.searchsorted(count, exit)) + 1
            yield batch[start:stop], self.follows
            start, self.follows = stop, True
        if start < len(batch):
            yield batch[start:], self.follows
            self.follows = False
        self.seen = int(count[-1])


class _Looks:
    """Which of the pages held at an exit are used before the next; at LOOKS exits or so, evenly spread."""

    def __init__(self, machine: Machine, shift: int) -> None:
        self.machine, self.shift = machine, np.uint64(shift)
        self.step, self.exits = 1, 0
        self.held: npt.NDArray[np.uint64] | None = None
        self.pages: list[npt.NDArray[np.uint64]] = []
        self.found: list[int] = []

    def at_exit(self) -> None:
        if self.held is not None:
            used = np.unique(np.concatenate(self.pages)) if self.pages else self.held[:0]
            self.found.append(len(np.intersect1d(used, self.held)))
            self.held = None
        if self.exits % self.step == 0:
            self._look()
        self.exits += 1
        self.pages = []

    def _look(self) -> None:
        mine = self.machine.vmcs["vpid"]
        entries = self.machine.tlb.entries()
        held = {at for _, kind, vpid, *_, at, _, _ in entries if kind in ("local", "global") and vpid == mine}
        self.held = np.unique(np.array(sorted(held), np.uint64) >> self.shift)
        if len(self.found) >= LOOKS:  # twice as far apart from now on
            self.found, self.step = self.found[::2], 2 * self.step

    def used(self, addr: npt.NDArray[np.uint64]) -> None:
        if self.held is not None:
            self.pages.append(np.unique(addr >> self.shift))

    @property
    def n(self) -> int:
        return len(self.found)

    @property
    def mean(self) -> float:
        return float(np.mean(self.found)) if self.found else 0.0

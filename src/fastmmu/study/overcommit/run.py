"""A host with less memory than its guest uses: what goes to disk, by scheme and by policy (kvm_policy.md §6)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.identity import UNKNOWN, Origin
from fastmmu.machine.side_by_side import block_bytes
from fastmmu.machine.simulation import Simulation
from fastmmu.study.schemes import OVERCOMMIT as SCHEMES
from fastmmu.study.schemes import RECLAIM, fields_of
from fastmmu.threads.lanes import Lane, finished, in_lanes
from fastmmu.trace.identity import AnyTrace, Identified, identified

__all__ = ["RECLAIM", "SCHEMES", "Overcommit", "overcommit"]

SEEN = ("accesses", "kernel_accesses", "guest_faults", "pages_touched", "cr3_switches", "invlpgs", "unmaps")
LEAST = 16  # pages that a host has for a guest
PART = 1 << 16  # events between two looks whether the work is interrupted


@dataclass(frozen=True)
class Overcommit:
    """One run.

    reclaim: None with memory for all. share: host memory over what the guest takes of an unlimited host; pages: the
    same in pages. counters: as of :class:`~fastmmu.machine.result.Result`. cycles, by_cause: modelled. base_cycles: of
    the unlimited host. checksum: over the guest-physical address of each access, and what the guest counted. equal: it
    is that of the unlimited host. origin: trace, costs, TLB.
    """

    trace: str
    scheme: str
    reclaim: str | None
    share: float
    pages: int
    counters: dict[str, Any]
    cycles: float
    by_cause: dict[str, float]
    base_cycles: float
    checksum: str
    equal: bool
    origin: Origin = UNKNOWN

    @property
    def slowdown(self) -> float:
        """Modelled cycles over those on the unlimited host."""
        return self.cycles / self.base_cycles if self.base_cycles else 1.0


@checked
def overcommit(
    trace: AnyTrace,
    schemes: Sequence[str] = tuple(SCHEMES),
    shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    reclaim: Sequence[str] = RECLAIM,
    *,
    memory: int | str = "1G",
    vmm: Any = "kernel",
    kvm: str = "6.1",
    costs: CostModel | None = None,
    progress: Callable[[str, int], None] | None = None,
    jobs: int | None = None,
) -> Iterator[Overcommit]:
    """Run a trace in each scheme on a host with memory for all, then on hosts with a share of that: two passes.

    A share of 1 is the unlimited host itself, once, whatever the policies.

    :param shares: above 0, at most 1; a host has 16 pages at least. :param reclaim: values of ``Config.host_reclaim``.
    :param vmm, kvm: as of :class:`Config`. :param progress: called with the scheme and the number of its events done.
    :param jobs: threads, None: one a processor. No result depends on it.
    :raises ConfigError: an unknown scheme or policy, a share out of range. :raises TraceError: an empty trace.
    """
    for name, known in ((schemes, SCHEMES), (reclaim, RECLAIM)):
        for one in name:
            if one not in known:
                raise ConfigError(f"no {one!r}; there are {', '.join(known)}")
    for share in shares:
        if not 0 < share <= 1:
            raise ConfigError(f"a share of {share!r}: the host has more than 0 and at most 1 of what the guest takes")
    costs = costs or CostModel.load()
    trace = identified(trace)
    whole_host = {"memory": memory, "vmm": vmm, "host_pages": "untouched"}
    fields = {scheme: fields_of(scheme, SCHEMES, kvm=kvm) for scheme in schemes}
    runs = [_Run(trace, scheme, Config(**whole_host).replace(**fields[scheme]), costs) for scheme in schemes]

    def side_by_side(found: Sequence[tuple[_Run, Callable[[], Lane[Overcommit]]]]) -> Iterator[Overcommit]:
        told = None if progress is None else lambda number, events: progress(found[number][0].scheme, events)
        lanes = [lane for _, lane in found]
        return in_lanes(lanes, trace.batches(), jobs=jobs, size=block_bytes(trace), progress=told)

    whole: list[Overcommit] = []
    try:
        whole.extend(side_by_side([(run, run.unlimited) for run in runs]))
    except KeyboardInterrupt:
        for base in whole if 1.0 in shares else ():
            with suppress(KeyboardInterrupt):  # once more: the next one is asked for
                yield base
        raise
    short: list[tuple[_Run, Callable[[], Lane[Overcommit]]]] = []
    for run, base in zip(runs, whole, strict=True):
        if 1.0 in shares:
            short.append((run, finished(base)))
        limits = itertools.product((share for share in shares if share < 1), reclaim)
        short += [(run, partial(run.limited, base, share, policy)) for share, policy in limits]
    yield from side_by_side(short)


class _Run:
    """A trace in one scheme."""

    def __init__(self, trace: Identified, scheme: str, config: Config, costs: CostModel) -> None:
        self.trace, self.scheme, self.config, self.costs = trace, scheme, config, costs

    def unlimited(self) -> Lane[Overcommit]:
        """On a host with memory for all."""
        found, taken = yield from self._fields(self.config)
        if not found["counters"]["accesses"]:
            raise TraceError(f"{self.trace.name} holds no accesses", path=None)
        return Overcommit(
            self.trace.name, self.scheme, None, 1.0, taken, **found, base_cycles=found["cycles"], equal=True,
            origin=self._origin(),
        )  # fmt: skip

    def limited(self, base: Overcommit, share: float, policy: str) -> Lane[Overcommit]:
        """On a host with a share of what it takes there."""
        pages = max(LEAST, int(share * base.pages))
        host: dict[str, Any] = {"host_memory": pages << 12, "host_reclaim": policy}
        found, _ = yield from self._fields(self.config.replace(**host))
        same = found["checksum"] == base.checksum
        return Overcommit(
            self.trace.name, self.scheme, policy, share, pages, **found, base_cycles=base.cycles, equal=same,
            origin=self._origin(),
        )  # fmt: skip

    def _origin(self) -> Origin:
        return self.trace.origin(self.costs.identity, str(self.config.geometry))

    def _fields(self, config: Config) -> Lane[tuple[dict[str, Any], int]]:
        """Fields of a run, and the pages that its host holds at the end."""
        run, seen = Simulation(config, costs=self.costs), hashlib.blake2b(digest_size=8)
        run.content = None  # the trace has it
        while (block := (yield False)) is not None:
            for first in range(0, len(block), PART):
                batch = block[first : first + PART]
                out = np.zeros(len(batch), np.uint64)
                run.feed(batch, out)
                seen.update(out.tobytes())
                yield True
        counters = run.machine.counters()
        seen.update(repr([counters[name] for name in SEEN]).encode())
        parts = cycles(counters, config, self.costs)
        resident = int(run.machine.vmm.counters()["resident"])
        return {
            "counters": counters,
            "cycles": float(sum(parts.values())),
            "by_cause": parts,
            "checksum": seen.hexdigest(),
        }, resident

"""A host with less memory than its guest uses: what goes to disk, by scheme and by policy (kvm_policy.md §6)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.identity import UNKNOWN, Origin
from fastmmu.machine.simulate import Simulation
from fastmmu.study.schemes import OVERCOMMIT as SCHEMES
from fastmmu.study.schemes import RECLAIM
from fastmmu.trace import Trace
from fastmmu.trace.identity import AnyTrace, identified

__all__ = ["RECLAIM", "SCHEMES", "Overcommit", "overcommit"]

SEEN = ("accesses", "kernel_accesses", "guest_faults", "pages_touched", "cr3_switches", "invlpgs", "unmaps")
LEAST = 16  # pages that a host has for a guest


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
    costs: CostModel | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Iterator[Overcommit]:
    """Run a trace in each scheme on a host with memory for all, then on hosts with a share of that.

    A share of 1 is the unlimited host itself, once, whatever the policies.

    :param shares: above 0, at most 1; a host has 16 pages at least. :param reclaim: values of ``Config.host_reclaim``.
    :param vmm: as of :class:`Config`. :param progress: called with the scheme and the number of its events done.
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
    for scheme in schemes:
        config = Config(memory=memory, vmm=vmm, host_pages="untouched").replace(**SCHEMES[scheme])
        told = partial(progress, scheme) if progress else None
        whole, taken = _run(trace, config, costs, told)
        if not whole["counters"]["accesses"]:
            raise TraceError(f"{trace.name} holds no accesses", path=None)
        base = whole["cycles"], whole["checksum"]
        of = trace.origin(costs.identity, str(config.geometry))
        if 1.0 in shares:
            yield Overcommit(trace.name, scheme, None, 1.0, taken, **whole, base_cycles=base[0], equal=True, origin=of)
        for share, policy in itertools.product((s for s in shares if s < 1), reclaim):
            pages = max(LEAST, int(share * taken))
            host: dict[str, Any] = {"host_memory": pages << 12, "host_reclaim": policy}
            found, _ = _run(trace, config.replace(**host), costs, told)
            same = found["checksum"] == base[1]
            yield Overcommit(
                trace.name, scheme, policy, share, pages, **found, base_cycles=base[0], equal=same, origin=of
            )


def _run(
    trace: Trace, config: Config, costs: CostModel, progress: Callable[[int], None] | None
) -> tuple[dict[str, Any], int]:
    """Fields of a run, and the pages that its host holds at the end."""
    run, seen = Simulation(config, costs=costs), hashlib.blake2b(digest_size=8)
    run.content = None  # the trace has it
    for batch in trace.batches():
        out = np.zeros(len(batch.addr), np.uint64)
        run.feed(batch, out)
        seen.update(out.tobytes())
        if progress is not None:
            progress(run.events)
    counters = run.machine.counters()
    seen.update(repr([counters[name] for name in SEEN]).encode())
    parts = cycles(counters, config, costs)
    resident = int(run.machine.vmm.counters()["resident"])
    return {
        "counters": counters,
        "cycles": float(sum(parts.values())),
        "by_cause": parts,
        "checksum": seen.hexdigest(),
    }, resident

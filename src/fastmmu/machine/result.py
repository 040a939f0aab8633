"""What a simulation came to."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field
from typing import Any

from fastmmu._checked import checked
from fastmmu.counters import APIC, COUNTERS, described
from fastmmu.errors import ConfigError
from fastmmu.machine.cache_result import CacheResult
from fastmmu.machine.config import Config
from fastmmu.machine.exit_log import ExitLog
from fastmmu.machine.identity import Origin
from fastmmu.machine.rates import mpki_by, pki, walk_share
from fastmmu.machine.sampled import Sampled
from fastmmu.machine.series import Series

__all__ = ["Result"]


@dataclass(frozen=True, repr=False)
class Result:
    """Counters of one run.

    ``.counters``: dict of int; those of ``apic_`` with ``Config.tpr`` alone

    {counters}

    and ``instructions``, where the trace counts them.

    ``.cycles``: modelled cycles in total; ``.cycles_by``: dict of cause -> cycles. ``.seconds``: wall time of the
    simulation itself. ``.tlb``: what each structure of the TLB did, see :meth:`fastmmu.tlb.tlb.TLB.counters`.
    ``.config``: the :class:`Config`. ``.complete``: False where the run was interrupted. ``.path``: file of the trace;
    ``.content``: hash of the events that were run, by which results are put side by side; ``.costs``: which cost model;
    ``.geometry``: arrays of the TLB; ``.policy``: class of a Python policy. ``.exit_log``: the last VM exits, an
    :class:`ExitLog`, with ``Config.exit_log``; else None. ``.first``: accesses that were run before those that are
    counted (``warm_up=``); ``.series``: counters over time, a :class:`~fastmmu.machine.series.Series` (``interval=``),
    else None. ``.overlap``: the part of a walk that other work hides, by the cost model, and ``.fetch_cycles``:
    of a fetch, both for :attr:`walk_share`. ``.sample``: of a sampled run (``sample_every=``) what was counted, a
    :class:`~fastmmu.machine.sampled.Sampled`, else None; counters and cycles are sums of the intervals counted then.
    ``.caches``: where references were found, a :class:`~fastmmu.machine.cache_result.CacheResult`, with
    ``Config.caches``; else None.

    Threads: a result, which nothing changes; share it.
    """

    config: Config
    counters: dict[str, Any]
    cycles: float
    cycles_by: dict[str, float]
    seconds: float
    trace: str = ""
    complete: bool = True
    notes: tuple[str, ...] = field(default=())
    tlb: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    content: str = ""
    costs: str = ""
    geometry: str = ""
    policy: str = ""
    exit_log: ExitLog | None = field(default=None, compare=False)
    first: int = 0
    series: Series | None = field(default=None, compare=False)
    sample: Sampled | None = field(default=None, compare=False)
    overlap: float = 0.0
    fetch_cycles: float = 0.0
    caches: CacheResult | None = None

    @property
    def origin(self) -> Origin:
        """What the result was made of."""
        return Origin(self.trace, self.path, self.content, self.costs, self.geometry)

    @property
    def cycles_per_access(self) -> float:
        """Modelled cycles per access of the trace; 0 for an empty run."""
        n: int = self.counters["accesses"]
        return self.cycles / n if n else 0.0

    @property
    def mpki(self) -> float | None:
        """TLB misses of the last level per thousand instructions; None where the trace does not count them."""
        n = self.instructions
        return 1000 * self.counters["tlb_misses"] / n if n else None

    @property
    def instructions(self) -> int | None:
        """Instructions of what is counted; None where the trace does not count them."""
        n: int | None = self.counters.get("instructions")
        return n

    @property
    def mpki_by(self) -> dict[str, float] | None:
        """Misses per thousand instructions by structure: ``l1i``, ``l1d``, ``stlb``, of the paging-structure caches
        ``pde``, ``pdpte``, ``pml4e``, ..., under EPT ``ept_pde``, ... and ``gpm`` (guest-physical mappings), those that
        the processor has; None where the trace does not count instructions.

        What walks found in caches is known of runs (``.tlb``), not of results that come from flat files.
        """
        n = self.instructions
        return mpki_by(self.counters, self.tlb, self.config, n) if n else None

    @property
    def walk_cycles(self) -> float:
        """Modelled cycles of all references of walks, to the tables of the guest (or the shadow tables) and the EPT."""
        return self.cycles_by.get("guest_walk", 0.0) + self.cycles_by.get("ept_walk", 0.0)

    @property
    def pki(self) -> dict[str, float] | None:
        """Per thousand instructions: ``walks``, ``walk_refs`` (entries that they read), ``walk_cycles``,
        ``vm_exits``; None where the trace does not count instructions."""
        n = self.instructions
        return pki(self.counters, self.walk_cycles, n) if n else None

    @property
    def walk_share(self) -> float | None:
        """Estimated share of the run time that waits for walks, 0 to 1; None where the trace does not count
        instructions.

        (1 - overlap) W / (C + F U - overlap W): C modelled cycles, W those of walks, U instructions whose fetch is no
        access of the trace, F ``fetch_cycles``. Overlap is an estimate, ``walk.overlap`` of costs.toml.
        """
        n = self.instructions
        if not n:
            return None
        hidden, fetch = self.overlap, self.fetch_cycles
        return walk_share(self.counters, self.cycles, self.walk_cycles, n, overlap=hidden, fetch=fetch)

    @property
    def accesses_per_second(self) -> float:
        """Speed of the simulator itself, in accesses of the trace per second."""
        n: int = self.counters["accesses"]
        return n / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything but the log of exits as plain dicts, numbers and strings."""
        return {
            **self.origin.columns(),
            "config": self.config.fields(),
            "scheme": self.config.name,
            "geometry": self.geometry,
            "costs": self.costs,
            "policy": self.policy,
            "complete": self.complete,
            "first": self.first,
            "counters": self.counters,
            "tlb": self.tlb,
            "caches": None if self.caches is None else self.caches.to_dict(),
            "cycles": self.cycles,
            "cycles_by": self.cycles_by,
            "cycles_per_access": self.cycles_per_access,
            "mpki": self.mpki,
            "mpki_by": self.mpki_by,
            "pki": self.pki,
            "walk_share": self.walk_share,
            "overlap": self.overlap,
            "fetch_cycles": self.fetch_cycles,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        """One line: trace, scheme, what it came to; all of it: :meth:`to_dict`."""
        n = self.counters
        what = ", ".join(f"{n[name]:,} {said}" for name, said in _SAID.items() if name in n)
        part = "" if self.complete else "interrupted; "
        head = f"{self.trace or 'trace'}, {self.config.name}: {part}{what}"
        return f"<Result {head}; {self.cycles_per_access:.2f} cycles/access>"

    def _repr_html_(self) -> str:
        """For notebooks: what :meth:`__repr__` says, as a table."""
        figures = {said: f"{self.counters[name]:,}" for name, said in _SAID.items() if name in self.counters}
        figures |= {"cycles/access": f"{self.cycles_per_access:.2f}"}
        figures |= {f"exits: {name}": f"{n:,}" for name, n in self.counters.get("exits_by_reason", {}).items()}
        lines = "".join(f"<tr><th>{html.escape(name)}</th><td>{value}</td></tr>" for name, value in figures.items())
        part = "" if self.complete else ", interrupted"
        head = html.escape(f"{self.trace or 'trace'}, {self.config.name}{part}")
        return f"<table><caption>{head}</caption>{lines}</table>"

    @checked
    def to_json(self, indent: int | None = 2) -> str:
        """The result as JSON text."""
        if indent is not None and not 0 <= indent <= 80:
            raise ConfigError(f"indent={indent} is outside 0..80; None: all in one line")
        return json.dumps(self.to_dict(), indent=indent)


_SAID = {"accesses": "accesses", "tlb_misses": "TLB misses", "vm_exits": "VM exits"}

Result.__doc__ = (Result.__doc__ or "").format(counters=described((*COUNTERS, *APIC), 4))

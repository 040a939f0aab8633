"""What a simulation came to."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field
from typing import Any

from fastmmu._checked import checked
from fastmmu.counters import APIC, COUNTERS, described
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.exit_log import ExitLog
from fastmmu.machine.identity import Origin
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
    else None. ``.sample``: of a sampled run (``sample_every=``) what was counted, a
    :class:`~fastmmu.machine.sampled.Sampled`, else None; counters and cycles are sums of the intervals counted then.

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
        n: int = self.counters.get("instructions", 0)
        return 1000 * self.counters["tlb_misses"] / n if n else None

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
            "cycles": self.cycles,
            "cycles_by": self.cycles_by,
            "cycles_per_access": self.cycles_per_access,
            "mpki": self.mpki,
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

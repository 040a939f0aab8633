"""What a simulation came to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fastmmu.counters import APIC, COUNTERS, described
from fastmmu.machine.config import Config

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """Counters of one run.

    ``.counters``: dict of int; those of ``apic_`` with ``Config.tpr`` alone

    {counters}

    ``.cycles``: modelled cycles in total; ``.cycles_by``: dict of cause -> cycles. ``.seconds``: wall time of the
    simulation itself. ``.tlb``: what each structure of the TLB did, see :meth:`fastmmu.tlb.tlb.TLB.counters`.
    ``.config``: the :class:`Config`. ``.complete``: False where the run was interrupted.
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

    @property
    def cycles_per_access(self) -> float:
        """Modelled cycles per access of the trace; 0 for an empty run."""
        n: int = self.counters["accesses"]
        return self.cycles / n if n else 0.0

    @property
    def accesses_per_second(self) -> float:
        """Speed of the simulator itself, in accesses of the trace per second."""
        n: int = self.counters["accesses"]
        return n / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, numbers and strings."""
        from msgspec import to_builtins

        return {
            "trace": self.trace,
            "config": to_builtins(self.config),
            "scheme": self.config.name,
            "complete": self.complete,
            "counters": self.counters,
            "tlb": self.tlb,
            "cycles": self.cycles,
            "cycles_by": self.cycles_by,
            "cycles_per_access": self.cycles_per_access,
            "seconds": self.seconds,
            "accesses_per_second": self.accesses_per_second,
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)


Result.__doc__ = (Result.__doc__ or "").format(counters=described((*COUNTERS, *APIC), 4))

"""A system trace replayed, in one scheme or in all of them; `ipis`: what the IPIs of one of several CPUs cost;
`over_time`: results that a page can draw; `kept`: one that goes on where it was ended."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.replay.ipis import IpiCost, Ipis, ipi_costs, ipis_of
    from fastmmu.study.replay.run import SCHEMES, Ran, replay_schemes

__all__ = ["SCHEMES", "IpiCost", "Ipis", "Ran", "ipi_costs", "ipis_of", "replay_schemes"]

COMMAND, HELP, PLACE = "replay", "a system trace, with every physical address compared", 4

_HOMES = {
    "fastmmu.study.replay.ipis": ("IpiCost", "Ipis", "ipi_costs", "ipis_of"),
    "fastmmu.study.replay.run": ("SCHEMES", "Ran", "replay_schemes"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

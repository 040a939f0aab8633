"""What VPID is worth, by rate of VM exits."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.vpid.run import RATES, VpidPoint, vpid_experiment

__all__ = ["RATES", "VpidPoint", "vpid_experiment"]

COMMAND, HELP, PLACE = "vpid", "TLB misses with and without VPID, by rate of exits", 9

_HOMES = {"fastmmu.study.vpid.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

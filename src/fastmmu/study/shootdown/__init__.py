"""What TLB shootdowns cost: threads of one process on more and more vCPUs, by how they tell each other."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.shootdown.run import METHODS, ShootdownPoint, shootdown_points, shootdown_study

__all__ = ["METHODS", "ShootdownPoint", "shootdown_points", "shootdown_study"]

COMMAND, HELP, PLACE = "shootdown", "what TLB shootdowns cost, by method and number of vCPUs", 23

_HOMES = {"fastmmu.study.shootdown.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

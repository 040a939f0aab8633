"""One trace under several schemes; its table is `report.comparison`."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.compare.run import SCHEMES, compare, configurations, each

__all__ = ["SCHEMES", "compare", "configurations", "each"]

COMMAND, HELP, PLACE = "compare", "native, shadow and EPT side by side, a row a scheme", 1

_HOMES = {"fastmmu.study.compare.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

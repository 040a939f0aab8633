"""Programs on the physical CPUs of one host."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.consolidate.run import Consolidation, Turn, consolidate

__all__ = ["Consolidation", "Turn", "consolidate"]

COMMAND, HELP, PLACE = "host", "several virtual machines on several CPUs", 3

_HOMES = {"fastmmu.study.consolidate.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

"""Hosts with less memory than the guest uses."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.overcommit.run import RECLAIM, SCHEMES, Overcommit, overcommit

__all__ = ["RECLAIM", "SCHEMES", "Overcommit", "overcommit"]

COMMAND, HELP, PLACE = "overcommit", "hosts with less memory than the guest uses", 6

_HOMES = {"fastmmu.study.overcommit.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

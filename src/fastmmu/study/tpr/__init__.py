"""The ways of handling the task-priority register."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.tpr.run import WAYS, tpr_configurations, tpr_study

__all__ = ["WAYS", "tpr_configurations", "tpr_study"]

COMMAND, HELP, PLACE = "tpr", "the task-priority register: trap, patch, FlexPriority, APICv", 10

_HOMES = {"fastmmu.study.tpr.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

"""Live migration, by method of dirty logging."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.migrate.run import METHODS, Migration, Plan, Round, migrate, migrations

__all__ = ["METHODS", "Migration", "Plan", "Round", "migrate", "migrations"]

COMMAND, HELP, PLACE = "migrate", "live migration, by method of dirty logging", 5

_HOMES = {"fastmmu.study.migrate.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

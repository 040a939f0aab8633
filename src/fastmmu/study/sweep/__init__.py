"""Traces × configurations × cost models, run on this machine or a cluster, resumed where it was left.

    study.toml ──► description ──► plan: a run each, with the key of what determines it
                                     │ those that the store lacks
                                     ▼
                     drive, through executors ──► work, in whatever process
                                     │ results
                                     ▼
                                   store: a row a run (columns), one Parquet file each

`run.Study` puts them together. To add an executor: a function in `executors`, and its name in its table.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.sweep.run import Study

__all__ = ["Study"]

COMMAND, HELP, PLACE = "sweep", "many runs from a study.toml, resumed where they were left, here or on a cluster", 17

_HOMES = {"fastmmu.study.sweep.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)

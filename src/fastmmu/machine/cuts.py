"""Where a run is cut, and the difference of its counters between two cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.machine.exit_log import ExitLog
from fastmmu.machine.series import AT_END
from fastmmu.ops import LAST_ACCESS

__all__ = ["accesses_in", "difference", "last_exits"]


def difference(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Counters of a part of a run, of what they were behind it and before it; of reasons of exits only those that
    there were."""
    found: dict[str, Any] = {}
    for name, value in now.items():
        if isinstance(value, dict):
            part = difference(value, before.get(name, {}))
            found[name] = {key: n for key, n in part.items() if n} if name == "exits_by_reason" else part
        else:
            found[name] = value if name in AT_END else value - before.get(name, 0)
    return found


def accesses_in(block: Any) -> npt.NDArray[np.intp]:
    """Where in a block its accesses are."""
    op = block.rows["op"] if hasattr(block, "rows") else np.asarray(block.op)
    if not len(op) or int(op.max()) <= LAST_ACCESS:
        return np.arange(len(op), dtype=np.intp)
    return np.flatnonzero(op <= LAST_ACCESS)


def last_exits(log: ExitLog | None, exits: int, behind: int = 0) -> ExitLog | None:
    """Of a log the last exits before the last `behind`, so many at most."""
    if log is None:
        return None
    records = log.records[: max(0, len(log) - behind)]
    kept = min(len(records), exits)
    return ExitLog(records[len(records) - kept :], exits - kept, log.vendor)

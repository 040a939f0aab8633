"""Counters over time: a row for every so many accesses of a run."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles

__all__ = ["AT_END", "EXITS", "Series"]

AT_END = ("vmm_tables", "vmm_table_bytes", "apic_latency_max")
"""Counters that say what is, or was at most, at the end: no differences are made of them."""
EXITS = "exits_"
"""Begins the names of exits by reason."""


def _flat(counters: Mapping[str, Any]) -> dict[str, int]:
    """Counters as one dict of int: exits by reason as exits_REASON."""
    found = {name: value for name, value in counters.items() if not isinstance(value, dict)}
    return found | {f"{EXITS}{reason}": n for reason, n in counters.get("exits_by_reason", {}).items()}


class Series:
    """Counters of a run over time: ``Result.series``, of a run with ``interval=``.

    ``interval``: accesses of a row; ``first``: accesses of the run before the first row. ``len()``: rows; the last one
    has what is left, from 1 to `interval` accesses.

    Threads: while its run goes on, of the thread that does that; later nothing changes it.
    """

    def __init__(self, interval: int, counters: Mapping[str, Any], config: Config, costs: CostModel) -> None:
        self.interval, self._config, self._costs = interval, config, costs
        begin = _flat(counters)
        self.first = begin["accesses"]
        self._names = list(begin)
        self._sums: list[array[int]] = [array("q", begin.values())]

    def add(self, counters: Mapping[str, Any]) -> None:
        """The counters where a row ends."""
        now = _flat(counters)
        self._names += [name for name in now if name not in self._names] if len(now) > len(self._names) else []
        self._sums.append(array("q", [now.get(name, 0) for name in self._names]))

    def end(self, counters: Mapping[str, Any]) -> None:
        """The counters at the end; there may be a row yet."""
        if counters["accesses"] > self._sums[-1][self._names.index("accesses")]:
            self.add(counters)
        elif len(self._sums) > 1:
            self._sums.pop()
            self.add(counters)

    def __len__(self) -> int:
        return len(self._sums) - 1

    def __repr__(self) -> str:
        return f"<Series of {len(self):,} rows, {self.interval:,} accesses each, from access {self.first:,} on>"

    def sums(self) -> dict[str, npt.NDArray[np.int64]]:
        """Counters where rows end, as of the begin of the run: name -> int64 (rows + 1,), the first before any."""
        table = np.zeros((len(self._sums), len(self._names)), np.int64)
        for row, sums in zip(table, self._sums, strict=True):
            row[: len(sums)] = sums
        return {name: table[:, i] for i, name in enumerate(self._names)}

    def counters(self) -> dict[str, npt.NDArray[np.int64]]:
        """Counters of each row: name -> int64 (rows,); exits by reason as ``exits_REASON``. Those that say what is at
        the end, ``vmm_tables``, ``vmm_table_bytes`` and ``apic_latency_max``, are what they were at the end of the row.
        """
        return {name: sums[1:] if name in AT_END else np.diff(sums) for name, sums in self.sums().items()}

    def rows(self) -> list[dict[str, Any]]:
        """Counters of each row as ``Result.counters`` has them."""
        columns = {name: values.tolist() for name, values in self.counters().items()}
        exits = {name: name.removeprefix(EXITS) for name in columns if name.startswith(EXITS)}
        found = []
        for i in range(len(self)):
            row: dict[str, Any] = {name: values[i] for name, values in columns.items() if name not in exits}
            row["exits_by_reason"] = {reason: columns[name][i] for name, reason in exits.items() if columns[name][i]}
            found.append(row)
        return found

    def cycles(self) -> list[dict[str, float]]:
        """Modelled cycles of each row by cause, as ``Result.cycles_by`` has them."""
        return [cycles(row, self._config, self._costs) for row in self.rows()]

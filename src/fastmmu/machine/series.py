"""Counters over time: a row for every so many accesses of a run."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.machine.cache_result import CacheResult, caches_between
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles

__all__ = ["AT_END", "EXITS", "Series", "Table", "rows_of", "with_caches"]

AT_END = ("vmm_tables", "vmm_table_bytes", "apic_latency_max")
"""Counters that say what is, or was at most, at the end: no differences are made of them."""
EXITS = "exits_"
"""Begins the names of exits by reason."""
_CACHES = "cache_"
"""Begins the names of what data caches counted, among the columns of a table of sums."""


def with_caches(counters: Mapping[str, Any], caches: Mapping[str, int] | None) -> dict[str, Any]:
    """Counters as a machine has them, and those of its data caches, if it has any, in the same row."""
    return {**counters, **{f"{_CACHES}{name}": n for name, n in (caches or {}).items()}}


class Table:
    """Rows of counters, as numbers; reasons of exits come as they occur."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._rows: list[array[int]] = []

    def add(self, counters: Mapping[str, Any]) -> None:
        """A row, of counters as a machine has them."""
        row = {name: value for name, value in counters.items() if not isinstance(value, dict)}
        row |= {f"{EXITS}{reason}": n for reason, n in counters.get("exits_by_reason", {}).items()}
        self._names |= dict.fromkeys(row)
        self._rows.append(array("q", [row.get(name, 0) for name in self._names]))

    def __len__(self) -> int:
        return len(self._rows)

    def columns(self) -> dict[str, npt.NDArray[np.int64]]:
        """Name -> int64 (rows,); exits by reason as exits_REASON."""
        table = np.zeros((len(self._rows), len(self._names)), np.int64)
        for line, row in zip(table, self._rows, strict=True):
            line[: len(row)] = row
        return {name: table[:, i] for i, name in enumerate(self._names)}


def rows_of(columns: Mapping[str, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    """Columns as counters, as a machine has them, of each row."""
    listed = {name: values.tolist() for name, values in columns.items()}
    exits = {name: name.removeprefix(EXITS) for name in listed if name.startswith(EXITS)}
    found = []
    for i in range(len(next(iter(listed.values()), []))):
        row: dict[str, Any] = {name: values[i] for name, values in listed.items() if name not in exits}
        row["exits_by_reason"] = {reason: listed[name][i] for name, reason in exits.items() if listed[name][i]}
        found.append(row)
    return found


class Series:
    """Counters of a run over time: ``Result.series``, of a run with ``interval=``.

    ``interval``: accesses of a row; ``first``: accesses of the run before the first row. ``len()``: rows; the last one
    has what is left, from 1 to `interval` accesses.

    Threads: while its run goes on, of the thread that does that; later nothing changes it.
    """

    def __init__(
        self,
        interval: int,
        counters: Mapping[str, Any],
        config: Config,
        costs: CostModel,
        caches: Mapping[str, int] | None = None,
    ) -> None:
        self.interval, self._config, self._costs = interval, config, costs
        self.first: int = counters["accesses"]
        self._sums = Table()
        self.add(counters, caches)
        self._ended: Mapping[str, Any] | None = None

    def add(self, counters: Mapping[str, Any], caches: Mapping[str, int] | None = None) -> None:
        """The counters where a row ends, and what data caches have counted until there."""
        self._sums.add(with_caches(counters, caches))

    def end(self, counters: Mapping[str, Any], caches: Mapping[str, int] | None = None) -> None:
        """The counters at the end, behind the last access; a row ends there, if there was one."""
        if self._ended is None and counters["accesses"] > self.first:
            self.add(counters, caches)
            self._ended = counters

    def kept(self) -> tuple[list[str], npt.NDArray[np.uint64]]:
        """What a checkpoint has of it: names, and the sums where rows end, one behind another."""
        columns = self._sums.columns()
        return list(columns), np.stack(list(columns.values()), axis=1).reshape(-1).view(np.uint64)

    def resume(self, names: list[str], sums: npt.NDArray[np.uint64]) -> None:
        """Go on from there.

        :raises ValueError: these are no sums of such names.
        """
        self._sums = Table()
        if not names or "accesses" not in names or not len(sums) or len(sums) % len(names):
            raise ValueError("a series without rows")
        for row in sums.view(np.int64).reshape(-1, len(names)).tolist():
            self._sums.add(dict(zip(names, row, strict=True)))

    def __len__(self) -> int:
        return len(self._sums) - 1

    def __repr__(self) -> str:
        return f"<Series of {len(self):,} rows, {self.interval:,} accesses each, from access {self.first:,} on>"

    def sums(self) -> dict[str, npt.NDArray[np.int64]]:
        """Counters where rows end, as of the begin of the run: name -> int64 (rows + 1,), the first before any."""
        return {name: sums for name, sums in self._sums.columns().items() if not name.startswith(_CACHES)}

    def caches(self) -> list[CacheResult | None]:
        """What the data caches of a run with ``Config(caches=)`` came to in each row; else None for each."""
        sums = {name: column.tolist() for name, column in self._sums.columns().items() if name.startswith(_CACHES)}
        rows = [{name.removeprefix(_CACHES): n[i] for name, n in sums.items()} for i in range(len(self._sums))]
        return [caches_between(now or None, before) for before, now in pairwise(rows)]

    def counters(self) -> dict[str, npt.NDArray[np.int64]]:
        """Counters of each row: name -> int64 (rows,); exits by reason as ``exits_REASON``. Those that say what is at
        the end, ``vmm_tables``, ``vmm_table_bytes`` and ``apic_latency_max``, are what they were at the end of the row.
        """
        return {name: sums[1:] if name in AT_END else np.diff(sums) for name, sums in self.sums().items()}

    def rows(self) -> list[dict[str, Any]]:
        """Counters of each row as ``Result.counters`` has them."""
        return rows_of(self.counters())

    def cycles(self) -> list[dict[str, float]]:
        """Modelled cycles of each row by cause, as ``Result.cycles_by`` has them."""
        rows = zip(self.rows(), self.caches(), strict=True)
        return [cycles(row, self._config, self._costs, caches) for row, caches in rows]

"""VM exits by reason as `perf kvm stat` tells them: how many, which part of their time, least, most and mean of one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.errors import StateError
from fastmmu.exits import N_REASONS, REASON_NAMES
from fastmmu.report.table import Cell, Column, paint, render
from fastmmu.report.words import reason_title

__all__ = ["ExitStat", "exit_stat"]


class ExitStat:
    """Samples and modelled cycles of exits by reason, counted as they come.

    :param name: what was run. It takes the same memory for any number of exits.
    """

    @checked
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.samples = np.zeros(N_REASONS, np.int64)
        self.cycles = np.zeros(N_REASONS)
        self.least, self.most = np.full(N_REASONS, np.inf), np.zeros(N_REASONS)
        self._last: npt.NDArray[np.void] | None = None

    @checked
    def add(self, records: npt.NDArray[np.void]) -> None:
        """Count exits, an array of ``fastmmu.dtypes.EXIT_DTYPE``; the same array twice in a row counts once.

        :raises StateError: no exits.
        """
        if records.dtype != EXIT_DTYPE or records.ndim != 1:
            raise StateError(f"records of dtype {records.dtype} are no exits; give a 1-D array of EXIT_DTYPE")
        if records is self._last or not len(records):
            return
        reason, cycles = records["reason"], records["cycles"].astype(np.float64)
        np.add.at(self.samples, reason, 1)
        np.add.at(self.cycles, reason, cycles)
        np.minimum.at(self.least, reason, cycles)
        np.maximum.at(self.most, reason, cycles)
        self._last = records

    def rows(self) -> list[dict[str, Any]]:
        """A dict a reason that there was, the one that takes most time first: ``reason``, ``samples``, ``cycles``,
        ``min``, ``mean``, ``max``."""
        found = [
            {"reason": REASON_NAMES[i], "samples": int(self.samples[i]), "cycles": float(self.cycles[i]),
             "min": float(self.least[i]), "mean": float(self.cycles[i] / self.samples[i]), "max": float(self.most[i])}
            for i in np.flatnonzero(self.samples).tolist()
        ]  # fmt: skip
        return sorted(found, key=lambda row: (-row["cycles"], -row["samples"]))


@checked
def exit_stat(
    stat: ExitStat, *, width: int = 120, colour: bool = False, vendor: Literal["intel", "amd"] = "intel"
) -> str:
    """The table as text: a row a reason. Time is modelled cycles of an exit: transition and handling, by costs.toml."""
    rows = stat.rows()
    samples, cycles = sum(row["samples"] for row in rows), sum(row["cycles"] for row in rows)
    lines = [paint(f"{stat.name or 'trace'}: {samples:,} VM exits, {cycles:,.0f} cycles in them", "bold", colour)]
    if not rows:
        return lines[0]
    columns = [
        Column("VM exit", align="<"), Column("samples"), Column("samples %"), Column("time %"), Column("min cycles"),
        Column("mean"), Column("max"),
    ]  # fmt: skip
    table: list[list[Cell] | None] = [
        [Cell(reason_title(row["reason"], vendor), "bold"), Cell(f"{row['samples']:,}"),
         Cell(f"{row['samples'] / samples:.2%}"), Cell(f"{row['cycles'] / (cycles or 1):.2%}"),
         *(Cell(f"{row[name]:,.0f}") for name in ("min", "mean", "max"))]
        for row in rows
    ]  # fmt: skip
    return "\n".join([*lines, "", *render(columns, table, width=width, colour=colour)])

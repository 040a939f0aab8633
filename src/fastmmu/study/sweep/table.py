"""A sweep for people: what is to be run, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.machine.config import Config
from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.sweep.run import PlannedRun

__all__ = ["plan_table", "results_table", "varied"]

_FIGURES = (
    ("accesses", "accesses", "", number),
    ("tlb_misses", "TLB", "misses", number),
    ("walks", "walks", "", number),
    ("vm_exits", "exits", "VM", number),
    ("cycles_per_access", "an access", "cycles", "{:.2f}".format),
)


def varied(configs: Sequence[Config]) -> list[str]:
    """Fields in which configurations differ, in the order of :class:`Config`."""
    fields = [config.fields() for config in configs]
    return [name for name in Config.__struct_fields__ if len({repr(each[name]) for each in fields}) > 1]


def plan_table(runs: Sequence[PlannedRun], missing: Sequence[PlannedRun], *, width: int, colour: bool = False) -> str:
    """A row a run: trace, the fields that vary, the cost model, whether it is finished."""
    names = varied([run.config for run in runs])
    left = {run.key for run in missing}
    columns = [Column("trace", align="<"), *(Column(name, align="<") for name in names), Column("costs", align="<"),
               Column("", align="<")]  # fmt: skip
    rows = [
        [
            Cell(run.trace),
            *(Cell(_said(run.config.fields()[name])) for name in names),
            Cell(run.costs),
            Cell("to do" if run.key in left else "finished", "" if run.key in left else "dim"),
        ]
        for run in runs
    ]
    return "\n".join(render(columns, rows, width=width, colour=colour))


def results_table(table: Any, *, width: int, colour: bool = False) -> str:
    """A row a finished run, of a table of Arrow's: trace, the fields that vary, and what it came to."""
    rows = table.select(
        ["trace", "cost_model", *Config.__struct_fields__, *(name for name, *_ in _FIGURES)]
    ).to_pylist()
    names = [name for name in ("cost_model", *Config.__struct_fields__) if len({repr(row[name]) for row in rows}) > 1]
    columns = [
        Column("trace", align="<"),
        *(Column(name, align="<") for name in names),
        *(Column(title, group) for _, title, group, _ in _FIGURES),
    ]
    cells = [
        [
            Cell(row["trace"]),
            *(Cell(_said(row[name])) for name in names),
            *(Cell(shown(row[name])) for name, _, _, shown in _FIGURES),
        ]
        for row in rows
    ]
    return "\n".join(render(columns, cells, width=width, colour=colour))


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)

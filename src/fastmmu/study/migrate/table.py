"""Live migrations for people and files: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.figure import look, picture, plain, series, styles
from fastmmu.report.rows import by_trace
from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.migrate.run import Migration

__all__ = ["migration_plot", "migration_rows", "migration_table"]

FEW = 8  # rounds whose pages the table lists


def migration_rows(found: Sequence[Migration]) -> list[dict[str, Any]]:
    """One flat dict a round; the last of a migration, number 0, is the one for which the guest stands still.

    Keys: trace, path, content, method, round, pages (sent), round_seconds, events, exits (of the guest meanwhile),
    dirtied (pages written meanwhile), converged, slowdown, bandwidth, ghz, costs, geometry.
    """
    table = []
    for m in found:
        same = {**m.origin.columns(), "trace": m.trace, "method": m.method}
        of = {"bandwidth": m.plan.bandwidth, "ghz": m.plan.ghz, **m.origin.made_with()}
        whole = {"converged": m.converged, "slowdown": m.slowdown, **of}
        for i, r in enumerate(m.rounds, 1):
            said = {
                "pages": r.pages,
                "round_seconds": r.seconds,
                "events": r.events,
                "exits": r.exits,
                "dirtied": r.dirtied,
            }
            table.append({**same, "round": i, **said, **whole})
        stop = {"pages": m.last, "round_seconds": m.downtime, "events": 0, "exits": 0, "dirtied": 0}
        table.append({**same, "round": 0, **stop, **whole})
    return table


def migration_table(found: Sequence[Migration], *, width: int = 120, colour: bool = False) -> str:
    """A row a method."""
    if len(traces := by_trace(found)) > 1:
        return "\n\n".join(migration_table(one, width=width, colour=colour) for one in traces)
    columns = [
        Column("method", align="<"),
        Column("rounds"),
        Column("pages", "sent"),
        Column("ms", "sent"),
        Column("down ms"),
        Column("exits", "while it migrates"),
        Column("without log", "while it migrates"),
        Column("slowdown"),
        Column("pages a round", align="<", words=True),
    ]
    rows: list[list[Cell] | None] = []
    for m in found:
        pages = [r.pages for r in m.rounds] + [m.last]
        shown = [number(n) for n in pages]
        if len(shown) > FEW:
            shown = [*shown[: FEW - 2], "...", shown[-1]]
        rows.append(
            [
                Cell(m.method),
                Cell(str(len(m.rounds))),
                Cell(number(m.pages)),
                Cell(f"{1e3 * m.seconds:.2f}"),
                Cell(f"{1e3 * m.downtime:.2f}", "" if m.converged else "red"),
                Cell(number(m.exits)),
                Cell(number(m.base_exits)),
                Cell(f"{m.slowdown:.2f}×"),
                Cell(" ".join(shown)),
            ]
        )
    plan = found[0].plan
    head = (
        f"{found[0].trace}: live migration at {plan.bandwidth / 1e9:g} GB/s, down for at most "
        f"{1e3 * plan.downtime:g} ms; {plan.ghz:g} GHz"
    )
    notes = ["pages a round: the last are sent while the guest stands still"]
    notes += [f"{m.method}: not converged after {len(m.rounds)} rounds" for m in found if not m.converged]
    return "\n".join([head, "", *render(columns, rows, width=width, colour=colour), *notes, ""])


def migration_plot(found: Sequence[Migration], path: str | os.PathLike[str]) -> None:
    """Draw pages sent, round by round, into a file: a line a method.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    with picture(path, (8, 4.5)) as figure:
        axes = figure.add_subplot()
        for m, style in zip(found, styles(len(found)), strict=True):
            pages = [r.pages for r in m.rounds] + [m.last]
            label = f"{m.trace}, {m.method}: {m.slowdown:.2f}× slower"
            axes.plot(range(1, len(pages) + 1), pages, label=label, **style)
        axes.set(xlabel="round, the last while the guest stands still", ylabel="pages sent", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain(axes.yaxis)
        look(axes)
        series(axes)

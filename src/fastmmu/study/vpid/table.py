"""The VPID experiment for people and files: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.figure import PALETTE, look, narrow, picture, plain, series
from fastmmu.report.rows import by_trace
from fastmmu.report.table import Cell, Column, render

if TYPE_CHECKING:
    from fastmmu.study.vpid.run import VpidPoint

__all__ = ["vpid_plot", "vpid_rows", "vpid_table"]


def vpid_rows(points: Sequence[VpidPoint]) -> list[dict[str, Any]]:
    """One flat dict a rate: trace, path, content, mmu, rate (exits per thousand accesses), accesses, exits, misses_on,
    misses_off, resident (pages an exit), looks, predicted (misses_off by E1), refills, geometry."""
    return [
        {
            **point.origin.columns(),
            "trace": point.trace,
            "mmu": point.mmu,
            "rate": point.rate,
            "accesses": point.accesses,
            "exits": point.exits,
            "misses_on": point.on,
            "misses_off": point.off,
            "resident": point.resident,
            "looks": point.looks,
            "predicted": point.predicted,
            "refills": point.refills,
            **point.origin.made_with(),
        }
        for point in points
    ]


def vpid_table(points: Sequence[VpidPoint], *, width: int = 120, colour: bool = False) -> str:
    """A row a rate."""
    if len(traces := by_trace(points)) > 1:
        return "\n\n".join(vpid_table(one, width=width, colour=colour) for one in traces)
    columns = [
        Column("exits/1000", align=">"),
        Column("exits"),
        Column("VPID", "TLB misses"),
        Column("no VPID", "TLB misses"),
        Column("pages", "an exit"),
        Column("predicted", "no VPID"),
        Column("off by", "no VPID"),
        Column("refills"),
    ]
    table: list[list[Cell] | None] = [
        [
            Cell(f"{point.rate:g}"),
            Cell(f"{point.exits:,}"),
            Cell(f"{point.on:,}"),
            Cell(f"{point.off:,}"),
            Cell(f"{point.resident:.1f}"),
            Cell(f"{point.predicted:,.0f}"),
            Cell(f"{point.predicted / point.off - 1:+.1%}" if point.off else ""),
            Cell(f"{point.refills:,}"),
        ]
        for point in points
    ]
    head = [f"{points[0].trace}: {points[0].accesses:,} accesses", ""] if points else []
    return "\n".join(head + render(columns, table, width=width, colour=colour))


def vpid_plot(points: Sequence[VpidPoint], path: str | os.PathLike[str]) -> None:
    """Draw misses by rate into a file: axes a trace.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    traces = list(dict.fromkeys((point.trace, point.origin) for point in points))
    columns = 1 if narrow() else len(traces)
    with picture(path, (6 * columns, 4.2 * -(-len(traces) // columns))) as figure:
        places = figure.subplots(-(-len(traces) // columns), columns, squeeze=False).flat
        for i, trace in enumerate(traces):
            mine = [point for point in points if (point.trace, point.origin) == trace]
            rates = [point.exits / point.accesses * 1000 for point in mine]
            axes = places[i]
            axes.plot(rates, [point.off for point in mine], "o-", color=PALETTE[5], label="without VPID")
            axes.plot(rates, [point.predicted for point in mine], "x--", color=PALETTE[1],
                      label="with VPID + exits × resident set")  # fmt: skip
            axes.plot(rates, [point.on for point in mine], "s-", color=PALETTE[0], label="with VPID")
            axes.set(
                xscale="log", yscale="log", xlabel="VM exits of 1000 accesses", ylabel="TLB misses", title=trace[0]
            )
            plain(axes.xaxis)
            plain(axes.yaxis)
            look(axes)
            series(axes)

"""Shootdowns for people and files: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.figure import look, narrow, picture, plain, series, styles
from fastmmu.report.rows import by_trace
from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.shootdown.run import ShootdownPoint

__all__ = ["shootdown_plot", "shootdown_rows", "shootdown_table"]

COUNTS = (
    "vcpus", "cpus", "lazy", "accesses", "shootdowns", "ipis", "preempted", "marked", "lazy_skipped", "late_flushes",
    "invlpgbs", "interrupts", "apic_exits", "kicks", "vm_exits", "tlb_misses", "cycles", "spent",
)  # fmt: skip


def shootdown_rows(points: Sequence[ShootdownPoint]) -> list[dict[str, Any]]:
    """One flat dict a run: trace, path, content, method, the counts of a :class:`ShootdownPoint`, cycles_each (of a
    shootdown), cycles_share (of all), geometry, costs."""
    return [
        {
            **point.origin.columns(),
            "trace": point.trace,
            "method": point.method,
            **{name: getattr(point, name) for name in COUNTS},
            "cycles_each": point.each,
            "cycles_share": point.share,
            **point.origin.made_with(),
        }
        for point in points
    ]


def shootdown_table(points: Sequence[ShootdownPoint], *, width: int = 120, colour: bool = False) -> str:
    """A row a run, by number of vCPUs."""
    if len(traces := by_trace(points)) > 1:
        return "\n\n".join(shootdown_table(one, width=width, colour=colour) for one in traces)
    columns = [Column("vCPUs"), Column("method", align="<"), Column("lazy", align="<"), Column("shootdowns")]
    columns += [Column("IPIs"), Column("no CPU", "vCPUs"), Column("marked", "vCPUs"), Column("lazy", "vCPUs")]
    columns += [Column("APIC", "VM exits"), Column("kicks", "VM exits"), Column("all", "VM exits")]
    columns += [Column("each", "cycles"), Column("of all", "cycles"), Column("an access", "cycles")]
    table: list[list[Cell] | None] = []
    before = 0
    for point in sorted(points, key=lambda point: point.vcpus):
        if before not in (0, point.vcpus):
            table.append(None)
        before = point.vcpus
        counts = (point.shootdowns, point.ipis, point.preempted, point.marked, point.lazy_skipped)
        exits = (point.apic_exits, point.kicks, point.vm_exits)
        table.append(
            [
                Cell(str(point.vcpus)),
                Cell(point.method),
                Cell("on" if point.lazy else "off"),
                *(Cell(number(count)) for count in (*counts, *exits)),
                Cell(number(round(point.each))),
                Cell(f"{point.share:.1%}"),
                Cell(f"{point.cycles / point.accesses:.2f}" if point.accesses else ""),
            ]
        )
    head = [f"{points[0].trace}: {points[0].accesses:,} accesses", ""] if points else []
    return "\n".join(head + render(columns, table, width=width, colour=colour))


def shootdown_plot(points: Sequence[ShootdownPoint], path: str | os.PathLike[str]) -> None:
    """Draw cycles of shootdowns per thousand accesses by number of vCPUs, a line a method, into a file: axes a trace,
    with lazy mode and without.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    shown = [point for point in points if point.spent]
    panels = list(dict.fromkeys((point.trace, point.origin, point.lazy) for point in points))
    methods = list(dict.fromkeys(point.method for point in points))
    looks = dict(zip(methods, styles(len(methods)), strict=True))
    columns = 1 if narrow() or len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    with picture(path, (5.4 * columns, 4.2 * rows)) as figure:
        places = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
        for axes, (trace, origin, lazy) in zip(places, panels, strict=False):
            for method in methods:
                mine = [p for p in shown if (p.trace, p.origin, p.lazy, p.method) == (trace, origin, lazy, method)]
                mine.sort(key=lambda point: point.vcpus)
                if mine:
                    axes.plot([p.vcpus for p in mine], [1000 * p.spent / p.accesses for p in mine], label=method,
                              **looks[method])  # fmt: skip
        for axes, (trace, _, lazy) in zip(places, panels, strict=False):
            axes.set(title=f"{trace}, lazy mode {'on' if lazy else 'off'}", xlabel="vCPUs",
                     ylabel="cycles of shootdowns\nper 1000 accesses")  # fmt: skip
            if shown:
                axes.set(xscale="log", yscale="log")
                numbers = sorted({point.vcpus for point in shown})
                axes.set_xticks(numbers, [str(n) for n in numbers])
                axes.minorticks_off()
                plain(axes.yaxis)
            look(axes)
            series(axes)
        for axes in places[len(panels) :]:
            axes.set_visible(False)

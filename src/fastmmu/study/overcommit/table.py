"""Hosts short of memory for people and files: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.figure import look, picture, plain, series, styles
from fastmmu.report.rows import by_trace
from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.overcommit.run import Overcommit

__all__ = ["overcommit_plot", "overcommit_rows", "overcommit_table"]

COUNTED = ("vm_exits", "swap_outs", "swap_writes", "swap_ins", "pf_retry", "pf_fast", "aged_young", "aged_old")


def overcommit_rows(found: Sequence[Overcommit]) -> list[dict[str, Any]]:
    """One flat dict a run.

    Keys: trace, path, content, scheme, reclaim ("" on the unlimited host), share, pages, vm_exits, swap_outs,
    swap_writes, swap_ins, pf_retry, pf_fast, aged_young, aged_old, accesses, cycles, slowdown (over the unlimited
    host), checksum, equal, costs, geometry.
    """
    return [
        {
            **r.origin.columns(),
            "trace": r.trace,
            "scheme": r.scheme,
            "reclaim": r.reclaim or "",
            "share": r.share,
            "pages": r.pages,
            **{name: int(r.counters[name]) for name in (*COUNTED, "accesses")},
            "cycles": r.cycles,
            "slowdown": r.slowdown,
            "checksum": r.checksum,
            "equal": r.equal,
            **r.origin.made_with(),
        }
        for r in found
    ]


def overcommit_table(found: Sequence[Overcommit], *, width: int = 120, colour: bool = False) -> str:
    """A row a run."""
    if len(traces := by_trace(found)) > 1:
        return "\n\n".join(overcommit_table(one, width=width, colour=colour) for one in traces)
    columns = [
        Column("scheme", align="<"),
        Column("host"),
        Column("policy", align="<"),
        Column("pages"),
        Column("out", "to disk"),
        Column("written", "to disk"),
        Column("back"),
        Column("VM exits"),
        Column("retries"),
        Column("restored"),
        Column("young", "asked"),
        Column("old", "asked"),
        Column("cycles"),
        Column("slowdown"),
        Column("guest", align="<"),
    ]
    rows: list[list[Cell] | None] = []
    for r in found:
        c = r.counters
        texts = [r.scheme, f"{100 * r.share:g} %", r.reclaim or "", number(r.pages)]
        names = ("swap_outs", "swap_writes", "swap_ins", "vm_exits", "pf_retry", "pf_fast", "aged_young", "aged_old")
        texts += [number(c[name]) for name in names]
        texts += [number(r.cycles), f"{r.slowdown:.2f}×"]
        same = Cell("equal" if r.equal else "DIFFERS", "green" if r.equal else "red")
        rows.append([*(Cell(text) for text in texts), same])
    head = f"{found[0].trace}: {found[0].counters['accesses']:,} accesses; the host's memory, of what the guest takes"
    sums = {r.checksum for r in found}
    last = (
        f"guest: addresses, faults and counters against a host with memory for all; checksum {', '.join(sorted(sums))}"
    )
    return "\n".join([head, "", *render(columns, rows, width=width, keep=3, colour=colour), last, ""])


def overcommit_plot(found: Sequence[Overcommit], path: str | os.PathLike[str]) -> None:
    """Draw pages read back over the host's memory into a file: a line a scheme and policy.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    with picture(path, (8, 4.5)) as figure:
        axes = figure.add_subplot()
        lines: dict[tuple[object, ...], list[Overcommit]] = {}
        for r in found:
            if r.reclaim is not None:
                lines.setdefault((r.trace, r.scheme, r.reclaim, r.origin), []).append(r)
        for ((trace, scheme, reclaim, _), runs), style in zip(lines.items(), styles(len(lines)), strict=True):
            runs.sort(key=lambda r: r.share)
            label = f"{trace}, {scheme}, {reclaim}"
            axes.plot([r.share for r in runs], [r.counters["swap_ins"] for r in runs], label=label, **style)
        axes.set(xlabel="host memory, of what the guest takes", ylabel="pages read back from disk", ylim=(0, None))
        plain(axes.xaxis, percent=True)
        plain(axes.yaxis)
        look(axes)
        series(axes)

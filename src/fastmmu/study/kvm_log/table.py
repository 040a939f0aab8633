"""A log of KVM for people and files: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmmu.report.figure import look, picture, plain, series, styles
from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.kvm_log.run import ReplayedFaults
    from fastmmu.trace.kvm_log import KvmLog

__all__ = ["Read", "kvm_log_plot", "kvm_log_rows", "kvm_log_table"]

BINS = 200
SHOWN = 9  # reasons that have a colour; all others share one
POLICIES = {
    "4k": "4 KB pages, TDP MMU",
    "4k-older": "4 KB pages, older MMU (prefetches)",
    "2m": "2 MB pages",
    "2m-nx": "2 MB pages, nx_huge_pages",
    "4k-log": "4 KB pages, logged by write protection",
    "4k-pml": "4 KB pages, logged by PML",
    "4k-ring": "4 KB pages, dirty ring",
    "2m-log-late": "2 MB pages, logged by write protection, no eager split",
    "2m-log": "2 MB pages, logged by write protection, eager split",
    "2m-pml": "2 MB pages, logged by PML, eager split",
}
WHY = {
    "mmio": "no memory: emulated each time",
    "race": "another vCPU was being served for it",
    "retry": "served in vain, tried again",
    "write": "written, and mapped without that right",
    "rewrite": "write-protected again, as by a dirty log",
    "fetch": "executed after it was mapped without that right",
    "gone": "its mapping was taken away",
}


class Read(NamedTuple):
    """A log, and its faults under other policies."""

    log: KvmLog
    policies: list[ReplayedFaults]


def kvm_log_rows(found: Sequence[Read]) -> list[dict[str, Any]]:
    """One flat dict for each reason, kind of fault, cause of a further fault, and policy.

    Keys: log, path, section ("exit", "fault", "again", "policy"), name, class, count, share (of the section's; of a
    policy, of the log's faults), per_second, saved (of a policy, else None).
    """
    return [row for one in found for row in _rows(one)]


def _rows(read: Read) -> Iterator[dict[str, Any]]:
    log = read.log
    nested = int((~log.faults["linear"]).sum())
    sections: list[tuple[str, str, str, int, int, int | None]] = []
    sections += [("exit", reason, "", n, len(log.exits), None) for reason, n in log.by_reason().items()]
    sections += [("fault", op, kind, n, len(log.faults), None) for (op, kind), n in log.by_access().items()]
    sections += [("again", why, "", n, nested, None) for why, n in log.by_again().items()]
    sections += [("policy", run.policy, "", run.exits, run.faults, run.saved) for run in read.policies]
    for section, name, kind, n, of, saved in sections:
        yield {
            "log": log.name,
            "path": log.path,
            "section": section,
            "name": name,
            "class": kind,
            "count": n,
            "share": n / of if of else 0.0,
            "per_second": n / log.seconds if log.seconds else 0.0,
            "saved": saved,
        }


def kvm_log_table(read: Read, *, width: int = 120, colour: bool = False) -> str:
    """Exits by reason; page faults by access and class; pages that faulted again; what each policy leaves."""
    log = read.log
    head = f"{log.name}: {sum(log.events.values()):,} events, {len(log.exits):,} VM exits in {log.seconds:.3f} s"
    lines = [head, ""]
    rows = list(_rows(read))

    def part(section: str, title: str, *more: Column, words: dict[str, str] | None = None) -> None:
        of = [row for row in rows if row["section"] == section]
        if not of:
            return
        columns = [Column(title, align="<"), *more, Column("share"), Column("a second")]
        cells: list[list[Cell] | None] = []
        for row in of:
            name = (words or {}).get(row["name"], row["name"])
            texts = [f"{name}, {row['class']}" if row["class"] else name, number(row["count"])]
            texts += [number(row["saved"])] if section == "policy" else []
            texts += [f"{100 * row['share']:.1f} %", number(row["per_second"])]
            cells.append([Cell(text) for text in texts])
        lines.extend([*render(columns, cells, width=width, colour=colour), ""])

    part("exit", "exits by reason", Column("exits"))
    part("fault", f"page faults, {log.pages:,} pages", Column("faults"))
    part("again", "pages that faulted again", Column("faults"), words=WHY)
    if read.policies:
        left = read.policies[0].left_out
        part("policy", "the same faults under", Column("exits"), Column("saved"), words=POLICIES)
        lines.append(
            f"recorded: {read.policies[0].faults:,} faults of memory"
            + (f", and {left:,} of no memory, which no policy saves" if left else "")
        )
    return "\n".join(lines).rstrip("\n") + "\n"


def kvm_log_plot(found: Sequence[Read], path: str | os.PathLike[str]) -> None:
    """Draw into a file, a column a log: exits a second by reason, stacked, over time; page faults of the log and the
    exits that each policy leaves, summed.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    with picture(path, (max(7.0, 6.0 * len(found)), 7.2)) as figure:
        axes = figure.subplots(2, max(1, len(found)), squeeze=False, height_ratios=(1, 1))
        for i, read in enumerate(found):
            _draw_rates(axes[0][i], read.log)
            _draw_policies(axes[1][i], read)


def _draw_rates(axes: Any, log: KvmLog) -> None:
    axes.set_title(log.name)
    names = list(log.by_reason())
    shown = names[:SHOWN] + (["other"] if len(names) > SHOWN else [])
    if not names:
        axes.text(0.5, 0.5, "no VM exits", transform=axes.transAxes, ha="center", va="center", color="0.4")
        return
    times = (log.exits["time"] - log.exits["time"][0]) / 1e9
    bins = min(BINS, max(20, len(times) // 20))
    edges = np.linspace(0, max(float(times[-1]), 1e-9), bins + 1)
    lengths = np.diff(edges)
    base = np.zeros(bins)
    order = [log.reasons.index(name) for name in names]
    for name, style in zip(shown, styles(len(shown)), strict=True):
        which = order[SHOWN:] if name == "other" else [log.reasons.index(name)]
        counts, _ = np.histogram(times[np.isin(log.exits["reason"], which)], edges)
        top = base + counts / lengths
        label = f"{name}  {number(int(counts.sum()))}"
        axes.stairs(top, edges, baseline=base, fill=True, color=style["color"], label=label, linewidth=0)
        base = top
    axes.set(xlabel="seconds", ylabel="VM exits a second", xlim=(0, edges[-1]), ylim=(0, None))
    plain(axes.yaxis)
    look(axes)
    series(axes)


def _draw_policies(axes: Any, read: Read) -> None:
    if not read.policies:
        axes.text(0.5, 0.5, "no faults of guest-physical pages", transform=axes.transAxes, ha="center", va="center")
        return
    n = read.policies[0].faults
    axes.plot([0, n], [0, n], color="0.6", linestyle=":", label=f"recorded  {number(n)}")
    for i, (run, style) in enumerate(zip(read.policies, styles(len(read.policies)), strict=True)):
        marks = (0.02 + 0.1 * i / len(read.policies), 0.12)  # of the line's length: lines may lie on each other
        label = f"{run.policy}  {number(run.exits)}"
        axes.plot(run.course[:, 0], run.course[:, 1], label=label, markevery=marks, markersize=4, **style)
    axes.set(xlabel="page faults of the log", ylabel="VM exits until then", xlim=(0, n), ylim=(0, None))
    plain(axes.xaxis)
    plain(axes.yaxis)
    look(axes)
    axes.legend(fontsize="x-small", loc="upper left", ncols=2)

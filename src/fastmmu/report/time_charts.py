"""What runs did over time, as pictures for a page: VM exits by reason, axes a run; cycles of an access, lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastmmu.machine.result import Result
from fastmmu.report.figure import PALETTE, REST, look, plain, series
from fastmmu.report.svg import GRID, INK, Chart, axes_of, legend_of, svg_of
from fastmmu.report.table import number
from fastmmu.report.words import reason_title

__all__ = ["time_charts"]

BINS = 64
"""Stretches of time at most; where there are more, neighbours become one."""
_RUNS = 6  # whose exits are drawn
_PARTS = 7  # reasons that have a colour


def time_charts(parts: Sequence[Sequence[Result]], names: Sequence[str], key: str) -> Iterator[Chart | None]:
    """The pictures. parts: of each run its results one after the other; those of one part have no time."""
    told = [(list(run), name) for run, name in zip(parts, names, strict=False) if len(run) > 1]
    if told:
        first = told[: len(PALETTE)]
        yield _cycles(f"{key}-cycles-time", f"Cycles of an access, over time{_of_many(first, told)}", first)
        exiting = [(run, name) for run, name in told if any(part.counters["vm_exits"] for part in run)]
        first = exiting[:_RUNS]
        title = f"VM exits of a thousand accesses, over time{_of_many(first, exiting)}"
        yield _exits(f"{key}-exits-time", title, first, _totals(exiting)) if exiting else None


def _of_many(drawn: Sequence[object], all_of: Sequence[object]) -> str:
    return "" if len(drawn) == len(all_of) else f", of the first {len(drawn)} of {len(all_of)} runs"


def _bins(run: Sequence[Result]) -> list[Sequence[Result]]:
    size = -(-len(run) // BINS)
    found = [run[i : i + size] for i in range(0, len(run), size)]
    if len(found) > 1 and 2 * _accesses(found[-1]) < _accesses(found[0]):  # too few for a rate
        found[-2:] = [[*found[-2], *found[-1]]]
    return found


def _accesses(found: Sequence[Result]) -> int:
    return sum(part.counters["accesses"] for part in found)


def _edges(bins: Sequence[Sequence[Result]]) -> list[int]:
    last = bins[-1][-1]
    return [*(found[0].first for found in bins), last.first + last.counters["accesses"]]


def _cycles(key: str, title: str, told: Sequence[tuple[Sequence[Result], str]]) -> Chart:
    figure, axes = axes_of(8, 0)
    rows, marks = [], 0
    for j, (run, name) in enumerate(told):
        bins = _bins(run)
        edges = _edges(bins)
        each = [sum(part.cycles for part in found) / (_accesses(found) or 1) for found in bins]
        ends = [*each, each[-1]]
        (line,) = axes.plot(edges, ends, color=PALETTE[j], linewidth=1.5, label=name, drawstyle="steps-post")
        line.set_gid(f"mark-{key}-{j}")
        marks += 1
        rows += [(name, edge, value) for edge, value in zip(edges, each, strict=False)]
    axes.set_xlim(0, max(_edges(_bins(run))[-1] for run, _ in told))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="accesses of the trace", ylabel="cycles an access")
    plain(axes.xaxis)
    plain(axes.yaxis)
    look(axes, ink=INK, grid=GRID)
    if not series(axes, legend=False):
        legend_of(figure, [(name, PALETTE[j]) for j, (_, name) in enumerate(told)])
    highest = max(rows, key=lambda row: row[2])
    said = f"{title}: most in {highest[0]}, {highest[2]:.2f} from access {highest[1]:,} on."
    return Chart(key, title, said, ("run", "from access", "cycles an access"), tuple(rows), svg_of(figure, key), marks)


def _totals(told: Sequence[tuple[Sequence[Result], str]]) -> dict[str, int]:
    """Exits by reason of all runs, by which reasons have their colours; also those of runs that are not drawn."""
    totals: dict[str, int] = {}
    for run, _ in told:
        for part in run:
            for reason, n in part.counters["exits_by_reason"].items():
                totals[reason] = totals.get(reason, 0) + n
    return totals


def _exits(key: str, title: str, told: Sequence[tuple[Sequence[Result], str]], totals: dict[str, int]) -> Chart:
    order = sorted((reason for reason in totals if totals[reason]), key=lambda reason: -totals[reason])
    shown: list[tuple[str, tuple[str, ...]]] = [(reason_title(reason), (reason,)) for reason in order[:_PARTS]]
    if rest := tuple(order[_PARTS:]):
        shown.append(("other", rest))
    colours = [REST if title == "other" else PALETTE[j] for j, (title, _) in enumerate(shown)]
    figure, places = axes_of(4.4 * len(told), len(shown), len(told))
    rows, marks = [], 0
    for number_of, (axes, (run, name)) in enumerate(zip(np.atleast_1d(places), told, strict=True)):
        bins = _bins(run)
        edges = _edges(bins)
        base = np.zeros(len(bins))
        counts = [[sum(_of(part, reasons) for part in found) for found in bins] for _, reasons in shown]
        for j, (values, colour) in enumerate(zip(counts, colours, strict=True)):
            top = base + 1000 * np.array(values) / np.maximum(np.diff(edges), 1)
            if any(values):
                area = axes.stairs(top, edges, baseline=base, fill=True, color=colour, linewidth=0)
                area.set_gid(f"mark-{key}-{number_of}-{j}")
                marks += 1
            base = top
        rows += [(name, edge, *(values[i] for values in counts)) for i, edge in enumerate(edges[:-1])]
        _axes(axes, name)
    _last(places, max(_edges(_bins(run))[-1] for run, _ in told))
    legend_of(figure, [(title, colour) for (title, _), colour in zip(shown, colours, strict=True)])
    said = (
        f"{title}: " + ", ".join(f"{title} {number(sum(totals[r] for r in reasons))}" for title, reasons in shown) + "."
    )
    head = ("run", "from access", *(title for title, _ in shown))
    return Chart(key, title, said, head, tuple(rows), svg_of(figure, key), marks)


def _of(part: Result, reasons: Sequence[str]) -> int:
    return sum(part.counters["exits_by_reason"].get(reason, 0) for reason in reasons)


def _axes(axes: Any, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=9, color=INK)
    axes.set_ylim(bottom=0)
    plain(axes.yaxis)
    look(axes, ink=INK, grid=GRID)


def _last(places: Any, end: int) -> None:
    axes = np.atleast_1d(places)[-1]
    axes.set_xlim(0, end)
    axes.set_xlabel("accesses of the trace", color=INK)
    plain(axes.xaxis)

"""Runs side by side as a picture in a file: what an access costs, by cause; of runs with intervals, over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.machine.result import Result
from fastmmu.report.figure import PALETTE, bars, look, picture, plain, series
from fastmmu.report.latency import draw_latency, with_latency
from fastmmu.report.words import cause_name

__all__ = ["plot_runs"]

_PARTS = 7  # causes that have a colour
_LATENCY = 7  # bars that fit the height of axes of latencies
_BINS = 256  # stretches of time at most; where there are more rows, neighbours become one


@checked
def plot_runs(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """Draw runs into a file, axes a trace: lying bars, a run each, of the cycles of an access by cause, and below them,
    with data caches, the share of walks by their latency; of runs that have a ``series`` lines over time, above cycles
    of an access, in the middle misses of the TLB, below VM exits, both of a thousand accesses.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.trace, result.path), []).append(result)
    timed = [
        [result for result in group if result.series is not None and len(result.series)] for group in groups.values()
    ]
    if any(timed):
        _over_time([group for group in timed if group], path)
    else:
        _side_by_side(list(groups.values()), path)


def _names(group: Sequence[Result]) -> list[str]:
    pages, versions = ({getattr(r.config, name) for r in group} for name in ("pages", "kvm"))
    return [
        " ".join([r.config.name, *([r.config.pages] if len(pages) > 1 else []),
                  *([r.config.kvm] if len(versions) > 1 and r.config.mmu != "native" else [])])
        for r in group
    ]  # fmt: skip


# ---- side by side ------------------------------------------------------------------------------------------------


def _causes(results: Sequence[Result]) -> list[dict[str, float]]:
    """Of each run its cycles an access by the name of their cause."""
    return [
        {
            cause_name(cause, mmu="ept" if cause == "guest_walk" else result.config.mmu): value
            / (result.counters["accesses"] or 1)
            for cause, value in result.cycles_by.items()
        }
        for result in results
    ]


def _parts(found: Sequence[dict[str, float]], order: Sequence[str]) -> list[tuple[str, list[float]]]:
    """The causes that have a colour, the others together."""
    parts = [(name, [causes.get(name, 0.0) for causes in found]) for name in order[:_PARTS]]
    rest = [sum(value for name, value in causes.items() if name not in order[:_PARTS]) for causes in found]
    return [*parts, ("other", rest)] if any(rest) else parts


def _side_by_side(groups: Sequence[Sequence[Result]], path: str | os.PathLike[str]) -> None:
    rows = [max(2, len(group)) for group in groups]
    both = [(group[0].trace, with_latency(group, _names(group))) for group in groups]
    told = [(trace, walks) for trace, walks in both if walks]
    totals: dict[str, float] = {}  # one order, so that a cause has one colour
    for causes in (causes for group in groups for causes in _causes(group)):
        for name, value in causes.items():
            totals[name] = totals.get(name, 0.0) + value
    order = sorted(totals, key=lambda name: -totals[name])
    below = [_LATENCY] * len(told)
    with picture(path, (7.2, 0.36 * (sum(rows) + sum(below)) + 1.5 * len(groups) + 0.6 * len(below))) as figure:
        places = figure.subplots(len(groups) + len(below), 1, squeeze=False, height_ratios=rows + below)
        for (axes,), group in zip(places, groups, strict=False):
            bars(axes, _names(group), _parts(_causes(group), order), unit="cycles an access", shown="{:.2f}".format)
            axes.set_title(group[0].trace or None, loc="left")
            axes.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for (axes,), (trace, walks) in zip(places[len(groups) :], told, strict=True):
            draw_latency(axes, walks)
            plain(axes.xaxis)
            plain(axes.yaxis, percent=True)
            look(axes)
            axes.legend(fontsize="small", framealpha=0.8, edgecolor="none", loc="lower right")
            axes.set_title(trace or None, loc="left")


# ---- over time ---------------------------------------------------------------------------------------------------


def _stretches(result: Result) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float64]]]:
    """Where stretches begin and end, in accesses of the trace; figures of each."""
    assert result.series is not None
    counters = result.series.counters()
    n = len(result.series)
    at = np.arange(0, n, -(-n // _BINS))
    accesses = np.add.reduceat(counters["accesses"], at)
    edges = result.series.first + np.concatenate([[0], np.cumsum(accesses)])
    cycles = np.array([sum(causes.values()) for causes in result.series.cycles()])
    figures = {
        "cycles an access": np.add.reduceat(cycles, at) / accesses,
        "TLB misses of 1000": 1000 * np.add.reduceat(counters["tlb_misses"], at) / accesses,
        "VM exits of 1000": 1000 * np.add.reduceat(counters["vm_exits"], at) / accesses,
    }
    return edges, figures


def _over_time(groups: Sequence[Sequence[Result]], path: str | os.PathLike[str]) -> None:
    with picture(path, (max(7.2, 5.2 * len(groups)), 6.4)) as figure:
        places = figure.subplots(3, len(groups), sharex="col", squeeze=False)
        for column, group in enumerate(groups):
            drawn = [(name, *_stretches(result)) for name, result in zip(_names(group), group, strict=True)]
            for row, what in enumerate(("cycles an access", "TLB misses of 1000", "VM exits of 1000")):
                axes = places[row][column]
                _lines(axes, [(name, edges, figures[what]) for name, edges, figures in drawn], legend=not row)
                axes.set_ylabel(what if not column else None)
            places[0][column].set_title(group[0].trace or None, loc="left")
            places[2][column].set_xlabel("accesses of the trace")
            places[2][column].set_xlim(int(drawn[0][1][0]), max(int(edges[-1]) for _, edges, _ in drawn))


def _lines(axes: Any, lines: Sequence[tuple[str, Any, Any]], *, legend: bool) -> None:
    for (name, edges, values), colour in zip(
        lines, [PALETTE[i % len(PALETTE)] for i in range(len(lines))], strict=True
    ):
        axes.plot(edges, [*values, values[-1]], color=colour, linewidth=1.3, label=name, drawstyle="steps-post")
    axes.set_ylim(bottom=0)
    plain(axes.xaxis)
    plain(axes.yaxis)
    look(axes)
    if legend and len(lines) > 1:
        series(axes)

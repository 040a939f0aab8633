"""VM exits over time, by reason: counted as they come, drawn at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.errors import StateError
from fastmmu.exits import N_REASONS, REASON_NAMES
from fastmmu.report.figure import look, picture, plain, styles
from fastmmu.report.table import number

__all__ = ["ExitHistory", "plot_exits"]

BINS = 256  # at most; where there would be more, two become one
_SHOWN = 9  # reasons that have a colour; all others share one


class ExitHistory:
    """How many exits of each reason there were in each stretch of the trace.

    :param name: what was run.

    It takes the same memory for any number of exits: the bins are made wider as the time goes on.
    """

    @checked
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.width = 1  # accesses of a bin
        self.counts = np.zeros((N_REASONS, BINS), np.int64)
        self.end = 0  # accesses
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
        self.until(int(records["time"].max()))
        at = np.maximum(records["time"], 1) - np.uint64(1)
        np.add.at(self.counts, (records["reason"], (at // np.uint64(self.width)).astype(np.int64)), 1)
        self._last = records

    @checked
    def until(self, accesses: int) -> None:
        """The trace goes so far at least."""
        self.end = max(self.end, accesses)
        while self.end > self.width * BINS:
            self.width *= 2
            pairs = self.counts.reshape(N_REASONS, BINS // 2, 2).sum(axis=2)
            self.counts = np.concatenate([pairs, np.zeros_like(pairs)], axis=1)

    def by_reason(self) -> dict[str, npt.NDArray[np.int64]]:
        """The counts of each reason that there was, by the time of the bins; the most frequent reason first."""
        bins = -(-self.end // self.width)
        found = {REASON_NAMES[r]: self.counts[r, :bins] for r in range(N_REASONS) if self.counts[r].any()}
        return dict(sorted(found.items(), key=lambda item: -int(item[1].sum())))


@checked
def plot_exits(histories: Sequence[ExitHistory], path: str | os.PathLike[str]) -> None:
    """Draw exits over time into a file: a column a history; above exits of a thousand accesses, below their sum until
    then, both stacked by reason.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    totals: dict[str, int] = {}
    for history in histories:
        for reason, counts in history.by_reason().items():
            totals[reason] = totals.get(reason, 0) + int(counts.sum())
    order = sorted(totals, key=lambda reason: -totals[reason])
    shown, rest = order[:_SHOWN], order[_SHOWN:]
    names = [*shown, *(["other"] if rest else [])]
    colours = [style["color"] for style in styles(len(names))]
    with picture(path, (max(6.5, 5.2 * len(histories)), 5.6)) as figure:
        axes = figure.subplots(2, max(1, len(histories)), sharex="col", squeeze=False, height_ratios=(3, 2))
        for i, history in enumerate(histories):
            _draw(axes[0][i], axes[1][i], history, names, rest, colours, left=i == 0)
        if names:
            handles = axes[0][0].get_legend_handles_labels()[0] or [
                handle for column in axes[0] for handle in column.get_legend_handles_labels()[0]
            ]
            labels = [f"{_title(name)}  {number(_total(name, totals, rest))}" for name in names]
            figure.legend(handles[: len(labels)], labels, loc="outside upper center", ncols=min(5, len(names)),
                          frameon=False, fontsize="small")  # fmt: skip


_AS_WRITTEN = {"exception nmi": "#PF", "ept misconfig": "EPT misconfiguration"}
_CAPITALS = {"apic", "cpuid", "cr", "dr", "eoi", "ept", "hlt", "invlpg", "invpcid", "pml", "rdmsr", "tpr", "vmcall",
             "wrmsr"}  # fmt: skip


def _title(name: str) -> str:
    words = [word.upper() if word in _CAPITALS else word for word in name.split("_")]
    return _AS_WRITTEN.get(name.replace("_", " "), " ".join(words))


def _total(name: str, totals: dict[str, int], rest: Sequence[str]) -> int:
    return totals.get(name, 0) if name != "other" else sum(totals[reason] for reason in rest)


def _draw(
    rate: Any, total: Any, history: ExitHistory, names: Sequence[str], rest: Sequence[str], colours: Sequence[str], *,
    left: bool,
) -> None:  # fmt: skip
    end = max(history.end, 1)
    bins = -(-end // history.width)
    edges = np.minimum(np.arange(bins + 1) * history.width, end)
    found = history.by_reason()
    none = np.zeros(bins, np.int64)
    stacks = [found.get(name, none) if name != "other" else sum((found.get(r, none) for r in rest), none)
              for name in names]  # fmt: skip
    rate.set_title(history.name or None)
    if not found:
        rate.text(0.5, 0.5, "no VM exits", transform=rate.transAxes, ha="center", va="center", color="0.4")
    base, sums = np.zeros(bins), np.zeros(bins + 1)
    lengths = np.maximum(np.diff(edges), 1)
    for counts, colour, name in zip(stacks, colours, names, strict=True):
        top = base + counts * 1000 / lengths
        rate.stairs(top, edges, baseline=base, fill=True, color=colour, label=name, linewidth=0)
        above = sums + np.concatenate([[0], np.cumsum(counts)])
        total.fill_between(edges, sums, above, color=colour, linewidth=0)
        base, sums = top, above
    for axes in (rate, total):
        axes.set_xlim(0, end)
        axes.set_ylim(bottom=0)
        plain(axes.xaxis)
        plain(axes.yaxis)
        look(axes)
        axes.xaxis.set_major_formatter(lambda value, _: number(value) if value >= 10_000 else f"{value:g}")
    total.set_xlabel("accesses of the trace")
    if left:
        rate.set_ylabel("exits per 1000 accesses")
        total.set_ylabel("exits until then")

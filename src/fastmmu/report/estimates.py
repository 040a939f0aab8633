"""What sampled runs say of the whole: rows for files, a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmmu._checked import checked
from fastmmu.counters import COUNTERS
from fastmmu.machine.estimates import Estimate
from fastmmu.machine.result import Result
from fastmmu.report.table import Cell, Column, paint, render
from fastmmu.report.words import settings

__all__ = ["estimate_rows", "estimates"]

_SHOWN = (("cycles", "cycles", 1), ("tlb_misses", "TLB misses", 1000), ("walks", "walks", 1000),
          ("guest_faults", "guest faults", 1000), ("vm_exits", "VM exits", 1000))  # fmt: skip


@checked
def estimate_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat dict a sampled result and counter that is not 0 in the sample, the modelled cycles first.

    Keys: ``trace``, ``path``, ``content``, ``scheme``, ``pages``, ``kvm``, ``geometry``, ``costs``, ``complete``,
    ``interval``, ``sample_every``, ``seed``, ``warm_up`` (None: all), ``intervals`` that were counted, ``accesses`` of
    the trace, ``counter``, ``mean`` an access with its 95 % confidence interval ``low`` to ``high`` (None: too few
    intervals differ), and ``total`` of the trace, mean times accesses.
    """
    return [row for result in results if result.sample is not None for row in _rows(result)]


def _rows(result: Result) -> list[dict[str, Any]]:
    sample = result.sample
    assert sample is not None
    known = [row.name for row in COUNTERS]
    names = sorted(sample.counters, key=lambda name: known.index(name) if name in known else len(known))
    head = {
        **result.origin.columns(), "scheme": result.config.name, "pages": result.config.pages,
        "kvm": result.config.kvm, **result.origin.made_with(), "complete": result.complete,
        "interval": sample.interval, "sample_every": sample.every, "seed": sample.seed, "warm_up": sample.warm_up,
        "intervals": len(sample), "accesses": sample.accesses,
    }  # fmt: skip
    found = []
    for name in ("cycles", *(name for name in names if sample.counters[name].any())):
        mean, low, high = sample.estimate(name)
        total = mean * sample.accesses
        found.append({**head, "counter": name, "mean": mean, "low": low, "high": high, "total": total})
    return found


@checked
def estimates(results: Sequence[Result], *, width: int = 120, colour: bool = False) -> str:
    """A table of sampled runs of a trace, a row a run: means with their 95 % confidence intervals.

    "?": too few intervals differ for an interval to be stated.
    """
    sampled = [result for result in results if result.sample is not None]
    if not sampled:
        return "Interrupted before anything was counted."
    first = sampled[0]
    assert first.sample is not None
    sample, of = first.sample, first.sample.accesses // first.sample.interval
    left_out = "nothing is left out" if sample.warm_up is None else f"{sample.warm_up:,} accesses are run before each"
    head = f"{len(sample):,} of {of:,} intervals of {sample.interval:,} accesses, seed {sample.seed}; {left_out}"
    lines = [f"{paint(first.trace or 'trace', 'bold', colour)}: {head}; {settings(first)}", ""]
    several = len({result.config.pages for result in sampled}) > 1
    columns = [Column("scheme", align="<"), *([Column("pages")] if several else [])]
    columns += [Column(said, "an access" if scale == 1 else "of 1000 accesses") for _, said, scale in _SHOWN]
    table: list[list[Cell] | None] = []
    for result in sampled:
        assert result.sample is not None
        name = f"{result.config.name}{'' if result.complete else ' *'}"
        cells = [Cell(name, "bold"), *([Cell(result.config.pages)] if several else [])]
        table.append([*cells, *(Cell(_said(result.sample.estimate(name), scale)) for name, _, scale in _SHOWN)])
    lines += render(columns, table, width=width, colour=colour)
    if not all(result.complete for result in sampled):
        lines.append("* interrupted: figures of the part that was simulated")
    return "\n".join([*lines, "", "95 % confidence intervals; ?: too few intervals differ to state one"])


def _said(found: Estimate, scale: int) -> str:
    mean, low, high = (None if each is None else scale * each for each in found)
    assert mean is not None
    if low is None or high is None:
        return f"{mean:.3g} ?" if mean else "0"
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"

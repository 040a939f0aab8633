"""How long walks take, where data caches are simulated: shares of walks by latency, references by level of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmmu.machine.cache_result import CacheResult
from fastmmu.machine.rates import latency_at
from fastmmu.machine.result import Result
from fastmmu.report.figure import PALETTE, look, plain
from fastmmu.report.svg import GRID, INK, Chart, axes_of, legend_of, svg_of
from fastmmu.report.table import Cell, Column, number, paint, prose, render

__all__ = [
    "WALK_FIGURES", "cdf", "draw_latency", "latency_chart", "levels_table", "walk_figures", "with_latency",
]  # fmt: skip

_LEVELS = {"l1": "L1", "l2": "L2", "l3": "L3", "row": "row", "dram": "DRAM"}
_OF = {"read": "reads", "write": "writes", "fetch": "fetches", "kernel": "guest kernel", "vmm": "VMM"}

_LATENCY = {"walk_p50": 0.5, "walk_p90": 0.9, "walk_p99": 0.99}
_TABLES = ("guest", "ept", "vmm")
WALK_FIGURES = ("walk_cycles", *_LATENCY, *(f"found_{of}_{level}" for of in _TABLES for level in _LEVELS))
"""Names of :func:`walk_figures`."""


def walk_figures(result: Result) -> dict[str, int | None]:
    """Cycles of all walks, what a half, 90 % and 99 % of them do not exceed; references to the guest's (or shadow)
    tables, to the EPT, and of the VMM, by where they were found. None without data caches."""
    found = result.caches
    if found is None:
        return dict.fromkeys(WALK_FIGURES)
    shares = [latency_at(found.walk_latency, share) if found.walks else None for share in _LATENCY.values()]
    counts = [n for of in _TABLES for n in found.at(of)]
    return dict(zip(WALK_FIGURES, (found.walk_cycles, *shares, *counts), strict=True))


def with_latency(results: Sequence[Result], names: Sequence[str]) -> list[tuple[CacheResult, str]]:
    """Of those runs whose walks have a latency, what their caches came to."""
    both = zip(results, names, strict=True)
    return [(run.caches, name) for run, name in both if run.caches is not None and run.caches.walks]


def cdf(bins: Sequence[tuple[int, int, int]]) -> tuple[list[float], list[float]]:
    """Latencies, 1 or more, rising, and the share of walks that take no longer; (low, high, walks) of each bin."""
    at, share, done, whole = [float(max(1, bins[0][0]))], [0.0], 0, sum(n for _, _, n in bins)
    for low, high, n in bins:
        if max(1, low) > at[-1]:
            at.append(float(max(1, low)))
            share.append(done / whole)
        done += n
        at.append(float(max(1, high)))
        share.append(done / whole)
    return at, share


def draw_latency(axes: Any, told: Sequence[tuple[CacheResult, str]], *, key: str = "") -> list[Any]:
    """Lines, a run each: the share of its walks that take no more cycles than x, on a logarithmic axis."""
    curves = [cdf(found.walk_latency) for found, _ in told]
    last = max(at[-1] for at, _ in curves)
    lines = []
    for j, ((_, name), (at, share)) in enumerate(zip(told, curves, strict=True)):
        colour, dashes = PALETTE[j % len(PALETTE)], ("-", "--", ":", "-.")[j // len(PALETTE) % 4]
        (line,) = axes.plot([*at, last], [*share, 1.0], color=colour, linestyle=dashes, linewidth=1.5, label=name)
        if key:
            line.set_gid(f"mark-{key}-{j}")
        lines.append(line)
    axes.set_xscale("log")
    axes.set_xlim(min(at[0] for at, _ in curves), last)
    axes.set_ylim(0, 1.02)
    axes.set(xlabel="cycles of a walk", ylabel="walks that take no more")
    return lines


def latency_chart(key: str, results: Sequence[Result], names: Sequence[str]) -> Chart | None:
    """The picture for a page; None where no caches were simulated."""
    told = with_latency(results, names)
    if not told:
        return None
    first = told[: len(PALETTE)]
    figure, axes = axes_of(8, 0)
    marks = len(draw_latency(axes, first, key=key))
    plain(axes.xaxis)
    plain(axes.yaxis, percent=True)
    look(axes, ink=INK, grid=GRID)
    legend_of(figure, [(name, PALETTE[j]) for j, (_, name) in enumerate(first)])
    rows = [(name, *each) for found, name in first for each in found.walk_latency]
    many = "" if len(first) == len(told) else f", of the first {len(first)} of {len(told)} runs"
    means = [(found.walk_cycles / found.walks, name) for found, name in first]
    said = f"Latency of walks{many}: longest in {max(means)[1]}, {max(means)[0]:.1f} cycles on average."
    head = ("run", "from cycles", "to cycles", "walks")
    return Chart(key, f"Latency of walks{many}", said, head, tuple(rows), svg_of(figure, key), marks)


def levels_table(result: Result, *, width: int, colour: bool) -> list[str]:
    """Where the references of a run were found, by what they were for; what its walks took. Empty without caches."""
    found = result.caches
    if found is None:
        return []
    columns = [Column("references of", align="<"), Column("references")]
    columns += [Column(_LEVELS.get(level, level), "found in") for level in found.levels]
    columns += [Column("each", "cycles")]
    rows: list[list[Cell] | None] = []
    for cause, counts in found.references.items():
        total = sum(counts)
        each = f"{found.cycles[cause] / total:.1f}" if total else ""
        rows.append([Cell(_said(cause, result)), _count(total), *map(_count, counts), Cell(each)])
    lines = render(columns, rows, width=width, colour=colour)
    if found.walks:
        parts = [f"{share:.0%} at most {latency_at(found.walk_latency, share):,}" for share in (0.5, 0.9, 0.99)]
        mean = found.walk_cycles / found.walks
        said = f"{number(found.walks)} walks take {mean:.1f} cycles on average; {', '.join(parts)}"
        lines += ["", *prose(said, width)]
    return [paint("where references were found", "bold", colour), "", *lines]


def _said(cause: str, result: Result) -> str:
    """A cause in words: "guest2", "ept1.2", ..."""
    if cause.startswith("guest"):
        tables = {"shadow": "shadow", "agile": "shadow or guest"}.get(result.config.mmu, "guest")
        return f"{tables} tables, level {cause.removeprefix('guest')}"
    if cause.startswith("ept"):
        guest, _, level = cause.removeprefix("ept").partition(".")
        return f"EPT level {level}, {'data' if guest == '0' else f'guest level {guest}'}"
    return _OF.get(cause, cause)


def _count(n: int) -> Cell:
    return Cell(number(n), "" if n else "dim")

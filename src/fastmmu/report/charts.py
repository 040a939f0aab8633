"""Pictures of results for a page. Bars lie, so that names of schemes need not slant; values stand behind them; what
belongs together is one hue in steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fastmmu.machine.result import Result
from fastmmu.report.figure import PALETTE, REST, bars, lie, look, pieces_of, plain, series, steps
from fastmmu.report.latency import latency_chart
from fastmmu.report.rows import of_one_run
from fastmmu.report.svg import GRID, INK, Chart, axes_of, legend_of, svg_of
from fastmmu.report.table import number
from fastmmu.report.time_charts import time_charts
from fastmmu.report.words import cause_name, reason_title

__all__ = ["MOST", "Chart", "charts"]

MOST = 40
"""Runs of a trace that a chart shows."""
_PARTS = 7  # causes that have a colour; the others share one


def charts(
    group: Sequence[Result], names: Sequence[str], key: str, parts: Sequence[Sequence[Result]] = ()
) -> list[Chart]:
    """The pictures of the runs of one trace. names: of the runs; key: begins the ids of all that is in them; parts: of
    each run what it came to over time, if that is known."""
    runs, names = list(group)[:MOST], list(names)[:MOST]
    made = [
        _stacked(
            f"{key}-cycles", "Cycles of an access, by cause", runs, names, _cycles(runs), "{:.2f}".format,
            "cycles an access",
        ),
        _grouped(
            f"{key}-misses", "TLB misses of a thousand accesses, by level", runs, names, ["first level", "both levels"],
            [[_per(r, r.counters["l1d_misses"] + r.counters["l1i_misses"], 1000),
              _per(r, r.counters["tlb_misses"], 1000)] for r in runs],
            "misses of a thousand accesses",
        ),
        _stacked(
            f"{key}-refs", "Memory references of the walks of an access", runs, names,
            [("guest tables", [_per(r, r.counters["guest_walk_refs"]) for r in runs]),
             ("EPT", [_per(r, r.counters["ept_walk_refs"]) for r in runs])],
            "{:.3f}".format, "references an access",
        ),
        latency_chart(f"{key}-latency", runs, names),
        _begins(f"{key}-begin", "Walks, by where the paging-structure caches let them begin", runs, names, "psc",
                "walks of a thousand accesses"),
        _begins(f"{key}-nested", "Guest-physical addresses that walks translate, by what is cached", runs, names,
                "epsc", "addresses of a thousand accesses"),
        _stacked(f"{key}-exits", "VM exits, by reason", runs, names, _exits(runs), number, "VM exits"),
        _by_size(f"{key}-size", group),
        *time_charts(parts, names, key),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def _per(result: Result, value: float, of: float = 1) -> float:
    return of * value / (result.counters["accesses"] or 1)


def _cycles(runs: Sequence[Result]) -> list[tuple[str, list[float]]]:
    """Causes with their cycles an access of each run, the largest of all runs first, the small ones together."""
    found: dict[str, list[float]] = {}
    for i, result in enumerate(runs):
        for cause, value in result.cycles_by.items():
            name = cause_name(cause, mmu="ept" if cause == "guest_walk" else result.config.mmu)
            found.setdefault(name, [0.0] * len(runs))[i] += _per(result, value)
    return _largest(found, len(runs))


def _exits(runs: Sequence[Result]) -> list[tuple[str, list[float]]]:
    found: dict[str, list[float]] = {}
    for i, result in enumerate(runs):
        for reason, n in result.counters.get("exits_by_reason", {}).items():
            found.setdefault(reason_title(reason), [0.0] * len(runs))[i] += n
    return _largest(found, len(runs))


def _largest(found: dict[str, list[float]], n: int) -> list[tuple[str, list[float]]]:
    order = sorted(found, key=lambda name: -sum(found[name]))
    shown, rest = order[:_PARTS], order[_PARTS:]
    parts = [(name, found[name]) for name in shown]
    if rest:
        parts.append(("other", [sum(found[name][i] for name in rest) for i in range(n)]))
    return parts


def _begins(key: str, title: str, runs: Sequence[Result], names: Sequence[str], unit: str, axis: str) -> Chart | None:
    """Walks, or the walks of the EPT in them, by the entry below which they begin; None where no run tells."""
    told = [(run, name) for run, name in zip(runs, names, strict=True) if run.tlb.get(unit, {}).get("lookups")]
    if not told:
        return None
    found: dict[str, list[float]] = {}
    for i, (run, _) in enumerate(told):
        counts = {"from the root": run.tlb[unit]["misses"]}
        counts |= {f"below a cached {entry.upper()}": n for entry, n in reversed(run.tlb[unit]["hits"].items())}
        if unit == "epsc":
            counts["cached whole"] = sum(run.tlb["gpm"]["hits"].values())
        for part, n in counts.items():
            found.setdefault(part, [0.0] * len(told))[i] = _per(run, n, 1000)
    parts = [(part, values) for part, values in found.items() if any(values)]
    of = [run for run, _ in told]
    return _stacked(key, title, of, [name for _, name in told], parts, "{:.2f}".format, axis)


# ---- kinds of charts ---------------------------------------------------------------------------------------------


def _stacked(
    key: str,
    title: str,
    runs: Sequence[Result],
    names: Sequence[str],
    parts: Sequence[tuple[str, Sequence[float]]],
    shown: Callable[[float], str],
    unit: str,
) -> Chart | None:
    """Lying bars, a run each, made of parts."""
    totals = [sum(values[i] for _, values in parts) for i in range(len(runs))]
    if not any(totals):
        return None
    figure, axes = axes_of(len(runs), len(parts))
    marks = bars(axes, names, parts, unit=unit, shown=shown, ink=INK, grid=GRID, key=f"mark-{key}")
    legend_of(figure, [(name, REST if name == "other" else PALETTE[j]) for j, (name, _) in enumerate(parts)])
    most, least = max(range(len(runs)), key=totals.__getitem__), min(range(len(runs)), key=totals.__getitem__)
    said = f"{title}: from {shown(totals[least])} ({names[least]}) to {shown(totals[most])} ({names[most]})."
    rows = tuple((name, *(values[i] for _, values in parts), totals[i]) for i, name in enumerate(names))
    return Chart(key, title, said, ("run", *(name for name, _ in parts), "sum"), rows, svg_of(figure, key), marks)


def _grouped(
    key: str,
    title: str,
    runs: Sequence[Result],
    names: Sequence[str],
    parts: Sequence[str],
    values: Sequence[Sequence[float]],
    unit: str,
) -> Chart | None:
    """Lying bars side by side, of one hue in steps."""
    if not any(any(each) for each in values):
        return None
    figure, axes = axes_of(len(runs) * 1.6, len(parts))
    height, marks, legend = 0.8 / len(parts), 0, []
    for j, (name, colour) in enumerate(zip(parts, steps(PALETTE[0], len(parts)), strict=True)):
        at = [i + (j - (len(parts) - 1) / 2) * height for i in range(len(runs))]
        widths = [each[j] for each in values]
        none = [0.0] * len(at)
        marks += pieces_of(axes, name, at, widths, none, colour, height=0.92 * height, key=f"mark-{key}-{j}")
        for x, y in zip(widths, at, strict=True):
            axes.annotate(f"{x:.2f}", (x, y), xytext=(4, 0), textcoords="offset points", va="center", color=INK,
                          fontsize=7)  # fmt: skip
        legend.append((name, colour))
    lie(axes, names, unit, max(max(each) for each in values), ink=INK, grid=GRID)
    legend_of(figure, legend)
    worst = max(range(len(runs)), key=lambda i: values[i][-1])
    said = f"{title}: most in {names[worst]}, {values[worst][-1]:.2f} of both levels."
    rows = tuple((name, *each) for name, each in zip(names, values, strict=True))
    return Chart(key, title, said, ("run", *parts), rows, svg_of(figure, key), marks)


def _by_size(key: str, group: Sequence[Result]) -> Chart | None:
    """Lines of misses by entries of the second level, of runs that differ in it alone."""
    lines: dict[tuple[object, ...], dict[int, Result]] = {}
    for result in group:
        bare = (*of_one_run(result)[:-2], result.config.replace(stlb=None))
        lines.setdefault(bare, {})[_entries(result)] = result
    kept = [points for points in lines.values() if len(points) >= 3]
    if not kept:
        return None
    figure, axes = axes_of(6, 0)
    rows, marks, legend = [], 0, []
    for j, points in enumerate(kept):
        xs = sorted(points)
        ys = [_per(points[x], points[x].counters["tlb_misses"]) for x in xs]
        colour, name = PALETTE[j % len(PALETTE)], points[xs[0]].config.name
        axes.plot(xs, ys, color=colour, linewidth=1.6, label=name)
        legend.append((name, colour))
        for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
            (point,) = axes.plot([x], [y], "o", color=colour, markersize=4)
            point.set_gid(f"mark-{key}-{j}-{i}")
            marks += 1
            rows.append((name, x, 100 * y))
    axes.set_xscale("log", base=2)
    sizes = sorted({x for points in kept for x in points})
    axes.set_xticks(sizes, [str(x) for x in sizes])
    axes.set_ylim(bottom=0)
    plain(axes.yaxis, percent=True)
    axes.set(xlabel="entries of the second level", ylabel="accesses that miss")
    look(axes, ink=INK, grid=GRID)
    if not series(axes, legend=False):
        legend_of(figure, legend)
    title = "Misses of both levels, by entries of the second"
    said = f"{title}: {len(kept)} lines of {len(sizes)} sizes."
    return Chart(key, title, said, ("scheme", "entries", "misses, %"), tuple(rows), svg_of(figure, key), marks)


def _entries(result: Result) -> int:
    said = re.search(r"L2 (\d+)/", result.geometry)
    return int(said[1]) if said else 0

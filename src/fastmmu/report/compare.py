"""Several runs of a trace side by side: a row a scheme, and under it what costs what."""

from __future__ import annotations

from collections.abc import Sequence

from fastmmu._checked import checked
from fastmmu.counters import COUNTERS
from fastmmu.machine.result import Result
from fastmmu.report.rows import several_versions, slowdowns
from fastmmu.report.table import Cell, Column, number, paint, render, width_of
from fastmmu.report.why import why
from fastmmu.report.words import reason_title, settings

__all__ = ["comparison"]


@checked
def comparison(
    results: Sequence[Result], *, width: int = 120, colour: bool = False, not_run: Sequence[str] = ()
) -> str:
    """The table as text; runs of several traces, TLBs or cost models are several tables.

    :param results: in the order of the rows. :param width: characters of a line; where the exits by reason do not
        fit, they stand in a table of their own. :param colour: with ANSI escapes.
    :param not_run: names of rows that were to follow when the run was interrupted.
    """
    if not results:
        return f"Interrupted before anything was finished; not run: {', '.join(not_run)}."
    groups = _groups(results)
    tables = []
    for i, group in enumerate(groups, 1):
        lines = _heading(group, results, colour)
        for columns in _layout(group, width):
            lines += [*_lines(group, columns, width, colour), ""]
        lines.pop()
        if not all(result.complete for result in group):
            lines.append("* interrupted: figures of the part that was simulated")
        if not_run and i == len(groups):
            lines.append(f"Not run: {', '.join(not_run)}")
        tables.append("\n".join([*lines, "", *why(group, width=width, colour=colour)]))
    return "\n\n".join(tables)


def _groups(results: Sequence[Result]) -> list[list[Result]]:
    """Runs of the same events on the same TLB at the same costs, the settings alike; an interrupted run goes with those
    of its trace."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        of = (result.trace, result.path, result.first, result.costs, settings(result))
        content = (
            result.content if result.complete else next((key[0] for key in groups if key[1:] == of), result.content)
        )
        groups.setdefault((content, *of), []).append(result)
    return list(groups.values())


def _heading(group: Sequence[Result], results: Sequence[Result], colour: bool) -> list[str]:
    first = group[0]
    trace = paint(first.trace or "trace", "bold", colour)
    if len({other.path for other in results if other.trace == first.trace}) > 1:
        trace += f" ({first.path})"
    counters = first.counters
    touched = f", {counters['pages_touched']:,} pages touched" if counters.get("pages_touched") else ""
    costs = f", costs {first.costs}" if len({other.costs for other in results}) > 1 else ""
    after = f" after the first {first.first:,}" if first.first else ""
    return [f"{trace}: {counters['accesses']:,} accesses{after}{touched}; {settings(first)}{costs}", ""]


_Columns = list[tuple[Column, list[Cell]]]


def _layout(results: Sequence[Result], width: int) -> list[_Columns]:
    """The columns of one table if they fit the width, the accesses, which the heading has, left out if need be; else of
    two."""
    labels, counts, exits = _labels(results), _count_columns(results), _exit_columns(results)
    translation, faults, modelled = counts[:-2], counts[-2:], _model_columns(results)
    same = len({result.counters["accesses"] for result in results}) == 1
    layouts = [
        [[*labels, *counts, *exits, *modelled]],
        *([[[*labels, *counts[1:], *exits, *modelled]]] if same else []),
        [[*labels, *counts, *modelled], [*labels, counts[-1], *exits]] if exits else [[*labels, *counts, *modelled]],
        [[*labels, *translation], [*labels, *faults, *exits, *modelled]],
    ]
    for layout in layouts:
        if all(width_of([c for c, _ in columns], _table(results, columns)) <= width for columns in layout):
            return layout
    return layouts[-1]


def _table(results: Sequence[Result], columns: _Columns) -> list[list[Cell] | None]:
    rows: list[list[Cell] | None] = []
    for i, result in enumerate(results):
        if i and result.config.pages != results[i - 1].config.pages:
            rows.append(None)
        rows.append([cells[i] for _, cells in columns])
    return rows


def _lines(results: Sequence[Result], columns: _Columns, width: int, colour: bool) -> list[str]:
    titles, rows = [column for column, _ in columns], _table(results, columns)
    return render(titles, rows, width=width, keep=len(_labels(results)), colour=colour)


def _labels(results: Sequence[Result]) -> _Columns:
    names = [Cell(f"{r.config.name}{'' if r.complete else ' *'}", "bold") for r in results]
    columns = [(Column("scheme", align="<"), names)]
    if len({result.config.pages for result in results}) > 1:
        columns.append((Column("pages"), [Cell(result.config.pages) for result in results]))
    if several_versions(results):
        versions = ["" if result.config.mmu == "native" else result.config.kvm for result in results]
        columns.append((Column("KVM", align="<"), [Cell(version) for version in versions]))
    return columns


def _count_columns(results: Sequence[Result]) -> _Columns:
    columns: dict[tuple[str, str], list[str]] = {}
    agile = any(result.config.mmu == "agile" for result in results)
    for row in COUNTERS:
        if row.column is not None and (row.column[1] != "tables to" or agile):
            columns.setdefault(row.column, []).append(row.name)
    counts = [
        (Column(*column), [_count(sum(int(result.counters[name]) for name in names)) for result in results])
        for column, names in columns.items()
    ]
    found = [result.caches for result in results]
    if any(one is not None for one in found):
        each = [None if one is None or not one.walks else one.walk_cycles / one.walks for one in found]
        counts.insert(-2, (Column("each", "walk"), [_rate(value) for value in each]))
    if any(result.mpki is not None for result in results):
        behind = list(columns).index(("L2", "TLB misses")) + 1
        counts.insert(behind, (Column("MPKI", "TLB misses"), [_rate(result.mpki) for result in results]))
        walks = [result.pki["walk_cycles"] if result.pki else None for result in results]
        counts.insert(-2, (Column("CPKI", "walk"), [_rate(each) for each in walks]))
    return counts


def _rate(value: float | None) -> Cell:
    """Of a thousand instructions; nothing where they are not counted."""
    return Cell("" if value is None else f"{value:.2f}" if value < 100 else number(round(value)))


def _count(n: int) -> Cell:
    return Cell(number(n), "" if n else "dim")


def _exit_columns(results: Sequence[Result]) -> _Columns:
    """One column a reason that occurs, the most frequent first."""
    total: dict[str, int] = {}
    for result in results:
        for reason, n in result.counters["exits_by_reason"].items():
            total[reason] = total.get(reason, 0) + n
    reasons = [reason for reason in sorted(total, key=lambda reason: -total[reason]) if total[reason]]
    of_amd = all(result.config.vendor == "amd" for result in results if result.config.mmu != "native")
    vendor = "amd" if of_amd else "intel"
    return [
        (
            Column(reason_title(reason, vendor), "by reason"),
            [_count(result.counters["exits_by_reason"].get(reason, 0)) for result in results],
        )
        for reason in reasons
    ]


def _model_columns(results: Sequence[Result]) -> _Columns:
    cycles = [Cell(f"{result.cycles_per_access:.2f}", "bold") for result in results]
    columns = [(Column("access", "cycles/"), cycles)]
    ratios = slowdowns(results)
    if any(ratio is not None for ratio in ratios):
        columns.append((Column("down", "slow-"), [_ratio(ratio) for ratio in ratios]))
    speeds = [Cell(f"{result.accesses_per_second / 1e6:.1f}M/s", "dim") for result in results]
    return [*columns, (Column("speed", "fastmmu"), speeds)]


def _ratio(ratio: float | None) -> Cell:
    if ratio is None:
        return Cell("?", "dim")
    style = "green" if ratio < 1.1 else "yellow" if ratio < 1.5 else "red"
    return Cell(f"{ratio:.2f}×", style)

"""Results as one page: an HTML file that needs no network, reads without JavaScript, and carries its data.

    results ──► a section a trace: what was run, a table that sorts and filters, why, pictures with their numbers

`page.html` is the template (jinja2, everything escaped); its style and script stand in it.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.machine.result import Result
from fastmmu.report.charts import MOST, charts
from fastmmu.report.figure import ON_DARK, PALETTE
from fastmmu.report.rows import gathered, rows, slowdowns
from fastmmu.report.svg import Chart
from fastmmu.report.table import number
from fastmmu.report.why import why
from fastmmu.report.words import settings

__all__ = ["page", "table_html"]


@dataclass(frozen=True)
class _Section:
    """What the page shows of one trace."""

    key: str
    trace: str
    about: tuple[tuple[str, str], ...]
    head: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    why: tuple[str, ...]
    charts: tuple[Chart, ...]
    left_out: int


@dataclass(frozen=True)
class _Told:
    """A run, what it came to over time, the name it is given ("": of its configuration)."""

    result: Result
    parts: list[Result]
    name: str = ""


@checked
def page(
    results: Sequence[Result],
    *,
    title: str = "fastmmu",
    made: Mapping[str, Sequence[str]] | None = None,
    names: Sequence[str] = (),
) -> str:
    """The page of results, as text.

    :param results: of any number of traces, configurations and cost models; what is known of them over time, as by
        ``simulate(interval=)``, is drawn, also where it comes from a file in parts. :param made: what made them, name →
        texts, as :func:`fastmmu.report.stored.made_with` finds it. :param names: of the runs, where their
        configurations do not tell them apart.
    :raises MissingExtraError: jinja2 or matplotlib is not installed (fastmmu[report]). :raises ConfigError: `names` are
        not as many as the runs.
    """
    from fastmmu import __version__

    runs = gathered(results)
    if names and len(names) != len(runs):
        raise ConfigError(f"names of {len(names)} runs, and there are {len(runs)}; give each run one")
    told = [_Told(*run, name) for run, name in zip(runs, names or [""] * len(runs), strict=True)]
    sections = [_section(f"t{i}", group) for i, group in enumerate(_by_content(told))]

    return str(
        _template().render(
            title=title,
            sections=sections,
            made=[(name, text) for name, texts in (made or {}).items() for text in texts],
            version=__version__,
            data=_link(_csv(rows([run.result for run in told]))),
            runs=len(told),
            most=MOST,
            light=_variables(PALETTE),
            dark=_variables(ON_DARK),
            number=number,
            link=_link,
            csv=_chart_csv,
        )
    )


def _variables(colours: Sequence[str]) -> str:
    return " ".join(f"--p{i}: {colour};" for i, colour in enumerate(colours))


def _by_content(runs: Sequence[_Told]) -> list[list[_Told]]:
    groups: dict[tuple[str, str], list[_Told]] = {}
    for run in runs:
        groups.setdefault((run.result.trace, run.result.content), []).append(run)
    return list(groups.values())


def _section(key: str, runs: Sequence[_Told]) -> _Section:
    group = [run.result for run in runs]
    first = group[0]
    names = [run.name or name for run, name in zip(runs, run_names(group), strict=True)]
    geometries = list(dict.fromkeys(result.geometry for result in group))
    pages = first.counters.get("pages_touched")
    touched = f", {pages:,} pages touched" if pages else ""
    about = [
        ("events", f"{first.counters['accesses']:,} accesses{touched}"),
        ("content", first.content or "unknown"),
        ("file", first.path or "in memory"),
        ("settings", "; ".join(dict.fromkeys(map(settings, group)))),
        ("TLB", geometries[0] if len(geometries) == 1 else f"{len(geometries)} geometries, in the data of the page"),
        ("cost model", ", ".join(dict.fromkeys(result.costs for result in group if result.costs)) or "unknown"),
        ("notes", "; ".join(dict.fromkeys(note for result in group for note in result.notes))),
    ]
    head, cells = _table(group, names)
    return _Section(
        key=key,
        trace=first.trace or "trace",
        about=tuple((name, text) for name, text in about if text),
        head=head,
        rows=cells,
        why=tuple(why(group, width=10_000)[1:]),
        charts=tuple(charts(group, names, key, [run.parts for run in runs])),
        left_out=max(0, len(group) - MOST),
    )


def run_names(group: Sequence[Result]) -> list[str]:
    """What tells runs of one trace apart: the scheme, and the fields in which they differ."""
    fields = [{**result.config.fields(), "costs": result.costs.partition(" ")[0]} for result in group]
    skipped = ("mmu", "vpid")
    varied = [name for name in fields[0] if name not in skipped and len({repr(each[name]) for each in fields}) > 1]
    names = []
    for result, each in zip(group, fields, strict=True):
        of_vmm = result.config.mmu != "native"
        said = [_field(name, each[name]) for name in varied if each[name] is not None and (of_vmm or name != "kvm")]
        names.append(" ".join([result.config.name, *filter(None, said)]))
    return names


_BARE = ("pages", "kvm", "tlb", "stlb", "vendor", "tpr", "costs")


def _field(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else ""
    return str(value) if name in _BARE else f"{name}={value}"


_COLUMNS: tuple[tuple[str, str], ...] = (
    ("accesses", "accesses"), ("L1 misses", "l1_misses"), ("TLB misses", "tlb_misses"), ("MPKI", "mpki"),
    ("walks", "walks"), ("guest refs", "guest_walk_refs"), ("EPT refs", "ept_walk_refs"),
    ("walk CPKI", "walk_cycles_pki"), ("guest faults", "guest_faults"), ("VM exits", "vm_exits"),
)  # fmt: skip


def _table(
    group: Sequence[Result], names: Sequence[str]
) -> tuple[tuple[tuple[str, bool], ...], tuple[tuple[tuple[str, str], ...], ...]]:
    """Headings, whether a column is of numbers; and of each cell the text and what it is sorted by."""
    found = []
    for result, name, slowdown in zip(group, names, slowdowns(group), strict=True):
        counters = {**result.counters, "mpki": result.mpki, "walk_cycles_pki": (result.pki or {}).get("walk_cycles")}
        counters["l1_misses"] = counters["l1d_misses"] + counters["l1i_misses"]
        cells = [(name, name)]
        for _, key in _COLUMNS:
            value = counters[key]
            shown = "" if value is None else f"{value:.2f}" if isinstance(value, float) else f"{value:,}"
            cells.append((shown, "" if value is None else repr(value)))
        cells.append((f"{result.cycles_per_access:.2f}", repr(result.cycles_per_access)))
        cells.append(("" if slowdown is None else f"{slowdown:.2f}×", "" if slowdown is None else repr(slowdown)))
        found.append(tuple(cells))
    head = [("run", False), *((title, True) for title, _ in _COLUMNS), ("cycles/access", True), ("slowdown", True)]
    kept = [i for i in range(len(head)) if any(row[i][0] for row in found)]
    return tuple(head[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in found)


def table_html(results: Sequence[Result]) -> str:
    """Results as a table for a notebook."""
    import html

    parts = []
    for told in _by_content([_Told(result, parts) for result, parts in gathered(results)]):
        group = [run.result for run in told]
        head, cells = _table(group, run_names(group))
        title = html.escape(f"{group[0].trace or 'trace'}: {group[0].counters['accesses']:,} accesses")
        lines = "".join(
            "<tr>" + "".join(
                f'<td style="text-align:{"right" if numeric else "left"}">{html.escape(cell[0])}</td>'
                for cell, (_, numeric) in zip(row, head, strict=True)
            ) + "</tr>"
            for row in cells
        )  # fmt: skip
        titles = "".join(f'<th scope="col">{html.escape(name)}</th>' for name, _ in head)
        parts.append(f"<table><caption>{title}</caption><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>")
    return "".join(parts)


# ---- data that can be downloaded ---------------------------------------------------------------------------------


def _csv(table: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if table:
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return text.getvalue()


def _chart_csv(chart: Chart) -> str:
    return _csv([dict(zip(chart.head, row, strict=True)) for row in chart.rows])


def _link(text: str) -> str:
    """An address that holds a file."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode("utf-8", "replace")).decode()


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    loader = jinja2.PackageLoader("fastmmu.report", "")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "page.html"
    )

"""Findings for people and files: rows, a table, a picture."""

from __future__ import annotations

import html
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.figure import PALETTE, lie, narrow, picture
from fastmmu.report.table import Cell, Column, paint, prose, render

if TYPE_CHECKING:
    from fastmmu.study.named.description import Check
    from fastmmu.study.named.run import Finding, Findings

__all__ = ["cells_of", "findings_html", "list_table", "named_plot", "named_rows", "named_table", "verdict"]

_STYLES = {"yes": "green", "no": "red"}
_AXES = {"count": "count", "times": "times", "percent": "share, %", "gain": "gain, %"}


def _said(value: float, unit: str) -> str:
    if unit == "gain":
        return f"{100 * value:+.1f} %"
    if unit == "percent":
        return f"{100 * value:.1f} %"
    if unit == "times":
        return f"{value:,.2f}×" if abs(value) < 100 else f"{value:,.0f}×"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def ours_said(finding: Finding) -> str:
    """Our figure as a text; "" where there is none."""
    return "" if finding.ours is None else _said(finding.ours, finding.check.unit)


def published_said(check: Check) -> str:
    """What was published, as a text."""
    if check.said or check.low is None or check.high is None:
        return check.said
    if check.low == check.high and check.unit in ("count", "times"):
        return _said(check.low, check.unit)
    scale = 100 if check.unit in ("gain", "percent") else 1
    sign, unit = "+" * (check.unit == "gain"), " %" * (scale == 100)
    low, high = (f"{scale * value:{sign},g}" for value in (check.low, check.high))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def named_rows(found: Findings) -> list[dict[str, Any]]:
    """One flat dict a check.

    Keys: study, what, unit, ours, published (text), published_low, published_high, holds (True, False, None: nothing is
    asserted), place (of the published range: below, inside, above), check (what is asserted), figure (what ours is made
    of), why, paper, year, where.
    """
    source = found.experiment.source
    return [
        {
            "study": found.experiment.name,
            "what": finding.check.what,
            "unit": finding.check.unit,
            "ours": finding.ours,
            "published": published_said(finding.check),
            "published_low": finding.check.low,
            "published_high": finding.check.high,
            "holds": finding.holds,
            "place": finding.place,
            "check": "" if finding.check.holds is None else finding.check.holds.text,
            "figure": "" if finding.check.ours is None else finding.check.ours.text,
            "why": finding.check.why,
            "paper": source.paper,
            "year": source.year,
            "where": source.where,
        }
        for finding in found.findings
    ]


def named_table(found: Findings, *, width: int = 120, colour: bool = False) -> str:
    """Ours, published, whether it holds: a row a check; then why something is not asserted, and the verdict."""
    experiment = found.experiment
    columns = [Column("", align="<", words=True), Column("ours"), Column("published"), Column("holds", align="<")]
    styles = ("", "bold", "")
    rows: list[list[Cell] | None] = [
        [*map(Cell, cells[:3], styles), Cell(cells[3], _STYLES.get(finding.verdict, "dim"))]
        for finding, cells in zip(found.findings, cells_of(found), strict=True)
    ]
    source = experiment.source
    lines = [paint(f"{experiment.name}: {experiment.title}", "bold", colour)]
    lines += [*prose(f"{source.paper}; {source.where}.", width), *prose(f"Published: {experiment.claim}.", width)]
    lines += ["", *render(columns, rows, width=width, colour=colour), ""]
    whys = dict.fromkeys((finding.verdict, finding.check.why) for finding in found.findings if finding.check.why)
    for said, why in whys:
        lines += prose(f"{said.capitalize()}: {why}.", width)
    return "\n".join([*lines, *prose(verdict(found), width)])


def cells_of(found: Findings) -> list[list[str]]:
    """Of each check: what, ours, published, whether it holds, as texts."""
    return [
        [
            finding.check.what,
            ours_said(finding),
            published_said(finding.check),
            ", ".join(filter(None, (finding.verdict, finding.place))),
        ]
        for finding in found.findings
    ]


def findings_html(found: Findings) -> str:
    """The table for a notebook."""
    titles = "".join(f'<th scope="col">{title}</th>' for title in ("", "ours", "published", "holds"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>" for cells in cells_of(found)
    )
    caption = html.escape(f"{found.experiment.name}: {found.experiment.title}")
    return (
        f"<table><caption>{caption}</caption><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{html.escape(verdict(found))}</p>"
    )


def verdict(found: Findings) -> str:
    """Whether the experiment holds, in a line."""
    asserted = [finding for finding in found.findings if finding.holds is not None]
    if found.holds:
        return f"It holds: {len(asserted)} of {len(asserted)} checks."
    failed = "; ".join(
        f"{finding.check.what}: {ours_said(finding)}, asserted is {finding.check.holds}" for finding in found.failed
    )
    return f"It does not hold, {len(found.failed)} of {len(asserted)} checks: {failed}"


def list_table(titles: Sequence[tuple[str, str, str]], *, width: int, colour: bool = False) -> str:
    """Names of experiments, what they are about, where that was published."""
    columns = [Column("study", align="<"), Column("what", align="<", words=True), Column("published", align="<")]
    rows = [[Cell(name, "bold"), Cell(title), Cell(where)] for name, title, where in titles]
    return "\n".join(render(columns, rows, width=width, colour=colour))


# ---- a picture ---------------------------------------------------------------------------------------------------


def named_plot(every: Sequence[Findings], path: str | os.PathLike[str]) -> None:
    """Draw ours and what was published into a file: axes for each unit of each experiment.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    parts: list[tuple[Findings, str, list[Finding]]] = []
    for found in every:
        drawn = [finding for finding in found.findings if finding.ours is not None]
        parts += [
            (found, unit, [finding for finding in drawn if finding.check.unit == unit])
            for unit in dict.fromkeys(finding.check.unit for finding in drawn)
        ]
    tall = 1.35 if narrow() else 1.0
    heights = [tall * len(findings) * max(2, *map(_lines, findings)) / 2 + 1.6 for _, _, findings in parts]
    with picture(path, (7.2, 0.42 * sum(heights) + 0.4 * tall)) as figure:
        places = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (found, unit, findings) in zip(places, parts, strict=True):
            _draw(axes, unit, findings)
            axes.set_title(found.experiment.name, loc="left")
        _legend(figure)


def _wrapped(finding: Finding) -> str:
    return "\n".join(textwrap.wrap(finding.check.what, 28 if narrow() else 44))


def _lines(finding: Finding) -> int:
    return _wrapped(finding).count("\n") + 1


def _draw(axes: Any, unit: str, findings: Sequence[Finding]) -> None:
    scale = 100 if unit in ("gain", "percent") else 1
    names, ours = [], []
    for i, finding in enumerate(findings):
        check, value = finding.check, scale * (finding.ours or 0)
        names.append(_wrapped(finding))
        ours.append(value)
        axes.barh([i], [value], height=0.55, color=PALETTE[5] if finding.holds is False else PALETTE[0])
        if check.low is not None and check.high is not None:
            low, high = scale * check.low, scale * check.high
            across = [i - 0.4, i + 0.4] if low == high else [i + 0.36] * 2  # one figure is a mark across the bar
            axes.plot([low, high], across, color=PALETTE[1], linewidth=3, solid_capstyle="butt")
            if low != high:
                axes.plot([low, high], across, "|", color=PALETTE[1], markersize=7, markeredgewidth=2)
        axes.annotate(ours_said(finding), (max(value, 0), i), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize="small")  # fmt: skip
    ends = [scale * finding.check.high for finding in findings if finding.check.high is not None]
    lie(axes, names, _AXES[unit], max([*ours, *ends]), ink="#222222", grid="#d9d9d9")
    least = min([*ours, 0])
    if least < 0:
        axes.set_xlim(left=1.1 * least)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=PALETTE[0], label="ours"), Patch(color=PALETTE[5], label="ours, does not hold"),
                 Line2D([], [], color=PALETTE[1], linewidth=3, label="published")],
        loc="outside upper right", ncols=3, frameon=False, fontsize="small",
    )  # fmt: skip

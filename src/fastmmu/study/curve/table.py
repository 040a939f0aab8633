"""Miss-ratio curves of a TLB for people and files: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.figure import PALETTE, look, narrow, picture, plain, series, steps, styles
from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.curve.run import Curve, Curves

__all__ = ["TWELVE", "curve_plot", "curve_rows", "curve_table"]

TWELVE = tuple(1 << n for n in range(4, 16))
"""Sizes of the table: 16 to 32768 entries."""
FEW = 30  # sampled pages that an estimate needs
NAMES = {"l1d": "L1D", "l1s": "L1D stores", "l1i": "L1I", "l2": "STLB", "l2i": "L2I"}


def _name(curve: Curve) -> str:
    return f"{NAMES[curve.unit]}, {'fully associative' if curve.sets == 1 else f'{curve.sets} sets'}"


def _ratio(count: float, of: int) -> float:
    return count / of if of else 0.0


def curve_rows(found: Curves) -> list[dict[str, Any]]:
    """One flat dict a curve and size at which it changes.

    Keys: trace, path, content, pages, sample (share of the pages), sampled_pages, unit, sets, ways, entries, lookups,
    misses, miss_ratio (misses per lookup), error (one standard error of miss_ratio; 0: exact), geometry.
    """
    return [
        {
            **found.origin.columns(),
            "trace": found.trace,
            "pages": found.pages,
            "sample": curve.sample,
            "sampled_pages": curve.pages,
            "unit": curve.unit,
            "sets": curve.sets,
            "ways": entries // curve.sets,
            "entries": entries,
            "lookups": curve.lookups,
            "misses": misses,
            "miss_ratio": _ratio(misses, curve.lookups),
            "error": _ratio(error, curve.lookups),
            **found.origin.made_with(),
        }
        for curve in found.curves
        for entries, misses, error in zip(
            curve.entries.tolist(), curve.misses.tolist(), curve.error.tolist(), strict=True
        )
    ]


def curve_table(found: Curves, sizes: Sequence[int] = TWELVE, *, width: int = 120, colour: bool = False) -> str:
    """Misses per thousand lookups, a row a curve, a column a size.

    "·": fewer entries than sets, or more ways than were counted; "?": an estimate from too few pages.
    """
    columns = [Column("misses per 1000 lookups", align="<"), Column("pages"), Column("lookups")]
    columns += [*(Column(str(size)) for size in sizes)]
    table: list[list[Cell] | None] = []
    unit = ""
    for curve in found.curves:
        if unit not in ("", curve.unit):
            table.append(None)
        unit = curve.unit
        cells = [_cell(curve, size) for size in sizes]
        share = "" if curve.sample == 1 else f" of {curve.sample:g}"
        table.append([Cell(_name(curve)), Cell(number(curve.pages) + share), Cell(number(curve.lookups)), *cells])
    lines = render(columns, table, width=width, colour=colour)
    estimated = "" if found.sample == 1 else ", ± one standard error"
    seen = f"{found.accesses:,} page lookups of {found.pages} pages"
    head = [
        f"{found.trace}: {seen}, {found.flushes:,} flushes, {found.invalidations:,} invalidations",
        f"first level as {found.geometry}; the second level sees its misses. Entries by column{estimated}",
        "",
    ]
    return "\n".join(head + lines)


def _cell(curve: Curve, size: int) -> Cell:
    if size < curve.sets or (curve.sets > 1 and size > curve.entries[-1]):
        return Cell("·", "dim")
    if curve.sample < 1 and curve.pages < FEW:
        return Cell("?", "dim")
    misses, error = (1000 * _ratio(count, curve.lookups) for count in curve.at(size))
    text = f"{misses:.3g}" if misses < 999.5 else f"{misses:.0f}"
    return Cell(text + (f"±{error:.2g}" if error else ""))


def curve_plot(found: Sequence[Curves], path: str | os.PathLike[str]) -> None:
    """Draw the curves into a file: a row of axes a trace, one each for first and second level.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises MissingExtraError: matplotlib is not installed.
    """
    columns = 1 if narrow() else 2
    rows = 2 * len(found) // columns
    with picture(path, (6 * columns, 4.2 * rows)) as figure:
        places = iter(figure.subplots(rows, columns, squeeze=False).flat)
        for curves in found:
            for title, units in (("first level", "l1"), ("second level", "l2")):
                axes = next(places)
                axes.set_title(f"{curves.trace}, {curves.pages} pages: {title}")
                level = [curve for curve in curves.curves if curve.unit.startswith(units)]
                _level(axes, [curve for curve in level if curve.lookups] or level)  # none of what nothing looked up


def _level(axes: Any, curves: Sequence[Curve]) -> None:
    """The arrays of a level: a unit is one hue, its numbers of sets steps of it."""
    units = list(dict.fromkeys(curve.unit for curve in curves))
    for unit, colour in zip(units, PALETTE, strict=False):
        family = [curve for curve in curves if curve.unit == unit]
        marks = [style["marker"] for style in styles(len(family))]
        for curve, tone, marker in zip(family, steps(colour, len(family))[::-1], marks, strict=True):
            _draw(axes, curve, {"color": tone, "marker": marker})
    axes.set(xscale="log", yscale="log", xlabel="entries", ylabel="lookups that miss")
    plain(axes.xaxis)
    plain(axes.yaxis, percent=True)
    look(axes)
    series(axes)


def _draw(axes: Any, curve: Curve, style: dict[str, Any]) -> None:
    ratio = curve.misses / max(curve.lookups, 1)
    fully = curve.sets == 1
    width = 2 if fully else 1
    axes.step(
        curve.entries, ratio, where="post", label=_name(curve), lw=width, markersize=4, markevery=0.12, **style
    )  # markers as far apart as they look
    if curve.error.any():
        error = curve.error / max(curve.lookups, 1)
        low, high = ratio - error, ratio + error
        axes.fill_between(curve.entries, low, high, step="post", alpha=0.3, color=style["color"])

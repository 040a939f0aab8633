"""Pictures for a page: inline SVG by matplotlib, in the colours of the page, light or dark; the numbers behind them.

    Chart ── title, what it says in words, the numbers, the SVG

Every bar, point and area has an id that begins with `mark-`, so that what is drawn can be counted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastmmu.errors import MissingExtraError
from fastmmu.report.figure import PALETTE, steps

__all__ = ["GRID", "INK", "PALE", "Chart", "axes_of", "legend_of", "svg_of"]

_ACROSS = 3  # names in a line of the legend
INK, GRID = "#010203", "#020304"
"""Stand for what the page's style says."""
PALE = steps(PALETTE[0], 2)[0]
"""The lighter step of the first hue; where the ground is dark, the page makes it a darker one."""


@dataclass(frozen=True)
class Chart:
    """A picture, and the numbers behind it: `head` names their columns."""

    name: str
    title: str
    said: str
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    svg: str
    marks: int


def axes_of(bars: float, parts: int, below: int = 1) -> tuple[Any, Any]:
    """A figure with room for so many bars and, above, names of parts; its axes, or an array of `below` axes.

    :raises MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    rows = -(-parts // _ACROSS)
    figure = Figure(figsize=(5.8, 0.8 + 0.24 * max(bars, 2) + 0.18 * rows), layout="constrained")
    return figure, figure.subplots(below, 1, sharex=True) if below > 1 else figure.subplots()


def legend_of(figure: Any, legend: Sequence[tuple[str, str]]) -> None:
    """Names and colours of parts, above the axes."""
    from matplotlib.patches import Patch

    if len(legend) > 1:
        patches = [Patch(color=colour, label=name) for name, colour in legend]
        made = figure.legend(handles=patches, loc="outside upper left", ncols=_ACROSS, frameon=False, fontsize=8)
        for text in made.get_texts():
            text.set_color(INK)


def svg_of(figure: Any, key: str) -> str:
    """As it goes into a page: no size of its own, words as words, colours of the page, ids of its own."""
    from matplotlib import rc_context

    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, said in ((INK, "var(--ink)"), (GRID, "var(--grid)")):
        text = text.replace(colour, said)
    for i, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--p{i})")
    text = text.replace(PALE, "var(--pale)")
    ids = set(re.findall(r'id="([^"]+)"', text))
    for name in sorted(ids, key=len, reverse=True):
        if not name.startswith("mark-"):
            text = re.sub(rf'(id="|href="#|url\(#){re.escape(name)}(?=["\)])', rf"\1{key}-{name}", text)
    return text

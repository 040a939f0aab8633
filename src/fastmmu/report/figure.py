"""Pictures in files, by matplotlib."""

from __future__ import annotations

import colorsys
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.report.files import check_target, write_whole
from fastmmu.report.table import number

__all__ = ["ON_DARK", "PALETTE", "PICTURES", "REST", "SIZES", "bars", "check_picture", "lie", "look", "narrow",
           "picture", "pieces_of", "plain", "series", "sized", "steps", "styles"]  # fmt: skip

PICTURES = ("png", "svg", "pdf")

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (7, 2, 1, 2)))
_MARKERS = "osD^vPX*<>"
_IN_AXES = 10  # entries of a legend that may cover part of the curves
_AT_ENDS = 8  # names that may stand at the ends of lines
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))  # thousands from 10,000 on
_SHORT = 26  # characters of such a name
_APART, _FAR = 9.5, 20.0  # points: from one name to the next, from the end of a line to its name at most


PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a100", "#8c6bb1")
"""Colours that people tell apart however they see colours (Okabe and Ito), the yellow darkened to be seen on white."""
ON_DARK = ("#4aa8e0", "#f0b83c", "#2fc79c", "#e3a3c6", "#9fd6f7", "#ff8a4d", "#d6c94a", "#b8a0d8")
"""The same hues where the ground is dark."""
REST = "#9a9a9a"
"""Of what has no colour of its own."""


def steps(colour: str, n: int) -> list[str]:
    """`n` steps of one hue, from light to the colour itself: for what belongs together, as the levels of a TLB."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(r, g, b)
    lights = [light + (0.8 - light) * (n - 1 - i) / max(1, n) for i in range(n)]
    made = [colorsys.hls_to_rgb(hue, each, saturation) for each in lights]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in each) for each in made]


def styles(n: int) -> list[dict[str, Any]]:
    """Colour, dashes and marker of `n` series: no two have the same colour, or look alike without colours.

    As many as there are have the colours of `PALETTE`. More go round the circle of hues, neighbours in another
    lightness.
    """
    if n <= len(PALETTE):
        colours = list(PALETTE[:n])
    else:
        tones = ((0.95, 0.60), (0.60, 0.85), (1.0, 0.95))  # saturation, value
        hsv = [(i / n, *tones[i % len(tones)]) for i in range(n)]
        colours = ["#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(*each)) for each in hsv]
    return [
        {
            "color": colour,
            "linestyle": _DASHES[i // len(_MARKERS) % len(_DASHES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, colour in enumerate(colours)
    ]


def look(axes: Any, *, ink: str = "#222222", grid: str = "#d9d9d9") -> None:
    """What all pictures have: a light grid behind the data, no frame around it, plain numbers at the ticks."""
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color=grid, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(grid)
    axes.tick_params(which="both", colors=ink, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(ink)


def plain(axis: Any, *, percent: bool = False) -> None:
    """Ticks as people write numbers: 20k, 0.5 %, no powers of ten. On a logarithmic axis 1, 2 and 5 of each decade
    where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    def shown(value: float, _: object = None) -> str:
        value *= 100 if percent else 1
        scale, unit = next((each for each in _SCALES if abs(value) >= max(each[0], 10_000)), (1, ""))
        text = f"{value / scale:g}{unit}"
        return f"{text} %" if percent else text

    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        span = high / max(low, 1e-12)
        close, some = MaxNLocator(5), LogLocator(10, subs=(1, 2, 5), numticks=12)
        axis.set_major_locator(close if span < 6 else some if span < 150 else LogLocator(10, numticks=12))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(shown))


def series(axes: Any, *, legend: bool = True) -> bool:
    """Names of the lines: at their right ends, in their colours, where they fit there, moved apart where the ends lie
    close, and True; else a legend, beside the axes where it has too many entries to stand in them, or without `legend`
    the caller's."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle for handle in handles if hasattr(handle, "get_ydata")]
    few = lines and len(lines) == len(labels) <= _AT_ENDS and max(map(len, labels)) <= _SHORT
    places = _at_ends(axes, lines) if few else None
    if places is not None:
        for line, label, (end, moved) in zip(lines, labels, places, strict=True):
            axes.annotate(
                label, end, xytext=(6, moved), textcoords="offset points", va="center", color=line.get_color(),
                fontsize="small", annotation_clip=False,
            )  # fmt: skip
    elif labels and legend and len(labels) > _IN_AXES:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    elif labels and legend:
        axes.legend(fontsize="small", framealpha=0.8, edgecolor="none")
    return places is not None


def _at_ends(axes: Any, lines: Sequence[Any]) -> list[tuple[tuple[float, float], float]] | None:
    """Where the lines end, and by how many points a name is moved up from there; None where the lines end at different
    places, or a name would be far from its line."""
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    pixels = axes.transData.transform(ends)
    if pixels[:, 0].max() - pixels[:, 0].min() >= 1:
        return None
    points = 72 / axes.figure.dpi
    heights = [float(y) * points for y in pixels[:, 1]]
    order = sorted(range(len(lines)), key=heights.__getitem__)
    put = [heights[i] for i in order]
    for _ in range(100):  # neighbours that are too close go apart, half each
        close = [
            (i, _APART - (put[i + 1] - put[i])) for i in range(len(put) - 1) if put[i + 1] - put[i] < _APART - 0.01
        ]
        if not close:
            break
        for i, short in close:
            put[i] -= short / 2
            put[i + 1] += short / 2
    moved = {i: place - heights[i] for i, place in zip(order, put, strict=True)}
    if max(map(abs, moved.values())) > _FAR:
        return None
    return [(ends[i], moved[i]) for i in range(len(lines))]


def bars(
    axes: Any,
    names: Sequence[str],
    parts: Sequence[tuple[str, Sequence[float]]],
    *,
    unit: str,
    shown: Callable[[float], str] = number,
    colours: Sequence[str] = PALETTE,
    ink: str = "#222222",
    grid: str = "#d9d9d9",
    key: str = "",
) -> int:
    """Lying bars, one a name from above, made of parts, with their sum behind them; returns how many pieces are drawn.

    A part "other" is grey. key: pieces get ids KEY-PART-NAME.
    """
    left, pieces = [0.0] * len(names), 0
    for j, (part, values) in enumerate(parts):
        colour = REST if part == "other" else colours[j % len(colours)]
        pieces += pieces_of(axes, part, range(len(names)), values, left, colour, key=f"{key}-{j}" if key else "")
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, total in enumerate(left):
        axes.annotate(shown(total), (total, i), xytext=(4, 0), textcoords="offset points", va="center", color=ink,
                      fontsize="small")  # fmt: skip
    lie(axes, names, unit, max(left, default=0), ink=ink, grid=grid)
    return pieces


def pieces_of(
    axes: Any,
    part: str,
    at: Sequence[float],
    values: Sequence[float],
    left: Sequence[float],
    colour: str,
    *,
    height: float = 0.7,
    key: str = "",
) -> int:
    """Pieces of lying bars that are longer than nothing; how many. key: each gets an id, KEY-NUMBER."""
    there = [i for i, value in enumerate(values) if value]
    drawn = axes.barh([at[i] for i in there], [values[i] for i in there], left=[left[i] for i in there], color=colour,
                      height=height, label=part)  # fmt: skip
    for i, piece in zip(there, drawn, strict=True):
        piece.set_gid(f"{key}-{i}" if key else None)
    return len(there)


def lie(axes: Any, names: Sequence[str], unit: str, most: float, *, ink: str, grid: str) -> None:
    """Axes of lying bars: names at the left, room for a number at the right."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.14 * most or 1)
    axes.set_xlabel(unit)
    plain(axes.xaxis)
    look(axes, ink=ink, grid=grid)
    axes.grid(axis="y", visible=False)


SIZES = {"column": (3.5, 7.0), "page": (7.2, 9.0), "slide": (11.0, 15.0)}
"""Where a picture goes: its width in inches, and its letters in points. A column is one of a paper with two."""
_size: ContextVar[str] = ContextVar("size", default="page")


def sized(size: str) -> None:
    """Pictures from here on are for this place, a key of `SIZES`.

    :raises ConfigError: there is none of this name.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size!r} of a picture: choose from {', '.join(SIZES)}")
    _size.set(size)


def narrow() -> bool:
    """Axes go below one another, for there is no room for two side by side."""
    return _size.get() == "column"


def check_picture(path: str | os.PathLike[str]) -> str:
    """Find out before a long run that a picture cannot be written; its format.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises OSError: what writing it would raise.
    :raises MissingExtraError: matplotlib is not installed.
    """
    format = Path(path).suffix.removeprefix(".").lower()
    if format not in PICTURES:
        raise ConfigError(f"--plot {path}: a picture is one of {', '.join(PICTURES)}; name the file so")
    check_target(path, format)
    _figure_class()
    return format


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a picture", "plot") from error
    return Figure


@contextmanager
def picture(path: str | os.PathLike[str], size: tuple[float, float]) -> Iterator[Any]:
    """A matplotlib figure of this shape, width and height, which is written to the file when the block is left; as
    wide, and with letters as large, as :func:`sized` says.

    :raises ConfigError, OSError, MissingExtraError: as :func:`check_picture`.
    """
    format = check_picture(path)
    width, points = SIZES[_size.get()]
    made = _figure_class()
    from matplotlib import rc_context

    with rc_context({"font.size": points, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "fastmmu"}):
        figure = made(figsize=(width, width * size[1] / size[0]), layout="constrained")
        yield figure
        sink = io.BytesIO()
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(sink, format=format, dpi=200, metadata=undated.get(format))
    write_whole(path, sink.getvalue())

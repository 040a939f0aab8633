"""Pictures in files, by matplotlib."""

from __future__ import annotations

import colorsys
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.report.files import check_target, write_whole

__all__ = ["ON_DARK", "PALETTE", "PICTURES", "REST", "check_picture", "picture", "series", "steps", "styles"]

PICTURES = ("png", "svg", "pdf")

_TEN = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (7, 2, 1, 2)))
_MARKERS = "osD^vPX*<>"
_IN_AXES = 10  # entries of a legend that may cover part of the curves


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

    Up to ten have matplotlib's own colours. More go round the circle of hues, neighbours in another lightness.
    """
    if n <= len(_TEN):
        colours = list(_TEN[:n])
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


def series(axes: Any) -> None:
    """The legend of axes; beside them where it has too many entries to stand in them."""
    many = len(axes.get_legend_handles_labels()[1])
    if many > _IN_AXES:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif many:
        axes.legend(fontsize="small")


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
    """A matplotlib figure of so many inches, which is written to the file when the block is left.

    :raises ConfigError, OSError, MissingExtraError: as :func:`check_picture`.
    """
    format = check_picture(path)
    figure = _figure_class()(figsize=size, layout="constrained")
    yield figure
    sink = io.BytesIO()
    figure.savefig(sink, format=format)
    write_whole(path, sink.getvalue())

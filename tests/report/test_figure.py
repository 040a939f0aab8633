"""Pictures: series that are told apart, by colour and without colours."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from fastmmu.report.figure import plain, series, styles
from fastmmu.study.migrate.run import Migration, Plan, Round
from fastmmu.study.migrate.table import migration_plot


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 20, 40])
def test_no_two_series_look_alike(n: int) -> None:
    found = styles(n)
    assert len(found) == n
    assert len({(style["linestyle"], style["marker"]) for style in found}) == n
    rgb = [[int(style["color"][at : at + 2], 16) for at in (1, 3, 5)] for style in found]
    apart = [sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 for a, b in itertools.combinations(rgb, 2)]
    assert min(apart, default=999) > (40 if n <= 20 else 15)


def test_a_picture_of_twenty_lines(tmp_path: Path) -> None:
    """Each has its own colour in the file, and the legend stands beside the axes."""
    pytest.importorskip("matplotlib")
    rounds = (Round(4000, 1e-3, 1, 1, 1), Round(100, 1e-3, 1, 1, 1))
    found = [
        Migration(f"t{i}", "pml", Plan(), rounds, 10 * i + 10, True, 1, 1.0, 1, 1.0)
        for i in range(20)
    ]  # fmt: skip
    migration_plot(found, tmp_path / "m.svg")
    text = (tmp_path / "m.svg").read_text()
    drawn = [style["color"] for style in styles(20)]
    assert all(f"stroke: {colour}" in text for colour in drawn)
    assert set(re.findall(r"stroke: (#[0-9a-f]{6})", text)) >= set(drawn)


@pytest.mark.parametrize(
    ("ends", "at_ends"),
    [
        ([1, 5, 9], True),
        ([1, 1.01, 1.02, 9], True),  # moved apart
        ([5] * 8, False),  # the outer ones would be far from their lines
        ([1] * 9, False),
    ],
)
def test_names_stand_at_the_ends_of_lines_where_they_fit(ends: list[float], at_ends: bool) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure(figsize=(5, 3)).subplots()
    for i, end in enumerate(ends):
        axes.plot([0, 1], [0, end], label=f"line {i}")
    axes.set_ylim(0, 10)
    series(axes)
    named = [text for text in axes.texts if text.get_text().startswith("line")]
    assert len(named) == (len(ends) if at_ends else 0)
    assert (axes.get_legend() is None) == at_ends
    points = 72 / axes.figure.dpi
    heights = [axes.transData.transform(text.xy)[1] * points + text.get_position()[1] for text in named]
    assert heights == sorted(heights)
    assert all(b - a > 9 for a, b in itertools.pairwise(heights))


def test_ticks_are_plain() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plain(axes.xaxis)
    said = axes.xaxis.get_major_formatter()
    assert [said(x) for x in (0.5, 100, 20_000, 500_000, 1e6, 1.5e6, 20e6)] == [
        "0.5", "100", "20k", "500k", "1M", "1.5M", "20M",
    ]  # fmt: skip

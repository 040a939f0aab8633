"""Tables that fold, and lines that are split."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from fastmmu.cli import main
from fastmmu.report.table import Cell, Column, paint, prose, render

DATA = Path(__file__).parents[1] / "data"
TRUE, SYSTEM = DATA / "true.lackey", DATA / "systems/mm.rec.xz"


@pytest.mark.parametrize("seed", range(200))
def test_a_folded_table_holds_every_cell_once_and_its_first_columns_in_each_part(seed: int) -> None:
    chance = random.Random(seed)
    keep, count = chance.randint(1, 2), chance.randint(3, 12)
    columns = [Column(f"c{i}", chance.choice(["", "one", "another group"]) if i >= keep else "") for i in range(count)]
    rows = [
        None if chance.random() < 0.1 else [Cell(f"{r}.{i}" + "x" * chance.randint(0, 6)) for i in range(count)]
        for r in range(chance.randint(1, 6))
    ]
    whole = render(columns, rows)
    width = chance.randint(36, 90)
    lines = render(columns, rows, width=width, keep=keep)
    assert max(map(len, lines)) <= width
    if max(map(len, whole)) <= width:
        assert lines == whole
    words = re.findall(r"\S+", "\n".join(lines))
    parts = sum(set(line) == {"─"} for line in lines)
    for i, column in enumerate(columns):
        cells = [column.title, *(row[i].text for row in rows if row)]
        assert [words.count(cell) for cell in cells] == [parts if i < keep else 1] * len(cells)


def test_words_take_several_lines_and_first_cells_are_cut_at_last() -> None:
    columns = [Column("name", align="<"), Column("n"), Column("said", align="<", words=True)]
    rows = [
        [Cell("a"), Cell("1"), Cell("one two three four five six seven eight nine")],
        [Cell("b"), Cell("2"), Cell("x")],
    ]
    assert render(columns, rows, width=34) == [
        "name  n  said",
        "─" * 32,
        "a     1  one two three four five",
        "         six seven eight nine",
        "b     2  x",
    ]
    lines = render([Column("name", align="<"), Column("n")], [[Cell("n" * 60), Cell("1" * 10)]], width=40)
    assert max(map(len, lines)) == 40
    assert lines[-1] == "n" * 27 + "…" + "  " + "1" * 10


def test_prose() -> None:
    assert prose("  a line", 8) == ["  a line"]
    assert prose("  some words  that are many", 14) == ["  some words", "    that are", "    many"]
    assert prose("an-unbreakable-word-of-many-letters too", 10) == ["an-unbreakable-word-of-many-letters", "  too"]
    red = paint("red", "red", True)
    assert prose(f"{red} {red} {red}", 11) == [f"{red} {red} {red}"]
    assert prose(f"{red} {red} {red}", 10) == [f"{red} {red}", f"  {red}"]


LINES = [
    f"compare {TRUE} --pages 4k,thp --explain", f"run {TRUE} --mmu shadow", f"vpid {TRUE}", f"tpr {TRUE}",
    f"host {TRUE} {TRUE} --cpus 2 --one-machine --tpr apicv --traffic linux", f"tlb-curve {TRUE} --sample 0.5",
    f"migrate {TRUE} --memory 128M --rounds 12 --bandwidth 1e9 --downtime 1e-6", f"overcommit {TRUE} --memory 128M",
    "boot --schemes ept --vpid", f"replay {SYSTEM}", f"replay {SYSTEM} --schemes --memory 2G --limit 50k", "walk",
    "walk --va 8040202abc", f"maps {DATA / 'guests/pae_user'}", "trace info zstd",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_every_table_folds(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for width in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(line.split()) == 0
        out = capsys.readouterr().out
        wide = [each for each in out.splitlines() if len(each) > width]
        assert [each for each in wide if "/" not in each.strip() or " " in each.strip()] == []  # a path is one word
        found[width] = out
    numbers = [set(re.findall(r"\d[\d,.]*[kMG]?\b", out)) for out in (found[40], found[200])]
    wall = {"simulated", "run", "runs", "million", "fastmmu"} & set(found[40].split())
    assert wall or numbers[1] <= numbers[0]

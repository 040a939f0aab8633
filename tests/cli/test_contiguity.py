"""`fastmmu maps --contiguity`: tables and files say what `fastmmu.contiguity` says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import fastmmu
from fastmmu.cli import main
from fastmmu.image import read_guest

GUESTS = Path(__file__).parents[1] / "data" / "guests"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GUESTS.glob("*/meta.json")))
def test_of_recorded_guests(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest = read_guest(GUESTS / name)
    runs = fastmmu.contiguity(fastmmu.mappings(guest.memory, guest.state))
    path = tmp_path / "runs.csv"
    assert main(["maps", str(GUESTS / name), "--contiguity", "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{runs.pages:,} pages of 4 KB in {int(runs.runs.sum()):,} runs" in out
    assert f">= 512: {runs.share(512):.1%}" in out
    rows = list(csv.DictReader(path.open()))
    assert [tuple(int(row[key]) for key in ("from", "to", "runs", "pages")) for row in rows] == runs.bins()
    assert main(["maps", str(GUESTS / name), "--contiguity", "--json", "-"]) == 0
    assert sum(row["pages"] for row in json.loads(capsys.readouterr().out)["runs"]) == runs.pages

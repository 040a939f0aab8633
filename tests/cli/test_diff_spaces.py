"""`fastmmu diff` of recorded guests and images: pages added, gone, changed."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fastmmu.cli import main

GUEST = Path(__file__).parents[1] / "data/guests/l4kpti_idle"
CR3 = 0x1000


def image(path: Path, leaves: list[int]) -> str:
    """A raw image of 64 KB: tables from 1000H to 4000H, of which the last has these entries."""
    words = np.zeros(8192, np.uint64)
    words[[0x200, 0x400, 0x600]] = 0x2003, 0x3003, 0x4003
    words[0x800 : 0x800 + len(leaves)] = leaves
    path.write_bytes(words.tobytes())
    return str(path)


def test_pages_added_gone_and_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = image(tmp_path / "a", [0x5003, 0x6003, 0x7003, 0, 0x9003])
    second = image(tmp_path / "b", [0x5023, 0, 0x7001, 0xA003, 0x9003])
    assert main(["diff", first, second, "--cr3", "1000"]) == 1
    parts = capsys.readouterr().out.split("\n\n")
    said = {part.split(":\n")[0]: part.splitlines()[2:] for part in parts[:-1]}
    where = {title: [(line.split("..")[0], line.split()[-1]) for line in lines] for title, lines in said.items()}
    assert where == {
        "only the second maps": [("3000", "a000")],
        "only the first maps": [("1000", "6000")],
        "both map, and otherwise: the first": [("2000", "7000")],
        "and the second": [("2000", "7000")],
    }
    assert "rwx--" in said["both map, and otherwise: the first"][0]
    assert "r-x--" in said["and the second"][0]
    assert parts[-1] == "1 pages added, 1 gone, 1 changed\n"
    assert main(["diff", first, second, "--cr3", "1000", "--software"]) == 1
    assert capsys.readouterr().out.endswith("1 pages added, 1 gone, 2 changed\n")  # the accessed flag of the first
    assert main(["diff", first, first, "--cr3", "1000"]) == 0
    assert capsys.readouterr().out == "0 pages added, 0 gone, 0 changed\n"


def test_two_spaces_of_one_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's tables and the user's of KPTI: the latter lack pages, and have none of their own."""
    assert main(["diff", str(GUEST), str(GUEST), "--second-cr3", "2a29000", "--limit", "3"]) == 1
    out = capsys.readouterr().out
    assert "0 pages added, " in out
    assert "more ranges; --limit 0 shows all" in out


def test_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("trace,cycles\na,1\n")
    raw = image(tmp_path / "a", [0x5003])
    cases = {
        f"{raw} is memory and": [raw, str(tmp_path / "a.csv"), "--cr3", "1000"],
        "needs --cr3 too": [raw, raw],
        "--leave-out is for files of results": [str(GUEST), str(GUEST), "--leave-out", "x"],
    }
    for said, words in cases.items():
        assert main(["diff", *words]) == 2
        assert said in capsys.readouterr().err


def test_packed_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = image(tmp_path / "a", [0x5003])
    packed = tmp_path / "b.gz"
    with gzip.open(packed, "wb") as out:
        out.write(Path(raw).read_bytes())
    assert main(["diff", raw, str(packed), "--cr3", "1000"]) == 0
    assert capsys.readouterr().out == "0 pages added, 0 gone, 0 changed\n"
    assert main(["diff", str(tmp_path / "none"), raw, "--cr3", "1000"]) == 2

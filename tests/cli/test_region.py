"""--skip, --warm-up, --interval of `fastmmu run` and `compare`."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fastmmu.cli import main
from fastmmu.report import load

N = 6000


@pytest.fixture(autouse=True)
def _traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    np.save("a.npy", (0x40_0000 + (random.zipf(1.3, N).astype(np.uint64) % np.uint64(300) << np.uint64(12))))


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("command", ["run a.npy --mmu ept", "compare a.npy --schemes native,ept"])
def test_rows_of_intervals_are_the_run(command: str) -> None:
    parts = [*command.split(), "--memory", "128M", "--quiet"]
    assert main([*parts, "--warm-up", "1k", "--csv", "w.csv"]) == 0
    assert main([*parts, "--warm-up", "1k", "--interval", "700", "--csv", "i.csv", "--json", "i.json"]) == 0
    whole, intervals = rows("w.csv"), rows("i.csv")
    assert len(intervals) == len(whole) * -(-(N - 1000) // 700)
    for run in whole:
        mine = [row for row in intervals if row["scheme"] == run["scheme"]]
        assert run["first"] == "1000"
        assert [int(row["first"]) for row in mine] == list(range(1000, N, 700))
        for name in ("accesses", "tlb_misses", "vm_exits", "guest_faults"):
            assert sum(int(row[name]) for row in mine) == int(run[name])
    stored = json.loads(Path("i.json").read_text())["results"]
    assert [each["first"] for each in stored] == [int(row["first"]) for row in intervals]
    for read in (load("i.json"), load("i.csv")):
        assert [each.first for each in read] == [int(row["first"]) for row in intervals]


def test_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a.npy", "--warm-up", "1000", "--quiet"]) == 0
    assert "counted after the first 1,000 accesses" in capsys.readouterr().out
    assert main(["compare", "a.npy", "--schemes", "native,ept", "--warm-up", "1000", "--quiet"]) == 0
    assert "5,000 accesses after the first 1,000," in capsys.readouterr().out


def test_skip_comes_before_the_limit() -> None:
    assert main(["run", "a.npy", "--skip", "1k", "--limit", "2k", "--csv", "s.csv", "--quiet"]) == 0
    np.save("b.npy", np.load("a.npy")[1000:3000])
    assert main(["run", "b.npy", "--csv", "b.csv", "--quiet"]) == 0
    (skipped,), (cut,) = rows("s.csv"), rows("b.csv")
    assert skipped["content"] == cut["content"]
    assert {name for name in cut if skipped[name] != cut[name]} <= {"trace", "path", "command", "seconds"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--skip 6000", "skip fewer"),
        ("--warm-up 6000", "give fewer"),
        ("--interval 0", "--interval"),
        ("--skip -1", "--skip"),
    ],
)
def test_what_is_refused(more: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main([*["run", "a.npy", "--quiet"], *more.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("fastmmu: error: ")
    assert err.count("\n") == 1

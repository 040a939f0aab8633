"""`fastmmu run --exits FILE --plot FILE`: every exit of its runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import write_trace
from fastmmu.cli.main import main
from tests.support.event_lists import program


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        write_trace(program(4000, seed), f"{name}.npy")
    return tmp_path


def exits(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def results() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path("r.json").read_text())["results"]
    return found


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_every_exit_of_every_run(mmu: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(f"run a.npy b.npy --mmu {mmu} --exits e.csv --plot e.svg --json r.json --exit-every 100".split()) == 0
    found = exits("e.csv")
    for result in results():
        mine = [row for row in found if row["trace"] == result["trace"]]
        counters = result["counters"]
        for reason, n in counters["exits_by_reason"].items():
            assert sum(row["reason"] == reason for row in mine) == n
        priced = sum(n for cause, n in result["cycles_by"].items() if cause.startswith("exit:"))
        assert sum(float(row["cycles"]) for row in mine) == pytest.approx(priced)
        assert len(mine) == counters["vm_exits"] > 100
        times = [int(row["time"]) for row in mine]
        assert times == sorted(times)
        assert [int(row["time"]) for row in mine if row["reason"] == "cpuid"] == list(range(100, 4001, 100))
    svg = Path("e.svg").read_text()
    assert all(f">{words}" in svg for words in ("a<", "b<", "CPUID  80"))
    assert "VM exits by reason" in capsys.readouterr().out


def test_lines_of_a_tracer(place: Path) -> None:
    assert main(["run", "a.npy", "--mmu", "ept", "--exits", "e.txt", "--json", "r.json"]) == 0
    lines = Path("e.txt").read_text().splitlines()
    assert lines[0].startswith("# fastmmu ")
    assert lines[0].endswith("run a.npy --mmu ept --exits e.txt --json r.json")
    assert lines[1] == "# time stamps: accesses of the trace, as microseconds"
    assert len(lines) - 2 == results()[0]["counters"]["vm_exits"]
    assert all(" kvm_exit: " in line and line.lstrip().startswith("a-1 ") for line in lines[2:])


def test_a_native_run_has_none(place: Path) -> None:
    assert main(["run", "a.npy", "--exits", "e.csv"]) == 0
    assert exits("e.csv") == []


@pytest.mark.parametrize("more", ["--exits e.json", "--exits e", "--exits no/e.csv", "--plot e.csv", "--exits ."])
def test_refused_before_the_run(more: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a.npy", *more.split()]) == 2
    assert capsys.readouterr().out == ""
    assert {path.name for path in place.iterdir()} == {"a.npy", "b.npy"}


def test_an_error_in_the_second_trace_keeps_the_exits_of_the_first(place: Path) -> None:
    np.save("b.npy", np.array([1 << 60], np.uint64))
    assert main(["run", "a.npy", "b.npy", "--mmu", "ept", "--exits", "e.csv", "--json", "r.json"]) == 2
    assert len(results()) == 1
    assert len([row for row in exits("e.csv") if row["trace"] == "a"]) == results()[0]["counters"]["vm_exits"]


def test_a_disk_that_is_full(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs go on, their results are there; the log is not."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastmmu.report.exits.ExitFile.write", full)
    assert main(["run", "a.npy", "b.npy", "--mmu", "ept", "--exits", "e.csv", "--json", "r.json"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert len(results()) == 2
    assert not Path("e.csv").exists()

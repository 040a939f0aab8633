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
        ("--roi 3", "--warm-up N"),
        ("--roi x", "number of a mark"),
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


def test_pictures_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    command = "compare a.npy --schemes native,shadow,ept --memory 128M --quiet"
    assert main([*command.split(), "--plot", "bars.svg"]) == 0
    assert main([*command.split(), "--interval", "500", "--plot", "time.svg"]) == 0
    over_time = "run a.npy --mmu ept --memory 128M --quiet --interval 500 --plot run.svg"
    assert main(over_time.split()) == 0
    found = {name: Path(f"{name}.svg").read_text() for name in ("bars", "time", "run")}
    for word in ("native", "shadow", "EPT", "shadow fills", "EPT violations", "cycles an access"):
        assert f">{word}<" in found["bars"], word
    for word in ("native", "shadow", "EPT", "cycles an access", "TLB misses of 1000", "VM exits of 1000"):
        assert f">{word}<" in found["time"], word
    assert "accesses of the trace" in found["run"]
    capsys.readouterr()
    for more in ("--plot x.txt", "--plot no/x.svg", "--interval 9 --sample-every 3 --plot x.svg"):
        assert main([*command.split(), *more.split()]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["run", "a.npy", "--interval", "9", "--sample-every", "3", "--plot", "x.svg"]) == 2
    assert "leave --sample-every out" in capsys.readouterr().err


def test_exits_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """As many as are counted, and as many cycles as are priced."""
    command = "run a.npy --mmu shadow --memory 128M --exit-every 500 --quiet --exit-stat"
    assert main([*command.split(), "--json", "r.json"]) == 0
    out = capsys.readouterr().out
    (result,) = json.loads(Path("r.json").read_text())["results"]
    exits = sum(n for cause, n in result["cycles_by"].items() if cause.startswith("exit:"))
    assert f"a: {result['counters']['vm_exits']:,} VM exits, {exits:,.0f} cycles in them" in out
    for reason, n in (("#PF", "exception_nmi"), ("CPUID", "cpuid")):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{reason} ") and "%" in line]
        assert int(line.split()[1].replace(",", "")) == result["counters"]["exits_by_reason"][n]
    assert main([*command.split(), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["run", "a.npy", "--exit-stat", "--quiet"]) == 0
    assert "a: 0 VM exits" in capsys.readouterr().out


def test_estimates_in_files_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    command = "compare a.npy --schemes native,ept --memory 128M --quiet --interval 20 --sample-every 3 --warm-up 50"
    assert main([*command.split(), "--seed", "4", "--csv", "e.csv"]) == 0
    out = capsys.readouterr().out
    assert "95 % confidence intervals" in out
    found = rows("e.csv")
    cycles = [row for row in found if row["counter"] == "cycles"]
    assert [row["scheme"] for row in cycles] == ["native", "EPT"]
    for row in cycles:
        assert (row["interval"], row["sample_every"], row["seed"], row["warm_up"]) == ("20", "3", "4", "50")
        assert int(row["intervals"]) == pytest.approx(N / 60, abs=1)
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert float(row["total"]) == pytest.approx(float(row["mean"]) * N)
    for more, said in (
        ("--sample-every 3", "--interval"),
        ("--seed 3", "--sample-every"),
        ("--interval 20 --sample-every 3 --report r.html", "--sample-every"),
    ):
        assert main(["compare", "a.npy", "--quiet", *more.split()]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
